"""The names that workload files import are the records that every room works with."""

from __future__ import annotations

import common.records
from common.workloads import records


def test_workload_files_and_rooms_share_their_records():
    assert sorted(common.records.__all__) == ["Examples", "GroundTruth", "TrainingRecipe", "Workload"]
    for name in common.records.__all__:
        assert getattr(common.records, name) is getattr(records, name)
