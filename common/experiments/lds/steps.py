"""The steps of experiment 2 around its numbers: the task, the sweep, the choices, and what is printed."""

from __future__ import annotations

import dataclasses
import functools
from contextlib import nullcontext

import pandas as pd

from common.experiments.cells import Cells
from common.experiments.lds import advice as lds_advice
from common.experiments.lds import ridge_path
from common.experiments.lds import sweep as lds_sweep
from common.experiments.lds.reference_loss import reference_loss
from common.experiments.lds.ridge_path import JointChoice, RidgeOfDimension
from common.experiments.lds.selection import Selection, recommendation
from common.experiments.lds.sweep import LdsTask
from common.experiments.options.records import SelectionOptions, SharedOptions, SketchOptions
from common.experiments.preparing.device import choose_device
from common.experiments.preparing.preparation import Prepared, load_model, make_sketcher
from common.experiments.preparing.ridges import describe_miss
from common.experiments.printed_table import printed
from common.experiments.run import Run, bad_values
from common.experiments.units import UnitLog, measure_missing
from common.foundations.distributed import Ranks
from common.foundations.errors import UserError
from common.workloads.benchmark import load_ground_truth


def make_task(options: SelectionOptions, run: Run, prepared: Prepared) -> LdsTask:
    """Return what attribution has to predict, the queries split into those that select and those that only judge."""
    shared = options.shared
    with run.phase("ground truth"):
        folder = shared.workload.benchmark_dir
        truth = load_ground_truth(prepared.workload, folder, options.num_subsets, prepared.device)
    num_queries = len(prepared.query_samples)
    num_val = round(options.val_ratio * num_queries)
    if not 0 < num_val < num_queries:
        raise UserError(
            f"--val_ratio {options.val_ratio:g} of {num_queries} queries leaves {num_val} to select and "
            f"{num_queries - num_val} to judge; both must be at least 1"
        )
    run.record(num_val_queries=num_val, num_test_queries=num_queries - num_val, ridges=prepared.ridges)
    if line := describe_miss(shared.grid, prepared.spectrum, prepared.effective_dimensions):
        print(line)
    d_lambda, correction = prepared.effective_dimensions, shared.grid.ridge_correction
    law = prepared.sjlt_columns, shared.sketches.has_law
    cells = Cells(prepared.spectrum, prepared.ms, prepared.ridges, d_lambda, correction, *law)
    return lds_sweep.make_task(prepared.geometry, truth, prepared.query_samples, cells, num_val, shared.queries.seed)


def make_ground_truth(options: SelectionOptions, ranks: Ranks) -> None:
    """Make what attribution has to predict before anything else, its groups of subset models shared among the ranks."""
    choice = options.shared.workload
    device = choose_device(options.shared.gradients.device)
    workload, _ = ranks.first_alone(lambda: load_model(choice, device, lambda name: nullcontext(), options.num_subsets))
    load_ground_truth(workload, choice.benchmark_dir, options.num_subsets, device, ranks=ranks)


def exact_table(prepared: Prepared, task: LdsTask) -> pd.DataFrame:
    """Return the rows of summary.csv with m = inf: exact scores, or those of the reference with what it has lost."""
    exact = lds_sweep.summarise(lds_sweep.exact_rows(task), task)
    return exact if prepared.streamed is None else exact.merge(reference_loss(task, exact))


def sweep(options: SharedOptions, run: Run, prepared: Prepared, task: LdsTask, ms: list[int]) -> pd.DataFrame:
    """Return one row a (trial, m, λ), those of an interrupted run included."""
    cells = dataclasses.replace(task.cells, ms=ms)
    beside_the_grid = {m: [ridge] for m, ridge in task.path.items()}
    sketcher = make_sketcher(options.sketches, prepared, cells.smallest_ridge(beside_the_grid))
    log = UnitLog(run.folder, run.identity(), options.fresh)
    measure = functools.partial(lds_sweep.measure, task=task)
    with run.phase("sketches"):
        return measure_missing(log, sketcher, ms, options.sketches.num_trials, measure)


def choices(
    selection: Selection | None, path: list[RidgeOfDimension], joint: JointChoice | None, advice: dict | None
) -> dict:
    """Return selection.json: what was chosen by utility, by theory, and by the closed form."""
    chosen = dataclasses.asdict(selection) if selection else {}
    together = {"joint": ridge_path.joint_record(joint)} if joint else {}
    by_m = [dataclasses.asdict(record) for record in path]
    return chosen | together | {"by_m": by_m, "predicted_choice": advice}


def report(
    run: Run,
    sketches: SketchOptions,
    selection: Selection | None,
    path: list[RidgeOfDimension],
    joint: JointChoice | None,
    advice: dict | None,
    table: pd.DataFrame,
) -> None:
    """Print the choices, how sure they are, what speaks against them, and a recommendation."""
    if selection is not None and joint is not None:
        print(f"\nbest λ of every m, with its 95 % interval over other queries and subset models\n{_path_table(path)}")
        print(f"\nutility-driven: {ridge_path.joint_sentence(joint, path)}")
        print(f"at one λ for every m: {recommendation(selection)}")
        for choice in selection.theory_m:
            lds = "beyond the grid" if choice.grid_m is None else f"m = {choice.grid_m}: test LDS {choice.test_lds:.3f}"
            print(f"theory-driven, ε = {choice.epsilon:g}: d_λ*/ε² = {choice.m_exact:.0f}, {lds}")
        gaps = run.config["prediction_gaps"]
        if gaps["test_lds_gap_median"] is not None:
            print(
                f"predicted against measured test LDS (m >= 64): median gap {gaps['test_lds_gap_median']:.4f}, "
                f"worst {gaps['test_lds_gap_worst']:.4f} over {gaps['test_lds_gap_cells']} cells"
            )
        for warning in selection.warnings:
            print(f"warning: {warning}")
    if bad := bad_values(table, "rank correlations of queries"):
        print(bad)
    print(lds_advice.advice_sentence(advice, sketches.has_law))


def _path_table(path: list[RidgeOfDimension]) -> str:
    table = pd.DataFrame([dataclasses.asdict(record) for record in path])
    names = {
        "m": "m",
        "lambda_star": "λ*(m)",
        "lambda_low": "from",
        "lambda_high": "to",
        "val_lds": "val LDS",
        "test_lds": "test LDS",
        "predicted_lambda_star": "predicted λ*(m)",
        "measured_test_lds_at_predicted": "test LDS there",
    }
    shown = table[list(names)].dropna(axis=1, how="all").rename(columns=names)
    return printed(shown, digits=3)
