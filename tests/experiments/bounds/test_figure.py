from __future__ import annotations

import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from common.experiments.bounds import figure as spectrum_figure
from common.experiments.bounds.sweep import predict
from common.experiments.cells import Cells
from common.theory.sketched_spectrum import SketchedSpectrum
from common.theory.spectrum import ExactSpectrum, effective_dimension
from tests import reference
from tests.drawn import kept_figures, lines
from tests.geometries import geometry_from
from tests.reference import DenseGradients

TITLE = "mnist_mlp, sjlt projection, queries: training samples"
RIDGES, MS = [1e-4, 1e-2, 1.0], [1, 4, 16, 64]


@pytest.fixture(scope="module")
def geometry():
    train = reference.gradients_with_spectrum(torch.logspace(1, -4, 30, dtype=torch.float64), 30, 60, seed=1)
    gradients = DenseGradients(train)
    return geometry_from(gradients, 30, torch.arange(10))


def make_table(geometry, measured=True, ridges=None, ms=None, ridge_correction=False):
    ridges, ms = ridges or RIDGES, ms or MS
    spectrum = ExactSpectrum(geometry.eigenvalues)
    d_lambda = effective_dimension(spectrum, torch.tensor(ridges, dtype=torch.float64)).tolist()
    table = predict(Cells(spectrum, ms, ridges, d_lambda, ridge_correction), geometry.queries)
    if measured:
        table["eps_95"] = 1.1 * table["predicted_eps_95"]
        table["mean_ratio"] = 0.9 * table["predicted_mean_ratio"]
    if measured and ridge_correction:
        table["corrected_eps_95"] = 1.2 * table["predicted_corrected_eps_95"]
        table["corrected_mean_ratio"] = 0.8 * table["predicted_corrected_mean_ratio"]
    return table


@pytest.fixture
def draw(geometry, tmp_path):
    """Return a function that draws a table and returns the figure; it is written to `tmp_path` only if so wished."""

    def run(table, save=False):
        with pytest.MonkeyPatch.context() as patch:
            kept = kept_figures(patch, spectrum_figure, save)
            spectrum = ExactSpectrum(geometry.eigenvalues)
            spectrum_figure.draw_spectrum_bounds(tmp_path, table, spectrum, geometry.rank, TITLE)
        return kept[0]

    return run


def points(axes):
    return [line for line in axes.lines if line.get_linestyle() == "None"]


def test_png_and_pdf_are_there_and_the_picture_is_not_blank(draw, tmp_path, geometry):
    draw(make_table(geometry), save=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure.pdf", "figure.png"]
    assert (tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF-")
    image = matplotlib.image.imread(tmp_path / "figure.png")
    assert image.shape[0] > 800
    assert image.shape[1] > 1000
    ink = (image[:, :, :3] < 0.5).any(axis=2)
    halves = [half for rows in np.array_split(ink, 2, axis=0) for half in np.array_split(rows, 2, axis=1)]
    assert all(0.005 < half.mean() < 0.5 for half in halves)  # something in each of the four panels


def test_every_ridge_has_points_and_a_line_of_one_colour_in_both_upper_panels(draw, geometry):
    table = make_table(geometry)
    figure = draw(table)
    for axes, name in zip(figure.axes[:2], ("eps_95", "mean_ratio"), strict=True):
        measured, predicted = points(axes), lines(axes, "-")
        assert len(measured) == len(predicted) == len(RIDGES)
        for (_, cells), dots, line in zip(table.groupby("lambda"), measured, predicted, strict=True):
            np.testing.assert_allclose(dots.get_xdata(), cells["m_over_d_lambda"])
            np.testing.assert_allclose(dots.get_ydata(), cells[name])
            np.testing.assert_allclose(line.get_ydata(), cells[f"predicted_{name}"])
            assert tuple(dots.get_color()) == tuple(line.get_color())
        assert len({tuple(dots.get_color()) for dots in measured}) == len(RIDGES)
        assert len({dots.get_marker() for dots in measured}) == len(RIDGES)
        labels = [text.get_text() for text in axes.get_legend().get_texts()]
        assert [label for label in labels if "e" in label] == ["1e-04", "1e-02", "1e+00"]


@pytest.mark.parametrize("measured", [True, False])
def test_ridge_corrected_scores_are_hollow_points_and_dashed_lines_of_the_same_colour(draw, geometry, measured):
    table = make_table(geometry, measured, ridge_correction=True)
    figure = draw(table)
    for axes, name in zip(figure.axes[:2], ("eps_95", "mean_ratio"), strict=True):
        hollow = [dots for dots in points(axes) if str(dots.get_markerfacecolor()) == "white"]
        dashed = [line for line in lines(axes, "--") if str(line.get_color()) != "black"]
        assert len(hollow) == (len(RIDGES) if measured else 0)
        for (_, cells), line, solid in zip(table.groupby("lambda"), dashed, lines(axes, "-"), strict=True):
            np.testing.assert_allclose(line.get_ydata(), cells[f"predicted_corrected_{name}"])
            assert tuple(line.get_color()) == tuple(solid.get_color())
        for (_, cells), dots in zip(table.groupby("lambda"), hollow, strict=False):
            np.testing.assert_allclose(dots.get_ydata(), cells[f"corrected_{name}"])
    assert "ridge corrected" in figure.axes[0].get_legend().get_title().get_text()
    assert "corrected" not in draw(make_table(geometry, measured)).axes[0].get_legend().get_title().get_text()


def test_scales_are_logarithmic_but_for_the_mean_ratio(draw, geometry):
    errors, ratios, spectrum, dimensions = draw(make_table(geometry)).axes
    assert [axes.get_xscale() for axes in (errors, ratios, spectrum, dimensions)] == ["log"] * 4
    assert [axes.get_yscale() for axes in (errors, ratios, spectrum, dimensions)] == ["log", "linear", "log", "log"]
    assert all(axes.get_xlabel() and axes.get_ylabel() and axes.get_title() for axes in (errors, ratios, spectrum))


def test_the_guide_falls_like_one_over_the_root_of_m_over_d_lambda(draw, geometry):
    (guide,) = lines(draw(make_table(geometry)).axes[0], "--")
    x, y = (np.asarray(values, dtype=float) for values in guide.get_data())
    np.testing.assert_allclose(y, x**-0.5, rtol=1e-5)


def test_the_lower_panels_show_all_eigenvalues_and_the_effective_dimension_of_every_ridge(draw, geometry):
    table = make_table(geometry)
    _, _, spectrum, dimensions = draw(table).axes
    np.testing.assert_allclose(lines(spectrum, "-")[0].get_ydata(), geometry.eigenvalues)
    (dots,) = points(dimensions)
    np.testing.assert_allclose(dots.get_xdata(), RIDGES)
    np.testing.assert_allclose(dots.get_ydata(), table.drop_duplicates("lambda")["d_lambda"] / geometry.rank)


def test_without_measurements_there_are_lines_and_no_points(draw, geometry):
    figure = draw(make_table(geometry, measured=False))
    for axes in figure.axes[:2]:
        assert points(axes) == []
        assert len(lines(axes, "-")) == len(RIDGES)
        assert "1e-02" in [text.get_text() for text in axes.get_legend().get_texts()]


def test_no_legend_covers_a_curve(draw, geometry):
    figure = draw(make_table(geometry, ridges=[10.0**e for e in range(-20, 11)]))
    figure.draw_without_rendering()
    panels = [axes for axes in figure.axes if axes.get_legend()]
    assert len(panels) == 3
    assert all(axes.get_legend().get_window_extent().y1 < axes.bbox.y0 for axes in panels)


def test_labels_of_the_effective_dimension_never_touch_and_all_stay_where_there_is_room(draw, geometry):
    def labels(ridges):
        figure = draw(make_table(geometry, ridges=ridges))
        figure.draw_without_rendering()
        return [text.get_window_extent() for text in figure.axes[3].texts]

    assert len(labels(RIDGES)) == len(RIDGES)
    flat = labels([10.0 ** (e / 2) for e in range(-24, 1)])
    assert 5 < len(flat) < 25
    assert not any(one.overlaps(other) for i, one in enumerate(flat) for other in flat[:i])


def test_the_title_says_what_was_measured(draw, geometry):
    assert draw(make_table(geometry))._suptitle.get_text() == TITLE


@pytest.mark.parametrize(
    "changes",
    [
        dict(ridges=[1e-2], ms=[16]),
        dict(ridges=[1e-2], ms=[1]),
        dict(ridges=[10.0**e for e in range(-20, 11)]),
        dict(ridges=[1e3], ms=[1, 64]),
    ],
    ids=["one_cell", "one_small_cell", "many_ridges", "tiny_effective_dimension"],
)
def test_unusual_grids_are_drawn_without_a_warning(draw, geometry, tmp_path, changes):
    draw(make_table(geometry, **changes), save=True)
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_cells_without_a_number_are_left_out_of_the_picture_without_a_warning(draw, geometry, tmp_path):
    table = make_table(geometry)
    table.loc[table["lambda"] == RIDGES[0], ["eps_95", "mean_ratio"]] = np.nan
    draw(table)
    table[["eps_95", "mean_ratio"]] = np.nan
    draw(table, save=True)
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_the_same_numbers_give_the_same_files(geometry, tmp_path):
    for name in ("first", "second"):
        spectrum_figure.draw_spectrum_bounds(
            tmp_path / name, make_table(geometry), ExactSpectrum(geometry.eigenvalues), geometry.rank, TITLE
        )
    for kind in ("png", "pdf"):
        first, second = ((tmp_path / name / f"figure.{kind}").read_bytes() for name in ("first", "second"))
        assert first == second


def test_figures_are_closed_and_styles_restored(draw, geometry):
    before = dict(plt.rcParams)
    draw(make_table(geometry), save=True)
    assert plt.get_fignums() == []
    assert dict(plt.rcParams) == before


def test_measured_tables_may_have_more_columns(draw, geometry):
    table = make_table(geometry).assign(corrected_eps_95=0.1, num_bad=0)
    assert len(points(draw(pd.concat([table])).axes[0])) == len(RIDGES)


def test_what_a_reference_sketch_shows_is_not_called_the_spectrum_of_f(geometry, tmp_path):
    spectrum = SketchedSpectrum(geometry.eigenvalues)
    with pytest.MonkeyPatch.context() as patch:
        figures = kept_figures(patch, spectrum_figure, save=False)
        spectrum_figure.draw_spectrum_bounds(tmp_path, make_table(geometry), spectrum, geometry.rank, TITLE)
    titles = [axes.get_title() for axes in figures[0].axes]
    assert titles[2] == f"Spectrum of the reference sketch, M = {spectrum.size}"
    assert titles[3] == f"Effective dimension, rank of the reference {geometry.rank}"
    assert figures[0].axes[2].get_ylabel() == "eigenvalue of $PFP^T$"
