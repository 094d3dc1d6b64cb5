from __future__ import annotations

import pytest

from common.experiments.lds import steps as lds_steps
from common.experiments.lds import sweep as lds_sweep
from common.experiments.lds.ridge_path import MEASURED_CHOICE, PREDICTED_CHOICE, RidgeOfDimension
from common.experiments.options.records import SelectionOptions
from common.foundations.errors import UserError

pytestmark = [pytest.mark.usefixtures("mnist_once"), pytest.mark.usefixtures("one_thread")]
TRUTH = ["--epochs", "1", "--min_m", "4"]


def selection(shared, val_ratio):
    return SelectionOptions(shared, val_ratio=val_ratio, num_subsets=3)


def test_queries_are_split_and_the_cells_are_those_of_the_run(start):
    shared, run, prepared = start(*TRUTH, kind="test", num_subsets=3)
    task = lds_steps.make_task(selection(shared, 0.35), run, prepared)
    assert (len(task.groups["val"]), len(task.groups["test"])) == (3, 6)
    assert (run.config["num_val_queries"], run.config["num_test_queries"]) == (3, 6)
    assert task.num_subsets == len(prepared.geometry.subset_sums) == 3
    assert (task.cells.ms, task.cells.ridges) == (prepared.ms, prepared.ridges)
    units = lds_steps.sweep(shared, run, prepared, task, [4, 8])
    trials = lds_sweep.trial_table(units, task)
    assert len(trials) == shared.sketches.num_trials * 2 * len(prepared.ridges)


@pytest.mark.parametrize(("ratio", "val"), [(0.01, 0), (0.99, 9)])
def test_a_ratio_that_leaves_no_query_to_select_or_to_judge_is_one_line(start, ratio, val):
    shared, run, prepared = start(*TRUTH, kind="test", num_subsets=3)
    with pytest.raises(UserError, match=f"--val_ratio {ratio} of 9 queries leaves {val} to select and {9 - val}"):
        lds_steps.make_task(selection(shared, ratio), run, prepared)


def test_without_a_selection_the_choices_are_those_of_the_closed_form():
    assert lds_steps.choices(None, [], None, {"m": 8}) == {"by_m": [], "predicted_choice": {"m": 8}}


def test_a_path_without_any_finite_lds_is_printed_without_its_columns():
    unknown = dict.fromkeys((*MEASURED_CHOICE, *PREDICTED_CHOICE))
    shown = lds_steps._path_table([RidgeOfDimension(m, **unknown) for m in (32, 64)])
    assert shown.split() == ["m", "32", "64"]
