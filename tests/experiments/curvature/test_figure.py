from __future__ import annotations

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from common.experiments.curvature import figure as curvature_figure

RIDGES = [1e-4, 1e-2, 1.0]


def make_tables():
    """Return lds.csv, layers.csv and summary.csv as the script makes them, K-FAC best at λ = 0.01."""
    lds = pd.DataFrame(
        [
            {"curvature": name, "lambda": ridge, "d_lambda": 10 / (i + 1)}
            | {f"{group}_lds": value, f"{group}_lds_low": value - 0.1, f"{group}_lds_high": value + 0.1}
            for name in ("kfac", "ekfac", "full")
            for group in ("val", "test")
            for i, (ridge, value) in enumerate(zip(RIDGES, (0.1, 0.3, 0.2), strict=True))
        ]
    )
    lds = lds.groupby(["curvature", "lambda"], sort=False).first().reset_index()
    layers = pd.DataFrame(
        [
            {"block": f"a.layer.with.a.rather.long.name.{number}", "lambda": ridge, "d_lambda_fisher": np.nan}
            | {f"d_lambda_{name}": (number + 1) / (i + 1) for name in ("kfac", "ekfac", "factorised")}
            for number in range(20)
            for i, ridge in enumerate(RIDGES)
        ]
    )
    cells = [
        (kind, a, e, ridge) for kind in ("decoupled", "joint") for a in (4, 8) for e in (2, 99) for ridge in RIDGES
    ]
    summary = pd.DataFrame(cells, columns=["kind", "m_a", "m_e", "lambda"])
    summary["m"] = summary["m_a"] * summary["m_e"].clip(upper=10)
    summary["eps_95"] = np.where((summary["kind"] == "joint") & (summary["m"] == 80), np.nan, 3 / summary["m"])
    summary["predicted_eps_95"] = np.where(summary["kind"] == "joint", 3 / summary["m"], np.nan)
    return lds, layers, summary


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder, kept = tmp_path_factory.mktemp("figure"), []
    save = curvature_figure.save_figure
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curvature_figure, "save_figure", lambda figure, where: (kept.append(figure), save(figure, where)))
        curvature_figure.draw_factorized_influence(folder, *make_tables(), "what was measured")
    return kept[0], folder


def labels(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_six_panels_say_what_they_show(drawn):
    figure, folder = drawn
    assert [axes.get_title() for axes in figure.axes] == [
        "LDS against λ, validation queries",
        "LDS against λ, test queries",
        "Effective dimensions",
        "Layer by layer, λ = 1e-02",
        "Sketches of K-FAC, λ = 1e-02",
        "Decoupled (solid), joint (crosses; dashed: predicted)",
    ]
    assert figure._suptitle.get_text() == "what was measured"
    assert matplotlib.image.imread(folder / "figure.png").std() > 0.05
    assert (folder / "figure.pdf").exists()


def test_every_curvature_has_its_curve_and_its_band(drawn):
    for axes in drawn[0].axes[:2]:
        assert labels(axes) == ["K-FAC", "EK-FAC", "F itself"]
        assert (len(axes.lines), len(axes.collections)) == (3, 3)


def test_the_names_of_many_layers_are_thinned_out_and_shortened(drawn):
    names = [text.get_text() for text in drawn[0].axes[3].get_xticklabels()]
    assert len(names) == 10
    assert all(len(name) <= 22 for name in names)


def test_both_kinds_of_sketch_are_drawn_over_the_numbers_they_keep(drawn):
    axes = drawn[0].axes[4]
    assert labels(axes) == ["decoupled, $m_E$ = 2", "decoupled, $m_E$ = 99", "joint", "joint, predicted"]
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [8, 16])
    np.testing.assert_allclose(axes.lines[1].get_xdata(), [40, 80])


def test_no_legend_covers_a_curve(drawn):
    figure, _ = drawn
    figure.draw_without_rendering()
    for number, axes in enumerate(figure.axes):
        box = axes.get_legend().get_window_extent()
        if number == 3:  # there the names of the layers are below, and the legend stands above the points
            highest = max(axes.transData.transform((0, max(line.get_ydata())))[1] for line in axes.lines[:3])
            assert box.y0 > highest
        else:
            assert box.y1 < axes.bbox.y0
