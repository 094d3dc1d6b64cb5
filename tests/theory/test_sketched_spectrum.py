"""F seen through one sketch: derivatives against numeric ones, estimates against the exact F over many sketches."""

from __future__ import annotations

import pytest
import torch

from common.theory.cross_influence import predict_cross_error
from common.theory.self_influence import predict_self_influence
from common.theory.sketched_spectrum import SketchedSpectrum, eigenbasis
from common.theory.spectrum import ExactSpectrum, PairProducts
from tests import reference_theory as reference

SIZE, M = 300, 120
MUS = torch.tensor([0.3, 3.0, 100.0], dtype=torch.float64)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def eigenvalues():
    return 100 * reference.spectrum("power", SIZE)


def draw(generator, m=M, vectors=None, kind="normal"):
    """Return the spectrum of one sketch, and vectors (in the eigenbasis of F) in the eigenbasis of S."""
    sketch = reference.sketch_matrix(kind, m, SIZE, generator)
    t, basis = torch.linalg.eigh(sketch * eigenvalues() @ sketch.T)
    spectrum = SketchedSpectrum(t)
    return spectrum if vectors is None else (spectrum, (vectors @ sketch.T @ basis).flip(1))


@pytest.fixture(scope="module")
def sketches():
    """Return 14 unit vectors, and the spectra and coordinates of 300 sketches of them."""
    generator = torch.Generator().manual_seed(3)
    vectors = reference.unit_queries(eigenvalues(), 14, generator)
    return vectors, [draw(generator, vectors=vectors) for _ in range(300)]


def numeric_slope(function, mu, step=1e-4):
    return (function(mu * (1 + step)) - function(mu * (1 - step))) / (2 * step * mu)


def test_solve_and_ridge_are_inverse_to_each_other(generator):
    spectrum = draw(generator)
    torch.testing.assert_close(spectrum.ridge_of_solve(spectrum.solve_of_ridge(MUS)), MUS, rtol=1e-12, atol=0)
    d = spectrum.sums(MUS).first
    torch.testing.assert_close(spectrum.solve_of_ridge(MUS), MUS * (1 - d / M), rtol=1e-12, atol=0)


def test_differences_of_dimensions_are_derivatives_of_the_effective_dimension(generator):
    """μ dd_p/dμ = p (d_(p+1) − d_p)."""
    spectrum = draw(generator)
    sums = spectrum.sums(MUS)
    first = numeric_slope(lambda mu: spectrum.sums(mu).first, MUS)
    torch.testing.assert_close(sums.first_minus_second, -MUS * first, rtol=1e-6, atol=0)
    second = numeric_slope(lambda mu: spectrum.sums(mu).first - spectrum.sums(mu).first_minus_second, MUS)
    torch.testing.assert_close(sums.second_minus_third, -MUS / 2 * second, rtol=1e-6, atol=0)


@pytest.mark.parametrize("power", [1, 2])
def test_each_power_of_the_resolvent_is_the_derivative_of_the_one_before(generator, power):
    spectrum = draw(generator)
    slope = numeric_slope(lambda mu: spectrum.resolvent_weights(power, mu), MUS)
    torch.testing.assert_close(spectrum.resolvent_weights(power + 1, MUS), -slope / power, rtol=1e-5, atol=0)


def test_weights_of_the_first_power_are_those_of_the_solve(generator):
    spectrum = draw(generator)
    w = spectrum.resolvent_weights(1, MUS)
    torch.testing.assert_close(1 / w - spectrum.eigenvalues[:, None], spectrum.solve_of_ridge(MUS).expand(M, 3))


@pytest.mark.parametrize("m", [20.0, 120.0, 5000.0])
def test_the_implicit_ridge_of_any_other_sketch_solves_its_equation(generator, m):
    spectrum = draw(generator)
    m, ridge = torch.tensor(m), torch.tensor([0.3, 3.0, 30.0], dtype=torch.float64)
    mu = spectrum.implicit_ridge(m, ridge)
    torch.testing.assert_close(mu * (1 - spectrum.sums(mu).first / m), ridge, rtol=1e-10, atol=0)
    assert (mu >= ridge).all()


def test_nothing_cancels_for_a_large_ridge(generator):
    """F → μ: d_1 − d_2 → tr F/μ and the estimates scale like powers of 1/μ."""
    spectrum = draw(generator)
    one, two = (spectrum.sums(torch.tensor(mu, dtype=torch.float64)) for mu in (1e12, 1e15))
    assert two.first_minus_second.item() == pytest.approx(one.first_minus_second.item() / 1e3, rel=1e-9)
    assert two.second_minus_third.item() == pytest.approx(one.second_minus_third.item() / 1e6, rel=1e-9)


def test_sums_of_many_sketches_are_right_in_the_mean(sketches):
    """300 sketches; 5 standard errors, and a bias of order 1/M of a part that is itself of order 1/M."""
    exact = ExactSpectrum(eigenvalues()).sums(MUS)
    drawn = [spectrum.sums(MUS) for spectrum, _ in sketches[1]]
    for name in ("first", "first_minus_second", "second_minus_third"):
        values = torch.stack([getattr(sums, name) for sums in drawn])
        gap = (values.mean(0) - getattr(exact, name)).abs()
        assert (gap <= 5 * values.std(0) / 300**0.5 + 0.003 * getattr(exact, name)).all(), name


def test_forms_of_many_sketches_are_right_in_the_mean(sketches):
    """300 sketches, three powers, vectors inside and outside the range of F: 5 standard errors and a bias below 3/M."""
    vectors = sketches[0][:6]
    for power in (1, 2, 3):
        values = torch.stack([x[:6].square() @ spectrum.resolvent_weights(power, MUS) for spectrum, x in sketches[1]])
        exact = vectors.square() @ ExactSpectrum(eigenvalues()).resolvent_weights(power, MUS)
        gap = (values.mean(0) - exact).abs()
        assert (gap <= 5 * values.std(0) / 300**0.5 + 3 / M * exact).all(), (power, values.mean(0) / exact)


@pytest.mark.parametrize("m", [60, 200])
def test_the_standard_error_of_the_effective_dimension_is_right(generator, m):
    """200 sketches: their standard deviation is known to 5 %; within 20 %, as a mean over the predictions."""
    mus = torch.tensor([1.0, 10.0, 100.0, 3000.0], dtype=torch.float64)
    drawn = [draw(generator, m) for _ in range(200)]
    estimates = torch.stack([spectrum.sums(mus).first for spectrum in drawn])
    predicted = torch.stack([spectrum.effective_dimension_std_error(mus) for spectrum in drawn])
    torch.testing.assert_close(predicted.mean(0), estimates.std(0), rtol=0.2, atol=0)


def test_below_what_the_sketch_can_see_everything_is_nan(generator):
    spectrum = draw(generator)
    below, above = (torch.tensor([spectrum.smallest_ridge * factor], dtype=torch.float64) for factor in (0.99, 1.01))
    for mu, resolved in ((below, False), (above, True)):
        sums = spectrum.sums(mu)
        values = [sums.first, sums.first_minus_second, sums.second_minus_third, spectrum.solve_of_ridge(mu)]
        values += [spectrum.effective_dimension_std_error(mu), *(spectrum.resolvent_weights(p, mu) for p in (1, 2, 3))]
        values += [spectrum.implicit_ridge(torch.tensor([1e9]), mu)]
        assert all(value.isfinite().all() == resolved and value.isnan().all() != resolved for value in values)


def test_predictions_that_need_what_is_not_resolved_are_nan_and_never_zero(generator):
    vectors = reference.unit_queries(eigenvalues(), 30, generator)
    spectrum, rows = draw(generator, vectors=vectors)
    ridges = [spectrum.smallest_ridge / 2, spectrum.smallest_ridge * 2]
    for corrected in (False, True):
        law = predict_self_influence(spectrum, rows, [1000], ridges, corrected)
        assert law.eps_95[0, 0].isnan()
        assert law.mean_ratio[0, 0].isnan()
        assert law.eps_95[0, 1] > 0


def test_fewer_rows_than_columns_resolve_every_ridge_above_rounding(generator):
    """Rank 40 in a sketch of 120: d_λ approaches 40, not 120."""
    rows = torch.randn(40, M, generator=generator, dtype=torch.float64)
    spectrum = SketchedSpectrum(torch.linalg.eigvalsh(rows.T @ rows / 40))
    assert spectrum.sums(torch.tensor(1e-6, dtype=torch.float64)).first.item() == pytest.approx(40, abs=0.01)
    assert spectrum.smallest_ridge < 1e-9


def test_rounding_of_the_store_limits_what_is_resolved(generator):
    t = draw(generator).eigenvalues
    sharp, coarse = SketchedSpectrum(t), SketchedSpectrum(t, rounding=1e-2)
    assert coarse.smallest_ridge > 1 > sharp.smallest_ridge
    assert coarse.solve_of_ridge(torch.tensor(coarse.smallest_ridge * 1.001)).item() >= 1


@pytest.mark.parametrize("values", [[], [0.0, 0.0], [1.0, float("nan")], [1.0, -0.5], [[1.0]]])
def test_what_no_second_moment_could_have_is_refused(values):
    with pytest.raises(ValueError, match="eigenvalues must be"):
        SketchedSpectrum(torch.tensor(values))


@pytest.mark.parametrize("kind", ["normal", "rademacher", "sjlt"])
@pytest.mark.parametrize("corrected", [False, True])
def test_one_sketch_predicts_the_error_of_smaller_and_larger_ones(generator, kind, corrected):
    """Pooled ε_95 of self-influence for m = M/4 .. 16 M from a sketch of M = 1,200, to 3 %."""
    size, m = 1500, 1200
    values = 100 * reference.spectrum("power", size)
    queries = reference.unit_queries(values, 300, generator)
    basis = reference.random_basis(size, generator)
    sketch = reference.sketch_matrix(kind, m, size, generator) @ basis.T
    t, vectors = torch.linalg.eigh(sketch * values @ sketch.T)
    seen, rows = SketchedSpectrum(t), (queries @ sketch.T @ vectors).flip(1)
    ms, ridges = [300, 1200, 19_200], [0.3, 3.0, 30.0]
    estimated = predict_self_influence(seen, rows, ms, ridges, corrected)
    exact = predict_self_influence(ExactSpectrum(values), queries, ms, ridges, corrected)
    torch.testing.assert_close(estimated.eps_95, exact.eps_95, rtol=0.03, atol=0)
    torch.testing.assert_close(estimated.mean_ratio, exact.mean_ratio, rtol=0.01, atol=0)


@pytest.mark.parametrize("corrected", [False, True])
def test_one_sketch_predicts_the_error_of_cross_scores_where_its_own_noise_allows(generator, corrected):
    """ε_95 over 800 pairs to 5 %; without taking its own noise out of the bias, 20 % too large somewhere."""
    size, m = 1500, 1200
    values = 100 * reference.spectrum("power", size)
    left, right = reference.unit_queries(values, 1600, generator).split(800)
    sketch = reference.sketch_matrix("normal", m, size, generator)
    t, vectors = torch.linalg.eigh(sketch * values @ sketch.T)
    seen = SketchedSpectrum(t)
    rows = [(x @ sketch.T @ vectors).flip(1) for x in (left, right)]
    ms, ridges = [300, 1200, 19_200], [0.003, 0.03, 0.3, 3.0, 30.0]
    estimated = predict_cross_error(seen, *rows, ms, ridges, corrected).eps_95
    exact = predict_cross_error(ExactSpectrum(values), left, right, ms, ridges, corrected).eps_95
    known = estimated.isfinite()
    torch.testing.assert_close(estimated[known], exact[known], rtol=0.05, atol=0)
    assert known[1:, 2:].all()
    if not corrected:
        assert not known[0, 0], "the bias of a small sketch at a small ridge drowns in the noise of this one"


def test_the_variance_of_an_estimated_difference_is_that_over_sketches(sketches):
    """300 sketches: variances to 8 % standard error, 30 % allowed."""
    left, right = sketches[0][6:].split(4)
    first, second = torch.tensor([0.9, 9.0]).double(), torch.tensor([0.3, 30.0]).double()
    differences, predicted = [], []
    for spectrum, rows in sketches[1]:
        a, b = rows[6:].split(4)
        weights = spectrum.resolvent_weights(1, first) - spectrum.resolvent_weights(1, second)
        differences.append((a * b) @ weights)
        if len(predicted) < 100:  # those of single sketches hardly differ
            predicted.append(spectrum.difference_variance(PairProducts.of(a, b), first, second))
    torch.testing.assert_close(torch.stack(predicted).mean(0), torch.stack(differences).var(0), rtol=0.3, atol=0)
    assert (ExactSpectrum(eigenvalues()).difference_variance(PairProducts.of(left, right), first, second) == 0).all()


def test_the_noise_of_an_estimate_has_as_many_degrees_of_freedom_as_its_sketch_less_d_2(generator):
    spectrum, exact = draw(generator), ExactSpectrum(eigenvalues())
    sums = spectrum.sums(MUS)
    expected = 1 / (M - (sums.first - sums.first_minus_second))
    torch.testing.assert_close(spectrum.own_inverse_dof(MUS), expected, rtol=1e-10, atol=0)
    assert (exact.own_inverse_dof(MUS) == 0).all()


def test_rows_of_a_sketch_that_reach_nothing_are_no_part_of_it(generator):
    """An sjlt with empty buckets resolves what the sketch of its other rows does, and nothing below."""
    sketch = reference.sketch_matrix("sjlt", M, SIZE, generator)
    sketch[:7] = 0
    second = sketch * eigenvalues() @ sketch.T
    t, basis = eigenbasis(second)
    reached = (sketch != 0).any(1)
    assert len(t) == reached.sum() < M
    torch.testing.assert_close(basis * t @ basis.T, second, rtol=1e-10, atol=1e-10)
    assert not basis[~reached].any()
    floor = SketchedSpectrum(torch.linalg.eigvalsh(second[reached][:, reached])).smallest_ridge
    seen = SketchedSpectrum(t)
    assert seen.smallest_ridge == pytest.approx(floor, rel=1e-6)
    assert seen.solve_of_ridge(torch.tensor(floor / 10, dtype=torch.float64)).isnan()
