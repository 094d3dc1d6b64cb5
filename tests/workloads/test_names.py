from __future__ import annotations

import pytest

from common.foundations.errors import UserError
from common.workloads.names import DATASET_NAMES, MODEL_NAMES, PAIR_NAMES, check_file, check_pair


def test_choices_are_the_names_of_the_pairs_each_once():
    assert set(DATASET_NAMES) == {dataset for dataset, _ in PAIR_NAMES}
    assert set(MODEL_NAMES) == {model for _, model in PAIR_NAMES}
    assert len(set(DATASET_NAMES)) == len(DATASET_NAMES)


def test_pairs_that_exist_pass_and_others_are_one_line_that_lists_those_that_do():
    for pair in PAIR_NAMES:
        check_pair(*pair)
    with pytest.raises(UserError, match=r"no pair --dataset mnist --model resnet9; there are: mnist\+lr, ") as error:
        check_pair("mnist", "resnet9")
    assert "\n" not in str(error.value)


def test_a_workload_must_be_a_python_file_that_exists(tmp_path):
    path = tmp_path / "mine.py"
    with pytest.raises(UserError, match="there is no such file"):
        check_file(path)
    path.touch()
    check_file(path)
    other = tmp_path / "mine.txt"
    other.touch()
    with pytest.raises(UserError, match="its name ending in"):
        check_file(other)
