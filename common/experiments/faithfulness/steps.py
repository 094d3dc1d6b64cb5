"""The steps of experiment 3 around its numbers: the tasks, the sweep, and what is printed."""

from __future__ import annotations

import functools

import pandas as pd

from common.experiments.bounds import cross_sweep
from common.experiments.bounds import steps as error_steps
from common.experiments.bounds import sweep as error_sweep
from common.experiments.faithfulness import sweep as faithfulness_sweep
from common.experiments.faithfulness.sweep import BothTasks
from common.experiments.faithfulness.verdict import FaithfulnessOfDimension, Verdict, by_m_table
from common.experiments.lds import steps as lds_steps
from common.experiments.lds import sweep as lds_sweep
from common.experiments.options.records import SelectionOptions, SharedOptions
from common.experiments.preparing.preparation import Prepared
from common.experiments.printed_table import printed
from common.experiments.run import Run, bad_values


def make_tasks(options: SelectionOptions, run: Run, prepared: Prepared) -> BothTasks:
    """Return what one sketch is asked; what it stands on is recorded."""
    lds = lds_steps.make_task(options, run, prepared)
    pairs = cross_sweep.make_task(prepared.geometry, lds.cells, options.shared.sketches.seed)
    run.record(num_pairs=pairs.num_pairs, unridged_rank=pairs.unridged_rank)
    return BothTasks(pairs, cross_sweep.exact_pairs(pairs), lds)


def measure(options: SharedOptions, run: Run, prepared: Prepared, tasks: BothTasks) -> pd.DataFrame:
    """Return one row a (trial, m, λ), those of an interrupted run included."""
    one_sketch = functools.partial(faithfulness_sweep.measure, tasks=tasks)
    return error_steps.sweep(options, run, prepared, tasks.pairs.cells, one_sketch)


def gaps(summary: pd.DataFrame) -> dict[str, float | int | None]:
    """Return how far predictions lie from measurements, of errors and of LDS."""
    return error_sweep.prediction_gaps(summary) | lds_sweep.prediction_gaps(summary)


def report(run: Run, by_m: list[FaithfulnessOfDimension], verdict: Verdict, table: pd.DataFrame) -> None:
    """Print the best λ of every m with LDS and error there, and the verdict."""
    names = {
        "m": "m",
        "lambda_star": "λ*(m)",
        "lambda_low": "from",
        "lambda_high": "to",
        "test_lds": "test LDS",
        "eps_95": "ε_95",
        "zero_eps_95": "of scores 0",
        "faithful": "faithful",
        "predicted_lambda_star": "predicted λ*(m)",
        "predicted_test_lds": "test LDS there",
        "predicted_eps_95": "ε_95 there",
    }
    shown = by_m_table(by_m)[list(names)].dropna(axis=1, how="all").rename(columns=names)
    print("\nbest λ of every m, with its 95 % interval over other queries and subset models")
    print(printed(shown, digits=3))
    if line := error_sweep.describe_gaps(run.config.get("prediction_gaps", {})):
        print(line)
    if bad := bad_values(table, "errors of pairs and rank correlations of queries"):
        print(bad)
    print(f"\n{verdict.words}")
