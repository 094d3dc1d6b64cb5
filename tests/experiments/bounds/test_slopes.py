from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from common.experiments.bounds.slopes import slope_table

MS = [8, 16, 32, 64, 128]


def tables(slopes=(-0.5, -0.4, -0.6), d_lambda=4.0):
    """Return predicted and measured tables whose ε_95 are exact powers of m, one exponent a trial."""
    index = pd.DataFrame({"m": MS, "lambda": 0.1, "d_lambda": d_lambda})
    predicted = index.assign(predicted_eps_95=[m**-0.45 for m in MS])
    trials = [index.assign(trial=i, eps_95=[m**slope for m in MS]) for i, slope in enumerate(slopes)]
    return predicted, pd.concat(trials)


def test_slopes_are_those_of_the_powers_with_students_interval_over_trials():
    predicted, trials = tables()
    (row,) = slope_table(["eps"], predicted, trials).to_dict("records")
    assert (row["num_m"], row["smallest_m"], row["largest_m"]) == (4, 16, 128)  # m >= 4 d_λ
    assert row["slope"] == pytest.approx(-0.5)
    assert row["predicted_slope"] == pytest.approx(-0.45)
    half = 4.302653 * 0.1 / 3**0.5  # Student's t, 2 degrees of freedom; sd of the three slopes is 0.1
    assert (row["slope_low"], row["slope_high"]) == pytest.approx((-0.5 - half, -0.5 + half))
    assert row["minus_half_inside"]


def test_a_slope_that_is_none_of_the_theorems_is_said():
    predicted, trials = tables((-0.3, -0.31, -0.29))
    assert not slope_table(["eps"], predicted, trials)["minus_half_inside"].iloc[0]


def test_what_is_not_known_is_empty_and_not_zero():
    predicted, trials = tables((-0.5,))
    one = slope_table(["eps"], predicted, trials).iloc[0]
    assert one["slope"] == pytest.approx(-0.5)
    assert np.isnan(one["slope_low"])
    assert one["minus_half_inside"] is None
    few = slope_table(["eps"], *tables(d_lambda=10.0)).iloc[0]  # 64 and 128 are two
    assert few["num_m"] == 2
    assert np.isnan([few["slope"], few["predicted_slope"]]).all()
    nowhere = slope_table(["eps"], *tables(d_lambda=100.0)).iloc[0]
    assert nowhere["num_m"] == 0
    assert "slope" not in slope_table(["eps"], predicted, None)
    no_leak = slope_table(["eps"], predicted.assign(predicted_eps_95=0.0), trials.assign(eps_95=0.0)).iloc[0]
    assert np.isnan([no_leak["slope"], no_leak["predicted_slope"]]).all()
