"""The picture of `bench.py`: seconds of every route, and growth with n, d and m."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.experiments.figures import MARKERS, STYLE, save_figure

GROWTH_LABELS = {"n": "training samples n", "d": "parameters d", "m": "projection dimension m"}
COLOURS = ("#0072B2", "#D55E00", "#009E73")


def draw_bench(folder: Path, table: pd.DataFrame, growth: pd.DataFrame) -> None:
    """Write figure.png and figure.pdf from the tables of bench_tables.join and bench_growth.measure_growth."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(15, 7.5), layout="constrained")
        # a line for each of some thirty bars takes the whole height
        panels = figure.subplot_mosaic("SSSP;ndmP", width_ratios=(1, 1, 1, 1.2))
        _draw_sweep(panels["S"], table)
        _draw_preparation(panels["P"], table[~table["what"].isin(["sweep", "whole sweep"])])
        for axis, label in GROWTH_LABELS.items():
            _draw_growth(panels[axis], growth[growth["axis"] == axis], label)
            panels[axis].sharey(panels["n"])
        panels["n"].set_ylabel("seconds")
        panels["n"].legend()
        panels["d"].set_title("Growth on synthetic gradients, the other sizes fixed")
        save_figure(figure, folder)


def _draw_sweep(axes: Axes, table: pd.DataFrame) -> None:
    sweep = table[table["what"] == "sweep"]
    ratios = table[table["what"] == "whole sweep"].set_index("route")["ratio_to_ours"]
    for (route, part), colour, marker in zip(sweep.groupby("route", sort=False), COLOURS, MARKERS, strict=False):
        label = f"{route}, whole sweep x {ratios[route]:.3g}"
        axes.plot(part["m"], part["seconds"], f"{marker}-", color=colour, label=label)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel=GROWTH_LABELS["m"],
        ylabel="seconds",
        title="One sketch and scores for all λ (mnist + mlp, normal)",
    )
    _label_values(axes, sorted(sweep["m"].unique()), 9)
    axes.legend()


def _draw_preparation(axes: Axes, preparation: pd.DataFrame) -> None:
    names = preparation["what"] + ": " + preparation["route"]
    is_ours = ~preparation.duplicated("what")
    bars = axes.barh(names, preparation["seconds"], color=[COLOURS[0] if ours else "0.7" for ours in is_ours])
    axes.bar_label(bars, [f" x {ratio:.3g}" for ratio in preparation["ratio_to_ours"]], fontsize=7.5)
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="seconds", title="Preparation, ratio to ours")
    axes.set_xlim(right=3 * preparation["seconds"].max())  # room for the ratios
    axes.grid(axis="y", visible=False)


def _draw_growth(axes: Axes, part: pd.DataFrame, label: str) -> None:
    axes.plot(part["value"], part["sketch_seconds"], "o-", color=COLOURS[0], label="one sketch and scores for all λ")
    axes.plot(part["value"], part["geometry_seconds"], "s--", color="0.45", label="geometry, once for all sketches")
    axes.set(xscale="log", yscale="log", xlabel=label)
    _label_values(axes, sorted(part["value"].unique()), 5)


def _label_values(axes: Axes, values: list, most: int) -> None:
    """Mark the measured values, so many of them at most, instead of powers of ten."""
    shown = values[:: -(-len(values) // most)]
    axes.set_xticks(shown, [f"{value:,.0f}" for value in shown])
    axes.set_xticks([], minor=True)
