"""The steps of experiment 4 around its numbers: factors, spectra of layers, the sweep over blocks, what is printed."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from common.curvature import coordinates, fisher
from common.curvature.blocks import find_blocks, without_block
from common.curvature.coordinates import EKFAC, KFAC, BlockCoordinates
from common.curvature.factors import FactoredBlock, fit
from common.experiments.curvature import sweep as curvature_sweep
from common.experiments.curvature.sweep import DECOUPLED, FULL, JOINT, ExactScores, Ridges, SketchTask
from common.experiments.options.records import CurvatureOptions
from common.experiments.preparing.preparation import Prepared
from common.experiments.run import Run, bad_values
from common.experiments.units import UnitLog
from common.foundations.progress import progress_bar
from common.gradients.layer_factors import LayerFactors
from common.theory.block_sums import Cumulants


@dataclass(frozen=True)
class Curvature:
    """The factored curvature of a model, and how to go over its gradients again."""

    blocks: list[FactoredBlock]
    """All blocks, in the order of the parameters."""
    layers: LayerFactors
    """Factors of gradients."""
    fishers: dict[str, Tensor]
    """Eigenvalues of the empirical Fisher of the blocks where it is affordable."""


@dataclass(frozen=True)
class Measured:
    """What the sweep over all blocks gives."""

    scores: ExactScores
    """Of the whole model, without a sketch."""
    layers: pd.DataFrame
    """layers.csv."""
    units: pd.DataFrame
    """Rows of `curvature_sweep.measure` with their trial and group."""
    predicted: pd.DataFrame
    """Of joint sketches, in closed form."""


def make_ridges(options: CurvatureOptions, prepared: Prepared) -> Ridges:
    """Return the λ of the run: those that F resolves, in the units of --lambda_scale."""
    grid = options.selection.shared.grid
    return Ridges(tuple(grid.ridges(1.0)[-len(prepared.ridges) :]), grid.lambda_scale == "relative")


def fit_curvature(run: Run, prepared: Prepared) -> Curvature:
    """Return the factors of every block, and the spectra of the empirical Fishers that are affordable."""
    plan, num_train = prepared.plan, len(prepared.workload.train)
    layers = LayerFactors(plan.model, plan.workload.loss, plan.routes)
    with run.phase("factors"):
        looked_at = plan.examples.subset(torch.tensor(plan.checked.rows)).to(plan.device)
        blocks = find_blocks(list(layers(looked_at)))
        train = layers.batches(plan.parts[0][1], plan.batch_size, plan.device)
        factored = fit(blocks, train, num_train, plan.device)
    missing = without_block(layers.parameters, blocks)
    if missing:
        print(f"{len(missing)} parameters have no gradient at any sample, and no curvature: {', '.join(missing)}")
    counts = pd.Series([block.kind for block in blocks]).value_counts()
    print("blocks of the curvature: " + ", ".join(f"{count} of the kind {kind}" for kind, count in counts.items()))
    spectra: dict[str, Tensor] = {}
    affordable = [block for block in blocks if fisher.is_affordable(block, num_train)]
    if len(affordable) < len(blocks):
        print(f"d_λ of the empirical Fisher: too large for {len(blocks) - len(affordable)} of {len(blocks)} blocks")
    if affordable:
        rows = prepared.rows()
        with run.phase("spectra of layers"):
            spectra = fisher.spectra(rows, affordable, num_train)
    run.record(blocks=len(blocks), parameters_without_block=missing)
    return Curvature(factored, layers, spectra)


def sweep(options: CurvatureOptions, run: Run, prepared: Prepared, curvature: Curvature, ridges: Ridges) -> Measured:
    """Return exact scores, effective dimensions and errors of sketches, those of an interrupted run included.

    Blocks come in groups whose coordinates fit in memory; each group takes one pass over the samples.
    """
    shared = options.selection.shared
    run.record(ms=sorted({m_a * m_e for m_a, m_e in options.sizes}))
    log = UnitLog(run.folder, run.identity(), shared.fresh)
    scores, layers = ExactScores({}, {}), []
    law: Cumulants | None = None
    groups = _groups(prepared, curvature)
    first = 0
    with progress_bar("sketches", len(groups) * shared.sketches.num_trials) as progress:
        for number, group in enumerate(groups):
            with run.phase("coordinates"):
                parts = _gather(prepared, curvature, group)
            with run.phase("exact scores"):
                own = [scores.add(part, ridges) for part in parts]
                layers.append(curvature_sweep.block_table(parts, curvature.fishers, ridges))
            with run.phase("prediction"):
                for part, exact in zip(parts, own, strict=True):
                    one = curvature_sweep.joint_law(part, exact, options.sizes, ridges)
                    law = one if law is None else law + one
            task = SketchTask(parts, own, first, options.sizes, ridges, shared.sketches.seed)
            first += len(parts)
            with run.phase("sketches"):
                for trial in range(shared.sketches.num_trials):
                    if (trial, number) not in log:
                        log.append(trial, number, curvature_sweep.measure(task, trial))
                    progress.update()
    rows = (
        {"trial": trial, "group": number, **row}
        for (trial, number), found in sorted(log.units.items())
        for row in found
    )
    assert law is not None  # a model has a block
    predicted = curvature_sweep.predict(law, scores.own[KFAC], options.sizes, ridges)
    return Measured(scores, pd.concat(layers, ignore_index=True), pd.DataFrame(rows), predicted)


def _groups(prepared: Prepared, curvature: Curvature) -> list[list[FactoredBlock]]:
    scored = prepared.geometry.scored
    assert scored.subsets is not None  # there is a ground truth to predict
    return coordinates.groups(curvature.blocks, len(scored.subsets), len(scored.query_rows))


def _gather(prepared: Prepared, curvature: Curvature, group: list[FactoredBlock]) -> list[BlockCoordinates]:
    plan, geometry = prepared.plan, prepared.geometry
    norms = geometry.norms
    assert geometry.scored.subsets is not None
    subsets = geometry.scored.subsets.to(plan.device)
    num_train = len(plan.parts[0][1])
    members = torch.zeros(len(subsets), num_train, dtype=torch.float64, device=plan.device).scatter_(1, subsets, 1.0)
    train, queries = (curvature.layers.batches(part, plan.batch_size, plan.device) for _, part in plan.parts)
    return coordinates.gather(group, train, queries, members, norms[num_train:].to(plan.device))


def dimensions(measured: Measured, prepared: Prepared, ridges: Ridges) -> dict[str, list[float]]:
    """Return curvature -> effective dimension for every λ: sums over blocks, and d_λ of F itself."""
    sums = (
        measured.layers.groupby("lambda")[[f"d_lambda_{name}" for name in (KFAC, EKFAC)]].sum().loc[list(ridges.values)]
    )
    found = {name: sums[f"d_lambda_{name}"].tolist() for name in (KFAC, EKFAC)}
    return found | {FULL: prepared.effective_dimensions}


def report(lds: pd.DataFrame, summary: pd.DataFrame) -> None:
    """Print the best λ of each curvature, what sketches cost there, and what could not be measured."""
    best = curvature_sweep.best_rows(lds).set_index("curvature").to_dict("index")
    for name, row in best.items():
        print(
            f"{NAMES[str(name)]}: best validation LDS at λ = {row['lambda']:g}, d_λ = {row['d_lambda']:.0f}: "
            f"test LDS {row['test_lds']:.3f} ({row['test_lds_low']:.3f} to {row['test_lds_high']:.3f})"
        )
    if KFAC in best and (line := _errors(summary, best[KFAC]["lambda"])):
        print(line)
    not_drawn = summary[(summary["kind"] == JOINT) & (summary["num_trials"] == 0)]
    if len(not_drawn):
        sizes = len(not_drawn.drop_duplicates(["m_a", "m_e"]))
        print(f"joint sketches of {sizes} sizes (m_A, m_E) were too large to be drawn: they are predicted alone")
    if line := _gaps(summary):
        print(line)
    for table, what, file in (
        (summary, "ratios of self-influence", "summary.csv"),
        (lds, "rank correlations of queries", "lds.csv"),
    ):
        if bad := bad_values(table, what, file):
            print(bad)


def _errors(summary: pd.DataFrame, ridge: float) -> str | None:
    """Return in one line what the largest size costs that both kinds were drawn with."""
    cells = summary[(summary["lambda"] == ridge) & (summary["num_trials"] > 0)]
    both = cells.pivot(index=["m", "m_a", "m_e"], columns="kind", values="eps_95").dropna()
    if len(both) == 0:
        return None
    m, m_a, m_e = both.index[-1]
    return (
        f"sketches of K-FAC at λ = {ridge:g} with (m_A, m_E) = ({m_a}, {m_e}), {m} numbers in all: "
        f"ε_95 = {both[DECOUPLED].iloc[-1]:.3f} decoupled, {both[JOINT].iloc[-1]:.3f} joint"
    )


def _gaps(summary: pd.DataFrame) -> str | None:
    """Return in one line how far the closed form of joint sketches is off, where ε_95 < 1 was measured."""
    cells = summary[summary["eps_95"] < 1].dropna(subset="predicted_eps_95")
    cells = cells[cells["predicted_eps_95"] > 0]
    if cells.empty:
        return None
    gap = (cells["predicted_eps_95"] - cells["eps_95"]).abs() / cells["eps_95"]
    return f"joint sketches, predicted against measured ε_95: median gap {gap.median():.1%}, worst {gap.max():.1%}"


NAMES = {KFAC: "K-FAC", EKFAC: "EK-FAC", FULL: "F itself"}
"""How curvatures are called in texts and figures."""
