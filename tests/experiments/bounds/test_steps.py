from __future__ import annotations

import pandas as pd
import pytest

from common.experiments.bounds import steps as error_steps
from common.experiments.bounds import sweep as error_sweep
from common.experiments.bounds.study import make_study
from common.experiments.options.records import BoundsOptions
from common.foundations.errors import UserError

pytestmark = [pytest.mark.usefixtures("mnist_once"), pytest.mark.usefixtures("one_thread")]


def bounds(shared, min_d_lambda=5.0):
    return BoundsOptions(shared, min_d_lambda=min_d_lambda, target_eps=0.1)


def test_ridges_with_a_small_effective_dimension_are_left_out_said_and_recorded(start, capsys):
    shared, run, prepared = start("--lambda_exp_min", "-4", "--max_m", "8192")
    capsys.readouterr()
    cells = error_steps.choose_cells(bounds(shared), run, prepared)
    dimensions = dict(zip(prepared.ridges, prepared.effective_dimensions, strict=True))
    assert cells.ridges == [ridge for ridge, d_lambda in dimensions.items() if d_lambda >= 5] != list(dimensions)
    assert cells.effective_dimensions == [dimensions[ridge] for ridge in cells.ridges]
    said = capsys.readouterr().out
    assert "left out, d_λ below --min_d_lambda 5: λ = " in said
    assert "left out, not below d = 7850: m = 8192" in said
    table = pd.read_csv(run.folder / "effective_dimension.csv")
    assert table["skipped"].notna().sum() == len(dimensions) - len(cells.ridges) + 1
    assert run.config["ridges"] == cells.ridges


def test_a_limit_that_no_ridge_reaches_is_one_line_with_the_largest_dimension(start):
    shared, run, prepared = start()
    with pytest.raises(UserError, match=r"--min_d_lambda 1e\+06 leaves no λ: the largest d_λ is") as refusal:
        error_steps.choose_cells(bounds(shared, 1e6), run, prepared)
    assert "\n" not in str(refusal.value)


def test_a_sweep_measures_every_cell_of_every_trial_once(start):
    shared, run, prepared = start("--num_trials", "2", "--max_m", "4")
    cells = error_steps.choose_cells(bounds(shared), run, prepared)
    study = make_study(bounds(shared), run, prepared, cells)
    trials = error_sweep.trial_table(error_steps.sweep(shared, run, prepared, cells, study.measure))
    found = list(trials[["trial", "m", "lambda"]].itertuples(index=False, name=None))
    assert found == [(trial, m, ridge) for trial in (0, 1) for m in (1, 2, 4) for ridge in cells.ridges]
