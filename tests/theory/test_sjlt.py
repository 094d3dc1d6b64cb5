"""SJLT sketches with few columns a bucket, against simulation and against laws known for special cases."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import poisson

from common.theory.column_sample import ColumnSample, group
from common.theory.self_influence import predict_self_influence
from common.theory.sjlt import GAUSSIAN_LOAD, sjlt_ridge_and_dof
from common.theory.sketch_law import sketch_law
from common.theory.spectrum import ExactSpectrum
from tests.reference import generator
from tests.reference_theory import bucket_weights, free_sketch_ridge, simulated_scores

D, RANK, RIDGE, NUM_SKETCHES, NUM_QUERIES = 800, 400, 1e-3, 40, 50


def equal_columns(d: int, rank: int) -> ColumnSample:
    """Return columns that all have the same leverage, whatever the eigenvalues."""
    energies = torch.ones(64, 1, dtype=torch.float64) * rank / d
    return ColumnSample(d, torch.ones(1, dtype=torch.float64), energies, energies)


def uneven_problem(stream: torch.Generator, spread: float):
    """Return eigenvalues, a (d, r) orthonormal basis, and unit queries.

    Rows of the basis are scaled by factors from 10^-spread to 1 before its columns are made orthonormal.
    """
    scale = torch.logspace(-spread, 0, D, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(D, RANK, generator=stream, dtype=torch.float64) * scale[:, None]).Q
    eigenvalues = torch.arange(1, RANK + 1, dtype=torch.float64) ** -1.0
    queries = torch.randn(NUM_QUERIES, RANK, generator=stream, dtype=torch.float64) * eigenvalues.sqrt()
    return eigenvalues, basis, queries / queries.norm(dim=1, keepdim=True)


def simulated_ratios(m: int, spread: float):
    """Return eigenvalues, unit queries, columns, and the ratios of 40 dense CountSketches."""
    stream = generator(m)
    eigenvalues, basis, queries = uneven_problem(stream, spread)
    exact = queries.square() @ (1 / (eigenvalues + RIDGE))
    scores = simulated_scores(eigenvalues, queries, queries, m, [RIDGE], NUM_SKETCHES, stream, "sjlt", basis.T)
    columns = group(D, eigenvalues, basis.square(), queries.square().mean(0))
    return eigenvalues, queries, columns, torch.stack([score[0].diagonal() / exact for score in scores])


@pytest.mark.parametrize("spread", [0.0, 0.7])
@pytest.mark.parametrize("m", [450, 600])
def test_bias_and_error_are_predicted_where_the_gaussian_law_is_not(m, spread):
    """40 sketches know the mean ratio to 0.003 and ε_95 to 4 %; both limits are 3 of that: one false alarm in 100."""
    eigenvalues, queries, columns, ratios = simulated_ratios(m, spread)
    ours = predict_self_influence(ExactSpectrum(eigenvalues), queries, [m], [RIDGE], sjlt_columns=columns)
    gaussian = predict_self_influence(ExactSpectrum(eigenvalues), queries, [m], [RIDGE])
    measured = (ratios - 1).abs().quantile(0.95, dim=1).mean()
    assert abs(ours.mean_ratio.item() - ratios.mean().item()) < 0.01
    assert abs(ours.eps_95.item() / measured - 1) < 0.12
    assert abs(ours.eps_95.item() / measured - 1) < abs(gaussian.eps_95.item() / measured - 1)


def test_uneven_columns_are_not_described_by_equal_ones():
    """The two laws differ by 0.012 in mean ratio, four times what 40 sketches leave open."""
    eigenvalues, queries, columns, ratios = simulated_ratios(450, spread=0.7)
    measured = ratios.mean().item()
    uneven, equal = (
        predict_self_influence(
            ExactSpectrum(eigenvalues), queries, [450], [RIDGE], sjlt_columns=sample
        ).mean_ratio.item()
        for sample in (columns, equal_columns(D, RANK))
    )
    assert abs(uneven - measured) < 0.5 * abs(equal - measured)


@pytest.mark.parametrize("ridge", [1e-5, 1e-3, 1e-1])
def test_one_common_ridge_stands_in_for_a_ridge_on_every_column(ridge):
    """The law with its own λ/w_c on every column, solved densely, and its scalar stand-in: 1 % of the mean ratio."""
    eigenvalues, basis, queries = uneven_problem(generator(600), spread=0.5)
    columns = group(D, eigenvalues, basis.square(), queries.square().mean(0))
    fisher = basis * eigenvalues @ basis.T
    own = ridge / bucket_weights(basis * eigenvalues.sqrt(), 600, ridge)
    vectors = queries @ basis.T
    scores = (vectors * torch.linalg.solve(fisher + own.diag(), vectors.T).T).sum(1)
    expected = (scores / (queries.square() @ (1 / (eigenvalues + ridge)))).mean().item()
    ours = predict_self_influence(
        ExactSpectrum(eigenvalues), queries, [600], [ridge], sjlt_columns=columns
    ).mean_ratio.item()
    assert abs(ours / expected - 1) < 0.01


@pytest.mark.parametrize("load", [1.2, 3.0, 20.0])
def test_equal_leverages_give_the_free_sketch(load):
    d = 2000
    eigenvalues = torch.arange(1, 500, dtype=torch.float64) ** -1.5
    ridges = torch.tensor([1e-9, 1e-6, 1e-3, 1.0], dtype=torch.float64)
    m = torch.full_like(ridges, d // load)
    law = sketch_law(ExactSpectrum(eigenvalues), m, ridges)
    mu, dof = sjlt_ridge_and_dof(ExactSpectrum(eigenvalues), m, ridges, equal_columns(d, 499), law.mu, law.dof)
    expected = [free_sketch_ridge(eigenvalues, float(m[0]), ridge, d) for ridge in ridges.tolist()]
    torch.testing.assert_close(mu, torch.tensor([e[0] for e in expected], dtype=torch.float64), rtol=1e-6, atol=0)
    torch.testing.assert_close(dof, torch.tensor([e[1] for e in expected], dtype=torch.float64), rtol=1e-4, atol=0)


@pytest.mark.parametrize("ridge", [1e-6, 1e-2, 10.0])
def test_buckets_of_a_multiple_of_the_identity_decouple(ridge):
    """F = sI on all d parameters: a score is 1/(λ + s N) for a column in a bucket of N, exactly."""
    d, m, s = 300, 200, 0.5
    undefined = torch.tensor([torch.nan], dtype=torch.float64)
    sizes, ridges = torch.tensor([m], dtype=torch.float64), torch.tensor([ridge], dtype=torch.float64)
    eigenvalues = torch.full((d,), s, dtype=torch.float64)
    columns = group(d, eigenvalues, torch.eye(d, dtype=torch.float64), torch.ones(d, dtype=torch.float64))
    mu, _ = sjlt_ridge_and_dof(ExactSpectrum(eigenvalues), sizes, ridges, columns, undefined, undefined)
    others = torch.arange(60, dtype=torch.float64)
    chances = torch.from_numpy(poisson.pmf(others.numpy(), d / m))
    expected = (chances / (ridge + s * (1 + others))).sum()
    assert abs(1 / (s + mu.item()) / expected.item() - 1) < 1e-6


def test_full_buckets_give_the_gaussian_law():
    eigenvalues = torch.arange(1, 300, dtype=torch.float64) ** -1.5
    m, ridge = torch.tensor([64.0, 64.0], dtype=torch.float64), torch.tensor([1e-6, 1e-2], dtype=torch.float64)
    law = sketch_law(ExactSpectrum(eigenvalues), m, ridge)
    d = 64 * (GAUSSIAN_LOAD - 1)
    uneven = torch.logspace(-0.5, 0.5, 100, dtype=torch.float64)[:, None] / d
    columns = group(d, eigenvalues, uneven.expand(-1, 299).clone(), torch.ones(299, dtype=torch.float64))
    undefined = torch.full_like(ridge, torch.nan)
    mu, dof = sjlt_ridge_and_dof(ExactSpectrum(eigenvalues), m, ridge, columns, undefined, undefined)
    torch.testing.assert_close(mu, law.mu, rtol=2e-3, atol=0)
    torch.testing.assert_close(dof, law.dof, rtol=2e-3, atol=0)


def test_an_undefined_ridge_stays_undefined():
    undefined = torch.tensor([torch.nan], dtype=torch.float64)
    eigenvalues = torch.ones(5, dtype=torch.float64)
    mu, dof = sjlt_ridge_and_dof(
        ExactSpectrum(eigenvalues), torch.tensor([8.0]), undefined, equal_columns(20, 5), undefined, undefined
    )
    assert mu.isnan().all()
    assert dof.isnan().all()
