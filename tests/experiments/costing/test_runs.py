from __future__ import annotations

import pytest

from common.experiments.costing.runs import read_runs
from common.foundations.errors import UserError
from tests.experiments.costing.cases import write_run

LDS = {"experiment": "hyperparam_selection"}


def test_runs_of_one_model_that_differ_in_their_projection_are_read(tmp_path):
    folders = [
        write_run(tmp_path / "a"),
        write_run(tmp_path / "b", proj_type="kronecker", kronecker_ranks="4,2"),
        write_run(tmp_path / "c", LDS),
    ]
    runs = read_runs(folders)
    assert [run.law for run in runs] == ["normal", "kronecker 4,2", "normal"]
    assert runs[1].kronecker_ranks == (4, 2)
    assert runs[0].kronecker_ranks is None
    choice = runs[0].workload(tmp_path / "data", tmp_path / "models")
    assert (choice.dataset, choice.model, choice.file) == ("mnist", "lr", None)
    assert (choice.data_dir, choice.benchmark_dir) == (tmp_path / "data", tmp_path / "models")


@pytest.mark.parametrize(
    ("config", "options", "line"),
    [
        ({"finished": False}, {}, "no finished run of spectrum_bounds.py or hyperparam_selection.py"),
        ({"experiment": "faithfulness_utility"}, {}, "no finished run of spectrum_bounds.py"),
        ({}, {"predict_only": True}, "a run with --predict_only True cannot be compared, only with False"),
        ({}, {"scores": "cross"}, "a run with --scores cross cannot be compared, only with self"),
        ({}, {"sjlt_sparsity": 4}, "a run with --sjlt_sparsity 4 cannot be compared, only with 1"),
        ({}, {"num_train": 7}, "num_train is 7, that of .*first None"),
        ({"checkpoint_fingerprint": "x"}, {}, "checkpoint_fingerprint is x, that of .*first weights"),
        ({}, {"test_mode": "test"}, "test_mode is test, that of .*first self"),
        ({}, {"proj_type": "normal"}, "normal is compared already, from .*first"),
    ],
)
def test_a_run_that_cannot_stand_beside_the_first_is_named_with_the_reason(tmp_path, config, options, line):
    first = write_run(tmp_path / "first")
    other = write_run(tmp_path / "other", config, **{"proj_type": "sjlt"} | options)
    with pytest.raises(UserError, match=f"other: {line}"):
        read_runs([first, other])


def test_a_folder_without_a_run_and_runs_without_errors_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"nothing: no config\.json of a finished run there"):
        read_runs([tmp_path / "nothing"])
    with pytest.raises(UserError, match=r"no run of spectrum_bounds\.py among 1"):
        read_runs([write_run(tmp_path / "lds", LDS)])
