"""SJLT sketches with few columns a bucket, against simulation."""

from __future__ import annotations

import pytest
import torch

from common.sjlt_theory import sjlt_ridge_and_dof
from common.theory import predict_self_influence, sketch_law
from tests.reference import generator

D, RANK, RIDGE, NUM_SKETCHES, NUM_QUERIES = 800, 400, 1e-5, 40, 50


def simulated_ratios(m: int):
    """Return eigenvalues, coordinates of unit queries, and the ratios of NUM_SKETCHES dense CountSketches."""
    stream = generator(m)
    basis = torch.linalg.qr(torch.randn(D, RANK, generator=stream, dtype=torch.float64)).Q
    eigenvalues = torch.arange(1, RANK + 1, dtype=torch.float64) ** -1.0
    queries = torch.randn(NUM_QUERIES, RANK, generator=stream, dtype=torch.float64) * eigenvalues.sqrt()
    queries /= queries.norm(dim=1, keepdim=True)
    exact = queries.square() @ (1 / (eigenvalues + RIDGE))
    ratios = []
    for _ in range(NUM_SKETCHES):
        P = torch.zeros(m, D, dtype=torch.float64)
        signs = torch.randint(0, 2, (D,), generator=stream).double() * 2 - 1
        P[torch.randint(0, m, (D,), generator=stream), torch.arange(D)] = signs
        sketched = P @ basis
        system = sketched * eigenvalues @ sketched.T + RIDGE * torch.eye(m, dtype=torch.float64)
        vectors = sketched @ queries.T
        ratios.append((vectors * torch.linalg.solve(system, vectors)).sum(0) / exact)
    return eigenvalues, queries, torch.stack(ratios)


@pytest.mark.parametrize("m", [450, 600])
def test_bias_and_error_are_predicted_where_the_gaussian_law_is_not(m):
    """40 sketches know the mean ratio to 0.003 and ε_95 to 4 %; both limits are 3 of that: one false alarm in 100."""
    eigenvalues, queries, ratios = simulated_ratios(m)
    ours = predict_self_influence(eigenvalues, queries, [m], [RIDGE], sjlt_columns=D)
    gaussian = predict_self_influence(eigenvalues, queries, [m], [RIDGE])
    measured = (ratios - 1).abs().quantile(0.95, dim=1).mean()
    assert abs(ours.mean_ratio.item() - ratios.mean().item()) < 0.01
    assert abs(ours.eps_95.item() / measured - 1) < 0.12
    assert abs(ours.eps_95.item() / measured - 1) < abs(gaussian.eps_95.item() / measured - 1)


def test_full_buckets_give_the_gaussian_law():
    eigenvalues = torch.arange(1, 300, dtype=torch.float64) ** -1.5
    m, ridge = torch.tensor([64.0, 64.0], dtype=torch.float64), torch.tensor([1e-6, 1e-2], dtype=torch.float64)
    law = sketch_law(eigenvalues, m, ridge)
    wrong = torch.full_like(ridge, torch.nan)
    mu, dof = sjlt_ridge_and_dof(eigenvalues, m, ridge, 64 * 99, wrong, wrong)
    torch.testing.assert_close(mu, law.mu, rtol=1e-4, atol=0)
    torch.testing.assert_close(dof, law.dof, rtol=1e-4, atol=0)


def test_an_undefined_ridge_stays_undefined():
    undefined = torch.tensor([torch.nan], dtype=torch.float64)
    eigenvalues = torch.ones(5, dtype=torch.float64)
    mu, dof = sjlt_ridge_and_dof(eigenvalues, torch.tensor([8.0]), undefined, 20, undefined, undefined)
    assert mu.isnan().all()
    assert dof.isnan().all()
