from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from common.experiments.faithfulness import figure as faithfulness_figure
from common.experiments.faithfulness.verdict import FaithfulnessOfDimension
from common.experiments.lds.ridge_path import RidgeOfDimension

MS, RIDGES = [32, 64, 128], [1e-3, 1e-2, 1e-1]


def made_up(measured=True):
    cells = [(m, r) for m in MS for r in RIDGES]
    predicted = pd.DataFrame(cells, columns=["m", "lambda"])
    predicted["predicted_val_lds"] = [m / 300 - abs(np.log10(r) + 2) / 50 for m, r in cells]
    predicted["predicted_eps_95"] = [1 / m for m, _ in cells]

    def record(kind, **known):
        return kind(**dict.fromkeys(field.name for field in dataclasses.fields(kind)) | known)

    own = dict(lambda_star=1e-2, lambda_low=1e-3, lambda_high=1e-1) if measured else {}
    path = [record(RidgeOfDimension, m=m, predicted_lambda_star=2e-2, **own) for m in MS]
    known = dict(test_lds=0.2, eps_95=0.03) if measured else {}
    by_m = [record(FaithfulnessOfDimension, m=m, predicted_test_lds=0.25, predicted_eps_95=1 / m, **known) for m in MS]
    return predicted, path, by_m


@pytest.mark.parametrize("measured", [True, False])
def test_three_panels_show_the_map_with_contours_and_both_numbers_along_the_path(measured, tmp_path, monkeypatch):
    kept = []
    save = faithfulness_figure.save_figure
    monkeypatch.setattr(faithfulness_figure, "save_figure", lambda f, where: (kept.append(f), save(f, where)))
    faithfulness_figure.draw_faithfulness(tmp_path, *made_up(measured), 0.02, "what was measured")
    assert {path.name for path in tmp_path.iterdir()} == {"figure.png", "figure.pdf"}
    plane, errors, lds = kept[0].axes[:3]
    assert {text.get_text() for text in plane.texts} >= {"0.02"}  # the threshold's contour is labelled
    lines = {line.get_linestyle(): line for line in errors.lines}
    assert lines["-"].get_ydata().tolist() == [1 / m for m in MS]
    assert list(lines["--"].get_ydata()) == [0.02, 0.02]
    points = [line for axes in (errors, lds) for line in axes.lines if line.get_marker() == "o"]
    assert [line.get_ydata().tolist() for line in points] == ([[0.03] * 3, [0.2] * 3] if measured else [])


def test_a_single_m_has_no_contours_and_no_warning(tmp_path):
    predicted, path, by_m = made_up()
    faithfulness_figure.draw_faithfulness(tmp_path, predicted[predicted["m"] == 32], path[:1], by_m[:1], 0.02, "one m")
    assert (tmp_path / "figure.png").exists()


def test_without_a_law_only_measurements_are_drawn(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(faithfulness_figure, "save_figure", lambda figure, where: kept.append(figure))
    predicted, path, by_m = made_up()
    predicted[["predicted_val_lds", "predicted_eps_95"]] = np.nan
    path = [dataclasses.replace(one, predicted_lambda_star=None) for one in path]
    by_m = [dataclasses.replace(one, predicted_test_lds=None, predicted_eps_95=None) for one in by_m]
    faithfulness_figure.draw_faithfulness(tmp_path, predicted, path, by_m, 0.02, "kronecker")
    plane, errors, lds = kept[0].axes
    assert plane.get_title() == "Best λ of every m"
    shown = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in (errors, lds)]
    assert shown == [["measured, at its own λ*(m)", "threshold, 0.02"], ["measured, at its own λ*(m)"]]
