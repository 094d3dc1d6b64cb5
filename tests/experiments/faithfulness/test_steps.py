from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pandas as pd
import pytest

from common.experiments.faithfulness import steps as faithfulness_steps
from common.experiments.faithfulness import sweep as faithfulness_sweep
from common.experiments.faithfulness.verdict import FaithfulnessOfDimension
from common.experiments.options.records import CrossChoice, SelectionOptions

pytestmark = [pytest.mark.usefixtures("mnist_once"), pytest.mark.usefixtures("one_thread")]

TOY = ["--epochs", "1", "--min_m", "4", "--max_m", "8", "--num_trials", "2"]


def test_both_tasks_are_of_one_grid_and_one_sketch_is_asked_both(start):
    shared, run, prepared = start(*TOY, kind="test", num_subsets=3, cross=CrossChoice(7, kernel_parts=False))
    tasks = faithfulness_steps.make_tasks(SelectionOptions(shared, val_ratio=0.35, num_subsets=3), run, prepared)
    assert tasks.pairs.cells is tasks.lds.cells
    assert (tasks.pairs.num_pairs, tasks.lds.num_subsets) == (7 * 9, 3)
    assert run.config["num_pairs"] == 7 * 9
    assert run.config["unridged_rank"] == tasks.pairs.unridged_rank > 0
    assert [one.scores.shape for one in tasks.exact] == [(7, 9)] * len(prepared.ridges)

    units = faithfulness_steps.measure(shared, run, prepared, tasks)
    found = list(units[["trial", "m", "lambda"]].itertuples(index=False, name=None))
    assert found == [(trial, m, ridge) for trial in (0, 1) for m in (4, 8) for ridge in prepared.ridges]
    table = faithfulness_sweep.trial_table(units, tasks)
    assert {"eps_95", "test_lds"} <= set(table)


def test_gaps_are_those_of_errors_and_of_lds():
    both = pd.DataFrame({"m": [32, 64, 128], "lambda": 0.1, "eps_95": 0.2, "predicted_eps_95": [0.9, 0.21, 0.24]})
    both = both.assign(eps_95_noise=0.02, val_lds=0.3, predicted_val_lds=[0.9, 0.31, 0.33])
    both = both.assign(test_lds=0.4, predicted_test_lds=[0.9, 0.35, 0.4])
    found = faithfulness_steps.gaps(both)
    assert found["eps_95_gap_worst"] == pytest.approx(0.2)
    assert found["val_lds_gap_worst"] == pytest.approx(0.03)
    assert found["test_lds_gap_median"] == pytest.approx(0.025)
    assert found["eps_95_gap_cells"] == found["test_lds_gap_cells"] == 2


def report(capsys, by_m, prediction_gaps=None, num_bad=0):
    verdict = SimpleNamespace(words="Faithful at 0.01: yes.")
    run = SimpleNamespace(config={"prediction_gaps": prediction_gaps or {}})
    faithfulness_steps.report(run, by_m, verdict, pd.DataFrame({"num_bad": [0, num_bad]}))
    return capsys.readouterr().out


def at(m, **known):
    unknown = dict.fromkeys(field.name for field in dataclasses.fields(FaithfulnessOfDimension))
    return FaithfulnessOfDimension(**unknown | {"m": m} | known)


def test_the_best_ridge_of_every_m_is_printed_with_what_is_known_there_and_the_verdict_last(capsys):
    by_m = [
        at(m, lambda_star=0.1, test_lds=0.25, eps_95=0.0123, faithful=False, predicted_lambda_star=0.2) for m in (4, 8)
    ]
    out = report(capsys, by_m)
    _, title, header, *rows, _, words = out.splitlines()
    assert title.startswith("best λ of every m")
    assert header.split() == ["m", "λ*(m)", "test", "LDS", "ε_95", "faithful", "predicted", "λ*(m)"]
    assert [row.split() for row in rows] == [[m, "0.1", "0.25", "0.0123", "False", "0.2"] for m in ("4", "8")]
    assert words == "Faithful at 0.01: yes."


def test_gaps_and_numbers_that_are_not_finite_are_said_where_there_are_any(capsys):
    gaps = {"eps_95_gap_median": 0.01, "eps_95_gap_worst": 0.05, "eps_95_gap_worst_noise": 0.02}
    gaps |= {"eps_95_gap_beyond_noise": 0, "eps_95_gap_cells": 7}
    out = report(capsys, [at(4, lambda_star=0.1)], gaps, num_bad=3)
    assert "median gap 1.0%, worst 5.0%" in out
    assert "warning: errors of pairs and rank correlations of queries that are not finite" in out
    assert "3 in num_bad of summary.csv" in out
    assert "gap" not in report(capsys, [at(4, lambda_star=0.1)])
