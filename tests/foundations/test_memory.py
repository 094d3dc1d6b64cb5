from __future__ import annotations

import torch

from common.foundations.memory import AddedMemory


def test_memory_is_that_of_the_work_and_not_of_what_came_before():
    big = torch.ones(2**26, dtype=torch.uint8)  # 64 MiB, freed before the measurement begins
    del big
    memory = AddedMemory()
    work = torch.ones(2**25, dtype=torch.uint8)
    found = memory.bytes()
    assert len(work) * 0.9 < found["added_memory_bytes"] < len(work) * 1.5
    assert found["peak_memory_bytes"] > found["added_memory_bytes"]
