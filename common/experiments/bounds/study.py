"""Which scores experiment 1 sketches: self-influence of the queries, or scores of all pairs with training gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import pandas as pd
from torch import Tensor

from common.experiments.bounds import cross_figure, cross_sweep, slopes
from common.experiments.bounds import figure as spectrum_figure
from common.experiments.bounds import sweep as error_sweep
from common.experiments.bounds.cross_sweep import CrossTask, ExactPairs
from common.experiments.cells import Cells
from common.experiments.options.records import BoundsOptions
from common.experiments.preparing.preparation import Prepared
from common.experiments.printed_table import printed
from common.experiments.run import Run
from common.sketches.geometry import Geometry
from common.sketches.influence import SketchedProblem


class ErrorStudy(Protocol):
    """What the script asks of either kind of scores."""

    @property
    def counted(self) -> str:
        """What `num_bad` counts."""

    def measure(self, problem: SketchedProblem, m: int, trial: int) -> list[dict]:
        """Return one row a λ: the errors under one sketch."""

    def trial_table(self, units: pd.DataFrame) -> pd.DataFrame:
        """Return trials.csv."""

    def summarise(self, units: pd.DataFrame) -> pd.DataFrame:
        """Return one row an (m, λ): what was measured, over trials."""

    def predict(self) -> pd.DataFrame:
        """Return one row an (m, λ): the closed form."""

    def recommend(self, target: float, num_parameters: int) -> pd.DataFrame:
        """Return one row a λ: the smallest m < d whose predicted ε_95 is at most `target`."""

    def write_more(self, run: Run, prepared: Prepared, table: pd.DataFrame, trials: pd.DataFrame | None) -> None:
        """Write what only this kind of scores has; `table` is summary.csv, `trials` trials.csv."""

    def draw(self, run: Run, prepared: Prepared, table: pd.DataFrame, title: str) -> None:
        """Write the figure."""


def make_study(options: BoundsOptions, run: Run, prepared: Prepared, cells: Cells) -> ErrorStudy:
    """Return the study asked for; what it stands on is recorded and said."""
    geometry, seed = prepared.geometry, options.shared.sketches.seed
    if options.cross is None:
        return SelfStudy(cells, geometry, error_sweep.exact_scores(cells, geometry), seed)
    task = cross_sweep.make_task(geometry, cells, seed)
    num_train = len(geometry.train)
    print(f"pairs: {num_train} training gradients with {len(geometry.queries)} queries")
    print(f"φ₀ by the {task.unridged_rank} largest eigenvalues of F, those above 1e-12 tr F (rank {geometry.rank})")
    run.record(num_pairs=task.num_pairs, unridged_rank=task.unridged_rank)
    return CrossStudy(task, cross_sweep.exact_pairs(task))


@dataclass(frozen=True)
class SelfStudy:
    """Self-influence φ̃_λ(q) of the queries."""

    cells: Cells
    """The (m, λ) of the run."""
    geometry: Geometry
    """Coordinates of the queries."""
    exact: list[Tensor]
    """(k,) φ_λ(q) for every λ."""
    seed: int
    """Of the bootstrap over trials."""

    @property
    def counted(self) -> str:
        """What `num_bad` counts."""
        return "ratios of sketched to exact scores"

    def measure(self, problem: SketchedProblem, m: int, trial: int) -> list[dict]:
        """Return one row a λ: the ratio φ̃_λ/φ_λ of every query under one sketch."""
        return error_sweep.measure(problem, m, trial, self.cells, self.exact)

    def trial_table(self, units: pd.DataFrame) -> pd.DataFrame:
        """Return trials.csv."""
        return error_sweep.trial_table(units)

    def summarise(self, units: pd.DataFrame) -> pd.DataFrame:
        """Return one row an (m, λ): what was measured, over trials."""
        table = error_sweep.summarise(units, self.seed)
        return table.assign(
            gaussian_equivalent_m=error_sweep.gaussian_equivalent(table, self.cells, self.geometry.queries)
        )

    def predict(self) -> pd.DataFrame:
        """Return one row an (m, λ): the closed form."""
        return error_sweep.predict(self.cells, self.geometry.queries)

    def recommend(self, target: float, num_parameters: int) -> pd.DataFrame:
        """Return one row a λ: the smallest m < d whose predicted ε_95 is at most `target`."""
        return error_sweep.recommend(self.cells, self.geometry.queries, target, num_parameters)

    def write_more(self, run: Run, prepared: Prepared, table: pd.DataFrame, trials: pd.DataFrame | None) -> None:
        """Write nothing more."""

    def draw(self, run: Run, prepared: Prepared, table: pd.DataFrame, title: str) -> None:
        """Write the figure."""
        spectrum_figure.draw_spectrum_bounds(run.folder, table, prepared.spectrum, prepared.geometry.rank, title)


@dataclass(frozen=True)
class CrossStudy:
    """Scores B̃_λ(g, q) of all pairs of some training gradients and the queries."""

    task: CrossTask
    """The pairs and the (m, λ) of the run."""
    exact: list[ExactPairs]
    """Their exact scores for every λ."""

    @property
    def counted(self) -> str:
        """What `num_bad` counts."""
        return "errors of pairs"

    def measure(self, problem: SketchedProblem, m: int, trial: int) -> list[dict]:
        """Return one row a λ: the errors of all pairs under one sketch."""
        return cross_sweep.measure(problem, m, trial, self.task, self.exact)

    def trial_table(self, units: pd.DataFrame) -> pd.DataFrame:
        """Return trials.csv."""
        return cross_sweep.trial_table(units, self.task)

    def summarise(self, units: pd.DataFrame) -> pd.DataFrame:
        """Return one row an (m, λ): what was measured, over trials."""
        return cross_sweep.summarise(units, self.task)

    def predict(self) -> pd.DataFrame:
        """Return one row an (m, λ): the closed form."""
        return cross_sweep.predict(self.task)

    def recommend(self, target: float, num_parameters: int) -> pd.DataFrame:
        """Return one row a λ: the smallest m >= d_λ, < d whose predicted ε_95 is at most `target`, over 2,000 pairs.

        Beside it stands the ε_95 of scores that are all 0. Where that reaches the target, no m is recommended: most
        pairs have nearly no score, and the target does not tell a sketch from none.
        """
        pairs = cross_sweep.sampled_pairs(self.task)
        table = error_sweep.recommend_for_pairs(self.task.cells, *pairs, target, num_parameters)
        table["zero_eps_95"] = cross_sweep.zero_errors(self.exact)
        table.loc[table["zero_eps_95"] <= target, error_sweep.RECOMMENDED] = pd.NA
        return table

    def write_more(self, run: Run, prepared: Prepared, table: pd.DataFrame, trials: pd.DataFrame | None) -> None:
        """Write queries.csv and slopes.csv, and print the slopes of the parts that the theorem speaks of."""
        run.write_table("queries.csv", cross_sweep.query_table(self.task, prepared.query_samples))
        errors = [f"{prefix}{name}" for prefix in self.task.cells.corrections for name in self.task.errors]
        if trials is not None:
            errors = [name for name in errors if f"{name}_95" in trials]
        fitted = slopes.slope_table(errors, table, trials)
        run.write_table("slopes.csv", fitted)
        shown = fitted[fitted["error"].isin(["eps", "kernel_eps"])].dropna(subset="predicted_slope")
        if shown.empty:
            print("\nno slope of ε_95 in m: fewer than three m >= 4 d_λ at every λ")
            return
        print("\nslope of log ε_95 in log m, m >= 4 d_λ (the theorem's term falls like m^(-1/2))")
        print(printed(shown))

    def draw(self, run: Run, prepared: Prepared, table: pd.DataFrame, title: str) -> None:
        """Write the figure."""
        title += f", scores of {len(self.task.geometry.train)} training gradients"
        cross_figure.draw_cross_errors(run.folder, table, prepared.spectrum, prepared.geometry.rank, title)
