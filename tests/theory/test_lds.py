"""The closed-form LDS against draws of its Gaussian law, dense simulation, and a small real workload."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits

from common.experiments.metrics import lds_per_query
from common.theory.lds import predict_lds
from common.theory.ranks import unit_ranks
from common.theory.sketch_law import sketch_law
from common.theory.sketched_spectrum import SketchedSpectrum
from common.theory.spectrum import ExactSpectrum
from tests import reference_theory as reference

SIZE, SUBSETS, QUERIES = 150, 30, 60
RIDGES = torch.tensor([1e-3, 1e-1, 10.0], dtype=torch.float64)
GROUPS = [torch.arange(10), torch.arange(10, QUERIES)]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def make_task(name, generator):
    """Return eigenvalues, subset sums with a large common part, unit queries (some alike), and noisy losses."""
    eigenvalues = reference.spectrum(name, SIZE)
    queries = reference.unit_queries(eigenvalues, QUERIES, generator)
    queries[30:] += queries[30].clone()
    sums = 20 * torch.randn(SUBSETS, SIZE, generator=generator, dtype=torch.float64) * eigenvalues.sqrt() + 5
    losses = -((sums / (eigenvalues + 0.05)) @ queries.T)
    losses += losses.std(0) * torch.randn(SUBSETS, QUERIES, generator=generator, dtype=torch.float64)
    return eigenvalues, sums, queries, losses


def test_the_mean_is_that_of_the_gaussian_law_and_the_spread_its_linear_part(generator):
    """1,500 joint symmetric draws: means to 4.5 standard errors (false alarm 7e-6 each).

    The linear part of the standard deviation is up to 15 % too low; 2 % is the error of the drawn one.
    """
    eigenvalues, sums, queries, losses = make_task("power", generator)
    ranks = unit_ranks(losses)
    prediction = predict_lds(ExactSpectrum(eigenvalues), sums, queries, losses, [64], RIDGES[1:2], GROUPS)
    law = sketch_law(ExactSpectrum(eigenvalues), torch.tensor([64.0]), RIDGES[1:2])
    mean = (sums * law.mean_weights(ExactSpectrum(eigenvalues))[:, 0]) @ queries.T
    a, q = sums / (eigenvalues + law.mu), queries / (eigenvalues + law.mu)
    draws = []
    for _ in range(1500):
        half = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
        symmetric = (half + half.T) / 2**0.5
        draws.append(lds_per_query(mean + law.mu / law.dof.sqrt() * a @ symmetric @ q.T, ranks))
    draws = torch.stack(draws)
    error = draws.std(0) / 1500**0.5
    assert ((draws.mean(0) - prediction.per_query[0, 0]).abs() <= 4.5 * error + 1e-4).all()
    for group, expected, std in zip(GROUPS, prediction.mean[:, 0, 0], prediction.std[:, 0, 0], strict=True):
        drawn = draws[:, group].mean(1)
        assert abs(drawn.mean() - expected) <= 4.5 * drawn.std() / 1500**0.5 + 1e-4
        assert 0.80 <= std / drawn.std() <= 1.08


@pytest.mark.parametrize("name", ["power", "step", "deficient"])
def test_lds_of_gaussian_sketches_is_predicted(name, generator):
    """150 sketches: group means to 0.004 plus 4.5 standard errors (false alarm 7e-6 each), sd to 30 %."""
    eigenvalues, sums, queries, losses = make_task(name, generator)
    ranks = unit_ranks(losses)
    prediction = predict_lds(ExactSpectrum(eigenvalues), sums, queries, losses, [64], RIDGES, GROUPS)
    scores = reference.simulated_scores(eigenvalues, sums, queries, 64, RIDGES, 150, generator)
    measured = torch.stack([torch.stack([lds_per_query(s, ranks) for s in score]) for score in scores])
    for i, group in enumerate(GROUPS):
        means = measured[:, :, group].mean(2)
        gap = (means.mean(0) - prediction.mean[i, 0]).abs()
        assert (gap <= 0.004 + 4.5 * means.std(0) / 150**0.5).all(), gap
        torch.testing.assert_close(prediction.std[i, 0], means.std(0), rtol=0.3, atol=0)


def test_a_huge_sketch_reaches_the_exact_lds_without_spread(generator):
    eigenvalues, sums, queries, losses = make_task("power", generator)
    exact = reference.exact_scores(eigenvalues, sums, queries, RIDGES)
    expected = torch.stack([lds_per_query(score, unit_ranks(losses)) for score in exact])
    prediction = predict_lds(ExactSpectrum(eigenvalues), sums, queries, losses, [10**14], RIDGES)
    torch.testing.assert_close(prediction.per_query[0], expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(prediction.mean[0, 0], expected.mean(1), rtol=0, atol=1e-5)
    assert (prediction.std <= 1e-4).all()


def test_query_length_and_a_common_part_of_the_subsets_do_not_matter(generator):
    eigenvalues, sums, queries, losses = make_task("deficient", generator)
    lengths = torch.logspace(-8, 3, QUERIES, dtype=torch.float64)[:, None]
    plain = predict_lds(ExactSpectrum(eigenvalues), sums, queries, losses, [32, 256], RIDGES, GROUPS)
    moved = predict_lds(
        ExactSpectrum(eigenvalues), 7 * (sums + 3), queries * lengths, losses**3, [32, 256], RIDGES, GROUPS
    )
    for name in ("per_query", "mean", "std"):
        torch.testing.assert_close(getattr(moved, name), getattr(plain, name), rtol=1e-3, atol=1e-3)


def test_dead_queries_constant_losses_and_equal_subsets_spoil_nothing_else(generator):
    eigenvalues, sums, queries, losses = make_task("power", generator)
    sums[1] = sums[0]
    plain = predict_lds(ExactSpectrum(eigenvalues), sums, queries[2:], losses[:, 2:], [64], RIDGES)
    queries[0] = 0
    losses[:, 1] = 4.0
    prediction = predict_lds(ExactSpectrum(eigenvalues), sums, queries, losses, [64], RIDGES)
    assert prediction.per_query[..., :2].isnan().all()
    assert plain.mean.isfinite().all()
    torch.testing.assert_close(prediction.mean, plain.mean)
    torch.testing.assert_close(prediction.std, plain.std, rtol=1e-3, atol=0)


def test_the_corrected_prediction_is_nan_exactly_where_no_correction_exists(generator):
    eigenvalues, sums, queries, losses = make_task("power", generator)
    prediction = predict_lds(ExactSpectrum(eigenvalues), sums, queries, losses, [32, 1024], RIDGES, corrected=True)
    defined = torch.tensor([32, 1024])[:, None] > (eigenvalues / (eigenvalues + RIDGES[:, None])).sum(1)
    assert not defined.all()
    assert torch.equal(prediction.mean[0].isfinite(), defined)
    assert torch.equal(prediction.std[0].isfinite(), defined)


@pytest.mark.parametrize("kind", reference.KINDS)
def test_lds_of_a_real_workload_is_predicted(kind, generator):
    """Softmax regression on digits, 40 retrained half subsets, 40 sketches: 0.01 plus 4.5 standard errors.

    False alarm 7e-6 a cell. The 650 parameters are few for an sjlt, hence the small m.
    """
    images, labels = load_digits(return_X_y=True)
    inputs = torch.tensor(images / 16).double()
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], 1)
    one_hot = torch.nn.functional.one_hot(torch.tensor(labels), 10).double()
    train, test, subsets = slice(0, 300), slice(300, 360), 40
    chosen = torch.stack([torch.randperm(300, generator=generator)[:150] for _ in range(subsets)])
    masks = torch.zeros(subsets + 1, 300, dtype=torch.float64).scatter_(1, chosen, 2.0)
    masks[-1] = 1
    weights = torch.zeros(subsets + 1, 65, 10, dtype=torch.float64)
    for _ in range(300):
        residual = (inputs[train] @ weights).softmax(2) - one_hot[train]
        weights -= 0.5 * inputs[train].T @ (masks[:, :, None] * residual) / 300
    losses = -((inputs[test] @ weights[:-1]).log_softmax(2) * one_hot[test]).sum(2)
    residual = (inputs @ weights[-1]).softmax(1) - one_hot
    gradients = (inputs[:, :, None] * residual[:, None, :]).flatten(1)
    queries = gradients[test] / gradients[test].norm(dim=1, keepdim=True)
    sums = torch.stack([gradients[train][subset].sum(0) for subset in chosen])

    eigenvalues, basis = torch.linalg.eigh(gradients[train].T @ gradients[train] / 300)
    eigenvalues = eigenvalues.clamp(min=0)
    ranks = unit_ranks(losses)
    ridges = torch.tensor([1e-4, 1e-2, 1.0], dtype=torch.float64)
    prediction = predict_lds(ExactSpectrum(eigenvalues), sums @ basis, queries @ basis, losses, [32, 64], ridges)
    for row, m in enumerate((32, 64)):
        scores = reference.simulated_scores(
            eigenvalues, sums @ basis, queries @ basis, m, ridges, 40, generator, kind, basis.T
        )
        measured = torch.stack([torch.stack([lds_per_query(s, ranks).mean() for s in score]) for score in scores])
        gap = (measured.mean(0) - prediction.mean[0, row]).abs()
        assert (gap <= 0.01 + 4.5 * measured.std(0) / 40**0.5).all(), (m, gap, measured.mean(0))


def test_noise_that_is_already_in_a_sketched_spectrum_is_not_added_again(generator):
    """20 references of M = 200: means to 0.01, a third of what noise added twice would take at m = 128."""
    eigenvalues, sums, queries, losses = make_task("power", generator)
    exact = predict_lds(ExactSpectrum(eigenvalues), sums, queries, losses, [64, 128], RIDGES).mean[0]
    seen = []
    for _ in range(20):
        sketch = reference.sketch_matrix("normal", 200, SIZE, generator)
        t, basis = torch.linalg.eigh(sketch * eigenvalues @ sketch.T)
        a, q = ((vectors @ sketch.T @ basis).flip(1) for vectors in (sums, queries))
        seen.append(predict_lds(SketchedSpectrum(t), a, q, losses, [64, 128], RIDGES).mean[0])
    assert (torch.stack(seen).mean(0) - exact).abs().max() < 0.01
