from __future__ import annotations

import pandas as pd
import pytest
from matplotlib.figure import Figure

from common.experiments.costing import figure


def table(ridges_of: dict[str, list[float]]) -> pd.DataFrame:
    rows = [
        {"proj_type": law, "m": m, "lambda": ridge, "d_lambda": 3.0, "seconds": m / 10, "eps_95": ridge + 1 / m}
        for law, ridges in ridges_of.items()
        for ridge in ridges
        for m in (256, 512)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("ridges_of", "shown"),
    [
        ({"normal": [1e-4, 1e-3, 1e-2, 1e-1]}, [1e-4, 1e-2, 1e-1]),
        ({"normal": [1e-3, 1e-2, 1e-1], "sjlt": [1e-3, 1e-2]}, [1e-3, 1e-2]),
        ({"normal": [1e-3], "sjlt": [1e-3]}, [1e-3]),
        ({"normal": [1e-3], "sjlt": [1e-2]}, [1e-3, 1e-2]),
    ],
)
def test_the_ridges_shown_are_those_that_every_projection_has(ridges_of, shown):
    assert figure.shown_ridges(table(ridges_of)) == shown


def test_every_projection_has_its_curve_of_errors_over_seconds_with_every_m_beside_it(tmp_path, monkeypatch):
    drawn: list[Figure] = []
    monkeypatch.setattr(figure, "save_figure", lambda made, folder: drawn.append(made))
    figure.draw_cost(tmp_path, table({"normal": [1e-3, 1e-2], "sjlt": [1e-3, 1e-2]}), "of a test")
    first, second = drawn[0].axes
    assert [line.get_label() for line in first.lines] == ["normal", "sjlt"]
    assert first.lines[0].get_xdata().tolist() == [25.6, 51.2]
    assert second.lines[1].get_ydata().tolist() == [1e-2 + 1 / 256, 1e-2 + 1 / 512]
    assert [text.get_text() for text in first.texts] == ["256", "512"] * 2
    assert "λ = 1e-03" in first.get_title()
