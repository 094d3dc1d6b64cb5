from __future__ import annotations

import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from bench import figure as bench_figures
from bench.tables import join

ROUTES, MS = ["coordinates", "dattri", "stored matrix"], [16, 32, 64]


@pytest.fixture(scope="module")
def tables():
    sweep = pd.DataFrame({"what": "sweep", "route": r, "m": m, "seconds": 0.01 * 7**i * m} for i, r in enumerate(ROUTES)
                         for m in MS).assign(peak_memory_bytes=1, added_memory_bytes=1)  # fmt: skip
    steps = [("gradients", "layer by layer", 1.0), ("gradients", "one at a time", 3.0), ("Gram matrix", "ours", 0.2)]
    preparation = pd.DataFrame(steps, columns=["what", "route", "seconds"])
    growth = [{"axis": axis, "value": v, "sketch_seconds": v / 1e3, "geometry_seconds": v / 1e2}
              for axis, values in (("n", [50, 100]), ("d", [500, 1000, 2000]), ("m", [16, 32, 64, 128]))
              for v in values]  # fmt: skip
    return join(sweep, preparation), pd.DataFrame(growth)


@pytest.fixture(scope="module")
def drawn(tables, tmp_path_factory):
    """The figure by panel, and its folder."""
    kept, folder, save = [], tmp_path_factory.mktemp("bench"), bench_figures.save_figure
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_figures, "save_figure", lambda figure, where: (kept.append(figure), save(figure, where)))
        bench_figures.draw_bench(folder, *tables)
    return {axes.get_label(): axes for axes in kept[0].axes}, folder


def test_both_files_are_there_and_not_blank(drawn):
    _, folder = drawn
    assert sorted(path.name for path in folder.iterdir()) == ["figure.pdf", "figure.png"]
    assert matplotlib.image.imread(folder / "figure.png").std() > 0.05
    assert plt.get_fignums() == []


def test_every_route_has_a_line_of_seconds_over_m_on_logarithmic_axes(drawn, tables):
    axes = drawn[0]["S"]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [f"{route}, whole sweep x {ratio}" for route, ratio in zip(ROUTES, (1, 7, 49), strict=True)]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["16", "32", "64"]
    for route, line in zip(ROUTES, axes.lines, strict=True):
        rows = tables[0][(tables[0]["what"] == "sweep") & (tables[0]["route"] == route)]
        np.testing.assert_allclose(line.get_xdata(), MS)
        np.testing.assert_allclose(line.get_ydata(), rows["seconds"])
    assert len({line.get_color() for line in axes.lines}) == len({line.get_marker() for line in axes.lines}) == 3


def test_the_bars_are_the_steps_of_the_preparation_with_their_ratio_to_ours(drawn):
    axes = drawn[0]["P"]
    assert [bar.get_width() for bar in axes.patches] == [1.0, 3.0, 0.2]
    assert [label.get_text().split() for label in axes.texts] == [["x", "1"], ["x", "3"], ["x", "1"]]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["gradients: layer by layer", "gradients: one at a time", "Gram matrix: ours"]


@pytest.mark.parametrize("axis", ["n", "d", "m"])
def test_growth_has_a_panel_an_axis_with_sketch_and_geometry(drawn, tables, axis):
    axes = drawn[0][axis]
    part = tables[1][tables[1]["axis"] == axis]
    assert axes.get_xlabel() == bench_figures.GROWTH_LABELS[axis]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    for line, name in zip(axes.lines, ("sketch_seconds", "geometry_seconds"), strict=True):
        np.testing.assert_allclose(line.get_data(), part[["value", name]].to_numpy().T)
    assert axes.get_ylim() == drawn[0]["n"].get_ylim()
