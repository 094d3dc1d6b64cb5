"""Figures: kept on their way to the disk, what lies in their panels, and runs of scripts without any."""

from __future__ import annotations

from types import ModuleType

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

FIGURES = (
    "bounds.figure.draw_spectrum_bounds",
    "bounds.cross_figure.draw_cross_errors",
    "lds.figure.draw_hyperparam_selection",
    "faithfulness.figure.draw_faithfulness",
    "curvature.figure.draw_factorized_influence",
    "audit.figure.draw_audit",
    "costing.figure.draw_cost",
)


def draw_nothing(patch: pytest.MonkeyPatch) -> None:
    """Let scripts write no figure: drawing one takes longer than all the rest of a toy run."""
    for name in FIGURES:
        patch.setattr(f"common.experiments.{name}", lambda *args: None)


def kept_figures(patch: pytest.MonkeyPatch, module: ModuleType, save: bool = True) -> list[Figure]:
    """Return a list that every figure which the module writes is added to; written it is only if so wished."""
    kept: list[Figure] = []
    write = module.save_figure

    def keep(figure, folder):
        kept.append(figure)
        if save:
            write(figure, folder)

    patch.setattr(module, "save_figure", keep)
    return kept


def lines(axes: Axes, style: str) -> list[Line2D]:
    """Return the lines of a style, `None` for points without one, that are longer than a straight line across."""
    return [line for line in axes.lines if line.get_linestyle() == style and len(line.get_xdata()) > 2]


def legend_labels(axes: Axes) -> list[str]:
    """Return the labels of the legend."""
    return [text.get_text() for text in axes.get_legend().get_texts()]
