from __future__ import annotations

import matplotlib.image
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from common.experiments import figures


class CannotBeDrawn(Text):
    """Half of the figure is drawn when its turn comes."""

    def draw(self, renderer):
        raise MemoryError


def make_figure():
    figure = Figure(figsize=(3, 2), layout="constrained")
    axes = figure.subplots()
    axes.plot([1, 2], [3, 4])
    axes.set_ylabel("a label that needs room")
    return figure, axes


def test_a_figure_that_cannot_be_drawn_leaves_no_file(tmp_path):
    figure, _ = make_figure()
    figure.add_artist(CannotBeDrawn(0.5, 0.5, "text"))
    with pytest.raises(MemoryError):
        figures.save_figure(figure, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_layout_makes_room_for_labels_and_stays(tmp_path):
    figure, axes = make_figure()
    figures.lay_out(figure)
    placed = axes.get_position().bounds
    assert 0.03 < axes.yaxis.label.get_window_extent().x1 / figure.bbox.width < placed[0]
    axes.set_ylabel("two\nlines")
    figures.save_figure(figure, tmp_path)
    assert axes.get_position().bounds == placed


def test_pixels_of_the_png_are_those_of_the_size_and_the_pdf_has_no_date(tmp_path):
    with matplotlib.rc_context(figures.STYLE):
        figure, _ = make_figure()
        figures.save_figure(figure, tmp_path)
    assert matplotlib.image.imread(tmp_path / "figure.png").shape[:2] == (300, 450)
    pdf = (tmp_path / "figure.pdf").read_bytes()
    assert pdf.startswith(b"%PDF-")
    assert b"CreationDate" not in pdf
