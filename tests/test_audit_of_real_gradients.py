"""What an audit says of stores of a trained perceptron's gradients, judged by their exact spectrum."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from common.experiments.audit import tables
from common.experiments.audit.scores import make_scorer
from common.experiments.audit.top_scores import top_scores
from common.gradients.layer_factors import flat_parameters
from common.gradients.planning import compute_gradients, plan_gradients
from common.sketches.factor_projection import FactorProjection
from common.sketches.projectors import make_projector
from common.sketches.tensorsketch import TensorSketch
from common.theory.cross_influence import predict_cross_error
from common.theory.self_influence import predict_self_influence
from common.theory.spectrum import ExactSpectrum
from common.workloads.benchmark import load_trained_model
from common.workloads.pairs import load_workload
from tests.experiments.audit import cases
from tests.geometries import geometry_from
from tests.stores.cases import everything, save_npy

NUM_TRAIN, NUM_QUERIES, M = 1000, 200, 512
RIDGES = [1e-5, 1e-4, 1e-3, 1e-2]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread", "mnist_once")]


@pytest.fixture(scope="module")
def real(toy_benchmarks):
    """Return the gradients of 1,000 training and 200 test samples, and their geometry."""
    workload, cpu = load_workload("mnist", "mlp", num_train=NUM_TRAIN), torch.device("cpu")
    trained = load_trained_model(workload, toy_benchmarks, cpu)
    queries = torch.arange(NUM_QUERIES)
    parts = [("training", workload.train), ("test", workload.test.subset(queries))]
    plan = plan_gradients(
        workload, trained.model, parts, 32, "cpu", torch.float32, cpu, last_samples=queries, prefer_stored=True
    )
    gradients = compute_gradients(plan)
    # coordinates of every row are asked for
    return gradients, geometry_from(gradients, NUM_TRAIN, torch.arange(NUM_TRAIN + NUM_QUERIES)), plan


@pytest.fixture(scope="module", params=["normal", "rademacher", "sjlt", "tensorsketch"])
def audited(request, real, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    gradients, geometry, plan = real
    if request.param == "tensorsketch":
        sketch = TensorSketch(flat_parameters(plan.model), M, 5, 0)
        project = FactorProjection(plan.model, plan.workload.loss, plan.routes, sketch, len(plan.examples))
        rows = project(plan.examples).projected.float()
    else:
        projector = make_projector(request.param, seed=5)
        unit = projector.reduce(projector.project(gradients, M, trial=0), M).T.double()
        rows = (unit * geometry.norms[:, None]).float()
    train = save_npy(folder / "train.npy", rows[:NUM_TRAIN])
    return cases.audit(cases.options(train, save_npy(folder / "queries.npy", rows[NUM_TRAIN:])))


def test_dimension_errors_and_error_bars_are_those_of_the_unsketched_problem(audited, real):
    """d_λ to 1 % plus 3 standard errors; ε_95 for m = M/8 .. 16 M to 3 %; sd of z to 4 %, coverage to 1.5 points."""
    geometry = real[1]
    exact = ExactSpectrum(geometry.eigenvalues)
    grid = torch.tensor(RIDGES, dtype=torch.float64)
    table = tables.effective_dimensions(audited, RIDGES)
    true = exact.sums(grid).first.numpy()
    assert ((table["d_lambda"] - true).abs() <= 0.01 * true + 3 * table["d_lambda_std_error"]).all()
    assert ((table["d_lambda_half"] - true).abs() <= 0.01 * true + 5 * table["d_lambda_std_error"]).all()

    ms = [M // 8, M, 16 * M]
    for corrected in (False, True):
        found = predict_self_influence(audited.spectrum, audited.tabled_queries, ms, RIDGES, corrected).eps_95
        wanted = predict_self_influence(exact, geometry.queries[NUM_TRAIN:], ms, RIDGES, corrected).eps_95
        torch.testing.assert_close(found, wanted, rtol=0.03, atol=0, equal_nan=True)
    first, second = (
        torch.randint(NUM_TRAIN, (2000,), generator=torch.Generator().manual_seed(0)),
        torch.arange(2000) % 200,
    )
    left, right = geometry.queries[first], geometry.queries[NUM_TRAIN:][second]
    train, queries = (torch.nn.functional.normalize(x, eps=0) for x in (everything(audited.store), audited.queries))
    seen = (train[first] @ audited.basis, queries[second] @ audited.basis)
    found = predict_cross_error(audited.spectrum, *seen, ms, RIDGES).eps_95
    wanted = predict_cross_error(exact, left, right, ms, RIDGES).eps_95
    known = found.isfinite()
    assert known[1:].all()
    torch.testing.assert_close(found[known], wanted[known], rtol=0.05, atol=0)


@pytest.mark.parametrize("ridge", [1e-4, 1e-2])
def test_scores_differ_from_the_exact_ones_as_their_error_bars_say(audited, real, ridge):
    """200,000 pairs of one sketch: sd of z within 5 %, intervals cover 93 to 97 %, significant signs are right."""
    geometry = real[1]
    rows = geometry.queries * geometry.norms[:, None]
    exact = (rows[NUM_TRAIN:] / (geometry.eigenvalues + ridge)) @ rows[:NUM_TRAIN].T
    scorer = make_scorer(audited, ridge)
    scores, errors = scorer.scores(everything(audited.store))
    z = (scores - exact) / errors
    assert z.std().item() == pytest.approx(1, abs=0.05)
    assert (z.abs() < 1.96).double().mean().item() == pytest.approx(0.95, abs=0.02)
    top = top_scores(scorer, audited.store, audited.query_rows, 10)
    significant = top[top["significant"]]
    signs = exact[torch.tensor(significant["query"].to_numpy()), torch.tensor(significant["row"].to_numpy())].sign()
    wrong = (pd.Series(signs.numpy()) != significant["score"].reset_index(drop=True).map(lambda x: x / abs(x))).mean()
    assert len(significant) > 100
    assert wrong <= 0.05
