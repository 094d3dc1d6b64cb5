"""Experiment 4 in numbers: scores of K-FAC and EK-FAC block by block, errors of both kinds of sketch, LDS, tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pandas as pd
import torch
from torch import Tensor

from common.curvature.coordinates import EKFAC, KFAC, BlockCoordinates
from common.curvature.factors import FactoredBlock
from common.curvature.scores import cross_influence, mean_eigenvalue, self_influence
from common.curvature.sketches import decoupled, joint, kept_size
from common.experiments.lds import sweep as lds_sweep
from common.experiments.lds.sweep import LdsTask
from common.experiments.metrics import error_statistics, lds_per_query
from common.foundations.errors import UserError
from common.theory.binned_spectrum import binned
from common.theory.block_sums import Cumulants, predicted_errors, side_by_side, sketched, whole
from common.theory.kronecker import dimension_of, factorised_dimensions

FULL = "full"
"""Name of F itself beside the curvatures."""
DECOUPLED, JOINT = "decoupled", "joint"
"""Kinds of sketches."""
CELL = ["kind", "m_a", "m_e", "lambda"]
STATISTICS = ["mean_ratio", "eps_mean", "eps_50", "eps_95", "eps_99", "eps_max", "num_bad"]


@dataclass(frozen=True)
class Ridges:
    """The ridges λ of a run, and what they are for one block."""

    values: tuple[float, ...]
    """λ, ascending, as the tables name them."""
    relative: bool
    """Whether a block's own ridge is that times the mean eigenvalue of its curvature, tr F_l/d_l."""

    def of(self, eigenvalues: Tensor, name: str) -> Tensor:
        """Return the (ridges,) float64 λ_l of the block `name` with (rows, cols) eigenvalues, on their device.

        Raises:
            UserError: λ is relative, and the curvature is zero.
        """
        unit = mean_eigenvalue(eigenvalues) if self.relative else 1.0
        if not unit > 0:
            raise UserError(f"--lambda_scale relative: the curvature of {name} is zero, so that it has no scale")
        return torch.tensor(self.values, dtype=torch.float64).to(eigenvalues.device) * unit


@dataclass
class ExactScores:
    """Scores without a sketch, summed over the blocks seen so far; name of the curvature -> scores."""

    own: dict[str, Tensor]
    """(ridges, k) float64 φ of the queries."""
    cross: dict[str, Tensor]
    """(ridges, S, k) float64 B between subset sums and queries."""

    def add(self, part: BlockCoordinates, ridges: Ridges) -> Tensor:
        """Add those of one block; return its own (ridges, k) φ with K-FAC, on the CPU."""
        found = {}
        for name, eigenvalues in part.eigenvalues.items():
            solved = ridges.of(eigenvalues, part.factored.block.name)
            found[name] = self_influence(eigenvalues, part.queries, solved)
            cross = cross_influence(eigenvalues, part.subset_sums, part.queries, solved)
            self.own[name] = self.own[name] + found[name] if name in self.own else found[name]
            self.cross[name] = self.cross[name] + cross if name in self.cross else cross
        return found[KFAC].cpu()


@dataclass(frozen=True)
class SketchTask:
    """Which sketches of which blocks."""

    parts: Sequence[BlockCoordinates]
    """Blocks of one group."""
    own: Sequence[Tensor]
    """(ridges, k) exact φ of each with K-FAC."""
    first: int
    """Number of the first of them among all blocks."""
    sizes: Sequence[tuple[int, int]]
    """(m_A, m_E)."""
    ridges: Ridges
    """λ."""
    seed: int
    """Of the sketches."""


def measure(task: SketchTask, trial: int) -> list[dict]:
    """Return one row a kind, (m_A, m_E) and λ: φ̃ of every query summed over the blocks, and the errors block by block.

    `scores` is None where a sketch of a block is too large to be drawn, which only the joint kind can be.
    """
    rows: dict[tuple[str, tuple[int, int]], list[dict]] = {}
    for number, (part, own) in enumerate(zip(task.parts, task.own, strict=True), task.first):
        for (kind, size), m, scores in _sketches(part, own, task, (task.seed, trial, number)):
            empty = [_empty_row(kind, size, ridge) for ridge in task.ridges.values]
            for i, row in enumerate(rows.setdefault((kind, size), empty)):
                row["m"] += m
                if scores is None or row["scores"] is None:
                    row["scores"] = None
                else:
                    row["scores"] = row["scores"] + scores[i]
                if scores is not None:
                    errors = error_statistics(scores[i] / own[i])
                    row["blocks"][part.factored.block.name] = [m, errors.mean_ratio, errors.eps_95, errors.num_bad]
    found = [row for group in rows.values() for row in group]
    for row in found:
        row["scores"] = None if row["scores"] is None else row["scores"].tolist()
    return found


def _empty_row(kind: str, size: tuple[int, int], ridge: float) -> dict:
    return {
        "kind": kind,
        "m_a": size[0],
        "m_e": size[1],
        "lambda": ridge,
        "m": 0,
        "scores": torch.zeros(()),
        "blocks": {},
    }


def _sketches(part: BlockCoordinates, own: Tensor, task: SketchTask, entropy: tuple[int, ...]):
    """Yield (kind, size), numbers kept, and (ridges, k) scores or None, for every size and both kinds."""
    factored = part.factored
    ridges = task.ridges.of(factored.eigenvalues, factored.block.name)
    kept = {size: kept_size(factored, *size) for size in task.sizes}
    apart = decoupled(factored, part.queries, task.sizes, ridges, entropy)
    together = joint(factored, part.queries, sorted(set(kept.values())), ridges, entropy)
    for size, m in kept.items():
        yield (DECOUPLED, size), m, apart[size].cpu()
        whole = m == factored.block.size
        yield (JOINT, size), m, own if whole else together[m].cpu() if m in together else None


def joint_law(part: BlockCoordinates, own: Tensor, sizes: Sequence[tuple[int, int]], ridges: Ridges) -> Cumulants:
    """Return the law of φ̃ of one block under joint sketches, (k, sizes * ridges), the ridges of the first size first.

    `own` is its (ridges, k) exact φ with K-FAC.
    """
    factored = part.factored
    solved = ridges.of(factored.eigenvalues, factored.block.name).cpu()
    spectrum = binned(factored.eigenvalues.flatten())
    energies = spectrum.energies(part.queries.flatten(1).square())
    found = {}
    for m in {kept_size(factored, *size) for size in sizes}:
        is_whole = m == factored.block.size
        found[m] = whole(own.T) if is_whole else sketched(spectrum, energies, torch.full_like(solved, m), solved)
    return side_by_side([found[kept_size(factored, *size)] for size in sizes])


def predict(law: Cumulants, own: Tensor, sizes: Sequence[tuple[int, int]], ridges: Ridges) -> pd.DataFrame:
    """Return one row an (m_A, m_E) and λ: the closed form of joint sketches, from the laws of all blocks together.

    `own` is the (ridges, k) exact φ of the model with K-FAC.
    """
    found = predicted_errors(law, own.T.cpu().repeat(1, len(sizes)))
    cells = [{"kind": JOINT, "m_a": m_a, "m_e": m_e, "lambda": ridge} for m_a, m_e in sizes for ridge in ridges.values]
    return pd.DataFrame(cells).assign(**{f"predicted_{name}": value.tolist() for name, value in vars(found).items()})


def summarise(units: pd.DataFrame, own: Tensor, ridges: Ridges, d_lambda: Sequence[float]) -> pd.DataFrame:
    """Return summary.csv but for predictions: one row a kind, (m_A, m_E) and λ, with errors of φ̃ of the whole model.

    Args:
        units: rows of `measure` with columns `trial` and `group`.
        own: (ridges, k) exact φ of K-FAC, summed over all blocks.
        ridges: λ.
        d_lambda: Σ_l d_λ(A_l ⊗ E_l) for every λ.
    """
    exact = dict(zip(ridges.values, own.cpu(), strict=True))
    dimension = dict(zip(ridges.values, d_lambda, strict=True))
    rows = []
    for (kind, m_a, m_e, ridge), cell in units.groupby(CELL, sort=True):
        trials = [_ratios(trial["scores"], exact[ridge]) for _, trial in cell.groupby("trial")]
        drawn = [ratios for ratios in trials if ratios is not None]
        m = int(cell.groupby("trial")["m"].sum().iloc[0])
        row = {"kind": kind, "m_a": m_a, "m_e": m_e, "m": m, "lambda": ridge, "d_lambda": dimension[ridge]}
        row |= {"m_over_d_lambda": m / dimension[ridge] if dimension[ridge] else math.nan}
        row |= {"num_trials": len(drawn), "num_queries": own.shape[1]}
        pooled = asdict(error_statistics(torch.cat(drawn))) if drawn else {}
        row |= {name: pooled.get(name, 0 if name == "num_bad" else math.nan) for name in STATISTICS}
        row["eps_95_std"] = pd.Series([error_statistics(ratios).eps_95 for ratios in drawn], dtype=float).std()
        rows.append(row)
    return pd.DataFrame(rows)


def _ratios(groups: pd.Series, exact: Tensor) -> Tensor | None:
    if any(not isinstance(scores, list) for scores in groups):
        return None
    return torch.tensor(groups.tolist(), dtype=torch.float64).sum(0) / exact


def block_errors(units: pd.DataFrame) -> pd.DataFrame:
    """Return layer_errors.csv: one row a block, kind, (m_A, m_E) and λ that was drawn, with means over the trials."""
    rows = [
        {
            "block": name,
            **{column: unit[column] for column in CELL},
            "m": m,
            "mean_ratio": mean,
            "eps_95": eps,
            "num_bad": bad,
        }
        for unit in units.to_dict("records")
        for name, (m, mean, eps, bad) in unit["blocks"].items()
    ]
    groups = pd.DataFrame(rows).groupby(["block", *CELL], sort=False)
    table = groups[["m"]].first()
    table["num_trials"] = groups.size()
    table[["mean_ratio", "eps_95"]] = groups[["mean_ratio", "eps_95"]].mean()
    table["eps_95_std"] = groups["eps_95"].std()
    table["num_bad"] = groups["num_bad"].sum()
    return table.reset_index()


def block_table(parts: Sequence[BlockCoordinates], fishers: dict[str, Tensor], ridges: Ridges) -> pd.DataFrame:
    """Return rows of layers.csv: one a block and λ, with the effective dimensions of each curvature.

    `fishers` are the eigenvalues of the empirical Fisher of the blocks where they are known.
    """
    return pd.concat([_block_rows(part, fishers, ridges) for part in parts], ignore_index=True)


def _block_rows(part: BlockCoordinates, fishers: dict[str, Tensor], ridges: Ridges) -> pd.DataFrame:
    factored, block = part.factored, part.factored.block
    solved = {name: ridges.of(values, block.name) for name, values in part.eigenvalues.items()}
    needed = factorised_dimensions(factored.a.eigenvalues, factored.e.eigenvalues, solved[KFAC])
    table = pd.DataFrame(_description(factored) | {"lambda": ridges.values})
    for name, values in part.eigenvalues.items():
        table[f"ridge_{name}"] = solved[name].tolist()
        table[f"d_lambda_{name}"] = dimension_of(values, solved[name]).tolist()
    table["d_lambda_a"], table["d_lambda_e"] = needed.of_a.tolist(), needed.of_e.tolist()
    table["d_lambda_factorised"] = needed.product.tolist()
    own = fishers.get(block.name)
    # the trace of the corrected eigenvalues is that of F_l, so a relative ridge is the same
    table["d_lambda_fisher"] = math.nan if own is None else dimension_of(own, solved[EKFAC]).tolist()
    return table


def _description(factored: FactoredBlock) -> dict[str, object]:
    block = factored.block
    names = " ".join(parameter.name for parameter in block.parameters)
    shape = {"kind": block.kind, "rows": block.rows, "cols": block.cols, "positions": factored.positions}
    return {"block": block.name, "parameters": names, **shape}


def lds_table(scores: ExactScores, task: LdsTask, ridges: Ridges, dimensions: dict[str, list[float]]) -> pd.DataFrame:
    """Return lds.csv: one row a curvature and λ, F itself among them.

    Args:
        scores: of all blocks.
        task: losses after retraining, and the scores of F itself.
        ridges: λ.
        dimensions: curvature -> effective dimension for every λ.
    """
    tables = []
    for name in (KFAC, EKFAC, FULL):
        if name == FULL:
            units = lds_sweep.exact_rows(task)
        else:
            per_query = [lds_per_query(cross.cpu(), task.loss_ranks).tolist() for cross in scores.cross[name]]
            cells = {"trial": 0, "m": math.inf, "lambda": task.cells.ridges, "per_query": per_query}
            units = pd.DataFrame(cells)
        table = lds_sweep.summarise(units, task).drop(columns=["m", "m_over_d_lambda", "num_trials"])
        table["lambda"], table["d_lambda"] = ridges.values, dimensions[name]
        table.insert(0, "curvature", name)
        tables.append(table.drop(columns=["val_lds_std", "test_lds_std"]))
    return pd.concat(tables, ignore_index=True)


def best_rows(lds: pd.DataFrame) -> pd.DataFrame:
    """Return the row of lds.csv with the highest validation LDS of each curvature that has any."""
    valid = lds.dropna(subset="val_lds")
    return valid.loc[valid.groupby("curvature", sort=False)["val_lds"].idxmax()]
