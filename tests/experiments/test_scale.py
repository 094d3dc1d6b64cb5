"""Formulas of docs/scale.md against operations and bytes that are counted at toy size, and its tables against them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from common.experiments import scale
from common.experiments.audit.scores import Scorer
from common.experiments.scale import Job
from common.gradients.layer_capture import Routes
from common.gradients.layer_gradients import RowGradients
from common.sketches.row_projection import make_row_projection
from common.stores.moments import collect
from common.stores.store import Store
from common.workloads.losses import cross_entropy
from common.workloads.records import Examples
from tests.documents import read, sections, tables

pytestmark = pytest.mark.usefixtures("one_thread")

N, D, M, K = 96, 700, 512, 6


def counted(function) -> int:
    """Return the operations of matrix products, those in place too, which torch's counter leaves out."""

    def in_place(_, left, right, *args, out_shape=None, **kwargs):
        return 2 * left[0] * left[1] * right[1]

    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: in_place}) as counter:
        function()
    return counter.get_total_flops()


class Positions(nn.Module):
    """Two linear layers at 12 positions of a sample."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(40, 64), nn.Linear(64, 10)

    def forward(self, x):
        return self.second(torch.relu(self.first(x))).mean(1)


def test_gradients_take_at_most_the_operations_of_the_formula_and_at_least_a_third():
    model, examples = Positions().eval(), Examples(torch.randn(16, 12, 40), torch.arange(16) % 10)
    rows = RowGradients(model, cross_entropy, Routes())
    d = sum(p.numel() for p in model.parameters())
    job = Job(16, d, 1, sparsity=0, positions=12)
    assert scale.project(job).operations / 3 < counted(lambda: rows(examples)) < scale.project(job).operations


@pytest.mark.parametrize("kind", ["normal", "rademacher"])
def test_a_dense_projection_takes_the_operations_of_the_formula(kind):
    rows, projection = torch.randn(N, D), make_row_projection(kind, M, 0, D, torch.device("cpu"))
    job = Job(N, D, M, kind, positions=0)
    assert counted(lambda: projection(rows)) == scale.project(job).operations
    assert scale.drawn_numbers(job) == D * M


def test_an_sjlt_adds_every_number_of_a_gradient_once_with_a_sign():
    job = Job(N, D, M, "sjlt", sparsity=1, positions=0)
    # the projection of a gradient of ones has as many additions and multiplications by ±1 as P has entries
    projection = make_row_projection("sjlt", M, 0, D, torch.device("cpu"))
    entries = sum(len(part) for tile in projection._tiles for part in [tile[0]])
    assert N * 2 * entries == scale.project(job).operations
    assert scale.drawn_numbers(job) == entries


@pytest.fixture(scope="module")
def rows():
    return torch.randn(N, M, generator=torch.Generator().manual_seed(0))


def test_the_second_moment_takes_the_operations_and_bytes_of_the_formula(rows, tmp_path):
    np.save(tmp_path / "projected.npy", rows.numpy())
    store = open_npy(tmp_path / "projected.npy")
    found = []
    assert counted(lambda: found.append(collect(store))) == scale.second_moment(Job(N, D, M)).operations
    cost = scale.second_moment(Job(N, D, M))
    assert found[0].second.nbytes == cost.memory
    # a header of 128 bytes; the formula has the norms that stand in a file of their own
    assert (tmp_path / "projected.npy").stat().st_size - 128 + 8 * N == cost.read


def test_scores_take_the_operations_of_the_formula(rows):
    scorer = Scorer(1.0, 1.0, torch.eye(M, dtype=torch.float64), torch.ones(M, dtype=torch.float64), rows[:K].double())
    exact = rows.double()

    def all_scores():
        for chunk in exact.split(16):
            scorer.scores(chunk)

    assert counted(all_scores) == scale.scores(Job(N, D, M, num_queries=K), chunk=16).operations


def test_an_eigendecomposition_takes_three_matrices():
    # LAPACK's dsyevd: the matrix, which becomes the eigenvectors, and 1 + 6 M + 2 M² numbers of workspace
    assert scale.eigendecomposition(Job(N, D, M)).memory == 8 * (M**2 + 2 * M**2)


def test_ranks_share_samples_and_send_the_sum_of_their_second_moments():
    one, four = Job(1000, D, M), Job(1000, D, M, num_ranks=4)
    for step in (scale.project, scale.second_moment):
        assert step(four).operations == step(one).operations / 4
    assert scale.second_moment(one).wire == 0
    assert scale.second_moment(four).wire == 1.5 * 8 * M**2
    assert scale.project(four).wire == 0
    assert scale.eigendecomposition(four) == scale.eigendecomposition(one)
    assert scale.scores(one, 100, kept=20).wire == 0
    assert scale.scores(four, 100, kept=20).wire == 500 * 20 * 24


# --- the page -----------------------------------------------------------------------------------------------


def number(text: str) -> float:
    """Return 4.8e15 of `4.8e15`, 1e9 of `1e9`, 1024 of `1,024`."""
    return float(text.replace(",", ""))


def test_the_table_of_jobs_has_the_numbers_of_the_formulas():
    (table,) = tables(sections(read("docs/scale.md"))["What it comes to"])
    assert len(table.rows) >= 5
    for row in table.dicts():
        ranks = int(number(row["R"]))
        n, d, m = (int(number(row[name])) for name in ("n", "d", "M"))
        sparse, dense = (Job(n, d, m, kind, num_ranks=ranks, itemsize=2) for kind in ("sjlt", "normal"))
        moment = scale.second_moment(sparse)
        expected = {
            "store, float16": n * (2 * m + 8),
            "project, sjlt": scale.project(sparse).operations,
            "project, normal": scale.project(dense).operations,
            "S": moment.operations,
            "sent for S": moment.wire,
            "eigenvectors": scale.eigendecomposition(sparse).operations,
            "their bytes": scale.eigendecomposition(sparse).memory,
            "500 queries": scale.scores(sparse, 4096).operations,
        }
        for name, value in expected.items():
            assert math.isclose(number(row[name]), value, rel_tol=0.06), (row, name, value)


def open_npy(path) -> Store:
    from common.stores.formats import open_store

    return open_store(path, "npy", "train")
