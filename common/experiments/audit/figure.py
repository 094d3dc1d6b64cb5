"""The picture of an audit: effective dimension, error against m, scores of one query with error bars, LDS."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from common.experiments.figures import MARKERS, STYLE, legend_below, save_figure

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
MOST_RIDGES = 6


def draw_audit(
    folder: Path,
    dimensions: pd.DataFrame,
    summary: pd.DataFrame,
    top: pd.DataFrame,
    lds: pd.DataFrame | None,
    ridge: float,
    title: str,
) -> None:
    """Write figure.png and figure.pdf; without a ground truth the fourth panel has the errors of cross scores."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 8.4), layout="constrained")
        (dimension, errors), (scores, last) = figure.subplots(2, 2)
        _draw_dimensions(dimension, dimensions)
        _draw_errors(errors, summary, "eps_95", "Error of self-influence")
        _draw_scores(scores, top, ridge)
        if lds is None:
            _draw_errors(last, summary, "cross_eps_95", "Error of cross scores")
        else:
            _draw_lds(last, lds, ridge)
        figure.suptitle(title)
        save_figure(figure, folder)


def _draw_dimensions(axes: Axes, table: pd.DataFrame) -> None:
    known = table[table["resolved"]]
    x, d, error = (known[name] for name in ("lambda", "d_lambda", "d_lambda_std_error"))
    axes.plot(x, d, "-", color=BLUE, label="whole store")
    # the band is thinner than the line where d_λ is large: drawn as bars of two standard errors as well
    label = "± 2 standard errors" if error.notna().any() else "without error bars"
    axes.errorbar(x, d, yerr=2 * error, fmt="o", color=BLUE, capsize=3, label=label)
    # larger than the dots that they mostly surround
    for name, marker, colour, size in (("half", "s", ORANGE, 8), ("quarter", "^", GREEN, 11)):
        axes.plot(
            table["lambda"],
            table[f"d_lambda_{name}"],
            marker,
            color=colour,
            markerfacecolor="none",
            markersize=size,
            label=f"folded: M/{2 if name == 'half' else 4}",
        )
    unresolved = table.loc[~table["resolved"], "lambda"]
    if len(unresolved):
        axes.axvspan(unresolved.min() / 2, known["lambda"].min() / 3**0.5, color=GREY, alpha=0.15, label="not resolved")
    axes.set(xscale="log", yscale="log", xlabel="λ", ylabel="$d_λ$", title="Effective dimension, unsketched F")
    legend_below(axes, ncols=3)


def _draw_errors(axes: Axes, table: pd.DataFrame, name: str, title: str) -> None:
    if table[f"predicted_{name}"].isna().all():
        axes.text(0.5, 0.5, "no law is known", transform=axes.transAxes, ha="center")
        axes.set(xticks=[], yticks=[], title=title)
        return
    ridges = sorted(table["lambda"].unique())
    shown = [ridges[i] for i in np.unique(np.linspace(0, len(ridges) - 1, MOST_RIDGES).round().astype(int))]
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(shown)))
    for ridge, colour, marker in zip(shown, colours, MARKERS, strict=False):
        cells = table[table["lambda"] == ridge]
        axes.plot(cells["m"], cells[f"predicted_{name}"], "-", color=colour, marker=marker, label=f"{ridge:.1e}")
        axes.plot(cells["m"], cells[f"predicted_corrected_{name}"], "--", color=colour, linewidth=0.9)
    size = table.loc[table["of_store"], "m"].iloc[0]
    axes.axvline(size, color="black", linewidth=0.8, linestyle=":")
    axes.annotate(
        f"M = {size}",
        (size, 1),
        xycoords=("data", "axes fraction"),
        xytext=(3, -10),
        textcoords="offset points",
        fontsize=7.5,
    )
    axes.set(xscale="log", yscale="log", xlabel="m", ylabel="predicted $ε_{95}$", title=title)
    legend_below(axes, ncols=3, title="λ  (dashed: ridge corrected)")


def _draw_scores(axes: Axes, top: pd.DataFrame, ridge: float) -> None:
    query = top.groupby("query")["significant"].sum().idxmax()
    rows = top[top["query"] == query].drop_duplicates("row").sort_values("score", ascending=False)
    place = np.arange(len(rows))
    significant = rows["significant"].fillna(False).astype(bool)
    has_bars = rows["significant"].notna().any()
    for chosen, colour, label in (
        (significant, BLUE, "significant at 5 % (Holm)"),
        (~significant, GREY, "not" if has_bars else "without error bars"),
    ):
        if chosen.any():
            part = rows[chosen]
            axes.errorbar(
                place[chosen.to_numpy()],
                part["score"],
                yerr=1.96 * part["standard_error"],
                fmt="o",
                color=colour,
                capsize=2,
                label=label,
            )
    axes.axhline(0, color="black", linewidth=0.8)
    _scale_scores(axes, rows["score"].abs().max())
    axes.set(
        xlabel="training rows, by score",
        ylabel="score",
        title=f"Top scores of query {query}, λ = {ridge:.3g}{', 95 % intervals' if has_bars else ''}",
    )
    legend_below(axes, ncols=2)


def _scale_scores(axes: Axes, largest: float) -> None:
    """Scale the axis of scores of both signs: linear up to a power of ten, from 1 % of the largest score to a tenth."""
    if not largest > 0:
        return
    exponents = range(math.ceil(math.log10(largest / 100)), math.floor(math.log10(largest)) + 1)
    decades = [10.0**exponent for exponent in exponents]
    axes.set_yscale("symlog", linthresh=decades[0])
    # matplotlib's own ticks may begin inside the linear part, where their labels meet that of 0
    axes.yaxis.set_major_locator(FixedLocator([*(-decade for decade in reversed(decades)), 0, *decades]))


def _draw_lds(axes: Axes, table: pd.DataFrame, ridge: float) -> None:
    sizes = sorted(table["m"].unique(), reverse=True)[:MOST_RIDGES]
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(sizes)))
    for m, colour, marker in zip(sizes, colours, MARKERS, strict=False):
        cells = table[table["m"] == m]
        axes.plot(cells["lambda"], cells["test_lds"], "-", marker=marker, color=colour, label=f"{m}")
        axes.plot(cells["lambda"], cells["corrected_test_lds"], "--", color=colour, linewidth=0.9)
    axes.axvline(ridge, color="black", linewidth=0.8, linestyle=":")
    axes.set(xscale="log", xlabel="λ", ylabel="test LDS", title="Usefulness (dotted: λ of the scores)")
    legend_below(axes, ncols=3, title="m, folded from M  (dashed: ridge corrected)")
