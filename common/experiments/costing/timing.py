"""Seconds and memory of projecting the training samples of a workload, for every projection and m of some runs."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd

from common.experiments.costing.options import CostOptions, used_dimensions
from common.experiments.costing.runs import FinishedRun
from common.experiments.projecting.options import ProjectOptions
from common.experiments.projecting.subject import ProjectionSubject, make_projection, prepare
from common.experiments.projecting.trial import time_calls
from common.foundations.distributed import ALONE
from common.foundations.errors import UserError
from common.foundations.memory import AddedMemory
from common.foundations.progress import with_progress

ENOUGH_SECONDS = 2.0


def time_projections(options: CostOptions) -> pd.DataFrame:
    """Return one row a (projection, m): what a store of all training samples takes, gradients or factors included.

    A call of the projection takes a + b·(samples) seconds, from the fastest calls of a single sample and of
    `num_samples` within ENOUGH_SECONDS each, or of as many samples as a call can have where `num_samples` take less
    than the call itself. Memory is what the larger one adds at its peak, with what the projection keeps.

    Raises:
        UserError: the checkpoint is not the one of the runs.
    """
    first = next(run for run in options.runs if used_dimensions(options, run))
    subject = prepare(_asked(options, first, used_dimensions(options, first)[0]), ALONE)
    if subject.identities["train"].checkpoint != options.runs[0].config["checkpoint_fingerprint"]:
        raise UserError(
            f"--benchmark_dir {options.workload.benchmark_dir}: the checkpoint there is not the one of the runs"
        )
    sizes = {(run.law, m): run for run in options.runs for m in used_dimensions(options, run)}
    items = with_progress("projections", sizes.items(), "size")
    return pd.DataFrame([_time(options, run, subject, m) for (_, m), run in items])


def _time(options: CostOptions, run: FinishedRun, subject: ProjectionSubject, m: int) -> dict:
    memory = AddedMemory()
    device = next(subject.subject.model.parameters()).device
    projection, _ = make_projection(_asked(options, run, m), subject.subject, subject.routes, device)
    num_train = subject.identities["train"].n
    most = min(num_train, projection.rows_at_once)
    a_call, a_sample = _call_and_sample(replace(subject, projection=projection), min(options.num_samples, most), most)
    return {
        "proj_type": run.law,
        "m": m,
        "numbers": projection.m,
        "seconds_a_call": a_call,
        "seconds_a_sample": a_sample,
        "seconds": math.ceil(num_train / projection.rows_at_once) * a_call + num_train * a_sample,
        "added_memory_bytes": memory.bytes()["added_memory_bytes"],
    }


def _call_and_sample(subject: ProjectionSubject, many: int, most: int) -> tuple[float, float]:
    found = time_calls(subject, 1, many, ENOUGH_SECONDS)
    a_call, a_sample = found
    if many < most and many * a_sample < a_call:  # the difference of both calls would be mostly noise
        found = time_calls(subject, 1, most, ENOUGH_SECONDS)
    return found


def _asked(options: CostOptions, run: FinishedRun, m: int) -> ProjectOptions:
    return ProjectOptions(
        workload=options.workload,
        modules=(),
        kind=run.options["proj_type"],
        m=m,
        kronecker_ranks=run.kronecker_ranks,
        seed=run.options["seed"],
        store=None,
        dtype="float32",
        scale="none",
        batch_size=options.batch_size,
        device=options.device,
        limit=None,
        timeout=1.0,
    )
