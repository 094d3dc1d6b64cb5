from __future__ import annotations

import torch

from common.theory.reference_noise import relative_covariance
from common.theory.sketched_spectrum import SketchedSpectrum
from tests import reference_theory as reference

SIZE, M, TRIALS = 80, 60, 300


def test_the_covariance_is_that_of_ridge_corrected_scores_over_many_sketches():
    generator = torch.Generator().manual_seed(11)
    eigenvalues = 100 * reference.spectrum("power", SIZE)
    queries = reference.unit_queries(eigenvalues, 6, generator)
    # two queries that have much in common
    queries[1] = queries[0] + 0.5 * queries[1]
    ridge, estimates, predicted = 0.3, [], []
    exact = (queries.square() / (eigenvalues + ridge)).sum(1)
    for trial in range(TRIALS):
        sketch = reference.sketch_matrix("normal", M, SIZE, generator)
        t, basis = torch.linalg.eigh(sketch * eigenvalues @ sketch.T)
        spectrum, seen = SketchedSpectrum(t), (queries @ sketch.T @ basis).flip(1)
        weights = spectrum.resolvent_weights(1, torch.tensor([ridge], dtype=torch.float64))[:, 0]
        estimates.append(seen.square() @ weights / exact)
        if trial < 20:
            predicted.append(relative_covariance(spectrum, seen, ridge))
    found, expected = torch.stack(estimates).T.cov(), torch.stack(predicted).mean(0)
    # a correlation of Gaussians is known to 6 % after 300 draws, the law is right to about 1/ν: four times the former
    scale = (expected.diagonal()[:, None] * expected.diagonal()).sqrt()
    assert ((found - expected) / scale).abs().max() < 0.25
    assert (expected / scale)[0, 1] > 0.3
    torch.testing.assert_close(found.diagonal(), expected.diagonal(), rtol=0.25, atol=0)


def test_a_query_without_a_gradient_has_no_noise():
    queries = torch.zeros(2, 3, dtype=torch.float64)
    queries[1] = 1.0
    found = relative_covariance(SketchedSpectrum(torch.tensor([3.0, 2.0, 1.0])), queries, 2.0)
    assert torch.equal(found[0], torch.zeros(2, dtype=torch.float64))
    assert found[1, 1] > 0
