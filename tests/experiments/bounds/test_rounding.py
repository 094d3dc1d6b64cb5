from __future__ import annotations

import pytest
import torch

from common.experiments.bounds.rounding import describe, rounding_effect
from common.gradients.planning import compute_gradients, plan_gradients
from common.workloads.losses import cross_entropy
from tests import reference
from tests.geometries import geometry_from
from tests.gradient_cases import CPU, Concealed
from tests.reference_gradients import one_by_one_gradients
from tests.reference_training import dropout_perceptron, tiny_workload

RIDGES = [1e-8, 1e-4, 1.0]


def effect_of(dtype, kind="test", make_model=dropout_perceptron):
    """Return the effect of storing in `dtype`, and the workload and model whose gradients are stored."""
    torch.manual_seed(0)
    workload, model = tiny_workload(loss=cross_entropy), make_model().eval()
    n, parts = len(workload.train), [("training", workload.train)]
    if kind == "test":
        parts.append(("test", workload.test.subset(slice(7))))
    plan = plan_gradients(workload, model, parts, 7, "cpu", dtype, CPU)
    stored = compute_gradients(plan)
    queries = torch.arange(7) if kind == "self" else torch.arange(n, n + 7)
    geometry = geometry_from(stored, n, queries)
    return rounding_effect(plan, geometry, RIDGES), workload, model


@pytest.mark.parametrize("kind", ["self", "test"])
def test_the_effect_is_the_change_of_dense_scores_when_every_gradient_is_rounded(kind):
    effect, workload, model = effect_of(torch.bfloat16, kind)
    train = one_by_one_gradients(model, workload.loss, workload.train.inputs, workload.train.targets)
    part = workload.train if kind == "self" else workload.test
    queries = one_by_one_gradients(model, workload.loss, part.inputs[:7], part.targets[:7])

    def stored(rows):
        """Each row rounded with root mean square 1, its length kept."""
        norms = rows.norm(dim=1, keepdim=True)
        rounded = (rows / norms * rows.shape[1] ** 0.5).bfloat16().double()
        return rounded / rounded.norm(dim=1, keepdim=True) * norms

    for row in effect[1:]:
        scores = []
        for change in (stored, lambda rows: rows):
            unit = change(queries) / queries.norm(dim=1, keepdim=True)
            scores.append(reference.influence(change(train), unit, unit, row["lambda"]).diagonal())
        expected = (scores[0] / scores[1] - 1).abs()
        # gradients in float32 on one side, float64 on the other: some round to the other neighbour in bfloat16
        found = [row["median"], row["quantile_95"], row["max"]]
        assert found == pytest.approx(expected.quantile(torch.tensor([0.5, 0.95, 1.0]).double()).tolist(), rel=0.05)
        assert row["num_bad"] == 0


def test_fewer_bits_change_more_and_single_precision_next_to_nothing():
    worst = [
        max(row["max"] for row in effect_of(dtype)[0][1:]) for dtype in (torch.float32, torch.float16, torch.bfloat16)
    ]
    assert worst[0] < 1e-4 < worst[1] < worst[2]


def test_a_model_that_goes_one_sample_at_a_time_has_no_known_effect():
    effect, *_ = effect_of(torch.float16, make_model=Concealed)
    assert effect is None
    assert "not known" in describe("float16", effect)


def test_a_query_without_gradient_is_counted():
    def loss(outputs, targets):
        # the first training sample's loss does not depend on the parameters
        return cross_entropy(outputs, targets) * (targets != first).float()

    torch.manual_seed(0)
    workload, model = tiny_workload(loss=loss), dropout_perceptron().eval()
    first = workload.train.targets[0]
    parts = [("training", workload.train)]
    plan = plan_gradients(workload, model, parts, 7, "cpu", torch.float16, CPU)
    stored = compute_gradients(plan)
    geometry = geometry_from(stored, len(workload.train), torch.tensor([0]))
    (row,) = rounding_effect(plan, geometry, [1e-4])
    assert row == {"lambda": 1e-4, "median": None, "quantile_95": None, "max": None, "num_bad": 1}
    assert "λ = 0.0001 to 0.0001" in describe("float16", [row])


def test_the_line_names_the_ridges_where_the_effect_exceeds_one_percent():
    effect = [{"lambda": ridge, "quantile_95": q} for ridge, q in ((1e-8, 0.3), (1e-6, 0.02), (1e-4, 0.005))]
    assert "λ = 1e-08 to 1e-06" in describe("bfloat16", effect)
    assert "at most 1% (95 % of the queries) at every λ" in describe("bfloat16", effect[2:])
