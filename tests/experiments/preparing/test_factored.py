from __future__ import annotations

import dataclasses

import pytest
import torch

from common.experiments.options.records import SketchOptions
from common.experiments.preparing.factored import factored_sketcher, stable_rank
from common.foundations.errors import UserError
from common.gradients.planning import compute_gradients, plan_gradients
from common.sketches import passes as sketch_passes
from common.sketches.basis import build_basis
from common.sketches.geometry import ScoredVectors
from tests import reference
from tests.gradient_cases import CPU, reference_rows, trained
from tests.reference_factored import columns_of
from tests.reference_training import dropout_perceptron, tiny_workload

RANKS = (3, 2)


@pytest.fixture(scope="module")
def planned():
    workload, model = tiny_workload(), trained(dropout_perceptron)
    plan = plan_gradients(workload, model, [("training", workload.train)], 7, "recompute", torch.float32, CPU)
    rows = compute_gradients(plan)
    geometry = build_basis(rows, rows.num_rows).geometry(ScoredVectors(torch.tensor([0, 3])), lambda: rows)
    return plan, geometry, reference_rows(model, [("training", workload.train)])


@pytest.mark.parametrize(("kind", "ranks"), [("tensorsketch", None), ("kronecker", None), ("kronecker", RANKS)])
def test_scores_are_those_of_the_dense_formula_with_the_same_matrix(planned, kind, ranks):
    plan, geometry, train = planned
    unit = train / train.norm(dim=1, keepdim=True)
    sketcher = factored_sketcher(
        SketchOptions(kind, False, 1, 1, 5, ranks), plan, geometry, geometry.scored.weights(geometry.norms), 32
    )
    for trial in (0, 1):
        for m, problem in sketcher.problems(trial, [32] if ranks else [8, 32]):
            matrix = columns_of(sketcher.make_sketch(trial), m)
            expected = reference.sketched_influence(matrix, train, unit[[0, 3]], unit[[0, 3]], 1e-2)
            found = problem.whitened(1e-2)
            torch.testing.assert_close(found @ found.T, expected, rtol=1e-3, atol=1e-4 * expected.max().item())


@pytest.mark.parametrize(("room_for", "passes"), [(9, 1), (2, 2), (0, 3)])
@pytest.mark.parametrize("kind", ["tensorsketch", "kronecker"])
def test_one_pass_serves_as_many_trials_as_there_is_room_for_and_changes_no_bit(
    planned, monkeypatch, kind, room_for, passes
):
    plan, geometry, train = planned
    weights, started = geometry.scored.weights(geometry.norms), []

    def make(num_trials):
        return factored_sketcher(SketchOptions(kind, False, 1, num_trials, 5), plan, geometry, weights, 32)

    alone, together = make(1), make(3)
    width = together.make_sketch(0).width
    monkeypatch.setattr(sketch_passes, "PASS_BYTES", room_for * 4 * width * len(train))
    together = dataclasses.replace(together, batches=lambda: started.append(1) or alone.batches())
    for trial in range(3):
        for (m, found), (_, expected) in zip(
            together.problems(trial, [8, 32]), alone.problems(trial, [8, 32]), strict=True
        ):
            assert torch.equal(found.fisher, expected.fisher), m
            assert torch.equal(found.vectors, expected.vectors), m
    assert len(started) == passes
    assert not together.ahead


def test_a_model_without_positions_has_gradients_of_rank_one(planned):
    assert stable_rank(planned[0]) == pytest.approx(1)


def test_factors_of_other_gradients_than_those_of_the_geometry_are_refused(planned):
    plan, geometry, _ = planned
    other = dataclasses.replace(geometry, norms=geometry.norms * 1.01)
    options = SketchOptions("tensorsketch", False, 1, 1, 5)
    sketcher = factored_sketcher(options, plan, other, geometry.scored.weights(geometry.norms), 32)
    with pytest.raises(UserError, match=r"the factors of sample \d+ give a gradient of length"):
        next(iter(sketcher.problems(0, [8])))
