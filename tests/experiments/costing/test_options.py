from __future__ import annotations

import sys

import pytest

from common.experiments.costing.options import parse, used_dimensions
from common.foundations.errors import UserError
from tests.experiments.costing.cases import write_run

LDS = {"experiment": "hyperparam_selection", "ms": [64]}


@pytest.fixture
def asked(monkeypatch):
    """Return what words on the command line ask for."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["projection_cost.py", *map(str, words)])
        return parse("")

    return run


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (["--min_m", "1"], [2, 4, 8, 16]),
        (["--min_m", "4"], [4, 8, 16]),
        (["--min_m", "3", "--max_m", "15"], [4, 8]),
        (["--min_m", "8", "--max_m", "8"], [8]),
    ],
)
def test_the_m_of_a_run_are_timed_between_both_limits(asked, tmp_path, limits, expected):
    options, _ = asked("--runs", write_run(tmp_path / "run", {"ms": [2, 4, 8, 16]}), *limits)
    assert used_dimensions(options, options.runs[0]) == expected


def test_limits_between_the_m_of_all_runs_of_errors_are_refused(asked, tmp_path):
    runs = write_run(tmp_path / "run"), write_run(tmp_path / "lds", LDS)
    with pytest.raises(UserError, match=r"^--min_m 5 \.\. --max_m 7 holds no m of the runs of spectrum_bounds\.py$"):
        asked("--runs", *runs, "--min_m", "5", "--max_m", "7")
    with pytest.raises(UserError, match=r"^--min_m 16 holds no m of the runs of spectrum_bounds\.py$"):
        asked("--runs", *runs, "--min_m", "16")


def test_the_workload_is_that_of_the_runs_with_its_data_and_checkpoint_where_they_lie_here(asked, tmp_path):
    run = write_run(tmp_path / "run", num_train=70, epochs=3)
    options, request = asked("--runs", run, "--min_m", "4", "--data_dir", "here", "--benchmark_dir", "there")
    choice = options.workload
    assert (choice.dataset, choice.model, choice.num_train, choice.epochs) == ("mnist", "lr", 70, 3)
    assert (str(choice.data_dir), str(choice.benchmark_dir)) == ("here", "there")
    given = {option.name: option.value for option in request.options}
    assert (given["num_train"], given["epochs"], given["min_m"]) == (70, 3, 4)
    assert request.subject == choice
