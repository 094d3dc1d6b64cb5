from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from common.sketches import matrices
from common.sketches import passes as sketch_passes
from common.sketches.geometry import ScoredVectors
from common.sketches.influence import sketched_self_influence
from common.sketches.moment_sketch import MomentSketcher, Sketch, collect_moments, project_samples
from common.sketches.projectors import make_projector
from common.sketches.sketchers import ExplicitSketcher
from tests.reference import DenseGradients, normal, projection_matrix

pytestmark = pytest.mark.usefixtures("one_thread")

N_TRAIN, N_QUERIES, D, MAX_M = 40, 5, 90, 32
KINDS_AND_SPARSITY = [("normal", 1), ("rademacher", 1), ("sjlt", 1), ("sjlt", 4)]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Matrices of test size then span several tiles."""
    monkeypatch.setattr(matrices, "TILE_NUMBERS", 2**10)
    monkeypatch.setattr(matrices, "SPARSE_TILE_WIDTH", 32)


class PassingGradients(DenseGradients):
    """Dense gradients that pass by in groups, and count how often."""

    device = torch.device("cpu")
    passes = 0

    def unit_groups(self, size, samples=None):
        self.passes += samples is None
        chosen = torch.arange(self.num_rows) if samples is None else samples
        for group in chosen.split(min(size, 7)):
            yield group, self.unit[group].float()


def make_gradients():
    lengths = torch.logspace(-3, 1, N_TRAIN, dtype=torch.float64)[:, None]
    return PassingGradients(torch.cat([normal(0, N_TRAIN, D) * lengths, normal(1, N_QUERIES, D)]))


SUBSETS = torch.stack([torch.randperm(N_TRAIN, generator=torch.Generator().manual_seed(s))[:20] for s in range(3)])
SCORED = ScoredVectors(torch.tensor([3, 17, 38, 40, 44]), SUBSETS)


@pytest.mark.parametrize(("kind", "sparsity"), KINDS_AND_SPARSITY)
def test_moments_are_those_of_the_projected_gradients(kind, sparsity):
    gradients, projector = make_gradients(), make_projector(kind, 5, sparsity)
    sketches = [Sketch(projector, MAX_M, 0), Sketch(projector, 64, 3)]
    found = collect_moments(gradients, sketches, N_TRAIN, SUBSETS)
    queries = project_samples(gradients, sketches, SCORED.query_rows)
    train = (gradients.unit * gradients.norms[:, None])[:N_TRAIN]
    for sketch, moments, projected in zip(sketches, found, queries, strict=True):
        P = projection_matrix(projector, D, sketch.size, sketch.size, sketch.trial)
        Z = train @ P.T
        # projections are multiplied in float32
        torch.testing.assert_close(moments.second, Z.T @ Z / N_TRAIN, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(moments.sums, Z[SUBSETS].sum(1), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(projected, gradients.unit[SCORED.query_rows] @ P.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "sparsity"), KINDS_AND_SPARSITY)
def test_every_size_of_every_trial_scores_as_the_sketch_of_stored_rows_does(kind, sparsity):
    gradients, projector, ms = make_gradients(), make_projector(kind, 5, sparsity), [4, 8, 16, 32]
    by_moments = MomentSketcher(gradients, projector, N_TRAIN, SCORED, MAX_M, num_trials=3)
    explicit = ExplicitSketcher(gradients, projector, N_TRAIN, SCORED.weights(gradients.norms), max_m=MAX_M)
    for trial in range(3):
        both = zip(by_moments.problems(trial, ms), explicit.problems(trial, ms), strict=True)
        for (m, found), (same_m, expected) in both:
            assert m == same_m
            assert found.vectors.shape == expected.vectors.shape
            for ridge in (1e-3, 1.0):
                scores = sketched_self_influence(found, ridge), sketched_self_influence(expected, ridge)
                torch.testing.assert_close(*scores, rtol=1e-4, atol=0)


class LargestTensor(TorchDispatchMode):
    """Remembers the number of numbers in the largest tensor that was made."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.size = max(self.size, result.untyped_storage().nbytes() // result.element_size())
        return result


@pytest.mark.parametrize("kind", ["normal", "sjlt"])
def test_no_tensor_grows_with_samples_times_anything(kind):
    """2,000 samples, of which n M would be 64,000 numbers, n d 180,000, n² 4,000,000."""
    gradients = PassingGradients(normal(0, 2000, D))
    sketch = Sketch(make_projector(kind, 5), MAX_M, 0)
    with LargestTensor() as largest:
        (found,) = collect_moments(gradients, [sketch], 2000, None)
        project_samples(gradients, [sketch], torch.arange(3))
    assert found.second.shape == (MAX_M, MAX_M)
    assert largest.size <= 2 * MAX_M * D


@pytest.mark.parametrize(("trials_a_pass", "passes"), [(1, 5), (2, 3), (100, 1)])
def test_one_pass_serves_as_many_trials_as_memory_allows(monkeypatch, trials_a_pass, passes):
    monkeypatch.setattr(sketch_passes, "PASS_BYTES", 8 * MAX_M**2 * trials_a_pass)
    gradients = make_gradients()
    sketcher = MomentSketcher(gradients, make_projector("sjlt", 5), N_TRAIN, SCORED, MAX_M, num_trials=5)
    problems = [problem for trial in range(5) for _, problem in sketcher.problems(trial, [8, 32])]
    assert len(problems) == 10
    assert gradients.passes == passes


def test_a_run_that_goes_on_after_the_third_trial_draws_what_an_uninterrupted_one_does():
    def fishers(trials):
        sketcher = MomentSketcher(make_gradients(), make_projector("sjlt", 5), N_TRAIN, SCORED, MAX_M, num_trials=5)
        return [problem.fisher for trial in trials for _, problem in sketcher.problems(trial, [MAX_M])]

    for whole, rest in zip(fishers(range(5))[3:], fishers([3, 4]), strict=True):
        torch.testing.assert_close(whole, rest, rtol=1e-12, atol=0)
