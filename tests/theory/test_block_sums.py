from __future__ import annotations

import pytest
import torch

from common.foundations.seeds import make_generator
from common.theory.binned_spectrum import binned
from common.theory.block_sums import predicted_errors, sketched, whole
from common.theory.self_influence import predict_self_influence_at
from common.theory.spectrum import ExactSpectrum

M = torch.tensor([40.0, 40.0, 80.0], dtype=torch.float64)
RIDGES = torch.tensor([1e-3, 1e-1, 1e-2], dtype=torch.float64)


def block(seed, size=150):
    generator = torch.Generator().manual_seed(seed)
    eigenvalues = torch.logspace(0, -5, size, dtype=torch.float64)
    return eigenvalues, torch.randn(30, size, generator=generator, dtype=torch.float64)


def exact(eigenvalues, queries):
    return queries.square() @ (1 / (eigenvalues[:, None] + RIDGES))


def cumulants(eigenvalues, queries):
    spectrum = binned(eigenvalues)
    return sketched(spectrum, spectrum.energies(queries.square()), M, RIDGES)


def test_one_block_has_the_law_of_a_single_sketch():
    eigenvalues, queries = block(0)
    found = predicted_errors(cumulants(eigenvalues, queries), exact(eigenvalues, queries))
    expected = predict_self_influence_at(ExactSpectrum(eigenvalues), queries, M, RIDGES)
    for name in ("mean_ratio", "eps_mean", "eps_50", "eps_95", "eps_99"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=3e-3, atol=0)


def test_blocks_sketched_apart_err_as_simulated():
    """3 blocks, 300 trials of 30 queries: predicted ε_95 within 6 %, about four standard errors, at fixed seeds."""
    blocks = [block(seed) for seed in range(3)]
    total = sum(exact(*one) for one in blocks)
    law = cumulants(*blocks[0])
    for one in blocks[1:]:
        law = law + cumulants(*one)
    predicted = predicted_errors(law, total)
    ratios = []
    for trial in range(300):
        scores = torch.zeros_like(total)
        for number, (eigenvalues, queries) in enumerate(blocks):
            entries = torch.randn(80, 150, generator=make_generator("cpu", trial, number, 1), dtype=torch.float64)
            for cell, (m, ridge) in enumerate(zip(M.int().tolist(), RIDGES.tolist(), strict=True)):
                rows = entries[:m] / m**0.5
                matrix = (rows * eigenvalues) @ rows.T + ridge * torch.eye(m, dtype=torch.float64)
                projected = queries @ rows.T
                scores[:, cell] += (projected * torch.linalg.solve(matrix, projected.T).T).sum(1)
        ratios.append(scores / total)
    ratios = torch.cat(ratios)
    torch.testing.assert_close(ratios.mean(0), predicted.mean_ratio, rtol=0.01, atol=0)
    torch.testing.assert_close((ratios - 1).abs().quantile(0.95, 0), predicted.eps_95, rtol=0.06, atol=0)


def test_a_block_that_stays_whole_adds_its_scores_and_no_noise():
    eigenvalues, queries = block(0)
    own = exact(eigenvalues, queries)
    alone = predicted_errors(whole(own), own)
    assert alone.eps_99.max() < 1e-14
    both = predicted_errors(cumulants(eigenvalues, queries) + whole(own), 2 * own)
    half = predicted_errors(cumulants(eigenvalues, queries), own)
    torch.testing.assert_close(both.eps_95, half.eps_95 / 2, rtol=1e-3, atol=0)


def test_queries_without_a_gradient_have_no_part_in_it():
    eigenvalues, queries = block(0)
    silent = torch.cat([queries, torch.zeros(5, queries.shape[1])])
    some, others = (predicted_errors(cumulants(eigenvalues, q), exact(eigenvalues, q)) for q in (queries, silent))
    assert some.eps_95.tolist() == pytest.approx(others.eps_95.tolist(), rel=1e-12)
