from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import same_color

from common.experiments.audit import figure, lds, scores, tables
from common.experiments.audit.top_scores import top_scores
from common.experiments.audit.truth import AuditTruth
from tests.drawn import kept_figures, legend_labels, lines
from tests.experiments.audit import cases

pytestmark = pytest.mark.usefixtures("one_thread")

RIDGES = [1e-6, 1e-5, 0.3, 0.6, 1.0, 3.0, 6.0, 10.0, 30.0]
RIDGE = 3.0


@pytest.fixture(scope="module")
def audit(tmp_path_factory):
    """Return the tables of a small audit with a ground truth, two of whose nine λ are not resolved."""
    generator = torch.Generator().manual_seed(2)
    masks = (torch.rand(12, cases.NUM_TRAIN, generator=generator) < 0.5).double()
    truth = AuditTruth(masks, torch.randn(12, cases.NUM_QUERIES, generator=generator, dtype=torch.float64))
    audited = cases.audit(cases.write_stores(tmp_path_factory.mktemp("audit")), masks)
    dimensions = tables.effective_dimensions(audited, RIDGES)
    summary = tables.errors(audited, tables.make_cells(audited, dimensions), seed=1)
    top = top_scores(scores.make_scorer(audited, RIDGE), audited.store, audited.query_rows, 5)
    return dict(
        dimensions=dimensions, summary=summary, top=top, lds=lds.measure(audited, truth, RIDGES, 0.5, seed=1)
    )  # fmt: skip


@pytest.fixture
def draw(audit, tmp_path, monkeypatch):
    """Draw the tables of the audit with some of them changed; return the four panels in reading order."""
    kept = kept_figures(monkeypatch, figure, save=False)

    def run(**changes):
        figure.draw_audit(tmp_path, **audit | changes, ridge=RIDGE, title="what was audited")
        assert kept[-1]._suptitle.get_text() == "what was audited"
        return kept[-1].axes

    return run


def test_every_panel_says_what_it_shows_and_the_last_depends_on_a_ground_truth(draw):
    panels = [(axes.get_xlabel(), axes.get_ylabel()) for axes in draw()]
    assert panels == [
        ("λ", "$d_λ$"),
        ("m", "predicted $ε_{95}$"),
        ("training rows, by score", "score"),
        ("λ", "test LDS"),
    ]
    last = draw(lds=None)[3]
    assert (last.get_xlabel(), last.get_title()) == ("m", "Error of cross scores")


def test_the_effective_dimension_is_drawn_where_it_is_resolved_with_two_standard_errors_and_from_folds(draw, audit):
    axes, table = draw()[0], audit["dimensions"]
    known = table[table["resolved"]]
    assert len(known) == 7
    (curve,) = lines(axes, "-")
    np.testing.assert_array_equal(curve.get_xydata(), known[["lambda", "d_lambda"]])
    (bars,) = axes.containers
    segments = np.array(bars.lines[2][0].get_segments())
    np.testing.assert_allclose(segments[:, 1, 1] - segments[:, 0, 1], 4 * known["d_lambda_std_error"])
    np.testing.assert_allclose(segments.mean(1), known[["lambda", "d_lambda"]])
    folds = {line.get_label(): line.get_ydata() for line in axes.lines}
    np.testing.assert_array_equal(folds["folded: M/2"], table["d_lambda_half"])
    np.testing.assert_array_equal(folds["folded: M/4"], table["d_lambda_quarter"])
    (grey,) = axes.patches
    assert grey.get_label() == "not resolved"
    assert grey.get_x() == pytest.approx(0.5e-6)
    assert grey.get_x() + grey.get_width() == pytest.approx(0.3 / 3**0.5)


def test_nothing_is_grey_where_every_ridge_is_resolved(draw, audit):
    table = audit["dimensions"]
    axes = draw(dimensions=table[table["resolved"]])[0]
    assert len(axes.patches) == 0
    assert "not resolved" not in legend_labels(axes)


@pytest.mark.parametrize(("panel", "name"), [(1, "eps_95"), (3, "cross_eps_95")])
def test_errors_of_six_ridges_from_end_to_end_are_drawn_raw_and_corrected_and_the_size_of_the_store(
    draw, audit, panel, name
):
    axes, table = draw(lds=None)[panel], audit["summary"]
    shown = [0.3, 0.6, 1.0, 6.0, 10.0, 30.0]  # of seven that are resolved
    solid, dashed = lines(axes, "-"), lines(axes, "--")
    assert legend_labels(axes) == [f"{ridge:.1e}" for ridge in shown]
    for ridge, raw, corrected in zip(shown, solid, dashed, strict=True):
        cells = table[table["lambda"] == ridge]
        np.testing.assert_array_equal(raw.get_xydata(), cells[["m", f"predicted_{name}"]])
        np.testing.assert_array_equal(corrected.get_xydata(), cells[["m", f"predicted_corrected_{name}"]])
        assert same_color(raw.get_color(), corrected.get_color())
    (store,) = [line for line in axes.lines if line.get_linestyle() == ":"]
    assert list(store.get_xdata()) == [cases.M, cases.M]
    assert [text.get_text() for text in axes.texts] == [f"M = {cases.M}"]


def test_a_projection_without_a_law_has_no_errors_to_draw(draw, audit):
    table = audit["summary"]
    predicted = {name: np.nan for name in table if name.startswith("predicted_")}
    for panel in (1, 3):
        axes = draw(lds=None, summary=table.assign(**predicted))[panel]
        assert len(axes.lines) == 0
        assert [text.get_text() for text in axes.texts] == ["no law is known"]


def bars(axes):
    """Return colour -> (x, score, standard error), of each group of scores with error bars."""
    found = {}
    for container in axes.containers:
        points, _, (lengths,) = container.lines
        segments = np.array(lengths.get_segments())
        error = (segments[:, 1, 1] - segments[:, 0, 1]) / 2 / 1.96
        found[container.get_label()] = np.column_stack([points.get_xydata(), error])
    return found


def test_the_query_with_most_significant_scores_is_drawn_from_the_largest_to_the_smallest(draw, audit):
    top = audit["top"].copy()
    query = top["query"].unique()[3]
    top["significant"] = (top["query"] == query) & (top["rank"] <= 3)
    axes = draw(top=top)[2]
    assert axes.get_title() == f"Top scores of query {query}, λ = 3, 95 % intervals"
    rows = top[top["query"] == query].sort_values("score", ascending=False).reset_index()
    assert len(rows) == 10
    expected = {
        "significant at 5 % (Holm)": rows[rows["significant"]],
        "not": rows[~rows["significant"]],
    }
    found = bars(axes)
    assert list(found) == legend_labels(axes) == list(expected)
    for label, part in expected.items():
        places = np.column_stack([part.index, part["score"], part["standard_error"]])
        np.testing.assert_allclose(found[label], places, rtol=1e-9)
    assert axes.get_yscale() == "symlog"


@pytest.mark.parametrize("largest", [4.2e-13, 1e-3, 0.42, 9.99, 3e4])
def test_ticks_of_scores_are_powers_of_ten_outside_the_linear_part_with_labels_apart(draw, audit, largest):
    top = audit["top"]
    scores = top["score"] * largest / top["score"].abs().max()
    axes = draw(top=top.assign(score=scores, standard_error=largest / 100, query=top["query"].iloc[0]))[2]
    ticks, linear = axes.get_yticks(), axes.yaxis.get_transform().linthresh
    assert largest / 100 <= linear <= largest / 10 * (1 + 1e-12)
    np.testing.assert_array_equal(ticks, -ticks[::-1])
    np.testing.assert_allclose(ticks[ticks > 0], linear * 10.0 ** np.arange(len(ticks) // 2))
    axes.figure.draw_without_rendering()
    low, high = axes.get_ylim()
    boxes = [t.label1.get_window_extent() for t in axes.yaxis.get_major_ticks() if low <= t.get_loc() <= high]
    assert len(boxes) >= 3
    assert all(upper.y0 - lower.y1 > lower.height / 2 for lower, upper in itertools.pairwise(boxes))


def test_scores_that_are_all_zero_are_drawn(draw, audit):
    axes = draw(top=audit["top"].assign(score=0.0, standard_error=0.0))[2]
    assert axes.get_yscale() == "linear"


def test_a_row_among_the_largest_and_the_smallest_is_drawn_once(draw, audit):
    top = audit["top"]
    axes = draw(top=pd.concat([top, top.assign(sign="negative")], ignore_index=True))[2]
    assert sum(map(len, bars(axes).values())) == 10


def test_without_error_bars_no_score_is_called_significant(draw, audit):
    top = audit["top"].assign(standard_error=np.nan, significant=pd.array([pd.NA] * len(audit["top"]), dtype="boolean"))
    axes = draw(top=top)[2]
    assert legend_labels(axes) == ["without error bars"]
    assert axes.get_title().endswith(", λ = 3")
    assert len(axes.containers[0].lines[0].get_xdata()) == 10


def test_the_lds_of_every_fold_is_drawn_over_the_ridges_and_the_one_of_the_scores_marked(draw, audit):
    axes, table = draw()[3], audit["lds"]
    assert legend_labels(axes) == ["96", "48", "24"]
    for m, raw, corrected in zip((96, 48, 24), lines(axes, "-"), lines(axes, "--"), strict=True):
        cells = table[table["m"] == m]
        np.testing.assert_array_equal(raw.get_xydata(), cells[["lambda", "test_lds"]])
        np.testing.assert_array_equal(corrected.get_xydata(), cells[["lambda", "corrected_test_lds"]])
    (mark,) = [line for line in axes.lines if line.get_linestyle() == ":"]
    assert list(mark.get_xdata()) == [RIDGE, RIDGE]
