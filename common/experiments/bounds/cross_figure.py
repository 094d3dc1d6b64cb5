"""The picture of cross scores: both errors over m/d_λ, how they and the leakage fall with m, effective dimension."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.experiments.bounds.figure import draw_effective_dimension, thin_out
from common.experiments.figures import STYLE, by_ridge, legend_below, ridge_label, save_figure, what_is_drawn
from common.theory.spectrum import Spectrum


def draw_cross_errors(folder: Path, table: pd.DataFrame, spectrum: Spectrum, rank: int, title: str) -> None:
    """Write figure.png and figure.pdf of cross scores, from summary.csv; `rank` is that of F."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 8.8), layout="constrained")
        (errors, unridged), (parts, dimensions) = figure.subplots(2, 2)
        _draw_curves(errors, table, "m_over_d_lambda", "eps_95", corrected=True)
        largest = table["m_over_d_lambda"].max()
        _draw_guide(errors, 1.0, largest, largest**-0.5, "$(m/d_λ)^{-1/2}$")
        errors.set(xlabel="$m / d_λ$", ylabel="$ε_{95}$", title=r"$|\tilde B - B_λ|\,/\,\sqrt{φ_λ(g)\,φ_λ(q)}$")
        note = what_is_drawn("eps_95" in table, table["predicted_eps_95"].notna().any())
        hollow = "; hollow and dashed: ridge corrected" if "predicted_corrected_eps_95" in table else ""
        legend_below(errors, ncols=5, title=f"λ  ({note}{hollow})")
        _draw_curves(unridged, table, "m_over_d_lambda", "eps0_95", corrected=True)
        unridged.set(xlabel="$m / d_λ$", ylabel="95 % quantile", title=r"$|\tilde B - B_λ|\,/\,\sqrt{φ_0(g)\,φ_0(q)}$")
        _draw_parts(parts, table)
        labels = draw_effective_dimension(dimensions, spectrum, rank, table)
        figure.suptitle(title)
        thin_out(labels, figure)
        save_figure(figure, folder)


def _draw_parts(axes: Axes, table: pd.DataFrame) -> None:
    """Draw how errors fall with m: of the queries' parts in ker(F), where there are any, else of whole queries."""
    if "predicted_kernel_eps_95" in table:
        name, title = "kernel_eps_95", "Leakage: error of the parts of queries in ker(F)"
    else:
        name, title = "eps_95", "Error against m"
    _draw_curves(axes, table, "m", name, corrected=False, labelled=False)
    largest = table["m"].max()
    end = table.loc[table["m"] == largest, f"predicted_{name}"].max()
    _draw_guide(axes, table["m"].min(), largest, 1.5 * end, "slope −1/2")
    legend_below(axes, ncols=1)
    axes.set(xlabel="m", ylabel="$ε_{95}$", title=title)


def _draw_curves(axes: Axes, table: pd.DataFrame, x: str, name: str, corrected: bool, labelled: bool = True) -> None:
    for (ridge, cells), colour, marker in by_ridge(table):
        label, measured = ridge_label(ridge) if labelled else None, name in cells
        axes.plot(cells[x], cells[f"predicted_{name}"], "-", color=colour, lw=1, label=None if measured else label)
        if measured:
            axes.plot(cells[x], cells[name], marker, color=colour, label=label)
        if corrected and f"predicted_corrected_{name}" in cells:
            axes.plot(cells[x], cells[f"predicted_corrected_{name}"], "--", color=colour, linewidth=0.8)
            if f"corrected_{name}" in cells:
                axes.plot(cells[x], cells[f"corrected_{name}"], marker, color=colour, markerfacecolor="white")
    axes.set(xscale="log", yscale="log")


def _draw_guide(axes: Axes, start: float, stop: float, at_stop: float, label: str) -> None:
    """Draw a line of slope −1/2 over the last two decades up to `stop`, through `at_stop` there."""
    guide = np.geomspace(max(start, stop / 100), max(stop, 2 * start), 20)
    axes.plot(guide, at_stop * (guide / guide[-1]) ** -0.5, "--", color="black", linewidth=1.2, label=label)
