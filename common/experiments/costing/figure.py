"""The picture of projection_cost.py: the error of every projection over the seconds that it takes."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from common.experiments.figures import MARKERS, STYLE, legend_below, ridge_label, save_figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def draw_cost(folder: Path, table: pd.DataFrame, title: str) -> None:
    """Write figure.png and figure.pdf of `tables.join`: ε_95 over seconds, a curve a projection, m along it.

    Panels are for the smallest, a middle and the largest λ that every projection has.
    """
    laws = list(dict.fromkeys(table["proj_type"]))
    with matplotlib.rc_context(STYLE):
        ridges = shown_ridges(table)
        figure = Figure(figsize=(4.6 * len(ridges), 4.6), layout="constrained")
        panels = figure.subplots(1, len(ridges), sharex=True, squeeze=False)[0]
        for axes, ridge in zip(panels, ridges, strict=True):
            part = table[table["lambda"] == ridge]
            for law, colour, marker in zip(laws, cycle(COLOURS), cycle(MARKERS), strict=False):
                _draw_curve(axes, part[part["proj_type"] == law].sort_values("m"), law, colour, marker)
            d_lambda = part["d_lambda"].iloc[0]
            axes.set(xscale="log", yscale="log", title=f"λ = {ridge_label(ridge)}, $d_λ$ = {d_lambda:.3g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set(xlabel="seconds to project the training samples", ylabel="measured $ε_{95}$")
        legend_below(panels[len(ridges) // 2], ncols=4)
        figure.suptitle(title)
        save_figure(figure, folder)


def shown_ridges(table: pd.DataFrame) -> list[float]:
    """Return the smallest, a middle and the largest λ that every projection has; all of them where none is shared."""
    num_laws = table["proj_type"].nunique()
    laws_of = table.groupby("lambda")["proj_type"].nunique()
    shared = sorted(laws_of[laws_of == num_laws].index) or sorted(laws_of.index)
    places = {0, len(shared) // 2, len(shared) - 1}
    return [shared[i] for i in sorted(places)]


def _draw_curve(axes: Axes, part: pd.DataFrame, law: str, colour: str, marker: str) -> None:
    axes.plot(part["seconds"], part["eps_95"], f"{marker}-", color=colour, label=law, linewidth=1)
    for seconds, error, m in zip(part["seconds"], part["eps_95"], part["m"], strict=True):
        place = (seconds, error)
        axes.annotate(f"{m:,}", place, xytext=(3, 3), textcoords="offset points", fontsize=6, color=colour)
