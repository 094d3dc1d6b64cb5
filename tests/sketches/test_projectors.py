from __future__ import annotations

import itertools

import pytest
import torch
from scipy.stats import chi2, kstest, norm

from common.sketches import matrices as entries
from common.sketches import projectors
from common.sketches.projectors import make_projector
from tests.reference import DenseGradients, normal, projection_matrix

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = ["normal", "rademacher", "sjlt"]
KINDS_AND_SPARSITY = [("normal", 1), ("rademacher", 1), ("sjlt", 1), ("sjlt", 2), ("sjlt", 4)]
# Statistical tests look at fixed seeds. Had the seeds been drawn afresh, each would fail this often by chance.
FALSE_ALARM = 1e-4
TILE_NUMBERS = 2**12


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Matrices of test size then span several tiles."""
    monkeypatch.setattr(entries, "TILE_NUMBERS", TILE_NUMBERS)


def matrices(kind, sparsity, d, m, count, max_m=None, seed=5):
    projector = make_projector(kind, seed, sparsity)
    return torch.stack([projection_matrix(projector, d, m, max_m or m, trial) for trial in range(count)])


# --- the law of the entries ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "max_m"), [(8, 8), (8, 64), (64, 64)])
def test_normal_entries_are_gaussian_with_variance_one_over_m(m, max_m):
    entries = matrices("normal", 1, 200, m, 10, max_m).flatten() * m**0.5
    assert kstest(entries.numpy(), "norm").pvalue > FALSE_ALARM


@pytest.mark.parametrize(("m", "max_m"), [(1, 1), (8, 8), (8, 64)])
def test_rademacher_entries_are_plus_or_minus_one_over_root_m(m, max_m):
    entries = matrices("rademacher", 1, 300, m, 5, max_m)
    torch.testing.assert_close(entries.abs(), torch.full_like(entries, m**-0.5), rtol=1e-6, atol=0)
    positive = (entries > 0).double().mean().item()
    assert abs(positive - 0.5) < norm.isf(FALSE_ALARM / 2) * 0.5 / entries.numel() ** 0.5


@pytest.mark.parametrize("sparsity", [1, 2, 4])
@pytest.mark.parametrize(("m", "max_m"), [(4, 4), (16, 16), (16, 256)])
def test_every_sjlt_column_has_exactly_c_entries_of_size_one_over_root_c(sparsity, m, max_m):
    P = matrices("sjlt", sparsity, 500, m, 2, max_m)
    nonzero = P != 0
    assert (nonzero.sum(1) == sparsity).all()
    torch.testing.assert_close(P[nonzero].abs(), torch.full_like(P[nonzero], sparsity**-0.5), rtol=1e-6, atol=0)


@pytest.mark.parametrize("sparsity", [1, 2, 4])
@pytest.mark.parametrize("max_m", [16, 128])
def test_sjlt_rows_are_uniform_in_each_block_and_signs_are_fair(sparsity, max_m):
    P = matrices("sjlt", sparsity, 4000, 16, 1, max_m)[0]
    assert (P.reshape(sparsity, 16 // sparsity, -1) != 0).sum(1).eq(1).all()
    counts = (P != 0).sum(1).double()
    expected = 4000 * sparsity / 16
    # each of the c blocks is a multinomial with 16/c cells
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    assert statistic < chi2.isf(FALSE_ALARM, 16 - sparsity)
    signs = P[P != 0].sign()
    assert abs(signs.sum().item()) < norm.isf(FALSE_ALARM / 2) * len(signs) ** 0.5


@pytest.mark.parametrize(("kind", "sparsity"), KINDS_AND_SPARSITY)
@pytest.mark.parametrize(("m", "max_m"), [(8, 8), (8, 64)])
def test_a_sketch_keeps_inner_products_on_average(kind, sparsity, m, max_m):
    # entries of PᵀP off the diagonal have mean 0 and variance 1/m for every kind; on it, normal has variance 2/m and
    # the others have none; all pairs of columns are uncorrelated
    d, count = 24, 400
    P = matrices(kind, sparsity, d, m, count, max_m)
    mean = (P.mT @ P).mean(0)
    off = mean[~torch.eye(d, dtype=torch.bool)]
    z = off * (m * count) ** 0.5
    assert z.abs().max() < norm.isf(FALSE_ALARM / len(off))
    diagonal = (mean.diagonal() - 1) * (m * count / 2) ** 0.5
    assert diagonal.abs().max() < (norm.isf(FALSE_ALARM / 2 / d) if kind == "normal" else 1e-3)


@pytest.mark.parametrize(("kind", "sparsity"), KINDS_AND_SPARSITY)
@pytest.mark.parametrize(("m", "max_m"), [(8, 8), (8, 64)])
def test_inner_products_fluctuate_with_variance_one_over_m(kind, sparsity, m, max_m):
    d, count = 16, 600
    P = matrices(kind, sparsity, d, m, count, max_m)
    pairs = torch.tensor(list(itertools.combinations(range(d), 2)))
    squares = m * (P[:, :, pairs[:, 0]] * P[:, :, pairs[:, 1]]).sum(1).square()  # (count, pairs), mean 1
    per_sketch = squares.mean(1)
    z = (per_sketch.mean() - 1) / (per_sketch.std() / count**0.5)
    assert z.abs() < norm.isf(FALSE_ALARM / 2)


# --- reproducible, and different where it must be -----------------------------------------------------------


@pytest.mark.parametrize(("kind", "sparsity"), KINDS_AND_SPARSITY)
def test_the_same_seed_and_trial_give_the_same_matrix_and_others_do_not(kind, sparsity):
    def draw(seed, trial):
        return projection_matrix(make_projector(kind, seed, sparsity), 300, 32, 64, trial)

    first = draw(1, 0)
    assert torch.equal(first, draw(1, 0))
    for other in (draw(1, 1), draw(2, 0), draw(0, 1)):
        overlap = (first * other).sum().item()  # mean 0, variance 300/32 or less
        assert abs(overlap) < norm.isf(FALSE_ALARM / 2) * (300 / 32) ** 0.5


def test_the_global_generator_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    for kind in KINDS:
        projection_matrix(make_projector(kind, 0), 50, 8, 8, 0)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize(("kind", "sparsity"), KINDS_AND_SPARSITY)
@pytest.mark.parametrize("width", [1, 7, 16, 100])
def test_the_width_of_the_column_blocks_does_not_matter(kind, sparsity, width):
    projector = make_projector(kind, 3, sparsity)
    whole = projection_matrix(projector, 200, 32, 64, trial=1)
    assert torch.equal(projection_matrix(projector, 200, 32, 64, trial=1, width=width), whole)


@pytest.mark.parametrize("kind", ["normal", "rademacher"])
def test_column_tiles_are_drawn_independently(kind):
    P = projection_matrix(make_projector(kind, 3), 160, 64, 64, trial=0)
    cosines = (P.T @ P)[~torch.eye(160, dtype=torch.bool)]
    assert (cosines.abs() * 8).max() < norm.isf(FALSE_ALARM / len(cosines))


# --- what a projection does ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "sparsity"), KINDS_AND_SPARSITY)
@pytest.mark.parametrize("m", [4, 16, 64])
def test_projecting_gradients_equals_multiplying_by_the_matrix(kind, sparsity, m):
    gradients = DenseGradients(normal(0, 9, 700), width=130)
    projector = make_projector(kind, 11, sparsity)
    found = projector.reduce(projector.project(gradients, 64, trial=2), m)
    P = projection_matrix(projector, 700, m, 64, trial=2)
    assert found.shape == (m, 9)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), P @ gradients.unit.T, rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", ["normal", "rademacher"])
def test_a_smaller_dense_sketch_is_made_of_the_first_rows_of_a_larger_one(kind):
    projector = make_projector(kind, 0)
    large, small = (projection_matrix(projector, 50, m, 64, trial=0) for m in (64, 8))
    torch.testing.assert_close(small, large[:8] * 8**0.5, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["normal", "rademacher"])
def test_no_more_than_a_tile_of_the_matrix_is_drawn_at_once(kind, drawn):
    make_projector(kind, 0).project(DenseGradients(torch.ones(2, 3000), width=700), 64, trial=0)
    assert sum(drawn) >= 64 * 3000
    assert max(drawn) <= TILE_NUMBERS


@pytest.mark.parametrize(("kind", "sparsity"), [("normal", 1), ("rademacher", 1), ("sjlt", 1), ("sjlt", 4)])
def test_gram_matrices_of_all_sizes_come_from_one_sketch(kind, sparsity, monkeypatch):
    monkeypatch.setattr(projectors, "ROWS_IN_PLACE", 5)
    gradients, projector = DenseGradients(normal(0, 20, 300), width=50), make_projector(kind, 3, sparsity)
    ms = [32, 64, 128, 256] if kind == "sjlt" else [21, 32, 50, 128, 200, 256]
    projected = projector.project(gradients, 256, 2)
    expected = {m: projector.reduce(projected, m).double() for m in ms}
    for m, gram in projector.grams(projected.clone(), ms):
        torch.testing.assert_close(gram.tril(), (expected[m].T @ expected[m]).tril(), rtol=1e-5, atol=1e-6)
        ((_, alone),) = projector.grams(projected.clone(), [m])
        assert torch.equal(alone.tril(), gram.tril())
    small = projector.small(projected)
    torch.testing.assert_close(projector.reduce(small, 8), projector.reduce(projected, 8), rtol=1e-5, atol=1e-6)
