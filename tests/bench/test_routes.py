from __future__ import annotations

import os

import pandas as pd
import pytest
import torch

from bench import routes as bench_routes
from bench import tables as bench_tables
from bench.routes import ROUTES, STEPS, measure_noise, run_route
from common.foundations.errors import UserError
from common.gradients.kept_rows import RecomputedGradients
from common.gradients.layer_gradients import LayerwiseGradients
from common.sketches.influence import exact_self_influence
from tests import reference
from tests.geometries import geometry_from
from tests.reference_gradients import one_by_one_gradients
from tests.reference_training import dropout_perceptron, tiny_workload

pytestmark = pytest.mark.usefixtures("one_thread")

MS = [16, 32]


@pytest.fixture(scope="module")
def task():
    """Return workload, model, geometry with ten queries, and their exact scores."""
    torch.manual_seed(0)
    workload, model = tiny_workload(), dropout_perceptron().eval()
    gradients = RecomputedGradients(LayerwiseGradients(model, workload.loss, workload.train))
    geometry = geometry_from(gradients, len(workload.train), torch.arange(10))
    exact = [exact_self_influence(geometry.eigenvalues, geometry.queries, ridge) for ridge in bench_routes.RIDGES]
    return workload, model, geometry, exact


@pytest.fixture(scope="module")
def rows(task):
    """(n, d) gradients, one by one."""
    workload, model, *_ = task
    return one_by_one_gradients(model, workload.loss, workload.train.inputs, workload.train.targets)


def test_every_route_measures_every_m_and_all_agree_within_the_noise_of_sketches(task, capsys):
    noise = measure_noise(task[2], task[3], MS)
    tables = [run_route(route, *task, MS).assign(what="sweep", route=name) for name, route in ROUTES.items()]
    for table in tables:
        assert table["m"].tolist() == MS
        assert (table["seconds"] > 0).all()
        assert (table["peak_memory_bytes"] > table["added_memory_bytes"]).all()
        assert (table["added_memory_bytes"] >= 0).all()
    preparation = tables[0][:0]
    joined = bench_tables.join(pd.concat(tables).merge(noise), preparation)
    bench_tables.check_agreement(joined)
    assert "dattri" in capsys.readouterr().out

    def wrong(*args):
        """Sketches 1.5 times too long, and so wrong scores."""
        for m, seconds, scores, memory in ROUTES["coordinates"](*args):
            yield m, seconds, [1.5**2 * score for score in scores], memory

    broken = [*tables[:2], run_route(wrong, *task, MS).assign(what="sweep", route="stored matrix")]
    with pytest.raises(UserError, match="routes disagree: ε_95 of stored matrix at m = "):
        bench_tables.check_agreement(bench_tables.join(pd.concat(broken).merge(noise), preparation))


def test_the_stored_matrix_gives_the_scores_of_its_dense_formula(task, rows):
    workload, model, geometry, _ = task
    unit = rows[:10] / rows[:10].norm(dim=1, keepdim=True)
    for m, _, scores, _ in ROUTES["stored matrix"](workload, model, geometry, MS):
        P = torch.randn(m, rows.shape[1], generator=bench_routes.make_generator("cpu", bench_routes.SEED, m)) / m**0.5
        for ridge, found in zip(bench_routes.RIDGES[3:], scores[3:], strict=True):
            expected = reference.sketched_influence(P.double(), rows, unit, unit, ridge).diagonal()
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)


def test_dattris_projector_sketches_the_unit_gradients(task, rows):
    from dattri.func.projection import BasicProjector, ProjectionType

    workload, model, geometry, _ = task
    unit = rows[:10] / rows[:10].norm(dim=1, keepdim=True)
    for m, _, scores, _ in ROUTES["dattri"](workload, model, geometry, MS):
        d = rows.shape[1]
        projector = BasicProjector(d, m, bench_routes.SEED, ProjectionType.normal, torch.device("cpu"))
        P = projector.project(torch.eye(d), ensemble_id=0).T.double()
        for ridge, found in zip(bench_routes.RIDGES[3:], scores[3:], strict=True):
            expected = reference.sketched_influence(P, rows, unit, unit, ridge).diagonal()
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize(("what", "route", "step"), STEPS, ids=lambda value: value if isinstance(value, str) else "")
def test_every_step_of_the_preparation_makes_what_it_says(task, rows, what, route, step):
    workload, model, *_ = task
    made = step(workload, model)()
    if what == "gradients":
        torch.testing.assert_close(made.double(), rows, rtol=0, atol=1e-5 * rows.abs().max().item())
    elif what == "Gram matrix":
        unit = rows / rows.norm(dim=1, keepdim=True)
        gram = made if torch.is_tensor(made) else made[0]
        torch.testing.assert_close(gram, unit @ unit.T, rtol=0, atol=1e-5)
    else:
        assert len(made) == bench_routes.GROUP_SIZE


def test_a_measurement_runs_in_a_process_of_its_own():
    assert bench_routes._in_own_process(os.getpid) != os.getpid()
