from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest

from common.experiments.lds.selection import LdsGrid, recommendation, select

MS = np.array([32, 64, 128, 256, 512])
RIDGES = np.array([1e-3, 1e-2, 1e-1, 1.0])
DIMENSIONS = np.array([400.0, 100.0, 20.0, 3.0])
# Rows m, columns λ: λ* = 1e-2, whose 95 % threshold is 0.57.
VAL = np.array(
    [
        [0.10, 0.20, 0.25, 0.10],
        [0.15, 0.40, 0.35, 0.15],
        [0.20, 0.56, 0.45, 0.18],
        [0.25, 0.58, 0.50, 0.20],
        [0.30, 0.60, 0.55, 0.22],
    ]
)


def make_grid(val=VAL, test=None, num_trials=3, **changes):
    spread = 0.01 * (np.arange(num_trials) - (num_trials - 1) / 2)[:, None, None]
    test = val - 0.05 if test is None else test
    grid = LdsGrid(
        ms=MS,
        ridges=RIDGES,
        effective_dimensions=DIMENSIONS,
        val_lds=val + spread,
        test_lds=test + spread,
        exact_val_lds=val[-1] + 0.02,
        exact_test_lds=test[-1] + 0.02,
        num_val_queries=50,
    )
    return replace(grid, **changes)


def test_utility_choice_follows_the_two_rules():
    chosen = select(make_grid())
    assert (chosen.lambda_star, chosen.d_lambda_star, chosen.largest_m) == (1e-2, 100.0, 512)
    assert (chosen.m_95, chosen.c_95) == (256, 2.56)
    found = (chosen.val_lds, chosen.test_lds, chosen.val_lds_m_95, chosen.test_lds_m_95)
    assert found == pytest.approx((0.60, 0.55, 0.58, 0.53))
    assert (chosen.exact_val_lds, chosen.exact_test_lds) == pytest.approx((0.62, 0.57))
    assert chosen.warnings == ()


def test_lambda_star_wins_on_average_not_in_its_luckiest_trial():
    lucky = make_grid().val_lds.copy()
    lucky[0, -1, 2] = 0.65  # the highest single value at the largest m; its mean is below 0.60
    assert lucky[:, -1].argmax() % len(RIDGES) == 2
    assert select(make_grid(val_lds=lucky)).lambda_star == 1e-2


def test_lambda_star_is_chosen_at_the_largest_m_only():
    val = VAL.copy()
    val[1, 0] = 0.9
    assert select(make_grid(val)).lambda_star == 1e-2


def test_reaching_the_threshold_exactly_is_enough():
    val = VAL.copy()
    val[-1, 1] = 0.8
    val[1, 1] = 0.95 * 0.8
    assert select(make_grid(val, num_trials=1, val_lds=val[None], test_lds=val[None])).m_95 == 64


def test_equal_ridges_resolve_to_the_smaller():
    val = VAL.copy()
    val[:, 2] = val[:, 1]
    assert select(make_grid(val)).lambda_star == 1e-2


@pytest.mark.parametrize("seed", range(5))
def test_test_lds_takes_no_part_in_choosing(seed):
    noise = np.random.default_rng(seed).uniform(-1, 1, VAL.shape)
    noise[0, 0] = np.nan
    expected, found = asdict(select(make_grid())), asdict(select(make_grid(test=noise)))
    for name in ("lambda_star", "d_lambda_star", "m_95", "c_95", "val_lds", "val_lds_m_95", "exact_val_lds"):
        assert found[name] == expected[name]
    assert found["m_at_least_d_lambda_sufficient"] == expected["m_at_least_d_lambda_sufficient"]
    assert [choice["grid_m"] for choice in found["theory_m"]] == [None, None, None]


@pytest.mark.parametrize("d_lambda", [3.0, 7.3, 12.1, 64.0])
def test_theory_asks_for_d_lambda_over_epsilon_squared(d_lambda):
    chosen = select(make_grid(effective_dimensions=np.array([400.0, d_lambda, 1.0, 0.1])))
    assert [choice.epsilon for choice in chosen.theory_m] == [0.1, 0.2, 0.3]
    for choice in chosen.theory_m:
        assert choice.m_exact == pytest.approx(d_lambda / choice.epsilon**2, rel=1e-15)
        assert 0 <= choice.m_rounded_up - choice.m_exact < 1
        enough = [m for m in MS if m >= choice.m_exact]
        assert choice.grid_m == (enough[0] if enough else None)
        if enough:
            row = list(MS).index(choice.grid_m)
            assert (choice.val_lds, choice.test_lds) == pytest.approx((VAL[row, 1], VAL[row, 1] - 0.05))
        else:
            assert (choice.val_lds, choice.test_lds) == (None, None)


@pytest.mark.parametrize(
    ("d_lambda", "grid_m", "sufficient"),
    [(100.0, 128, False), (128.0, 128, False), (128.1, 256, True), (5.0, 32, False), (600.0, None, None)],
)
def test_m_at_least_d_lambda_is_judged_by_the_95_percent_rule(d_lambda, grid_m, sufficient):
    chosen = select(make_grid(effective_dimensions=np.array([700.0, d_lambda, 1.0, 0.1])))
    assert chosen.m_at_least_d_lambda.grid_m == grid_m
    assert chosen.m_at_least_d_lambda_sufficient is sufficient


@pytest.mark.parametrize(("column", "side"), [(0, "smallest"), (3, "largest")])
def test_lambda_star_at_the_edge_of_the_grid_is_a_warning(column, side):
    val = VAL.copy()
    val[:, column] = 0.9
    chosen = select(make_grid(val))
    assert chosen.lambda_star == RIDGES[column]
    (warning,) = chosen.warnings
    assert f"is the {side} λ" in warning
    assert "edge of the grid" in warning


def test_lambda_star_next_to_a_missing_one_counts_as_an_edge():
    val = VAL.copy()
    val[:, 0] = np.nan
    assert any("is the smallest λ with a finite LDS" in warning for warning in select(make_grid(val)).warnings)


@pytest.mark.parametrize("best", [-0.02, 0.0])
def test_without_a_positive_lds_the_95_percent_rule_is_off(best):
    val = np.full(VAL.shape, -0.1)
    val[-1, 1] = best
    chosen = select(make_grid(val, num_trials=1))
    assert chosen.lambda_star == 1e-2
    assert (chosen.m_95, chosen.c_95, chosen.test_lds_m_95) == (None, None, None)
    assert chosen.m_at_least_d_lambda_sufficient is None
    assert any("95 % rule is meaningless" in warning for warning in chosen.warnings)
    assert recommendation(chosen).startswith("No recommendation: the best validation LDS")


@pytest.mark.parametrize(("num_val_queries", "warned"), [(1, True), (19, True), (20, False)])
def test_fewer_than_20_validation_queries_are_a_warning(num_val_queries, warned):
    warnings = select(make_grid(num_val_queries=num_val_queries)).warnings
    assert any(f"only {num_val_queries} validation queries" in warning for warning in warnings) is warned


def test_a_cell_that_misses_one_trial_is_counted_and_cannot_be_chosen():
    val = make_grid().val_lds.copy()
    val[1, -1, 1] = np.nan
    val[0, 3, 2] = np.inf
    chosen = select(make_grid(val_lds=val))
    assert chosen.lambda_star == 1e-1
    assert any("validation LDS is not finite in 2 of 60 cells" in warning for warning in chosen.warnings)


def test_a_missing_cell_below_the_largest_m_is_skipped_by_m_95():
    val = VAL.copy()
    val[3, 1] = np.nan
    chosen = select(make_grid(val))
    assert chosen.m_95 == 512
    assert any("largest m of the grid" in warning for warning in chosen.warnings)


def test_missing_test_values_are_none_and_said():
    test = VAL.copy()
    test[3, 1] = np.nan
    chosen = select(make_grid(test=test))
    assert (chosen.m_95, chosen.test_lds_m_95) == (256, None)
    assert chosen.warnings == (
        "test LDS is not finite in 3 of 60 cells (trial, m, λ) and for 0 of 4 exact λ: means over these are left out",
    )
    assert "test LDS unknown" in recommendation(chosen)


def test_nothing_is_chosen_when_no_lds_is_finite():
    chosen = select(make_grid(np.full(VAL.shape, np.nan)))
    assert (chosen.lambda_star, chosen.m_95, chosen.theory_m) == (None, None, ())
    assert any("no λ* exists" in warning for warning in chosen.warnings)
    assert recommendation(chosen).startswith("No recommendation")


def test_an_lds_that_falls_again_is_a_warning():
    val = VAL.copy()
    val[1, 1] = 0.59
    chosen = select(make_grid(val))
    assert chosen.m_95 == 64
    assert any("larger m = 128: m_95 = 64" in warning for warning in chosen.warnings)


@pytest.mark.parametrize("share_missing", [0.0, 0.2, 1.0])
def test_selection_is_strict_json(share_missing):
    val = VAL.copy()
    val[np.random.default_rng(0).uniform(size=VAL.shape) < share_missing] = np.nan
    chosen = asdict(select(make_grid(val)))
    restored = json.loads(json.dumps(chosen, allow_nan=False))
    assert restored["lambda_star"] == chosen["lambda_star"]
    assert restored["warnings"] == list(chosen["warnings"])
    assert all("\n" not in warning for warning in chosen["warnings"])


def test_recommendation_is_one_sentence_with_the_numbers():
    assert recommendation(select(make_grid())) == (
        "Use λ = 0.01 with m = 256 (2.6 times d_λ = 100): test LDS 0.530, against 0.550 at m = 512 "
        "and 0.570 without a sketch."
    )
    assert recommendation(select(make_grid(num_val_queries=5))).endswith("but heed the 1 warning.")


def test_an_unknown_effective_dimension_is_none():
    chosen = select(make_grid(effective_dimensions=np.full(4, math.nan)))
    assert (chosen.m_95, chosen.c_95, chosen.d_lambda_star) == (256, None, None)
    assert (chosen.theory_m, chosen.m_at_least_d_lambda) == ((), None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_lds": VAL}, r"val_lds has shape \(5, 4\)"),
        ({"test_lds": VAL[None]}, "trials differ"),
        ({"exact_val_lds": np.zeros(3)}, r"exact_val_lds has shape \(3,\); expected \(4,\)"),
        ({"ms": MS[::-1]}, "ms must be ascending"),
    ],
)
def test_contradicting_arrays_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_grid(**changes)
