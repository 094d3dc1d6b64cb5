"""How all figures look, how they are laid out, and how they are written: no figure needs pyplot or a window."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure
from matplotlib.transforms import offset_copy

from common.foundations.storage import write_atomically

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "lines.markersize": 4,
    "figure.dpi": 150,
}
MARKERS = "osD^vPX*<>hd"


def what_is_drawn(measured: bool, predicted: bool) -> str:
    """Return what points and lines stand for."""
    if measured:
        return "points: measured, lines: predicted" if predicted else "measured, nothing predicted"
    return "predicted, nothing sketched" if predicted else "nothing sketched, nothing predicted"


def legend_below(axes: Axes, ncols: int, title: str | None = None) -> None:
    """Place the legend of a panel below its x label, where no data can lie; none where nothing has a label."""
    if not axes.get_legend_handles_labels()[0]:
        return
    below_label = offset_copy(axes.transAxes, axes.get_figure(root=True), y=-30, units="points")
    axes.legend(
        title=title,
        ncols=ncols,
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        bbox_transform=below_label,
        columnspacing=1.2,
        handletextpad=0.5,
    )


def by_ridge(table: pd.DataFrame) -> Iterator[tuple[tuple[float, pd.DataFrame], Any, str]]:
    """Yield ((λ, its rows), colour, marker) for every λ of a table, ascending."""
    groups = list(table.groupby("lambda"))
    colours = matplotlib.colormaps["viridis"]([0.9 * i / max(1, len(groups) - 1) for i in range(len(groups))])
    return zip(groups, colours, (MARKERS * (len(groups) // len(MARKERS) + 1))[: len(groups)], strict=True)


def ridge_label(ridge: float) -> str:
    """Return a λ for a legend: as 1e-05 where that is exact."""
    short = f"{ridge:.0e}"
    return short if float(short) == ridge else f"{ridge:.2e}"


def lay_out(figure: Figure) -> None:
    """Give every panel its place, once: measuring all texts takes longer than drawing them."""
    engine = figure.get_layout_engine()
    if engine is not None:
        FigureCanvasAgg(figure)  # measures with what will draw, which remembers the sizes of texts
        engine.execute(figure)
        figure.set_layout_engine("none")


def save_figure(figure: Figure, folder: Path) -> None:
    """Write figure.png and figure.pdf, each whole or not at all, in one layout."""
    lay_out(figure)
    png, pdf = io.BytesIO(), io.BytesIO()
    FigureCanvasAgg(figure).print_png(png)
    # no date inside: the same numbers give the same file
    FigureCanvasPdf(figure).print_pdf(pdf, metadata={"CreationDate": None})
    write_atomically(folder / "figure.png", png.getvalue())
    write_atomically(folder / "figure.pdf", pdf.getvalue())
