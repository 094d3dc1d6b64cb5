from __future__ import annotations

import pandas as pd
import pytest

from common.experiments.curvature import steps as curvature_steps


def lds(**changes):
    row = {"lambda": 0.1, "d_lambda": 12.0, "val_lds": 0.3, "test_lds": 0.25, "test_lds_low": 0.2, "test_lds_high": 0.3}
    return pd.DataFrame([{"curvature": "kfac", "val_num_bad": 0, "test_num_bad": 0, **row, **changes}])


def summary(joint_trials=2, num_bad=0):
    cells = [("decoupled", 4, 8, 0.2, 2), ("joint", 4, 8, 0.1, 2), ("decoupled", 8, 16, 0.15, 2)]
    cells += [("joint", 8, 16, 0.05, joint_trials)]
    table = pd.DataFrame(cells, columns=["kind", "m_a", "m", "eps_95", "num_trials"])
    predicted = [float("nan"), 0.09, float("nan"), 0.06]
    return table.assign(m_e=2, num_bad=num_bad, predicted_eps_95=predicted, **{"lambda": 0.1})


def test_the_report_names_the_largest_size_that_both_kinds_were_drawn_with(capsys):
    curvature_steps.report(lds(), summary())
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == "K-FAC: best validation LDS at λ = 0.1, d_λ = 12: test LDS 0.250 (0.200 to 0.300)"
    assert second == (
        "sketches of K-FAC at λ = 0.1 with (m_A, m_E) = (8, 2), 16 numbers in all: ε_95 = 0.150 decoupled, 0.050 joint"
    )
    assert third == "joint sketches, predicted against measured ε_95: median gap 15.0%, worst 20.0%"


def test_the_report_says_what_could_not_be_drawn(capsys):
    curvature_steps.report(lds(), summary(joint_trials=0))
    out = capsys.readouterr().out
    assert "(m_A, m_E) = (4, 2), 8 numbers in all" in out
    assert "joint sketches of 1 sizes (m_A, m_E) were too large to be drawn: they are predicted alone" in out


@pytest.mark.parametrize("where", ["summary", "lds"])
def test_the_report_counts_what_is_not_finite(where, capsys):
    bad_lds = lds(test_num_bad=3) if where == "lds" else lds()
    curvature_steps.report(bad_lds, summary(num_bad=1 if where == "summary" else 0))
    out = capsys.readouterr().out
    assert "that are not finite are counted and left out of every mean" in out
    assert out.strip().endswith(f"of {where}.csv")


def test_a_run_whose_correlations_are_all_undefined_reports_no_best_ridge(capsys):
    curvature_steps.report(lds(val_lds=float("nan")), summary())
    assert "best validation LDS" not in capsys.readouterr().out
