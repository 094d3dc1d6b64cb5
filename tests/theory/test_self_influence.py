"""Self-influence against dense simulation with prescribed spectra, and known limits."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chi2

from common.sketches.coordinate_sketch import GaussianCoordinateSketch
from common.sketches.influence import exact_self_influence, sketched_self_influence
from common.theory.self_influence import predict_self_influence
from common.theory.sketch_law import corrected_ridge, sketch_law
from common.theory.spectrum import ExactSpectrum
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


def test_prediction_refuses_a_zero_ridge_and_queries_that_are_all_zero():
    eigenvalues = reference.spectrum("power", 5)
    with pytest.raises(ValueError, match="ridge must be > 0"):
        predict_self_influence(ExactSpectrum(eigenvalues), torch.eye(5), [4], [0.0])
    with pytest.raises(ValueError, match="every query is zero"):
        predict_self_influence(ExactSpectrum(eigenvalues), torch.zeros(2, 5), [4], [1.0])


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
    predicted = predict_self_influence(ExactSpectrum(eigenvalues), queries, [m], RIDGES).mean_ratio[0]
    assert ((means.mean(0) - predicted).abs() <= 5 * means.std(0) / 20 + 1e-6).all()
    law = sketch_law(ExactSpectrum(eigenvalues), torch.full((4,), float(m)), RIDGES)
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
    predicted = predict_self_influence(ExactSpectrum(eigenvalues), queries, [64], RIDGES).eps_95[0]
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
    predicted = predict_self_influence(ExactSpectrum(eigenvalues), queries, [m], [ridge]).eps_95.item()
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
    solved = corrected_ridge(ExactSpectrum(eigenvalues), 100, ridge)
    exact = reference.exact_scores(eigenvalues, queries, queries, ridge)[0].diagonal()
    scores = reference.simulated_scores(eigenvalues, queries, queries, 100, solved, 300, generator)
    ratios = torch.stack([score[0].diagonal() for score in scores]) / exact
    means = ratios.mean(1)
    law = predict_self_influence(ExactSpectrum(eigenvalues), queries, [100], ridge, corrected=True)
    assert abs(means.mean() - law.mean_ratio[0, 0]) <= 5 * means.std() / 300**0.5
    assert law.mean_ratio[0, 0] == pytest.approx(1, abs=0.01)
    plain = predict_self_influence(ExactSpectrum(eigenvalues), queries, [100], ridge)
    assert plain.mean_ratio[0, 0] < 0.8
    errors = torch.quantile((ratios - 1).abs(), 0.95, dim=1)
    gap = (errors.mean() - law.eps_95[0, 0]).abs()
    assert gap <= 0.03 * law.eps_95[0, 0] + 5 * errors.std() / 300**0.5


def test_where_no_correction_exists_the_prediction_is_nan():
    eigenvalues = reference.spectrum("flat", SIZE)
    law = predict_self_influence(ExactSpectrum(eigenvalues), torch.eye(SIZE)[:9], [64, 512], [1e-4], corrected=True)
    for values in (law.mean_ratio, law.eps_mean, law.eps_50, law.eps_95, law.eps_99):
        assert values[0].isnan().all()
        assert values[1].isfinite().all()


@pytest.mark.parametrize("m", [2, 16, 256])
def test_for_a_large_ridge_the_ratio_is_a_chi_square_over_its_degrees_of_freedom(m):
    """One direction at λ = 1e9, many equal queries: quantiles of |χ²_m/m − 1|."""
    eigenvalues = reference.spectrum("power", 20)
    queries = torch.ones(4000, 20)
    law = predict_self_influence(ExactSpectrum(eigenvalues), queries, [m], [1e9])

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
    law, same = (predict_self_influence(ExactSpectrum(eigenvalues), q, [16, 64], RIDGES) for q in (queries, padded))
    for name in ("mean_ratio", "eps_mean", "eps_50", "eps_95", "eps_99"):
        torch.testing.assert_close(getattr(same, name), getattr(law, name))


def test_predicted_error_of_an_isotropic_sketch_falls_as_the_square_root_of_m():
    law = predict_self_influence(ExactSpectrum(torch.ones(20)), torch.eye(20), [1000, 4000], [1e6])
    assert (law.eps_95[0] / law.eps_95[1]).item() == pytest.approx(2, rel=0.01)
