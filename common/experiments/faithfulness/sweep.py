"""Experiment 3 in numbers: errors of cross scores and LDS from the same sketches, measured and in closed form."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pandas as pd
from torch import Tensor

from common.experiments.bounds import cross_sweep
from common.experiments.bounds.cross_sweep import CrossTask, ExactPairs
from common.experiments.cells import cell_rows
from common.experiments.lds import sweep as lds_sweep
from common.experiments.lds.sweep import LdsTask
from common.experiments.one_sketch import score_sketch
from common.sketches.influence import SketchedProblem

# columns that both kinds of tables have
OF_CELLS = ["d_lambda", "m_over_d_lambda", "corrected_lambda"]


@dataclass(frozen=True)
class BothTasks:
    """What one sketch is asked: errors of scores of pairs, and LDS."""

    pairs: CrossTask
    """Training gradients and queries; the (m, λ)."""
    exact: list[ExactPairs]
    """Exact scores of the pairs, for every λ."""
    lds: LdsTask
    """What attribution has to predict."""


def measure(problem: SketchedProblem, m: int, trial: int, tasks: BothTasks) -> list[dict]:
    """Return one row a λ: errors of all pairs and LDS of all queries under one sketch."""

    def scores(whitened: Tensor, i: int) -> dict:
        errors = cross_sweep.pair_errors(whitened, tasks.exact[i], tasks.pairs)
        return errors | lds_sweep.scores_of(whitened, tasks.lds)

    cells = tasks.pairs.cells
    return score_sketch(problem, cells, cell_rows(cells, m, trial), scores)


def trial_table(units: pd.DataFrame, tasks: BothTasks) -> pd.DataFrame:
    """Return trials.csv: one row a (trial, m, λ)."""
    errors = cross_sweep.trial_table(_errors_alone(units), tasks.pairs)
    return errors.merge(_without_shared(lds_sweep.trial_table(units, tasks.lds)), on=["trial", "m", "lambda"])


def summarise(units: pd.DataFrame, tasks: BothTasks) -> pd.DataFrame:
    """Return one row an (m, λ): what was measured, over trials."""
    errors = cross_sweep.summarise(_errors_alone(units), tasks.pairs)
    lds = _without_shared(lds_sweep.summarise(units, tasks.lds)).drop(columns="num_trials")
    return errors.merge(lds, on=["m", "lambda"])


def predict(ms: list[int], tasks: BothTasks) -> pd.DataFrame:
    """Return one row an (m, λ) of the grid's λ: the closed form of both."""
    errors = cross_sweep.predict(replace(tasks.pairs, cells=replace(tasks.pairs.cells, ms=ms)))
    return errors.merge(_without_shared(lds_sweep.predict(ms, tasks.lds)), on=["m", "lambda"])


def _errors_alone(units: pd.DataFrame) -> pd.DataFrame:
    return units[[name for name in units if not name.endswith(("per_query", "val_resampled"))]]


def _without_shared(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop(columns=[name for name in table if name in OF_CELLS])
