from __future__ import annotations

import math

import pandas as pd
import pytest

from common.experiments.lds import advice as lds_advice


def test_fine_dimensions_are_two_an_octave_from_end_to_end_or_the_powers_of_two_alone():
    assert lds_advice.fine_dimensions([32, 64, 128], only_powers_of_two=False) == [32, 45, 64, 91, 128]
    assert lds_advice.fine_dimensions([1, 2, 4], only_powers_of_two=False) == [1, 2, 3, 4]
    assert lds_advice.fine_dimensions([32, 64, 128], only_powers_of_two=True) == [32, 64, 128]
    assert lds_advice.fine_dimensions([64], only_powers_of_two=False) == [64]
    assert lds_advice.fine_dimensions([32, 80, 200], only_powers_of_two=False) == [32, 45, 64, 80, 91, 128, 181, 200]


def predicted_map(values):
    """One row for every (m, λ) -> validation LDS."""
    rows = [{"m": m, "lambda": r, "d_lambda": 5.0, "predicted_val_lds": v} for (m, r), v in values.items()]
    return pd.DataFrame(rows).assign(predicted_test_lds=0.3)


def test_the_cheapest_point_has_the_smallest_m_that_reaches_95_percent_and_its_best_ridge():
    exact = pd.DataFrame({"val_lds": [0.40, 0.20]})
    table = predicted_map({(8, 0.1): 0.379, (8, 1.0): 0.1, (16, 0.1): 0.381, (16, 1.0): 0.385, (32, 0.1): 0.4})
    advice = lds_advice.cheapest(table, exact)
    assert (advice["m"], advice["lambda"], advice["best_exact_val_lds"]) == (16, 1.0, 0.40)
    assert isinstance(advice["m"], int)


@pytest.mark.parametrize("best", [0.9, 0.0, -0.2, math.nan])
def test_nothing_is_recommended_out_of_reach_or_without_a_positive_exact_lds(best):
    table = predicted_map({(8, 0.1): 0.3, (16, 0.1): 0.4})
    assert lds_advice.cheapest(table, pd.DataFrame({"val_lds": [best, best]})) is None
    assert lds_advice.measured_at(None, table) is None
    assert lds_advice.advice_sentence(None, True).startswith("No recommendation")


def test_what_was_measured_at_the_recommended_point_stands_beside_what_was_predicted():
    advice = lds_advice.cheapest(predicted_map({(16, 0.1): 0.39}), pd.DataFrame({"val_lds": [0.4]}))
    assert "not measured" in lds_advice.advice_sentence(advice, True)
    summary = pd.DataFrame(
        {"m": [16, 16], "lambda": [0.1, 1.0], "val_lds": [0.37, 0.1], "val_lds_std": [math.nan, 0.2],
         "test_lds": [0.311, 0.1], "test_lds_std": [0.02, 0.2]}
    )  # fmt: skip
    found = lds_advice.measured_at(advice, summary)
    assert (found["measured_val_lds"], found["measured_test_lds"], found["predicted_test_lds"]) == (0.37, 0.311, 0.3)
    assert found["measured_val_lds_std"] is None  # JSON has no NaN
    assert "0.300 predicted, 0.311 measured" in lds_advice.advice_sentence(found, True)
