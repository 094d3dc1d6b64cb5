"""The picture of experiment 3: the predicted LDS with contours of the error, and both along the best λ of every m."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from common.experiments.faithfulness.verdict import FaithfulnessOfDimension
from common.experiments.figures import STYLE, legend_below, save_figure
from common.experiments.lds.figure import BLUE, ORANGE, draw_map
from common.experiments.lds.ridge_path import RidgeOfDimension

# of ε_95; the threshold is drawn besides
LEVELS = (0.003, 0.01, 0.03, 0.1)


def draw_faithfulness(
    folder: Path,
    predicted: pd.DataFrame,
    path: Sequence[RidgeOfDimension],
    by_m: Sequence[FaithfulnessOfDimension],
    threshold: float,
    title: str,
) -> None:
    """Write figure.png and figure.pdf of experiment 3.

    Args:
        folder: where to.
        predicted: the closed form of LDS and ε_95 on a full grid of (m, λ).
        path: the best λ of every m.
        by_m: LDS and ε_95 there.
        threshold: largest ε_95 that counts as faithful.
        title: says what was measured.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(14.5, 5), layout="constrained")
        plane, errors, lds = figure.subplots(1, 3)
        draw_map(plane, predicted, path)
        _draw_contours(plane, predicted, threshold)
        ms = [one.m for one in by_m]
        _draw_along(errors, ms, [one.eps_95 for one in by_m], [one.predicted_eps_95 for one in by_m], ORANGE)
        errors.axhline(threshold, color="black", linestyle="--", linewidth=1, label=f"threshold, {threshold:g}")
        errors.set(yscale="log", ylabel="$ε_{95}$ of cross scores", title="Error at the best λ of every m")
        legend_below(errors, ncols=2)
        _draw_along(lds, ms, [one.test_lds for one in by_m], [one.predicted_test_lds for one in by_m], BLUE)
        lds.set(ylabel="test LDS", title="LDS at the best λ of every m")
        legend_below(lds, ncols=1)
        figure.suptitle(title)
        save_figure(figure, folder)


def _draw_contours(axes: Axes, predicted: pd.DataFrame, threshold: float) -> None:
    """Draw where ε_95 has certain values; the threshold thick."""
    table = predicted.pivot(index="lambda", columns="m", values="predicted_eps_95")
    if table.isna().all(axis=None):
        return
    axes.set_title("Predicted validation LDS, contours: predicted $ε_{95}$")
    if min(table.shape) < 2:
        return
    low, high = table.min(axis=None), table.max(axis=None)
    for levels, width in (([x for x in LEVELS if x != threshold], 0.8), ([threshold], 2.0)):
        drawn = [x for x in levels if low < x < high]
        if drawn:
            lines = axes.contour(table.columns, table.index, table, levels=drawn, colors="white", linewidths=width)
            axes.clabel(lines, fmt="%g", fontsize=7)


def _draw_along(axes: Axes, ms: list[int], measured: list, predicted: list, colour: str) -> list[Line2D]:
    """Draw what was measured (points) and predicted (line) at the best λ of every m."""
    lines, values = [], np.array(predicted, dtype=np.float64)
    if np.isfinite(values).any():
        lines += axes.plot(ms, values, "-", color=colour, linewidth=1, label="predicted, at its own λ*(m)")
    values = np.array(measured, dtype=np.float64)
    if np.isfinite(values).any():
        lines += axes.plot(ms, values, "o", color=colour, label="measured, at its own λ*(m)")
    axes.set(xscale="log", xlabel="m")
    return lines
