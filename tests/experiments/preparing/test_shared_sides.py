from __future__ import annotations

import pytest
import torch

from common.experiments.preparing.column_sample import sample_columns
from common.experiments.preparing.shared_sides import SidesReader, kept_apart
from common.sketches.basis import build_basis
from common.sketches.factored import balanced_buckets
from common.sketches.geometry import ScoredVectors
from common.sketches.tensorsketch import TensorSketch
from common.theory.self_influence import predict_self_influence
from common.theory.spectrum import ExactSpectrum
from tests import reference
from tests.reference import DenseGradients
from tests.reference_factored import columns_of, flat

PARAMETERS = flat((6, 30), (6, 1), (4, 6), (4, 1))
N, D = 40, 214
QUERIES = torch.arange(8)


def rank_one_gradients():
    """Return rows whose matrices have rank one, with columns of unequal lengths."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for p in PARAMETERS:
        errors = torch.randn(N, p.rows, 1, generator=generator, dtype=torch.float64)
        inputs = torch.randn(N, 1, p.cols, generator=generator, dtype=torch.float64)
        parts.append((errors * inputs * torch.linspace(0.2, 1.5, p.cols, dtype=torch.float64)).flatten(1))
    return torch.cat(parts, dim=1)


@pytest.fixture(scope="module")
def known():
    train = rank_one_gradients()
    gradients = DenseGradients(train, width=50)
    basis = build_basis(gradients, N)
    return train, gradients, basis, basis.geometry(ScoredVectors(QUERIES), lambda: gradients)


def dense_share(left, right, length=64):
    """Return the share of Σ x_c x'_c' over pairs of entries in one row or column, or both of vectors, pair by pair.

    Different ones count by how much less often than in 1/L of cases balanced buckets of their indices are the same.
    """

    def weight(size):
        return 1 - length * max(0, size / length - 1) / (size - 1)

    sides = {p.name: (p.rows, p.cols) for p in PARAMETERS}
    num_vectors = sum(p.rows for p in PARAMETERS if not p.is_matrix)

    def pair(one, other):
        (a, i, j), (b, k, n) = one, other
        if a != b or (i != k and j != n and a != "vectors"):
            return 0.0
        if (i, j) == (k, n):
            return 1.0
        return weight(num_vectors) if a == "vectors" else weight(sides[a][1] if i == k else sides[a][0])

    labels = [
        (p.name, i, j) if p.is_matrix else ("vectors", p.start + i, j)
        for p in PARAMETERS
        for i in range(p.rows)
        for j in range(p.cols)
    ]
    allowed = torch.tensor([[pair(one, other) for other in labels] for one in labels]).double()
    return (left @ allowed @ right / (left.sum() * right.sum())).item()


def reader(known, length):
    """Return what looks for entries that share a side."""
    _, gradients, basis, geometry = known
    return SidesReader(gradients, basis, QUERIES, geometry.queries, PARAMETERS, length, 3)


@pytest.mark.parametrize("length", [64, 16, 8])
def test_shares_of_residuals_and_leverages_are_those_of_all_pairs(known, length):
    """Columns of the first matrix outnumber the shorter lengths, and the vectors the shortest."""
    train, gradients, basis, geometry = known
    sides = sample_columns(gradients, basis, geometry.queries, 3, reader(known, length)).sides
    fisher = train.T @ train / N
    for k, ridge in enumerate(sides.ridges):
        inverse = torch.linalg.inv(fisher + ridge * torch.eye(D, dtype=torch.float64))
        residuals = (ridge * gradients.unit[QUERIES] @ inverse).square()
        exact = sum(dense_share(r, r, length) for r in residuals) / len(residuals)
        assert sides.of_residuals[k].item() == pytest.approx(exact, rel=1e-4)
        leverage = (fisher @ inverse).diagonal()
        assert sides.of_leverage[k].item() == pytest.approx(dense_share(leverage, leverage, length), rel=0.15)


@pytest.mark.parametrize(("size", "length"), [(12, 16), (16, 16), (40, 16), (64, 16)])
def test_entries_are_kept_apart_as_far_as_their_buckets_are(size, length):
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([balanced_buckets(size, length, generator) for _ in range(50)])
    same = (drawn[:, :, None] == drawn[:, None, :]).sum((1, 2)).double().mean().item() - size
    expected = (1 - kept_apart(size, length)) / length * size * (size - 1)
    assert same == pytest.approx(expected, rel=0.2 if size % length else 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("m", [64, 128])
def test_simulated_sketches_have_the_bias_and_the_noise_of_the_law(known, m):
    train, gradients, basis, geometry = known
    ridges, unit = [0.3, 30.0], gradients.unit[QUERIES]
    found = []
    for trial in range(300):
        matrix = columns_of(TensorSketch(PARAMETERS, m, 1, trial), m)
        scores = [reference.sketched_influence(matrix, train, unit, unit, ridge).diagonal() for ridge in ridges]
        found.append(torch.stack(scores))
    exact = torch.stack([reference.influence(train, unit, unit, ridge).diagonal() for ridge in ridges])
    ratios = torch.stack(found) / exact
    sample = sample_columns(gradients, basis, geometry.queries, 3, reader(known, m))
    spectrum = ExactSpectrum(geometry.eigenvalues)
    law = predict_self_influence(spectrum, geometry.queries, [m], ridges, False, sample)
    for i in range(2):
        assert ratios[:, i].mean().item() == pytest.approx(law.mean_ratio[0, i].item(), rel=0.02)
        measured = (ratios[:, i] - 1).abs().flatten().quantile(0.95).item()
        assert measured == pytest.approx(law.eps_95[0, i].item(), rel=0.12)
