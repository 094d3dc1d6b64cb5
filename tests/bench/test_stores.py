from __future__ import annotations

import importlib.util

import pytest
import torch

from bench import stores
from common.workloads.losses import cross_entropy
from common.workloads.models import make_mlp
from common.workloads.records import Examples, Workload

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    samples = Examples(torch.rand(8 * 40, 1, 28, 28), torch.arange(8 * 40) % 10)
    return Workload("digits", make_mlp, samples, samples, cross_entropy, None), make_mlp().eval()


def test_ours_comes_first_and_dattri_stands_beside_both_kinds():
    found = [(what, route) for what, route, _ in stores.steps() if route != "TRAK"]
    assert found == [(f"store of {kind}", route) for kind in ("sjlt", "normal") for route in ("ours", "dattri")]


@pytest.mark.parametrize("name", ["by_sjlt", "by_normal", "by_dattri", "by_trak"])
def test_every_route_writes_the_same_bytes(case, monkeypatch, name):
    if name == "by_trak" and importlib.util.find_spec("trak") is None:
        pytest.skip("traker is not installed")
    monkeypatch.setattr(stores, "M", 64)
    assert getattr(stores, name)(*case)() == 40 * (4 * 64 + 8) + 2 * 128


def test_dattri_scales_what_it_projects_as_we_do(monkeypatch):
    monkeypatch.setattr(stores, "M", 256)
    rows = torch.eye(300)[:40]
    from dattri.func.projection import BasicProjector, ProjectionType

    projector = BasicProjector(300, stores.M, stores.SEED, ProjectionType.normal, torch.device("cpu"))
    lengths = projector.project(rows, ensemble_id=0).norm(dim=1)
    # mean of 40 squared lengths, each with variance 2/M: five standard deviations
    assert abs(lengths.square().mean().item() - 1) < 5 * (2 / 256 / 40) ** 0.5
