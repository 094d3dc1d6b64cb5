"""A user's own model and data: the workload that a file's `make_workload()` returns, checked before anything is run."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import torch

from common.foundations.errors import UserError
from common.foundations.seeds import isolated_rng
from common.workloads.checks import check_training, check_workload, one_line
from common.workloads.names import check_file
from common.workloads.records import Workload

FUNCTION = "make_workload"
MODULE = "user_workload_file"


def load_user_workload(path: Path, num_train: int | None = None) -> Workload:
    """Return the workload that a Python file makes, its training set cut to the first `num_train` samples.

    Args:
        path: file with a function `make_workload()` that returns a Workload; it may import its neighbours.
        num_train: training samples to keep; None for all.

    Raises:
        UserError: one line that names the first mistake in the file, or `num_train` exceeds the training set.
    """
    workload = _load(path)
    if num_train is None or num_train == len(workload.train):
        return workload
    if num_train > len(workload.train):
        raise UserError(f"--num_train {num_train} exceeds the {len(workload.train)} training samples of {path}")
    cut = replace(workload, train=workload.train.subset(slice(num_train)))
    with naming(path):
        check_training(cut, path.resolve())
    return without_ground_truth(cut, f"--num_train {num_train}")


def without_ground_truth(workload: Workload, option: str) -> Workload:
    """Return the workload without the ground truth that it brings, if any, and say that `option` makes it wrong."""
    if workload.ground_truth is not None:
        print(f"{option}: the ground_truth of {workload.name} belongs to other training and is left out")
    return replace(workload, ground_truth=None)


@functools.lru_cache(maxsize=1)
def _load(path: Path) -> Workload:
    """Run the file and check its workload, once a process: its name is needed before the run folder, its data after."""
    check_file(path)
    # what the file does to torch's global generators must not reach the experiment
    with naming(path), isolated_rng(), _neighbours_importable(path):
        return check_workload(_run(path.resolve()), path.resolve())


def _run(path: Path) -> object:
    spec = importlib.util.spec_from_file_location(MODULE, path)
    # python has a loader of every file named .py
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look up the module that defines them by name
    sys.modules[MODULE] = module
    # leaves gradients enabled, as they were, where the file disables them
    with torch.enable_grad():
        with one_line("importing it", path):
            spec.loader.exec_module(module)
        make_workload = getattr(module, FUNCTION, None)
        if not callable(make_workload):
            raise UserError(f"it has no function {FUNCTION}(); it must have one that returns a common.records.Workload")
        with one_line(f"{FUNCTION}()", path):
            return make_workload()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the option and the file before what is wrong with it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"--workload {path}: {error}") from error


@contextmanager
def _neighbours_importable(path: Path) -> Iterator[None]:
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(folder)
