from __future__ import annotations

import dataclasses

import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from common.experiments.lds import figure as lds_figure
from common.experiments.lds.ridge_path import RidgeOfDimension
from common.experiments.lds.selection import LdsGrid, select

RIDGES, MS, FINE = [1e-4, 1e-2, 1.0], [16, 32, 64, 128], [16, 23, 32, 45, 64, 91, 128]
TITLES = [
    "LDS against λ, validation queries",
    "LDS against λ, test queries",
    "LDS against m at λ* = 0.01",
    "Effective dimension",
    "Normalised LDS (dotted: 95 %, $m = d_λ$)",
    "Predicted validation LDS",
]


def lds(m, ridge, group):
    """Grow with m towards a limit that is best at λ = 0.01; no two cells alike."""
    return (0.4 if group == "val" else 0.35) * m / (m + 20) - 0.03 * abs(np.log10(ridge) + 2) / (1 + m / 500)


def make_tables(measured=True):
    """Return summary.csv and predicted.csv as the script makes them."""
    d_lambda = dict(zip(RIDGES, [40.0, 12.0, 3.0], strict=True))
    cells = [{"m": m, "lambda": r, "d_lambda": d_lambda[r], "m_over_d_lambda": m / d_lambda[r]}
             for m in (*FINE, np.inf) for r in RIDGES]  # fmt: skip
    table = pd.DataFrame(cells)
    for group in ("val", "test"):
        finite = table["m"].clip(upper=1e9)
        value = [lds(m, r, group) for m, r in zip(finite, table["lambda"], strict=True)]
        table[f"predicted_{group}_lds"] = np.where(np.isfinite(table["m"]), value, np.nan)
        shown = np.isinf(table["m"]) | measured
        table[f"{group}_lds"] = np.where(shown, np.array(value) + 0.01, np.nan)
        table[f"{group}_lds_low"], table[f"{group}_lds_high"] = (
            table[f"{group}_lds"] - 0.02,
            table[f"{group}_lds"] + 0.03,
        )
        table[f"{group}_lds_std"] = 0.005
    predicted = table[np.isfinite(table["m"])].filter(regex="^(m|m_over_d_lambda|lambda|d_lambda|predicted_.*)$")
    summary = table[table["m"].isin([*MS, np.inf])]
    if not measured:  # no sketch, no columns of measurements in the sketched rows
        exact = summary[np.isinf(summary["m"])].filter(regex="^(?!predicted)")
        summary = pd.concat([predicted[predicted["m"].isin(MS)], exact])
    return summary.astype({"m": object}), predicted.astype({"m": int})


def choice():
    values = {g: np.array([[[lds(m, r, g) for r in RIDGES] for m in MS]]) for g in ("val", "test")}
    exact = {g: np.array([lds(1e9, r, g) for r in RIDGES]) for g in ("val", "test")}
    return select(LdsGrid(
        np.array(MS), np.array(RIDGES), np.array([40.0, 12.0, 3.0]), values["val"], values["test"], exact["val"],
        exact["test"], num_val_queries=50,
    ))  # fmt: skip


def path():
    """Return the best λ of every m: predicted between two of the grid, measured with an interval."""
    unknown = dict.fromkeys(field.name for field in dataclasses.fields(RidgeOfDimension))
    known = dict(lambda_star=1e-2, lambda_low=1e-4, lambda_high=1.0, predicted_lambda_star=2e-2)
    return [RidgeOfDimension(**unknown | known | {"m": m}) for m in MS]


@pytest.fixture(scope="module")
def draw(tmp_path_factory):
    """Draw into a new folder and return the figure and the folder."""
    kept = []
    save = lds_figure.save_figure

    def run(summary, predicted, selection, path=()):
        folder = tmp_path_factory.mktemp("figure")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lds_figure, "save_figure", lambda figure, where: (kept.append(figure), save(figure, where)))
            lds_figure.draw_hyperparam_selection(folder, summary, predicted, selection, path, "what was measured")
        return kept[-1], folder

    return run


@pytest.fixture(scope="module")
def usual(draw):
    """The figure of a run that measured, and its folder."""
    return draw(*make_tables(), choice(), path())


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def lines(axes, style):
    return [line for line in axes.lines if line.get_linestyle() == style and len(line.get_xdata()) > 2]


def points(axes):
    return [line for line in axes.lines if line.get_linestyle() == "None" and line.get_marker() not in ("_", "|")]


def test_six_panels_say_what_they_show_on_which_scale(usual):
    figure, folder = usual
    panels = figure.axes[:6]
    assert [axes.get_title() for axes in panels] == TITLES
    assert [axes.get_xlabel() for axes in panels] == ["λ", "λ", "m", "λ", "$m / d_λ$", "m"]
    assert all(axes.get_ylabel() for axes in panels)
    assert [axes.get_xscale() for axes in panels] == ["log"] * 6
    assert [axes.get_yscale() for axes in panels] == ["linear"] * 3 + ["log", "linear", "log"]
    assert figure.axes[6].get_ylabel() == "predicted validation LDS"  # of the colours
    assert figure._suptitle.get_text() == "what was measured"
    assert sorted(path.name for path in folder.iterdir()) == ["figure.pdf", "figure.png"]
    assert matplotlib.image.imread(folder / "figure.png").std() > 0.05
    assert plt.get_fignums() == []


def test_no_legend_covers_a_curve(usual):
    figure, _ = usual
    figure.draw_without_rendering()
    panels = [axes for axes in figure.axes if axes.get_legend()]
    assert len(panels) == 5
    assert all(axes.get_legend().get_window_extent().y1 < axes.bbox.y0 for axes in panels)


@pytest.mark.parametrize(("panel", "group"), [(0, "val"), (1, "test")])
def test_every_m_has_points_and_a_line_of_one_colour_over_the_ridge_and_the_exact_lds_is_dashed(usual, panel, group):
    summary, predicted = make_tables()
    axes = usual[0].axes[panel]
    measured, drawn = points(axes), lines(axes, "-")
    assert len(measured) == len(drawn) == len(MS)
    for m, dots, line in zip(MS, measured, drawn, strict=True):
        np.testing.assert_allclose(dots.get_ydata().astype(float), summary.loc[summary["m"] == m, f"{group}_lds"])
        np.testing.assert_allclose(line.get_ydata(), predicted.loc[predicted["m"] == m, f"predicted_{group}_lds"])
        assert tuple(dots.get_color()) == tuple(line.get_color())
    assert len({tuple(dots.get_color()) for dots in measured}) == len({dots.get_marker() for dots in measured}) == 4
    (exact,) = lines(axes, "--")
    np.testing.assert_allclose(exact.get_ydata(), summary.loc[summary["m"] == np.inf, f"{group}_lds"].astype(float))
    if group == "val":
        assert legend(axes) == [*(f"m = {m}" for m in MS), "exact, no sketch"]


def test_over_m_stand_both_groups_at_the_chosen_ridge_its_dimension_and_m_95(usual):
    summary, _ = make_tables()
    selection = choice()
    axes = usual[0].axes[2]
    at_star = summary[(summary["lambda"] == selection.lambda_star) & (summary["m"] != np.inf)]
    for group, dots, line in zip(("val", "test"), points(axes), lines(axes, "-"), strict=True):
        np.testing.assert_allclose(dots.get_ydata().astype(float), at_star[f"{group}_lds"])
        assert len(line.get_xdata()) == len(FINE)
    upright = {line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1 and len(line.get_xdata())}
    assert {selection.d_lambda_star, selection.m_95} <= upright
    assert {"$d_{λ*}$", "$m_{95}$"} <= set(legend(axes))


def test_normalised_curves_are_shares_of_the_exact_test_lds(usual):
    summary, _ = make_tables()
    axes = usual[0].axes[4]
    exact = summary[summary["m"] == np.inf].set_index("lambda")["test_lds"]
    assert legend(axes) == ["1e-04", "1e-02", "1e+00"]
    for ridge, dots in zip(RIDGES, points(axes), strict=True):
        cells = summary[(summary["lambda"] == ridge) & (summary["m"] != np.inf)]
        np.testing.assert_allclose(dots.get_xdata().astype(float), cells["m_over_d_lambda"])
        np.testing.assert_allclose(dots.get_ydata(), cells["test_lds"] / exact[ridge])


def test_the_map_has_every_predicted_cell_and_the_best_ridge_of_each_m_predicted_and_measured(usual):
    _, predicted = make_tables()
    axes = usual[0].axes[5]
    mesh = axes.collections[0]
    by_cell = predicted.sort_values(["lambda", "m"])["predicted_val_lds"].to_numpy()
    np.testing.assert_allclose(np.asarray(mesh.get_array()).ravel(), by_cell)
    (curve,), (dots,) = lines(axes, "-"), points(axes)
    assert (curve.get_xdata().tolist(), curve.get_ydata().tolist()) == (MS, [2e-2] * len(MS))
    assert (dots.get_xdata().tolist(), dots.get_ydata().tolist()) == (MS, [1e-2] * len(MS))
    (bars,) = (one for one in axes.collections if isinstance(one, LineCollection))
    np.testing.assert_allclose([bar[:, 1] for bar in bars.get_segments()], [[1e-4, 1.0]] * len(MS))
    assert legend(axes) == ["predicted λ*(m)", "measured λ*(m), 95 %"]


def test_an_interval_that_does_not_hold_its_mean_is_drawn_where_it_lies(draw):
    summary, predicted = make_tables()
    summary["val_lds_low"] = summary["val_lds_high"] = summary["val_lds"] + 1e-3
    figure, _ = draw(summary, predicted, choice())
    bars = [bar for bars in figure.axes[0].collections[: len(MS)] for bar in bars.get_segments()]
    ends = summary.loc[summary["m"].isin(MS)].sort_values(["m", "lambda"])["val_lds_low"]
    np.testing.assert_allclose([bar[:, 1] for bar in bars], np.column_stack([ends, ends]))


def test_without_sketches_there_are_lines_and_no_points(draw):
    figure, _ = draw(*make_tables(measured=False), None)
    assert [axes.get_title() for axes in figure.axes[:6]] == TITLES
    for panel in (0, 1, 4):
        assert len(lines(figure.axes[panel], "-")) >= 3
        assert all(np.isnan(np.asarray(dots.get_ydata(), dtype=float)).all() for dots in points(figure.axes[panel]))


def test_a_choice_without_a_ridge_is_said_and_drawn_without_a_warning(draw):
    summary, predicted = make_tables()
    nothing = np.full((1, 4, 3), np.nan)
    grid = LdsGrid(np.array(MS), np.array(RIDGES), np.ones(3), nothing, nothing, np.ones(3), np.ones(3), 50)
    assert draw(summary, predicted, select(grid))[0].axes[2].get_title() == "no λ* exists"


@pytest.mark.parametrize(("ms", "ridges"), [([64], [1.0]), ([64, 128], [1.0]), ([64], [1e-3, 1.0])])
def test_the_map_of_a_single_size_or_ridge_has_room(ms, ridges):
    cells = pd.MultiIndex.from_product([ms, ridges], names=["m", "lambda"]).to_frame(index=False)
    axes = Figure().subplots()
    lds_figure.draw_map(axes, cells.assign(predicted_val_lds=0.5, predicted_eps_95=0.1), [])
    edges = axes.collections[0].get_coordinates()
    assert (edges[0, 0] < [min(ms), min(ridges)]).all()
    assert (edges[-1, -1] > [max(ms), max(ridges)]).all()


def test_without_a_law_the_figure_draws_no_map_and_speaks_of_no_lines(draw):
    summary, predicted = make_tables()
    for table in (summary, predicted):
        table[["predicted_val_lds", "predicted_test_lds"]] = np.nan
    alone = [dataclasses.replace(one, predicted_lambda_star=None) for one in path()]
    figure, _ = draw(summary, predicted, choice(), alone)
    assert len(figure.axes) == 6, "a map of nothing has colours"
    plane = figure.axes[5]
    assert plane.get_title() == "Best λ of every m"
    assert legend(plane) == ["measured λ*(m), 95 %"]
    assert figure.axes[0].get_legend().get_title().get_text() == "measured, nothing predicted"
