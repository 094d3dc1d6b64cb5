from __future__ import annotations

import signal

import pytest
import torch

from common.workloads import pairs
from common.workloads.datasets import mnist
from tests.drawn import draw_nothing


@pytest.fixture(scope="module")
def one_thread():
    """Small matrices are faster without threads that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def ctrl_c_as_before():
    """A script takes over Ctrl-C until its process ends; here the process goes on."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def mnist_data():
    return mnist.load()


@pytest.fixture
def mnist_once(mnist_data, monkeypatch):
    """Unpacking the images takes a second: once for all runs inside this process."""
    monkeypatch.setitem(pairs.EMBEDDED, "mnist", lambda data_dir: mnist_data)
    return mnist_data


@pytest.fixture
def undrawn(monkeypatch):
    """Let scripts write no figure: for tests of what else they write."""
    draw_nothing(monkeypatch)


@pytest.fixture(scope="session")
def toy_benchmarks(tmp_path_factory):
    """A folder of checkpoints that all toy runs share."""
    return tmp_path_factory.mktemp("benchmarks")
