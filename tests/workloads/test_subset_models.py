from __future__ import annotations

import pytest
import torch

from common.foundations.distributed import Ranks
from common.workloads import subset_models
from common.workloads.subset_models import group_manifest, make_groups
from tests.reference_training import batch_norm_perceptron, tiny_workload

pytestmark = pytest.mark.usefixtures("one_thread")

GROUPS = [range(s, s + 1) for s in range(5)]


class OneOf(Ranks):
    """A rank whose work is done when no other one is there."""

    def __init__(self, rank: int, size: int):
        self.rank, self.size = rank, size


def losses(folder):
    return [torch.load(folder / "models_half" / str(s) / "test_losses.pt") for s in range(5)]


def test_ranks_make_different_groups_which_are_those_that_one_process_makes(tmp_path, monkeypatch):
    workload = tiny_workload(batch_norm_perceptron)
    make_groups(workload, tmp_path / "alone", GROUPS, "cpu", False, Ranks())
    made, real = [], subset_models._make_group
    for rank in (1, 0):
        own = OneOf(rank, 2)
        monkeypatch.setattr(own, "first", lambda work: GROUPS)  # what rank 0 has found to be missing
        monkeypatch.setattr(subset_models, "_make_group", lambda *a, rank=rank: (made.append((rank, a[2])), real(*a)))
        make_groups(workload, tmp_path / "shared", GROUPS, "cpu", False, own)
    assert made == [(1, GROUPS[1]), (1, GROUPS[3]), (0, GROUPS[0]), (0, GROUPS[2]), (0, GROUPS[4])]
    assert all(group_manifest(tmp_path / "shared", group).exists() for group in GROUPS)
    for alone, shared in zip(losses(tmp_path / "alone"), losses(tmp_path / "shared"), strict=True):
        assert torch.equal(alone, shared)
