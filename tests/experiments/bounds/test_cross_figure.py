from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import same_color

from common.experiments.bounds import cross_figure
from common.theory.spectrum import ExactSpectrum, effective_dimension
from tests.drawn import kept_figures, legend_labels, lines

SPECTRUM = ExactSpectrum(torch.logspace(1, -4, 30, dtype=torch.float64))
MS, RIDGES = [4, 16, 64], [1e-4, 1e-2, 1.0]
ERRORS = ("eps_95", "eps0_95", "kernel_eps_95")


def make_table(measured=True, corrected=True, kernel=True):
    """Return a summary.csv of numbers that are all different."""
    table = pd.MultiIndex.from_product([MS, RIDGES], names=["m", "lambda"]).to_frame(index=False)
    table["d_lambda"] = effective_dimension(SPECTRUM, torch.tensor(table["lambda"].to_numpy())).numpy()
    table["m_over_d_lambda"] = table["m"] / table["d_lambda"]
    for number, name in enumerate(ERRORS if kernel else ERRORS[:2], start=1):
        table[f"predicted_{name}"] = number / table["m"] ** 0.5 + table["lambda"] / 50
        if corrected:
            table[f"predicted_corrected_{name}"] = 0.5 * table[f"predicted_{name}"]
        for prefix in ("", "corrected_") if measured and corrected else ("",) if measured else ():
            table[prefix + name] = 1.1 * table[f"predicted_{prefix}{name}"]
    return table


def is_black(line):
    return same_color(line.get_color(), "black")


def is_white(line):
    return same_color(line.get_markerfacecolor(), "white")


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Return a table -> its four panels, in reading order, and the title above them."""
    kept = kept_figures(monkeypatch, cross_figure, save=False)
    # what measures all texts takes longer than all the rest
    monkeypatch.setattr(cross_figure, "thin_out", lambda labels, figure: None)

    def run(table):
        cross_figure.draw_cross_errors(tmp_path, table, SPECTRUM, 30, "what was measured")
        return kept[-1].axes, kept[-1]._suptitle.get_text()

    return run


def test_every_panel_says_what_it_shows(draw):
    axes, title = draw(make_table())
    assert title == "what was measured"
    assert [(a.get_xlabel(), a.get_ylabel(), a.get_title()) for a in axes] == [
        ("$m / d_λ$", "$ε_{95}$", r"$|\tilde B - B_λ|\,/\,\sqrt{φ_λ(g)\,φ_λ(q)}$"),
        ("$m / d_λ$", "95 % quantile", r"$|\tilde B - B_λ|\,/\,\sqrt{φ_0(g)\,φ_0(q)}$"),
        ("m", "$ε_{95}$", "Leakage: error of the parts of queries in ker(F)"),
        ("λ", "$d_λ$ / rank", "Effective dimension, rank 30"),
    ]
    assert all((a.get_xscale(), a.get_yscale()) == ("log", "log") for a in axes)


@pytest.mark.parametrize(
    ("panel", "x", "name", "corrected"),
    [(0, "m_over_d_lambda", "eps_95", True), (1, "m_over_d_lambda", "eps0_95", True), (2, "m", "kernel_eps_95", False)],
)
def test_every_ridge_has_its_line_and_points_of_one_colour_and_hollow_ones_where_corrected(
    draw, panel, x, name, corrected
):
    table = make_table()
    axes = draw(table)[0][panel]
    solid, points = lines(axes, "-"), lines(axes, "None")
    dashed = [line for line in lines(axes, "--") if not is_black(line)]
    filled = [line for line in points if not is_white(line)]
    hollow = [line for line in points if is_white(line)]
    drawn = {f"predicted_{name}": solid, name: filled}
    if corrected:
        drawn |= {f"predicted_corrected_{name}": dashed, f"corrected_{name}": hollow}
    else:
        assert not dashed
        assert not hollow
    for column, curves in drawn.items():
        assert len(curves) == len(RIDGES)
        for (_, cells), curve, first in zip(table.groupby("lambda"), curves, solid, strict=True):
            np.testing.assert_array_equal(curve.get_xdata(), cells[x])
            np.testing.assert_array_equal(curve.get_ydata(), cells[column])
            assert tuple(curve.get_color()) == tuple(first.get_color())
    assert len({tuple(curve.get_color()) for curve in solid}) == len({curve.get_marker() for curve in filled}) == 3


def guide_of(axes):
    (guide,) = [line for line in lines(axes, "--") if is_black(line)]
    return np.array(guide.get_xdata()), np.array(guide.get_ydata()), guide.get_label()


def test_guides_fall_like_a_root_and_end_at_the_errors_that_they_stand_beside(draw):
    table = make_table()
    axes, _ = draw(table)
    for panel, end, at_end, label in (
        (0, table["m_over_d_lambda"].max(), table["m_over_d_lambda"].max() ** -0.5, "$(m/d_λ)^{-1/2}$"),
        (2, 64, 1.5 * table.loc[table["m"] == 64, "predicted_kernel_eps_95"].max(), "slope −1/2"),
    ):
        x, y, found = guide_of(axes[panel])
        assert found == label
        assert (x[-1], y[-1]) == pytest.approx((end, at_end))
        np.testing.assert_allclose(np.diff(np.log(y)) / np.diff(np.log(x)), -0.5)
        assert x[-1] / x[0] <= 100 * (1 + 1e-12)
    assert x[0] == pytest.approx(4)


def test_legends_name_every_ridge_once_and_what_points_and_dashes_are(draw):
    ridges = ["1e-04", "1e-02", "1e+00"]
    for options, title in (
        ({}, "λ  (points: measured, lines: predicted; hollow and dashed: ridge corrected)"),
        ({"corrected": False}, "λ  (points: measured, lines: predicted)"),
        ({"measured": False, "corrected": False}, "λ  (predicted, nothing sketched)"),
    ):
        axes, _ = draw(make_table(**options))
        assert legend_labels(axes[0]) == [*ridges, "$(m/d_λ)^{-1/2}$"]
        assert axes[0].get_legend().get_title().get_text() == title
        assert legend_labels(axes[2]) == ["slope −1/2"]


def test_without_a_sketch_nothing_is_a_point_but_the_ridges_of_the_run(draw):
    axes, _ = draw(make_table(measured=False))
    assert [lines(panel, "None") for panel in axes[:3]] == [[], [], []]
    assert [len(lines(panel, "-")) for panel in axes[:3]] == [3, 3, 3]


def test_without_parts_in_the_kernel_whole_queries_fall_with_m(draw):
    table = make_table(kernel=False)
    axes = draw(table)[0][2]
    assert axes.get_title() == "Error against m"
    for (_, cells), curve in zip(table.groupby("lambda"), lines(axes, "-"), strict=True):
        np.testing.assert_array_equal(curve.get_ydata(), cells["predicted_eps_95"])
    assert guide_of(axes)[1][-1] == pytest.approx(1.5 * table.loc[table["m"] == 64, "predicted_eps_95"].max())


def test_the_ridges_of_the_run_lie_on_the_curve_of_effective_dimension(draw):
    table = make_table()
    axes = draw(table)[0][3]
    (curve,), (dots,) = lines(axes, "-"), lines(axes, "None")
    np.testing.assert_array_equal(dots.get_xdata(), RIDGES)
    eigenvalues = SPECTRUM.eigenvalues.numpy()
    expected = [(eigenvalues / (eigenvalues + ridge)).sum() / 30 for ridge in RIDGES]
    np.testing.assert_allclose(dots.get_ydata(), expected)
    np.testing.assert_allclose(
        np.interp(np.log(RIDGES), np.log(curve.get_xdata()), curve.get_ydata()), expected, rtol=0.01
    )


def test_a_single_m_has_a_guide_of_some_length(draw):
    table = make_table()
    axes, _ = draw(table[table["m"] == 4])
    x, y, _ = guide_of(axes[2])
    assert x[-1] == pytest.approx(2 * x[0])
    assert (y > 0).all()
