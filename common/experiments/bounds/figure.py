"""The picture of experiment 1: measured points over predicted lines, readable in grey and by the colour-blind."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from common.experiments.figures import (
    STYLE,
    by_ridge,
    lay_out,
    legend_below,
    ridge_label,
    save_figure,
    what_is_drawn,
)
from common.theory.spectrum import Spectrum, effective_dimension


def draw_spectrum_bounds(folder: Path, table: pd.DataFrame, spectrum: Spectrum, rank: int, title: str) -> None:
    """Write figure.png and figure.pdf of experiment 1: ε_95, mean ratio, eigenvalues, effective dimension.

    `rank` is that of F: rounding may have set the smallest of its eigenvalues to 0.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 8.4), layout="constrained")
        (errors, ratios), (eigenvalues, dimensions) = figure.subplots(2, 2)
        measured = "eps_95" in table
        for (ridge, cells), colour, marker in by_ridge(table):
            x, label = cells["m_over_d_lambda"], ridge_label(ridge)
            for axes, name in ((errors, "eps_95"), (ratios, "mean_ratio")):
                axes.plot(
                    x, cells[f"predicted_{name}"], "-", color=colour, linewidth=1, label=None if measured else label
                )
                if measured:
                    axes.plot(x, cells[name], marker, color=colour, label=label)
                if f"predicted_corrected_{name}" in cells:
                    _draw_corrected(axes, x, cells, name, colour, marker)
        _finish_errors(errors, table, measured)
        ratios.axhline(1, color="black", linewidth=0.8, linestyle=":")
        ratios.set(
            xscale="log", xlabel="$m / d_λ$", ylabel="mean of $\\tilde φ_λ / φ_λ$", title="Bias of self-influence"
        )
        legend_below(ratios, ncols=5, title="λ")
        _draw_eigenvalues(eigenvalues, spectrum)
        labels = draw_effective_dimension(dimensions, spectrum, rank, table)
        figure.suptitle(title)
        thin_out(labels, figure)
        save_figure(figure, folder)


def _draw_corrected(axes: Axes, x: pd.Series, cells: pd.DataFrame, name: str, colour, marker: str) -> None:
    axes.plot(x, cells[f"predicted_corrected_{name}"], "--", color=colour, linewidth=0.8)
    if f"corrected_{name}" in cells:
        axes.plot(x, cells[f"corrected_{name}"], marker, color=colour, markerfacecolor="white")


def _finish_errors(axes, table: pd.DataFrame, measured: bool) -> None:
    x = table["m_over_d_lambda"]
    guide = torch.logspace(-0.5, torch.tensor(x.max()).log10().item(), 50)
    axes.plot(guide, guide**-0.5, "--", color="black", linewidth=1.2, label="$(m/d_λ)^{-1/2}$")
    axes.set(xscale="log", yscale="log", xlabel="$m / d_λ$", ylabel="$ε_{95}$", title="Error of self-influence")
    axes.set_ylim(top=2)
    note = what_is_drawn(measured, table["predicted_eps_95"].notna().any())
    if "predicted_corrected_eps_95" in table:
        note += "; hollow and dashed: ridge corrected" if measured else "; dashed: ridge corrected"
    legend_below(axes, ncols=5, title=f"λ  ({note})")


def _draw_eigenvalues(axes: Axes, spectrum: Spectrum) -> None:
    positive = spectrum.eigenvalues[spectrum.eigenvalues > 0]
    axes.plot(range(1, len(positive) + 1), positive, color="#0072B2")
    floor = positive[0].item() * torch.finfo(torch.float64).eps
    axes.axhline(floor, color="black", linewidth=0.8, linestyle=":")
    axes.annotate("float64 rounding", (1, floor), xytext=(0, 3), textcoords="offset points", fontsize=7.5)
    of, title = "F", "Spectrum of the Fisher matrix"
    if spectrum.size is not None:
        of, title = "$PFP^T$", f"Spectrum of the reference sketch, M = {spectrum.size}"
    axes.set(xscale="log", yscale="log", xlabel="index", ylabel=f"eigenvalue of {of}", title=title)


def draw_effective_dimension(axes: Axes, spectrum: Spectrum, rank: int, table: pd.DataFrame) -> list[Annotation]:
    """Draw d_λ over λ and return its labels, from left to right; `table` has the λ of the run."""
    ridges = torch.logspace(-12, 4, 200, dtype=torch.float64)
    axes.plot(ridges, effective_dimension(spectrum, ridges) / rank, color="#0072B2")
    used = table.drop_duplicates("lambda")
    axes.plot(used["lambda"], used["d_lambda"] / rank, "o", color="#D55E00", label="λ of this run, labelled $d_λ$")
    labels = [
        axes.annotate(
            f"{d_lambda:.3g}" if d_lambda < 100 else f"{d_lambda:.0f}",
            (ridge, d_lambda / rank),
            xytext=(4, 4),
            textcoords="offset points",
            fontsize=7.5,
        )
        for ridge, d_lambda in zip(used["lambda"], used["d_lambda"], strict=True)
    ]
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="λ",
        ylabel="$d_λ$ / rank",
        title=f"Effective dimension, rank {'of the reference ' if spectrum.size else ''}{rank}",
    )
    axes.set_ylim(1e-6, 4)
    legend_below(axes, ncols=1)
    return labels


def thin_out(labels: list[Annotation], figure: Figure) -> None:
    """Remove each label that would touch the last one kept to its left."""
    lay_out(figure)  # only the layout says how far apart labels are
    last = None
    for label in labels:
        box = label.get_window_extent().padded(2, 0)
        if last is not None and box.overlaps(last):
            label.remove()
        else:
            last = box
