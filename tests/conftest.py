from __future__ import annotations

import pytest
import torch


@pytest.fixture
def one_thread():
    """Small matrices are faster without threads that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
