"""The closed forms against high-precision roots, known limits, and dense simulation with prescribed spectra."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import chi2

from common.sketches.coordinate_sketch import GaussianCoordinateSketch
from common.sketches.influence import exact_self_influence, sketched_self_influence
from common.theory.laws import (
    corrected_ridge,
    implicit_ridge,
    predict_cross_error,
    predict_self_influence,
    sketch_law,
)
from common.theory.spectrum import effective_dimension
from tests import reference_theory as reference

SIZE = 200
RIDGES = torch.tensor([1e-4, 1e-2, 1.0, 100.0], dtype=torch.float64)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def simulated_ratios(eigenvalues, queries, m, generator, trials, kind="normal", basis=None):
    scores = reference.simulated_scores(eigenvalues, queries, queries, m, RIDGES, trials, generator, kind, basis)
    sketched = torch.stack([score.diagonal(dim1=1, dim2=2) for score in scores])
    exact = reference.exact_scores(eigenvalues, queries, queries, RIDGES).diagonal(dim1=1, dim2=2)
    return sketched / exact


@pytest.mark.parametrize("name", [*reference.SPECTRA, "gap"])
def test_implicit_ridge_agrees_with_sixty_digits(name):
    rank_gap = torch.tensor([1.0] * 20 + [1e-13] * 20, dtype=torch.float64)
    eigenvalues = rank_gap if name == "gap" else reference.spectrum(name, 40)
    for m in (1, 19, 20, 21, 39, 40, 41, 10**7):
        for ridge in (0.0, 1e-12, 1e-6, 1.0, 1e6):
            expected = float(reference.implicit_ridge_mp(eigenvalues.tolist(), m, ridge))
            found = implicit_ridge(eigenvalues, m, ridge).item()
            assert found == pytest.approx(expected, rel=1e-12, abs=0), (m, ridge)


def test_implicit_ridge_of_a_flat_spectrum_is_the_root_of_a_quadratic():
    c, rank = 3.0, 50
    m = torch.tensor([1.0, 25, 50, 51, 1e7])[:, None].double()
    ridge = torch.tensor([1e-12, 1e-3, 1.0, 1e6]).double()
    half = (c - ridge - rank * c / m) / 2
    discriminant = (half**2 + ridge * c).sqrt()
    # the form of the positive root that does not cancel
    expected = torch.where(half > 0, ridge * c / (half + discriminant), discriminant - half)
    found = implicit_ridge(torch.full((rank,), c), m, ridge)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


def test_implicit_ridge_tends_to_the_ridge_for_large_m_and_to_the_trace_for_large_ridge():
    eigenvalues = reference.spectrum("power", SIZE)
    assert implicit_ridge(eigenvalues, 1e12, 0.1).item() == pytest.approx(0.1, rel=1e-9)
    large = implicit_ridge(eigenvalues, 10, 1e6).item()
    assert large - 1e6 == pytest.approx(eigenvalues.sum().item() / 10, rel=1e-5)


@pytest.mark.parametrize("name", reference.SPECTRA)
def test_without_a_ridge_the_effective_dimension_equals_m_below_the_rank(name):
    eigenvalues = reference.spectrum(name, SIZE)
    rank = int((eigenvalues > 0).sum())
    below = torch.tensor([1, rank // 2, rank - 1]).double()
    torch.testing.assert_close(effective_dimension(eigenvalues, implicit_ridge(eigenvalues, below, 0)), below)
    assert (implicit_ridge(eigenvalues, [rank, rank + 1], 0) == 0).all()


def test_implicit_ridge_broadcasts_and_ignores_order_and_zero_eigenvalues():
    eigenvalues = reference.spectrum("deficient", 30)
    m, ridge = torch.tensor([[5], [50]]), torch.tensor([1e-3, 0.0, 1.0])
    found = implicit_ridge(eigenvalues, m, ridge)
    assert found.shape == (2, 3)
    torch.testing.assert_close(implicit_ridge(eigenvalues[:15].flip(0), m, ridge), found, rtol=1e-13, atol=0)
    torch.testing.assert_close(implicit_ridge(torch.zeros(4), 3, 0.5).item(), 0.5)


@pytest.mark.parametrize(
    ("eigenvalues", "m", "ridge", "message"),
    [
        ([1.0], 0, 1.0, "projection dimension m must be finite and > 0, got 0"),
        ([1.0], math.inf, 1.0, "projection dimension m must be finite"),
        ([1.0], 1, -2.0, "ridge must be finite and >= 0, got -2"),
        ([1.0], 1, math.nan, "ridge must be finite"),
        ([1.0, -1.0], 1, 1.0, "eigenvalues must be"),
        ([[1.0]], 1, 1.0, "eigenvalues must be"),
    ],
)
def test_input_that_no_sketch_could_have_is_refused(eigenvalues, m, ridge, message):
    with pytest.raises(ValueError, match=message):
        implicit_ridge(eigenvalues, m, ridge)


def test_prediction_refuses_a_zero_ridge_and_queries_that_are_all_zero():
    eigenvalues = reference.spectrum("power", 5)
    with pytest.raises(ValueError, match="ridge must be > 0"):
        predict_self_influence(eigenvalues, torch.eye(5), [4], [0.0])
    with pytest.raises(ValueError, match="every query is zero"):
        predict_self_influence(eigenvalues, torch.zeros(2, 5), [4], [1.0])


@pytest.mark.parametrize("name", reference.SPECTRA)
def test_solving_with_the_corrected_ridge_acts_like_the_ridge_itself(name):
    eigenvalues = reference.spectrum(name, SIZE)
    m = torch.tensor([[16], [128], [1024]])
    corrected = corrected_ridge(eigenvalues, m, RIDGES)
    defined = m > effective_dimension(eigenvalues, RIDGES)
    assert torch.equal(corrected.isfinite(), defined)
    assert defined.any()
    assert not defined.all()
    wanted = RIDGES.expand_as(corrected)[defined]
    found = implicit_ridge(eigenvalues, m.expand_as(corrected)[defined], corrected[defined])
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=0)


def test_degrees_of_freedom_are_m_minus_the_second_dimension():
    eigenvalues = reference.spectrum("power", SIZE)
    for corrected in (False, True):
        law = sketch_law(eigenvalues, torch.full((4,), 300.0), RIDGES, corrected)
        second = ((eigenvalues[:, None] / (eigenvalues[:, None] + law.mu)) ** 2).sum(0)
        torch.testing.assert_close(law.dof, 300 - second)


@pytest.mark.parametrize("name", reference.SPECTRA)
@pytest.mark.parametrize("m", [32, 128])
def test_mean_and_variance_of_a_gaussian_sketch_are_predicted(name, m, generator):
    """400 sketches, 4 ridges: mean to 5 standard errors (false alarm 6e-7 each, 2e-5 in all), sd to 6 %.

    The sd is pooled over 60 queries.
    """
    eigenvalues = reference.spectrum(name, SIZE)
    queries = reference.unit_queries(eigenvalues, 60, generator)
    ratios = simulated_ratios(eigenvalues, queries, m, generator, 400)
    means = ratios.mean(2)
    predicted = predict_self_influence(eigenvalues, queries, [m], RIDGES).mean_ratio[0]
    assert ((means.mean(0) - predicted).abs() <= 5 * means.std(0) / 20 + 1e-6).all()
    law = sketch_law(eigenvalues, torch.full((4,), float(m)), RIDGES)
    psi = queries.square() @ ((law.mu / (eigenvalues[:, None] + law.mu)) ** 2)
    exact = queries.square() @ (1 / (eigenvalues[:, None] + RIDGES))
    predicted_sd = ((2 / law.dof).sqrt() * psi / law.mu / exact).T
    gap = ratios.std(0).square().mean(1).sqrt() / predicted_sd.square().mean(1).sqrt() - 1
    assert (gap.abs() <= 0.06).all(), gap


@pytest.mark.parametrize("kind", reference.KINDS)
@pytest.mark.parametrize("name", ["power", "step", "deficient"])
def test_error_quantiles_are_predicted_for_every_kind_of_sketch(name, kind, generator):
    """ε_95 of 80 queries, 80 sketches, 4 ridges: 4 % plus 5 standard errors (false alarm below 1e-5 a cell).

    Coordinates are spread over 1,600 parameters, since an sjlt needs many more parameters than buckets.
    """
    eigenvalues = reference.spectrum(name, SIZE)
    queries = reference.unit_queries(eigenvalues, 80, generator)
    basis = None if kind == "normal" else random_frame(generator)
    ratios = simulated_ratios(eigenvalues, queries, 64, generator, 80, kind, basis)
    errors = torch.quantile((ratios - 1).abs(), 0.95, dim=2)
    predicted = predict_self_influence(eigenvalues, queries, [64], RIDGES).eps_95[0]
    gap = (predicted - errors.mean(0)).abs()
    assert (gap <= 0.04 * predicted + 5 * errors.std(0) / 80**0.5).all(), predicted / errors.mean(0) - 1


def test_where_queries_share_a_direction_the_quantile_pooled_over_sketches_is_predicted(generator):
    """800 sketches; the pooled 95 % quantile has a standard error of 1.2 %, the test allows 6 % (false alarm 6e-7)."""
    eigenvalues = torch.logspace(0, -4, 60, dtype=torch.float64)
    queries = 0.05 * torch.randn(200, 60, generator=generator, dtype=torch.float64)
    queries[:, 0] += 1
    ridge, m = 1.0, 64
    exact = exact_self_influence(eigenvalues, queries, ridge)
    errors = torch.stack(
        [
            sketched_self_influence(GaussianCoordinateSketch(eigenvalues, queries, ridge, 5, trial).problem(m), ridge)
            for trial in range(800)
        ]
    )
    errors = (errors / exact - 1).abs()
    pooled, mean_of_each = errors.quantile(0.95), errors.quantile(0.95, dim=1).mean()
    predicted = predict_self_influence(eigenvalues, queries, [m], [ridge]).eps_95.item()
    assert predicted == pytest.approx(pooled.item(), rel=0.06)
    assert mean_of_each < 0.92 * predicted


def random_frame(generator) -> torch.Tensor:
    wide = torch.randn(8 * SIZE, SIZE, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(wide)[0].T


def test_ridge_correction_removes_the_bias_of_measured_scores(generator):
    """300 sketches: mean ratio to 5 standard errors (false alarm 6e-7), and a bias of 30 % without correction."""
    eigenvalues = reference.spectrum("power", SIZE)
    queries = reference.unit_queries(eigenvalues, 60, generator)
    ridge = torch.tensor([1e-2], dtype=torch.float64)
    solved = corrected_ridge(eigenvalues, 100, ridge)
    exact = reference.exact_scores(eigenvalues, queries, queries, ridge)[0].diagonal()
    scores = reference.simulated_scores(eigenvalues, queries, queries, 100, solved, 300, generator)
    ratios = torch.stack([score[0].diagonal() for score in scores]) / exact
    means = ratios.mean(1)
    law = predict_self_influence(eigenvalues, queries, [100], ridge, corrected=True)
    assert abs(means.mean() - law.mean_ratio[0, 0]) <= 5 * means.std() / 300**0.5
    assert law.mean_ratio[0, 0] == pytest.approx(1, abs=0.01)
    plain = predict_self_influence(eigenvalues, queries, [100], ridge)
    assert plain.mean_ratio[0, 0] < 0.8
    errors = torch.quantile((ratios - 1).abs(), 0.95, dim=1)
    gap = (errors.mean() - law.eps_95[0, 0]).abs()
    assert gap <= 0.03 * law.eps_95[0, 0] + 5 * errors.std() / 300**0.5


def test_where_no_correction_exists_the_prediction_is_nan():
    eigenvalues = reference.spectrum("flat", SIZE)
    law = predict_self_influence(eigenvalues, torch.eye(SIZE)[:9], [64, 512], [1e-4], corrected=True)
    for values in (law.mean_ratio, law.eps_mean, law.eps_50, law.eps_95, law.eps_99):
        assert values[0].isnan().all()
        assert values[1].isfinite().all()


@pytest.mark.parametrize("m", [2, 16, 256])
def test_for_a_large_ridge_the_ratio_is_a_chi_square_over_its_degrees_of_freedom(m):
    """One direction at λ = 1e9, many equal queries: quantiles of |χ²_m/m − 1|."""
    eigenvalues = reference.spectrum("power", 20)
    queries = torch.ones(4000, 20)
    law = predict_self_influence(eigenvalues, queries, [m], [1e9])

    def inside(error: float) -> float:
        return chi2.cdf(m * (1 + error), m) - chi2.cdf(m * (1 - error), m)

    assert inside(law.eps_50.item()) == pytest.approx(0.50, abs=0.02 if m == 2 else 0.003)
    assert inside(law.eps_95.item()) == pytest.approx(0.95, abs=0.003)
    assert inside(law.eps_99.item()) == pytest.approx(0.99, abs=0.002)
    assert law.mean_ratio.item() == pytest.approx(1, abs=1e-6)


def test_zero_queries_are_left_out_and_lengths_do_not_matter(generator):
    eigenvalues = reference.spectrum("deficient", SIZE)
    queries = reference.unit_queries(eigenvalues, 40, generator)
    padded = torch.cat([queries * torch.linspace(0.1, 9, 40)[:, None], torch.zeros(3, SIZE)])
    law, same = (predict_self_influence(eigenvalues, q, [16, 64], RIDGES) for q in (queries, padded))
    for name in ("mean_ratio", "eps_mean", "eps_50", "eps_95", "eps_99"):
        torch.testing.assert_close(getattr(same, name), getattr(law, name))


def test_predicted_error_of_an_isotropic_sketch_falls_as_the_square_root_of_m():
    law = predict_self_influence(torch.ones(20), torch.eye(20), [1000, 4000], [1e6])
    assert (law.eps_95[0] / law.eps_95[1]).item() == pytest.approx(2, rel=0.01)


def test_finite_m_terms_reproduce_the_inverse_wishart_mean():
    """F = I on r = 60 directions, λ -> 0, m = 40: E tr A⁻¹/m = m/(r−m−1) outside the range, E[PᵀA⁻¹P] = m/r inside.

    Without the terms of order 1/ν the first is m/(r−m), 5 % lower.
    """
    eigenvalues = torch.cat([torch.ones(60), torch.zeros(5)]).double()
    law = sketch_law(eigenvalues, torch.tensor([40.0]), torch.tensor([1e-10]))
    weights = law.mean_weights(eigenvalues)[:, 0]
    assert weights[-1].item() == pytest.approx(40 / 19, rel=0.004)
    assert weights[0].item() == pytest.approx(40 / 60, rel=1e-8)


def test_the_cross_error_of_a_query_with_itself_is_its_self_influence_error(generator):
    eigenvalues = reference.spectrum("power", SIZE)
    queries = reference.unit_queries(eigenvalues, 50, generator)
    cross = predict_cross_error(eigenvalues, queries, queries, [4096], RIDGES)
    own = predict_self_influence(eigenvalues, queries, [4096], RIDGES)
    for name in ("eps_mean", "eps_50", "eps_95"):
        torch.testing.assert_close(getattr(cross, name), getattr(own, name), rtol=0.02, atol=0)


@pytest.mark.parametrize("kind", ["normal", "rademacher"])
def test_normalised_error_of_cross_scores_is_predicted(kind, generator):
    """ε_95 over 40 x 40 pairs, 100 sketches, 4 ridges: 5 % plus 5 standard errors (false alarm below 1e-5)."""
    eigenvalues = reference.spectrum("power", SIZE)
    left, right = reference.unit_queries(eigenvalues, 80, generator).split(40)
    basis = reference.random_basis(SIZE, generator)
    exact = reference.exact_scores(eigenvalues, left, right, RIDGES)
    scale = torch.stack(
        [
            (left.square() @ (1 / (eigenvalues + ridge))).sqrt()[:, None]
            * (right.square() @ (1 / (eigenvalues + ridge))).sqrt()
            for ridge in RIDGES
        ]
    )
    scores = reference.simulated_scores(eigenvalues, left, right, 64, RIDGES, 100, generator, kind, basis)
    errors = torch.stack([torch.quantile(((s - exact) / scale).abs().flatten(1), 0.95, dim=1) for s in scores])
    predicted = predict_cross_error(
        eigenvalues, left.repeat_interleave(40, 0), right.repeat(40, 1), [64], RIDGES
    ).eps_95[0]
    gap = (predicted - errors.mean(0)).abs()
    assert (gap <= 0.05 * predicted + 5 * errors.std(0) / 10).all(), predicted / errors.mean(0) - 1
