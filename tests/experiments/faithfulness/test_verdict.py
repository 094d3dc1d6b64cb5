from __future__ import annotations

import dataclasses
import math

import pandas as pd
import pytest

from common.experiments.faithfulness import verdict as verdicts
from common.experiments.faithfulness.verdict import FaithfulnessOfDimension
from common.experiments.lds.ridge_path import CellLds, JointChoice

MS, RIDGES = [32, 64, 128, 256], [0.1, 0.01, 0.01, 0.001]
EPS, PREDICTED_EPS = [0.2, 0.05, 0.02, 0.008], [0.2, 0.05, 0.009, 0.008]
TEST_LDS = [0.1, 0.2, 0.3, 0.31]


def by_m(eps=EPS, predicted=PREDICTED_EPS, threshold=0.01):
    unknown = dict.fromkeys(field.name for field in dataclasses.fields(FaithfulnessOfDimension))
    return [
        FaithfulnessOfDimension(
            **unknown
            | {"m": m, "lambda_star": ridge, "eps_95": e, "faithful": None if e is None else e <= threshold}
            | {"zero_eps_95": 0.09}
            | {"predicted_eps_95": p, "predicted_faithful": p <= threshold, "predicted_test_lds": lds}
        )
        for m, ridge, e, p, lds in zip(MS, RIDGES, eps, predicted, TEST_LDS, strict=True)
    ]


PATH = pd.DataFrame({"m": MS, "lambda": RIDGES, "predicted_val_lds": [0.1, 0.2, 0.3, 0.31]})
SUMMARY = pd.DataFrame({"m": MS, "lambda": RIDGES, "eps_95": EPS})
JOINT = JointChoice(
    m_95=128, m_95_low=64, m_95_high=256, lambda_m_95=0.01, c_95=3.0, val_lds=0.3, test_lds=0.3, exact_test_lds=0.35,
    predicted_m_95=128, best=CellLds(256, 0.001, 0.31, 0.31), not_distinguishable=(), num_cells=8,
)  # fmt: skip


def trials(*last_lds):
    rows = [
        {"trial": t, "m": m, "lambda": r, "test_lds": lds}
        for t, last in enumerate(last_lds)
        for m, r, lds in zip(MS, RIDGES, [*TEST_LDS[:3], last], strict=True)
    ]
    other = [{"trial": 0, "m": 32, "lambda": 5.0, "test_lds": 9.0}]  # no λ*
    return pd.DataFrame(rows + other)


def judge(records=None, **changes):
    given = dict(joint=JOINT, predicted_path=PATH, summary=SUMMARY, trials=trials(0.31, 0.31, 0.05), threshold=0.01)
    given["has_law"] = True
    return verdicts.judge(by_m() if records is None else records, **given | changes)


def test_the_best_and_the_useful_cell_are_looked_up_and_not_chosen_anew():
    found = judge()
    assert (found.best_m, found.best_lambda, found.best_eps_95, found.best_is_faithful) == (256, 0.001, 0.008, True)
    assert (found.useful_m, found.useful_eps_95) == (128, 0.02)
    assert (found.faithful_m, found.predicted_faithful_m, found.predicted_useful_m) == (256, 128, 128)
    assert judge(threshold=0.005).best_is_faithful is False


def test_faithful_means_from_there_on_and_not_once():
    assert judge(by_m(eps=[0.001, 0.05, 0.02, 0.008])).faithful_m == 256
    assert judge(by_m(eps=[0.001, 0.005, 0.002, 0.008])).faithful_m == 32
    nowhere = judge(by_m(eps=[0.001, 0.005, 0.002, 0.08]))
    assert nowhere.faithful_m is None
    assert "faithful at the best λ at no m up to 256" in nowhere.words


def test_growth_is_the_rank_correlation_of_every_trial_with_students_interval():
    found = judge()
    each = [1.0, 1.0, -0.2]  # in the third trial the last of four is the smallest
    mean, half = sum(each) / 3, 4.302653 * 0.6928203 / 3**0.5
    assert found.growth == pytest.approx(mean)
    assert (found.growth_low, found.growth_high) == (max(-1, mean - half), 1.0)
    one = judge(trials=trials(0.31))
    assert (one.growth, one.growth_low) == (1.0, None)
    assert found.predicted_growth == 1.0


def test_growth_that_is_not_known_is_none():
    assert judge(trials=trials(math.nan, 0.3)).growth is None
    assert judge(by_m()[:2]).growth is None


def test_without_measurements_the_verdict_is_that_of_the_closed_form():
    alone = judge(by_m(eps=[None] * 4), joint=None, summary=None, trials=None)
    assert (alone.best_m, alone.useful_m, alone.faithful_m, alone.growth) == (None,) * 4
    assert alone.words == (
        "The closed form, without a sketch: useful from m = 128 on, faithful at the best λ from m = 128 on."
    )


def test_the_words_answer_the_question():
    words = judge().words
    assert words.startswith(
        "The best validation LDS is at m = 256, λ = 0.001, where ε_95 of cross scores is 0.008 (that of "
        "scores of 0: 0.09). Faithful at 0.01: yes. "
        "95 % of the LDS at the largest m is reached at m = 128, where ε_95 is 0.02; scores are faithful at the best λ "
        "from m = 256 on."
    )
    useless = judge(joint=dataclasses.replace(JOINT, m_95=None)).words
    assert "LDS is not positive at the largest m, 256: no m is useful." in useless


@pytest.mark.parametrize(
    ("has_law", "says"),
    [
        (True, "the closed form has no finite validation LDS at any (m, λ)."),
        (False, "no closed form of this projection is known."),
    ],
)
def test_without_a_prediction_or_a_verdict_the_words_say_why(has_law, says):
    nothing = dataclasses.replace(JOINT, m_95=None, best=None, num_cells=0, predicted_m_95=None)
    unknown = dict(joint=nothing, predicted_path=PATH[:0], trials=trials(math.nan), has_law=has_law)
    assert judge(**unknown).words == f"No verdict: no (m, λ) has a finite validation LDS. No prediction: {says}"
    assert judge(**unknown | {"joint": None, "summary": None, "trials": None}).words == f"No prediction: {says}"
