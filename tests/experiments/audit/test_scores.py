"""Scores and error bars against explicit matrices and the truth over many sketches."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from scipy.optimize import brentq

from common.experiments.audit import scores
from common.experiments.audit.scores import make_scorer
from common.foundations.errors import UserError
from tests import reference_theory as reference
from tests.experiments.audit import cases
from tests.stores.cases import everything, save_npy

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def audited(tmp_path):
    return cases.audit(cases.write_stores(tmp_path))


def all_scores(audited, ridge):
    return make_scorer(audited, ridge).scores(everything(audited.store))


@pytest.mark.parametrize("ridge", cases.RIDGES)
def test_scores_are_those_of_a_solve_with_the_corrected_ridge(audited, ridge):
    """B̃ = gᵀPᵀ (S + κI)⁻¹ Pq with κ = λ(1 − d_λ/M)."""
    z, q, s = everything(audited.store), audited.queries, audited.moments.second
    solve = ridge * (1 - audited.spectrum.sums(torch.tensor(ridge, dtype=torch.float64)).first.item() / cases.M)
    expected = q @ torch.linalg.inv(s + solve * torch.eye(cases.M, dtype=torch.float64)) @ z.T
    torch.testing.assert_close(all_scores(audited, ridge)[0], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("ridge", cases.RIDGES)
def test_standard_errors_are_those_of_the_law_of_sketched_scores(audited, ridge):
    """μ²/ν [ψ(g,g) ψ(q,q) + ψ(g,q)²], with ψ and ν = M − d_2 as the spectrum of the sketch gives them."""
    spectrum, mu = audited.spectrum, torch.tensor([ridge], dtype=torch.float64)
    z, q = everything(audited.store) @ audited.basis, audited.queries @ audited.basis
    weights = spectrum.resolvent_weights(2, mu)[:, 0]
    sums = spectrum.sums(mu)
    dof = cases.M - (sums.first - sums.first_minus_second)
    psi_qq, psi_gg, psi_qg = (q.square() @ weights)[:, None], z.square() @ weights, (q * weights) @ z.T
    expected = (mu**2 / dof * (psi_gg * psi_qq + psi_qg**2)).sqrt()
    torch.testing.assert_close(all_scores(audited, ridge)[1], expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize("kind", ["normal", "rademacher", "sjlt"])
def test_error_bars_are_calibrated_over_sketches(tmp_path, kind):
    """60 sketches x 12 queries x 200 rows: sd of z within 4 % of 1, 95 % intervals cover 93.5 to 96.5 %."""
    known = cases.gradients()
    rotation = cases.reference.random_basis(cases.DIMENSION, torch.Generator().manual_seed(9))
    z = {ridge: [] for ridge in cases.RIDGES}
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        sketch = (cases.reference.sketch_matrix(kind, cases.M, cases.DIMENSION, generator) @ rotation).T
        train = save_npy(tmp_path / "train.npy", known.train @ sketch)
        queries = save_npy(tmp_path / "queries.npy", known.queries @ sketch)
        audited = cases.audit(cases.options(train, queries))
        for ridge, values in z.items():
            found, errors = all_scores(audited, ridge)
            inverse = torch.linalg.inv(known.fisher + ridge * torch.eye(cases.DIMENSION, dtype=torch.float64))
            values.append((found - known.queries @ inverse @ known.train.T) / errors)
    for ridge, values in z.items():
        values = torch.stack(values)
        assert values.std().item() == pytest.approx(1, abs=0.04), ridge
        assert (values.abs() < 1.96).double().mean().item() == pytest.approx(0.95, abs=0.015), ridge


def test_a_ridge_that_the_store_cannot_see_is_refused(audited):
    with pytest.raises(UserError, match=r"--ridge 1e-09 is below .*smallest ridge that this store of M = 96 columns"):
        make_scorer(audited, 1e-9)


@pytest.mark.parametrize(("columns", "known"), [(4, False), (16, True)])
def test_error_bars_of_few_columns_are_right_or_missing(tmp_path, columns, known):
    """Standard deviation of (B̃ − B)/se over 40 sketches, against exact scores in float64."""
    rows, ridge = cases.gradients(), 300.0
    exact = rows.queries @ torch.linalg.solve(rows.fisher + ridge * torch.eye(cases.DIMENSION), rows.train.T)
    squares = []
    for seed in range(40):
        sketch = reference.sketch_matrix("normal", columns, cases.DIMENSION, torch.Generator().manual_seed(seed)).T
        paths = [save_npy(tmp_path / f"{seed}_{i}.npy", g @ sketch) for i, g in enumerate((rows.train, rows.queries))]
        audited = cases.audit(cases.options(*paths))
        assert audited.law_is_known is known
        found, errors = scores.make_scorer(audited, ridge).scores(rows.train @ sketch)
        squares.append(((found - exact) / errors).square().mean())
    sd = torch.stack(squares).mean().sqrt().item()
    assert (0.9 < sd < 1.1) if known else math.isnan(sd)


@pytest.mark.parametrize(("few", "share", "has_error_bars"), [(3, 0.2, True), (3, 0.5, False), (20, 0.5, False)])
def test_error_bars_of_uneven_buckets_are_right_or_missing(tmp_path, few, share, has_error_bars):
    """Standard deviation of (B̃ − B)/se over 30 sjlt sketches, d_λ a share of M, three columns a bucket that matter.

    Squared columns lie over three decades, and with `few` = 20 there are others, too short to make a difference: it is
    the store that shows it, not the number of its parameters, and whatever law it is read with.
    """
    d, size = 3 * cases.M, few * cases.M
    generator = torch.Generator().manual_seed(0)
    scale = 10 ** (1.5 * torch.rand(d, generator=generator, dtype=torch.float64))
    train, queries = (scale * torch.randn(n, d, generator=generator, dtype=torch.float64) for n in (4 * d, 20))
    fisher = train.T @ train / len(train)
    eigenvalues = torch.linalg.eigvalsh(fisher).numpy()
    ridge = brentq(lambda ridge: (eigenvalues / (eigenvalues + ridge)).sum() - share * cases.M, 1e-6, 1e6)
    exact = queries @ torch.linalg.solve(fisher + ridge * torch.eye(d), train.T)
    squares = []
    for seed in range(30):
        drawn = torch.Generator().manual_seed(seed)
        sketch = reference.sketch_matrix("sjlt", cases.M, d, drawn).T
        dust = reference.sketch_matrix("sjlt", cases.M, size - d, drawn).T
        more = (1e-3 * torch.randn(len(x), size - d, generator=drawn, dtype=torch.float64) for x in (train, queries))
        whole = [rows @ sketch + other @ dust for rows, other in zip((train, queries), more, strict=True)]
        paths = [save_npy(tmp_path / f"{seed}_{i}.npy", rows) for i, rows in enumerate(whole)]
        audited = cases.audit(cases.options(*paths))
        scorer = make_scorer(audited, ridge)
        found, errors = replace(scorer, has_error_bars=True).scores(whole[0])
        squares.append(((found - exact) / errors).square().mean())
        told = scorer.scores(whole[0])[1]
        assert torch.equal(told, errors) if has_error_bars else told.isnan().all()
    sd = torch.stack(squares).mean().sqrt().item()
    assert (0.9 < sd < 1.1) if has_error_bars else sd > 1.1
