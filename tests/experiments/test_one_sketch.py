from __future__ import annotations

import math

import pytest
import torch

from common.experiments.cells import Cells
from common.experiments.one_sketch import score_sketch
from common.sketches.influence import problem_from_projection
from common.theory.spectrum import ExactSpectrum
from tests import reference
from tests.reference import DenseGradients, normal

N_TRAIN, D, M, RIDGES = 20, 50, 16, [1e-3, 1e-1, 10.0]


@pytest.fixture(scope="module")
def sketched():
    """Return (P, training gradients, unit queries, sketched problem)."""
    train = reference.gradients_with_spectrum(torch.logspace(1, -3, N_TRAIN, dtype=torch.float64), N_TRAIN, D, seed=1)
    gradients = DenseGradients(torch.cat([train, normal(2, 4, D)]))
    P = normal(3, M, D) / M**0.5
    weights = torch.eye(N_TRAIN + 4, dtype=torch.float64)[N_TRAIN:]
    return P, train, gradients.unit[N_TRAIN:], problem_from_projection(
        P @ gradients.unit.T, gradients.norms, N_TRAIN, weights
    )  # fmt: skip


def cells(train, ridge_correction):
    d_lambda = [reference.effective_dimension(train, ridge) for ridge in RIDGES]
    spectrum = ExactSpectrum(torch.linalg.eigvalsh(reference.fisher(train)).clamp(min=0))
    return Cells(spectrum, [M], RIDGES, d_lambda, ridge_correction)


def starts():
    return [{"trial": 3, "m": M, "lambda": ridge} for ridge in RIDGES]


def products(vectors, i):
    return {"scores": vectors @ vectors.T, "row": i}


def test_every_ridge_is_solved_as_it_is_and_corrected_beside_it(sketched):
    P, train, queries, problem = sketched
    found = score_sketch(problem, cells(train, True), starts(), products)
    assert [{name: row[name] for name in ("trial", "m", "lambda")} for row in found] == starts()
    assert [row["row"] for row in found] == [0, 1, 2]
    d_lambda = [reference.effective_dimension(train, ridge) for ridge in RIDGES]
    assert d_lambda[0] > M > d_lambda[1]  # the smallest ridge has no corrected one
    for row, ridge, d in zip(found, RIDGES, d_lambda, strict=True):
        expected = reference.sketched_influence(P, train, queries, queries, ridge)
        torch.testing.assert_close(row["scores"], expected, rtol=1e-8, atol=1e-8)
        if d >= M:
            assert math.isnan(row["corrected_lambda"])
            assert not {"corrected_scores", "corrected_row"} & set(row)
            continue
        corrected = ridge * (1 - d / M)
        assert row["corrected_lambda"] == pytest.approx(corrected, rel=1e-9)
        expected = reference.sketched_influence(P, train, queries, queries, corrected)
        torch.testing.assert_close(row["corrected_scores"], expected, rtol=1e-8, atol=1e-8)
        assert row["corrected_row"] == row["row"]


def test_without_correction_no_column_speaks_of_it(sketched):
    _, train, _, problem = sketched
    found = score_sketch(problem, cells(train, False), starts(), products)
    assert {name for row in found for name in row} == {"trial", "m", "lambda", "scores", "row"}


def test_a_ridge_below_rounding_gives_scores_that_are_not_numbers_and_no_error(sketched):
    _, train, _, problem = sketched
    tiny = [{"m": M, "lambda": 1e-30}]
    (row,) = score_sketch(problem, cells(train, False), tiny, products)
    assert row["scores"].shape == (4, 4)
    assert row["scores"].isnan().all()


def test_the_beginnings_of_rows_are_left_as_they_are(sketched):
    _, train, _, problem = sketched
    rows = starts()
    score_sketch(problem, cells(train, True), rows, products)
    assert rows == starts()
