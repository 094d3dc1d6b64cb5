"""Errors over all pairs, whole and by parts, against dense simulation with prescribed spectra."""

from __future__ import annotations

import pytest
import torch

from common.theory.cross_grid import predict_pairs, unridged_norms
from common.theory.cross_influence import predict_cross_error
from common.theory.spectrum import ExactSpectrum
from tests import reference_theory as reference

SIZE, RANK = 200, 100
RIDGES = torch.tensor([1e-2, 1.0, 100.0], dtype=torch.float64)
EIGENVALUES = reference.spectrum("deficient", SIZE)


@pytest.fixture
def vectors():
    """Return training gradients in range(F), and queries of which some are not."""
    generator = torch.Generator().manual_seed(7)
    train = reference.unit_queries(EIGENVALUES, 60, generator)[:30]  # these are scaled by the square root of F
    return train, reference.unit_queries(EIGENVALUES, 40, generator)


def predicted(vectors, ms, corrected=False):
    unridged = tuple(unridged_norms(EIGENVALUES, v, RANK) for v in vectors)
    return predict_pairs(ExactSpectrum(EIGENVALUES), *vectors, RANK, unridged, ms, RIDGES, corrected)


@pytest.mark.parametrize("corrected", [False, True])
def test_whole_scores_have_the_law_of_single_pairs(vectors, corrected):
    train, queries = vectors
    pairs = train.repeat_interleave(40, 0), queries.repeat(30, 1)
    expected = predict_cross_error(ExactSpectrum(EIGENVALUES), *pairs, [256], RIDGES, corrected)
    whole = predicted(vectors, [256], corrected).whole
    for name in ("eps_mean", "eps_50", "eps_95", "eps_99"):
        torch.testing.assert_close(getattr(whole, name), getattr(expected, name), rtol=0.02, atol=0)


def test_every_part_has_the_errors_of_dense_sketches(vectors):
    """ε_95 over 30 x 40 pairs, 150 sketches: 5 % plus 5 standard errors (false alarm below 1e-5)."""
    train, queries = vectors
    kernel = queries.clone()
    kernel[:, :RANK] = 0
    generator = torch.Generator().manual_seed(3)
    both = torch.cat([queries, kernel])
    exact = reference.exact_scores(EIGENVALUES, train, queries, RIDGES)

    def norms(weights):
        return (train.square() @ weights).sqrt()[:, None] * (queries.square() @ weights).sqrt()

    scale = torch.stack([norms(1 / (EIGENVALUES + ridge)) for ridge in RIDGES])
    inverse = torch.where(EIGENVALUES > 0, 1 / EIGENVALUES, 0)
    errors: dict[str, list] = {"whole": [], "unridged": [], "in_range": [], "in_kernel": []}
    for scores in reference.simulated_scores(EIGENVALUES, train, both, 64, RIDGES, 150, generator):
        whole, leaked = scores.split(len(queries), dim=2)
        parts = [(whole - exact) / scale, (whole - exact) / norms(inverse), (whole - leaked - exact) / scale]
        for name, values in zip(errors, [*parts, leaked / scale], strict=True):
            errors[name].append(torch.quantile(values.abs().flatten(1), 0.95, dim=1))
    law = predicted(vectors, [64])
    for name, values in errors.items():
        measured, spread = torch.stack(values).mean(0), torch.stack(values).std(0) / 150**0.5
        gap = (getattr(law, name).eps_95[0] - measured).abs()
        assert (gap <= 0.05 * measured + 5 * spread).all(), name


def test_the_leakage_falls_like_one_over_the_root_of_m(vectors):
    leaked = predicted(vectors, [2**16, 2**18]).in_kernel.eps_95
    torch.testing.assert_close(leaked[0] / leaked[1], torch.full((3,), 2.0, dtype=torch.float64), rtol=0.01, atol=0)


def test_queries_in_the_range_leak_nothing_and_zero_queries_are_left_out(vectors):
    train, _ = vectors
    law = predicted((train, torch.cat([train[:5], torch.zeros(1, SIZE)])), [64])
    assert (law.in_kernel.eps_99 == 0).all()
    assert torch.equal(law.in_range.eps_95, law.whole.eps_95)
    torch.testing.assert_close(law.whole.eps_95, predicted((train, train[:5]), [64]).whole.eps_95)


def test_parts_that_are_not_asked_for_are_none_and_change_nothing(vectors):
    unridged = tuple(unridged_norms(EIGENVALUES, v, RANK) for v in vectors)
    alone = predict_pairs(ExactSpectrum(EIGENVALUES), *vectors, RANK, unridged, [64], RIDGES, parts=False)
    assert (alone.in_range, alone.in_kernel) == (None, None)
    assert torch.equal(alone.whole.eps_95, predicted(vectors, [64]).whole.eps_95)


def test_norms_without_a_ridge_see_the_named_number_of_eigenvalues():
    eigenvalues, vector = torch.tensor([4.0, 1.0, 1e-20]).double(), torch.tensor([[2.0, 3.0, 5.0]]).double()
    assert unridged_norms(eigenvalues, vector, 2).item() == pytest.approx(10**0.5)
