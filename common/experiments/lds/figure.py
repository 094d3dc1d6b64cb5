"""The picture of experiment 2: LDS over λ and m, measured points, predicted lines, and the predicted map."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke

from common.experiments.figures import MARKERS, STYLE, legend_below, ridge_label, save_figure, what_is_drawn
from common.experiments.lds.ridge_path import RidgeOfDimension
from common.experiments.lds.selection import Selection

MAX_CURVES = 5
ORANGE, BLUE = "#D55E00", "#0072B2"
OUTLINE = [Stroke(linewidth=2.5, foreground="black"), Normal()]


def draw_hyperparam_selection(
    folder: Path,
    table: pd.DataFrame,
    predicted: pd.DataFrame,
    selection: Selection | None,
    path: Sequence[RidgeOfDimension],
    title: str,
) -> None:
    """Write figure.png and figure.pdf of experiment 2.

    Args:
        folder: where to.
        table: summary.csv: sketched cells (measured and predicted, or predicted alone) and exact rows (m = inf).
        predicted: the closed form on its own, finer grid of m.
        selection: the choices; None where nothing was measured.
        path: the best λ of every m.
        title: says what was measured.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(14, 8.8), layout="constrained")
        axes = figure.subplots(2, 3)
        for panel, group, queries in ((axes[0, 0], "val", "validation queries"), (axes[0, 1], "test", "test queries")):
            _draw_over_ridge(panel, table, predicted, group)
            panel.set_title(f"LDS against λ, {queries}")
        note = what_is_drawn(selection is not None, predicted["predicted_val_lds"].notna().any())
        legend_below(axes[0, 0], ncols=3, title=note)
        _draw_over_dimension(axes[0, 2], table, predicted, selection)
        _draw_effective_dimension(axes[1, 0], table, selection)
        _draw_normalised(axes[1, 1], table, predicted)
        draw_map(axes[1, 2], predicted, path)
        figure.suptitle(title)
        save_figure(figure, folder)


def _draw_over_ridge(axes: Axes, table: pd.DataFrame, predicted: pd.DataFrame, group: str) -> None:
    sketched, exact = _split(table)
    grid = sorted(set(sketched["m"]))
    chosen = [grid[round(i)] for i in np.linspace(0, len(grid) - 1, min(MAX_CURVES, len(grid)))]
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(chosen)))
    for m, colour, marker in zip(chosen, colours, MARKERS, strict=False):
        line = predicted[predicted["m"] == m]
        axes.plot(line["lambda"], line[f"predicted_{group}_lds"], "-", color=colour, linewidth=1)
        cells = sketched[sketched["m"] == m]
        if f"{group}_lds" in cells:
            low, high = cells[f"{group}_lds_low"], cells[f"{group}_lds_high"]
            axes.plot(cells["lambda"], cells[f"{group}_lds"], marker, color=colour, label=f"m = {m:.0f}")
            # around its own middle: a bootstrap interval need not hold the mean, least of all where it has no length
            middle, half = (low + high) / 2, (high - low) / 2
            axes.errorbar(cells["lambda"], middle, half, fmt="none", ecolor=colour, elinewidth=0.7, capsize=2)
    axes.fill_between(exact["lambda"], exact[f"{group}_lds_low"], exact[f"{group}_lds_high"], color="0.88", linewidth=0)
    axes.plot(exact["lambda"], exact[f"{group}_lds"], "--", color="black", label="exact, no sketch")
    axes.set(xscale="log", xlabel="λ", ylabel="LDS (bars, band: 95 % over queries)")


def _draw_over_dimension(axes: Axes, table: pd.DataFrame, predicted: pd.DataFrame, selection: Selection | None) -> None:
    sketched, exact = _split(table)
    star = selection.lambda_star if selection else exact.loc[exact["val_lds"].idxmax(), "lambda"]
    if star is None:
        axes.set_title("no λ* exists")
        return
    cells, line, limit = (part[part["lambda"] == star] for part in (sketched, predicted, exact))
    for group, colour, marker in (("val", ORANGE, "o"), ("test", BLUE, "s")):
        axes.plot(line["m"], line[f"predicted_{group}_lds"], "-", color=colour, linewidth=1)
        if f"{group}_lds" in cells:
            axes.errorbar(
                cells["m"],
                cells[f"{group}_lds"],
                cells[f"{group}_lds_std"],
                fmt=marker,
                color=colour,
                elinewidth=0.7,
                capsize=2,
                label=f"{group} (bars: sd over sketches)",
            )
        axes.axhline(limit[f"{group}_lds"].iloc[0], color=colour, linestyle="--", linewidth=0.8)
    axes.axvline(limit["d_lambda"].iloc[0], color="black", linestyle=":", linewidth=1, label="$d_{λ*}$")
    if selection and selection.m_95:
        axes.axvline(selection.m_95, color="black", linestyle="-.", linewidth=1, label="$m_{95}$")
    axes.set(xscale="log", xlabel="m", ylabel="LDS (dashed: exact)", title=f"LDS against m at λ* = {star:g}")
    legend_below(axes, ncols=2)


def _draw_effective_dimension(axes: Axes, table: pd.DataFrame, selection: Selection | None) -> None:
    _, exact = _split(table)
    axes.plot(exact["lambda"], exact["d_lambda"], "o-", color=BLUE)
    if selection and selection.lambda_star and selection.d_lambda_star:
        axes.axvline(selection.lambda_star, color="black", linestyle=":", linewidth=1, label="λ*")
        axes.axhline(selection.d_lambda_star, color="black", linestyle=":", linewidth=1)
        legend_below(axes, ncols=1)
    axes.set(xscale="log", yscale="log", xlabel="λ", ylabel="$d_λ$", title="Effective dimension")
    if len(exact) == 1:  # lines through the only point leave the axes no extent of their own
        (point,) = exact[["lambda", "d_lambda"]].itertuples(index=False)
        axes.set(xlim=_log_edges(point[:1]), ylim=_log_edges(point[1:]))


def _draw_normalised(axes: Axes, table: pd.DataFrame, predicted: pd.DataFrame) -> None:
    sketched, exact = _split(table)
    best = exact.set_index("lambda")["test_lds"]
    useful = [ridge for ridge, lds in best.items() if lds > max(0, 0.2 * best.max())]
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, max(1, len(useful))))
    for ridge, colour, marker in zip(useful, colours, MARKERS, strict=False):
        line = predicted[predicted["lambda"] == ridge]
        axes.plot(line["m_over_d_lambda"], line["predicted_test_lds"] / best[ridge], "-", color=colour, linewidth=1)
        cells = sketched[sketched["lambda"] == ridge]
        if "test_lds" in cells:
            axes.plot(
                cells["m_over_d_lambda"],
                cells["test_lds"] / best[ridge],
                marker,
                color=colour,
                label=ridge_label(ridge),
            )
    axes.axhline(0.95, color="black", linestyle=":", linewidth=0.8)
    axes.axvline(1, color="black", linestyle=":", linewidth=0.8)
    axes.set(
        xscale="log",
        xlabel="$m / d_λ$",
        ylabel="test LDS / exact test LDS",
        title="Normalised LDS (dotted: 95 %, $m = d_λ$)",
    )
    if useful:
        legend_below(axes, ncols=5, title="λ")


def draw_map(axes: Axes, predicted: pd.DataFrame, path: Sequence[RidgeOfDimension]) -> None:
    """Draw the predicted validation LDS over (m, λ), with the best λ of every m, predicted and measured.

    Where nothing is predicted, the measured λ alone.

    Args:
        axes: where to.
        predicted: one row an (m, λ) of a full grid.
        path: the best λ of every m; their intervals are drawn where they are known.
    """
    ms, ridges = np.unique(predicted["m"]), np.unique(predicted["lambda"])
    lds = predicted.pivot(index="lambda", columns="m", values="predicted_val_lds").to_numpy()
    has_map = np.isfinite(lds).any()
    if has_map:
        mesh = axes.pcolormesh(_log_edges(ms), _log_edges(ridges), lds, cmap="cividis", rasterized=True)
        axes.figure.colorbar(mesh, ax=axes, label="predicted validation LDS")
    known = [(one.m, one.predicted_lambda_star) for one in path if one.predicted_lambda_star is not None]
    if known:
        axes.plot(*zip(*known, strict=True), "-", color="white", lw=1.5, label="predicted λ*(m)", path_effects=OUTLINE)
    measured = [
        (one.m, one.lambda_star, one.lambda_low, one.lambda_high) for one in path if one.lambda_star is not None
    ]
    if measured:
        m, star, low, high = (np.array(values) for values in zip(*measured, strict=True))
        bars = [np.maximum(star - low, 0), np.maximum(high - star, 0)]
        axes.errorbar(m, star, bars, fmt="o", color=ORANGE, mec="white", elinewidth=1, label="measured λ*(m), 95 %")
    title = "Predicted validation LDS" if has_map else "Best λ of every m"
    axes.set(xscale="log", yscale="log", xlabel="m", ylabel="λ", title=title)
    axes.grid(False)
    if known or measured:
        legend_below(axes, ncols=2)


def _split(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    table = table.astype({"m": float})
    sketched = np.isfinite(table["m"])
    return table[sketched], table[~sketched]


def _log_edges(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the (k + 1,) borders of cells around (k,) ascending values, half-way on a log axis."""
    logs = np.log10(values)
    between = (logs[1:] + logs[:-1]) / 2
    low, high = (logs[0] - between[0], between[-1] - logs[-1]) if len(between) else (0.5, 0.5)
    # half of the nearest step on either side
    return 10 ** np.concatenate([[logs[0] - abs(low)], between, [logs[-1] + abs(high)]])
