"""The picture of experiment 4: LDS of each curvature over λ, effective dimensions, errors of both kinds of sketch."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from common.curvature.coordinates import EKFAC, KFAC
from common.experiments.curvature import sweep as curvature_sweep
from common.experiments.curvature.steps import NAMES
from common.experiments.curvature.sweep import DECOUPLED, FULL, JOINT
from common.experiments.figures import MARKERS, STYLE, legend_below, ridge_label, save_figure

COLOURS = {KFAC: "#D55E00", EKFAC: "#0072B2", FULL: "black"}
MAX_CURVES = 4


def draw_factorized_influence(
    folder: Path, lds: pd.DataFrame, layers: pd.DataFrame, summary: pd.DataFrame, title: str
) -> None:
    """Write figure.png and figure.pdf of experiment 4 from lds.csv, layers.csv and summary.csv."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(14, 8.8), layout="constrained")
        axes = figure.subplots(2, 3)
        for panel, group, queries in ((axes[0, 0], "val", "validation queries"), (axes[0, 1], "test", "test queries")):
            _draw_lds(panel, lds, group)
            panel.set_title(f"LDS against λ, {queries}")
        _draw_dimensions(axes[0, 2], lds, layers)
        star = _best_ridge(lds)
        _draw_layers(axes[1, 0], layers, star)
        _draw_over_size(axes[1, 1], summary, star)
        _draw_over_ridge(axes[1, 2], summary)
        figure.suptitle(title)
        save_figure(figure, folder)


def _best_ridge(lds: pd.DataFrame) -> float:
    """Return the λ of the sketches that are drawn: K-FAC's best by validation, else the middle one."""
    best = curvature_sweep.best_rows(lds)
    star = best.loc[best["curvature"] == KFAC, "lambda"]
    return star.iloc[0] if len(star) else sorted(lds["lambda"])[len(lds) // 2]


def _draw_lds(axes: Axes, lds: pd.DataFrame, group: str) -> None:
    for name, marker in zip((KFAC, EKFAC, FULL), MARKERS, strict=False):
        rows = lds[lds["curvature"] == name]
        low, high = rows[f"{group}_lds_low"], rows[f"{group}_lds_high"]
        axes.fill_between(rows["lambda"], low, high, color=COLOURS[name], alpha=0.12, linewidth=0)
        axes.plot(rows["lambda"], rows[f"{group}_lds"], f"{marker}-", color=COLOURS[name], label=NAMES[name])
    axes.set(xscale="log", xlabel="λ", ylabel="LDS (bands: 95 % over queries)")
    legend_below(axes, ncols=3)


def _draw_dimensions(axes: Axes, lds: pd.DataFrame, layers: pd.DataFrame) -> None:
    for name, marker in zip((KFAC, EKFAC, FULL), MARKERS, strict=False):
        rows = lds[lds["curvature"] == name]
        label = "$d_λ(F)$" if name == FULL else f"{NAMES[name]}, all layers"
        axes.plot(rows["lambda"], rows["d_lambda"], f"{marker}-", color=COLOURS[name], label=label)
    sums = layers.groupby("lambda")[["d_lambda_factorised", "d_lambda_fisher"]].sum(min_count=layers["block"].nunique())
    axes.plot(sums.index, sums["d_lambda_factorised"], ":", color=COLOURS[KFAC], label="factorised (theorem 6)")
    axes.plot(sums.index, sums["d_lambda_fisher"], "--", color="0.45", label="$F_l$ of every layer")
    axes.set(xscale="log", yscale="log", xlabel="λ", ylabel="$d_λ$", title="Effective dimensions")
    legend_below(axes, ncols=2)


def _draw_layers(axes: Axes, layers: pd.DataFrame, ridge: float) -> None:
    rows = layers[layers["lambda"] == ridge].reset_index(drop=True)
    columns = (
        ("d_lambda_kfac", "$d_λ(A ⊗ E)$", COLOURS[KFAC], "o"),
        ("d_lambda_factorised", "factorised", COLOURS[KFAC], "_"),
        ("d_lambda_ekfac", "EK-FAC", COLOURS[EKFAC], "s"),
        ("d_lambda_fisher", "$F_l$", "0.45", "D"),
    )
    for column, label, colour, marker in columns:
        axes.plot(rows.index, rows[column], marker, color=colour, label=label)
    shown = rows.index if len(rows) <= 12 else rows.index[:: -(-len(rows) // 12)]
    axes.set_xticks(shown, [_short(name) for name in rows["block"][shown]], rotation=30, ha="right")
    axes.set(yscale="log", ylabel="$d_λ$", title=f"Layer by layer, λ = {ridge_label(ridge)}")
    # names of layers stand below the axis: room for the legend above what is drawn
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** 0.2)
    axes.legend(ncols=4, loc="upper center")


def _short(name: str) -> str:
    return name if len(name) <= 22 else f"…{name[-21:]}"


def _draw_over_size(axes: Axes, summary: pd.DataFrame, ridge: float) -> None:
    # a side that stays whole is the same for every larger m
    cells = summary[summary["lambda"] == ridge].drop_duplicates(["kind", "m_a", "m"])
    sides = sorted(cells["m_e"].unique())
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(sides)))
    for m_e, colour, marker in zip(sides, colours, MARKERS, strict=False):
        rows = cells[(cells["m_e"] == m_e) & (cells["kind"] == DECOUPLED)].sort_values("m")
        axes.plot(rows["m"], rows["eps_95"], f"{marker}-", color=colour, label=f"decoupled, $m_E$ = {m_e}")
    rows = cells[cells["kind"] == JOINT].sort_values("m")
    axes.plot(rows["m"], rows["eps_95"], "kx", label="joint")
    axes.plot(rows["m"], rows["predicted_eps_95"], "k--", label="joint, predicted")
    axes.set(xscale="log", yscale="log", xlabel="numbers kept, $Σ_l m_A m_E$", ylabel="ε_95 of self-influence")
    axes.set_title(f"Sketches of K-FAC, λ = {ridge_label(ridge)}")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
    legend_below(axes, ncols=2)


def _draw_over_ridge(axes: Axes, summary: pd.DataFrame) -> None:
    sizes = [size for size, _ in summary.groupby(["m_a", "m_e"])]
    chosen = [sizes[round(i)] for i in np.linspace(0, len(sizes) - 1, min(MAX_CURVES, len(sizes)))]
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(chosen)))
    for (m_a, m_e), colour, marker in zip(chosen, colours, MARKERS, strict=False):
        cells = summary[(summary["m_a"] == m_a) & (summary["m_e"] == m_e)]
        apart, together = (cells[cells["kind"] == kind] for kind in (DECOUPLED, JOINT))
        axes.plot(apart["lambda"], apart["eps_95"], f"{marker}-", color=colour, label=f"({m_a}, {m_e})")
        axes.plot(together["lambda"], together["eps_95"], "x", color=colour)
        axes.plot(together["lambda"], together["predicted_eps_95"].replace(0, np.nan), "--", color=colour)
    axes.set(xscale="log", yscale="log", xlabel="λ", ylabel="ε_95 of self-influence")
    axes.set_title("Decoupled (solid), joint (crosses; dashed: predicted)")
    legend_below(axes, ncols=2, title="$(m_A, m_E)$")
