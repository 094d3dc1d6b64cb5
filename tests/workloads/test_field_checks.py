from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from common.foundations.errors import UserError
from common.workloads.field_checks import check_fields, check_ground_truth_given, check_samples, kind_text
from common.workloads.records import Examples, GroundTruth
from tests.reference_training import tiny_workload


def test_a_workload_without_mistakes_is_returned_as_it_is():
    workload = tiny_workload()
    assert check_fields(workload) is workload
    check_samples(workload)
    check_ground_truth_given(workload)


def test_what_is_no_workload_and_a_name_that_cannot_name_folders_are_told():
    with pytest.raises(UserError, match="returns dict; it must return a common"):
        check_fields({})
    with pytest.raises(UserError, match="name 'a/b' must be up to 80 letters"):
        check_fields(replace(tiny_workload(), name="a/b"))


def test_parts_of_different_kinds_are_told_with_both():
    workload = tiny_workload()
    other = Examples(workload.test.inputs.double(), workload.test.targets)
    with pytest.raises(UserError, match=r"float32 for train, .* float64 for test"):
        check_samples(replace(workload, test=other))


def test_a_subset_that_names_a_sample_which_is_not_there_is_told():
    workload = tiny_workload()
    subsets = torch.tensor([[0, len(workload.train)]])
    truth = GroundTruth(subsets, torch.zeros(1, len(workload.test)))
    with pytest.raises(UserError, match=f"one of them is {len(workload.train)}"):
        check_ground_truth_given(replace(workload, ground_truth=truth))


def test_a_kind_is_a_shape_and_a_dtype():
    assert kind_text(torch.zeros(3, 2)) == "(N, 2) float32"
    assert kind_text(torch.zeros(3, dtype=torch.int64), first="") == "(3,) int64"
