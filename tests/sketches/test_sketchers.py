from __future__ import annotations

import pytest
import torch
from scipy.stats import ks_2samp

from common.sketches import matrices
from common.sketches import passes as sketch_passes
from common.sketches.influence import sketched_self_influence
from common.sketches.projectors import make_projector
from common.sketches.sketchers import CoordinateSketcher, ExplicitSketcher
from tests import reference
from tests.geometries import geometry_from
from tests.reference import DenseGradients, normal, projection_matrix

pytestmark = pytest.mark.usefixtures("one_thread")

N_TRAIN, N_QUERIES, D = 10, 2, 16
RANK = N_TRAIN + N_QUERIES
KINDS_AND_SPARSITY = [("normal", 1), ("rademacher", 1), ("sjlt", 1), ("sjlt", 2), ("sjlt", 4)]
# Had the seeds been drawn afresh, each comparison of two samples would fail this often by chance.
FALSE_ALARM = 1e-4


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Matrices of test size then span several tiles."""
    monkeypatch.setattr(matrices, "TILE_NUMBERS", 2**8)


def make_problem_data(d=D, num_train=N_TRAIN):
    """Return gradients of lengths 1e-3 to 10, their geometry with test queries outside the range, and weights."""
    train = normal(0, num_train, d) * torch.logspace(-3, 1, num_train, dtype=torch.float64)[:, None]
    gradients = DenseGradients(torch.cat([train, normal(1, N_QUERIES, d)]), width=7)
    rows = torch.arange(num_train, num_train + N_QUERIES)
    geometry = geometry_from(gradients, num_train, rows)
    return train, gradients, geometry


@pytest.mark.parametrize(("kind", "sparsity"), KINDS_AND_SPARSITY)
def test_every_size_of_one_trial_equals_the_dense_formula_with_its_own_matrix(kind, sparsity):
    d, ms = 90, [4, 8, 16, 32, 64]
    train, gradients, geometry = make_problem_data(d, num_train=20)
    projector = make_projector(kind, 5, sparsity)
    sketcher = ExplicitSketcher(gradients, projector, 20, geometry.scored.weights(geometry.norms), max_m=64)
    for trial in (0, 3):
        for m, problem in sketcher.problems(trial, ms):
            P = projection_matrix(projector, d, m, 64, trial)
            for ridge in (1e-4, 1e-2, 1.0):
                unit = gradients.unit[20:]
                expected = reference.sketched_influence(P, train, unit, unit, ridge)
                found = problem.whitened(ridge)
                torch.testing.assert_close(found @ found.T, expected, rtol=1e-4, atol=1e-4 * expected.max().item())
                torch.testing.assert_close(
                    sketched_self_influence(problem, ridge), expected.diagonal(), rtol=2e-5, atol=0
                )


@pytest.mark.parametrize(("kind", "sparsity"), KINDS_AND_SPARSITY)
def test_a_size_has_the_same_numbers_whichever_others_are_asked_for(kind, sparsity):
    _, gradients, geometry = make_problem_data()
    weights = geometry.scored.weights(geometry.norms)
    either = [ExplicitSketcher(gradients, make_projector(kind, 5, sparsity), N_TRAIN, weights, max_m=32)]
    if kind == "normal":
        either.append(CoordinateSketcher(geometry, 1e-6, seed=5))
    for sketcher in either:
        together = dict(sketcher.problems(1, [4, 8, 32]))
        ((m, alone),) = sketcher.problems(1, [8])
        assert m == 8
        assert torch.equal(alone.vectors, together[8].vectors)
        assert torch.equal(alone.fisher, together[8].fisher)


def test_coordinates_and_explicit_normal_projection_agree_in_distribution_below_at_and_above_the_rank():
    # two-sample Kolmogorov-Smirnov on two self-scores and a cross score, 6 sizes, 2 ridges: 36 comparisons
    trials, ms, ridges = 600, [1, 8, RANK - 1, RANK, RANK + 1, 4 * RANK], [1e-4, 1e-1]
    _, gradients, geometry = make_problem_data()
    assert geometry.vectors.shape[1] == RANK
    weights = geometry.scored.weights(geometry.norms)
    samples = []
    for sketcher in (
        CoordinateSketcher(geometry, min(ridges), seed=1),
        ExplicitSketcher(gradients, make_projector("normal", 2), N_TRAIN, weights, max_m=ms[-1]),
    ):
        found = torch.zeros(trials, len(ms), len(ridges), 3, dtype=torch.float64)
        for trial in range(trials):
            for i, (_, problem) in enumerate(sketcher.problems(trial, ms)):
                for j, ridge in enumerate(ridges):
                    rows = problem.whitened(ridge)
                    scores = rows @ rows.T
                    found[trial, i, j] = torch.stack([scores[0, 0], scores[1, 1], scores[0, 1]])
        samples.append(found)
    for i, m in enumerate(ms):
        for j, ridge in enumerate(ridges):
            for s in range(3):
                pvalue = ks_2samp(samples[0][:, i, j, s].numpy(), samples[1][:, i, j, s].numpy()).pvalue
                assert pvalue > FALSE_ALARM, (m, ridge, s)


@pytest.mark.parametrize("kind", ["coordinates", "normal", "rademacher", "sjlt"])
def test_a_large_sketch_approaches_the_exact_scores(kind):
    # √(2/m) = 0.011 for m = 16384; six standard deviations
    train, gradients, geometry = make_problem_data()
    weights, m = geometry.scored.weights(geometry.norms), 2**14
    if kind == "coordinates":
        sketcher = CoordinateSketcher(geometry, 1e-2, seed=0)
    else:
        sketcher = ExplicitSketcher(gradients, make_projector(kind, 0), N_TRAIN, weights, max_m=m)
    unit = gradients.unit[N_TRAIN:]
    exact = reference.influence(train, unit, unit, 1e-2).diagonal()
    for _, problem in sketcher.problems(0, [m]):
        torch.testing.assert_close(sketched_self_influence(problem, 1e-2), exact, rtol=6 * (2 / m) ** 0.5, atol=0)


@pytest.mark.parametrize(("kind", "sparsity"), KINDS_AND_SPARSITY)
def test_gradients_that_weigh_nothing_against_the_smallest_ridge_are_not_projected(kind, sparsity):
    lengths = torch.logspace(0, -9, 30, dtype=torch.float64)[:, None]
    gradients = DenseGradients(torch.cat([normal(0, 30, 64) * lengths, normal(1, 2, 64)]), width=7)
    weights = torch.eye(32, dtype=torch.float64)[[0, 29, 31]].to_sparse()
    both = [
        ExplicitSketcher(gradients, make_projector(kind, 5, sparsity), 30, weights, 128, smallest)
        for smallest in (0.0, 1e-4)
    ]
    kept, num_train = both[1]._rows_that_matter()
    # the last training row is scored
    assert num_train == len(kept) - 2 < 25
    assert {0, 29, 30, 31} < set(kept.tolist())
    for (m, whole), (_, few) in zip(*(sketcher.problems(0, [4, 16, 64, 128]) for sketcher in both), strict=True):
        expected, found = (sketched_self_influence(problem, 1e-4) for problem in (whole, few))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0, msg=f"m = {m}")


@pytest.mark.parametrize(("room_for", "passes"), [(9, 1), (2, 3), (0, 5)])
@pytest.mark.parametrize(("kind", "sparsity"), KINDS_AND_SPARSITY)
def test_one_pass_serves_as_many_trials_as_there_is_room_for_and_changes_no_bit(
    monkeypatch, kind, sparsity, room_for, passes
):
    _, gradients, geometry = make_problem_data()
    weights, projector = geometry.scored.weights(geometry.norms), make_projector(kind, 5, sparsity)
    alone = ExplicitSketcher(gradients, projector, N_TRAIN, weights, max_m=32)
    monkeypatch.setattr(sketch_passes, "PASS_BYTES", room_for * 4 * 32 * len(gradients.norms))
    counted = CountedPasses(gradients)
    together = ExplicitSketcher(counted, projector, N_TRAIN, weights, max_m=32, num_trials=5)
    for trial in range(5):
        pairs = zip(together.problems(trial, [8, 32]), alone.problems(trial, [8, 32]), strict=True)
        for (m, found), (_, expected) in pairs:
            assert torch.equal(found.fisher, expected.fisher), m
            assert torch.equal(found.vectors, expected.vectors), m
    assert counted.passes == passes
    assert not together.ahead


class CountedPasses(DenseGradients):
    """The same gradients, with the number of passes over them."""

    def __init__(self, gradients):
        self.__dict__.update(gradients.__dict__)
        self.passes = 0

    def unit_blocks(self):
        self.passes += 1
        return super().unit_blocks()

    def unit_batches(self, samples=None):
        self.passes += 1
        return super().unit_batches(samples)
