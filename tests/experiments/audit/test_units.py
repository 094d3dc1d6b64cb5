"""λ in other libraries: where one is installed, its own solve must give the scores of the audit, up to one factor."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from common.experiments.audit.scores import make_scorer
from common.experiments.audit.units import READ, RUN, describe, library_ridges
from tests.experiments.audit import cases
from tests.stores.cases import everything, save_npy

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]
RIDGE = 3.0


@pytest.fixture
def problem(tmp_path):
    """Return S, training rows, queries, the scores of the audit, and the table of units."""
    audited = cases.audit(cases.write_stores(tmp_path))
    scorer, rows = make_scorer(audited, RIDGE), everything(audited.store)
    mean = audited.moments.second.trace().item() / cases.M
    units = library_ridges(RIDGE, scorer.solve, cases.NUM_TRAIN, mean).set_index("library")
    return audited.moments.second, rows, audited.queries, scorer.scores(rows)[0], units


def value(units, start):
    (row,) = [name for name in units.index if name.startswith(start)]
    return units.loc[row, "value"]


def check_same_up_to_a_factor(found, scores):
    factor = (found * scores).sum() / scores.square().sum()
    torch.testing.assert_close(found / factor, scores, rtol=1e-3, atol=1e-4 * scores.abs().max().item())


def test_traker_scores_alike(problem):
    pytest.importorskip("trak")
    from trak.score_computers import BasicScoreComputer

    _, rows, queries, scores, units = problem
    computer = BasicScoreComputer(torch.float32, torch.device("cpu"), lambda_reg=value(units, "traker"))
    features = computer.get_x_xtx_inv(rows.float(), computer.get_xtx(rows.float()))
    found = torch.zeros(len(rows), len(queries))
    computer.get_scores(features, queries.float(), found)
    check_same_up_to_a_factor(found.T.double(), scores)


def test_dattris_trak_scores_alike(tmp_path):
    """From the model on: its gradients, its projection as a store, and its attribution with the ridge of the audit."""
    from dattri.algorithm.trak import TRAKAttributor
    from dattri.func.projection import random_project
    from dattri.task import AttributionTask

    torch.manual_seed(0)
    model = nn.Linear(40, 3).eval()
    inputs, labels = torch.randn(60, 40), torch.arange(60) % 3
    projection = {"proj_dim": 32, "proj_max_batch_size": 32, "proj_seed": 3, "proj_type": "normal", "device": "cpu"}

    def loss(parameters, sample):
        x, y = sample
        return nn.functional.cross_entropy(torch.func.functional_call(model, parameters, (x[None],)), y[None])

    rows = []
    for x, y in zip(inputs, labels, strict=True):
        gradient = torch.autograd.grad(nn.functional.cross_entropy(model(x[None]), y[None]), list(model.parameters()))
        rows.append(torch.cat([part.flatten() for part in gradient]))
    gradients = torch.stack(rows) / 123**0.5
    stored = random_project(gradients, 60, **projection)(gradients, ensemble_id=0)
    train, queries = save_npy(tmp_path / "train.npy", stored[:50]), save_npy(tmp_path / "queries.npy", stored[50:])
    audited = cases.audit(cases.options(train, queries))
    ridge = audited.spectrum.smallest_ridge * 3
    scorer = make_scorer(audited, ridge)
    units = library_ridges(ridge, scorer.solve, 50, 1.0).set_index("library")

    attributor = TRAKAttributor(
        AttributionTask(loss_func=loss, model=model, checkpoints=model.state_dict()),
        lambda parameters, sample: 0 * sample[0].sum(),  # then all training samples weigh the same
        projector_kwargs=projection,
        regularization=value(units, "dattri 0.3: TRAK"),
    )
    train_loader, query_loader = (
        DataLoader(TensorDataset(inputs[part], labels[part]), batch_size=25) for part in (slice(50), slice(50, 60))
    )
    attributor.cache(train_loader)
    found = attributor.attribute(query_loader).T.double()
    check_same_up_to_a_factor(found, scorer.scores(everything(audited.store))[0])


def test_dattris_logra_scores_alike(problem):
    from dattri.algorithm.block_projected_if.core.utils import stable_inverse

    second, rows, queries, scores, units = problem
    inverse = stable_inverse(second.float(), damping=value(units, "dattri 0.3: LoGra")).double()
    check_same_up_to_a_factor(queries @ inverse @ rows.T, scores)


def test_bergson_scores_alike(problem):
    pytest.importorskip("bergson")
    from bergson.hessians.inversion import invert_psd_matrix

    second, rows, queries, scores, units = problem
    inverse = invert_psd_matrix(second, "damped_inverse", value(units, "bergson"))
    check_same_up_to_a_factor(queries @ inverse @ rows.T, scores)


def test_kronfluence_adds_its_damping_to_the_eigenvalues_of_f(problem):
    pytest.importorskip("kronfluence")
    from kronfluence import ScoreArguments
    from kronfluence.factor.config import Ekfac
    from kronfluence.utils import constants

    *_, units = problem
    damping = value(units, "kronfluence")
    eigenvalues, count = torch.tensor([[0.5, 2.0], [8.0, 1.0]], dtype=torch.float64), 7
    storage = {
        constants.ACTIVATION_EIGENVECTORS_NAME: torch.eye(2),
        constants.GRADIENT_EIGENVECTORS_NAME: torch.eye(2),
        constants.LAMBDA_MATRIX_NAME: (count * eigenvalues).clone(),
        constants.NUM_LAMBDA_PROCESSED: torch.tensor([count]),
    }
    Ekfac().prepare(storage, ScoreArguments(damping_factor=damping), torch.device("cpu"))
    torch.testing.assert_close(
        storage[constants.LAMBDA_MATRIX_NAME].double(), 1 / (eigenvalues + RIDGE), rtol=1e-5, atol=0
    )


def test_every_row_says_how_it_is_known():
    table = library_ridges(1.0, 0.5, 100, 0.1)
    assert set(table["verified"]) == {RUN, READ}
    assert value(table.set_index("library"), "traker") == 50.0
    assert value(table.set_index("library"), "bergson") == 5.0
    assert "traker TRAKer(lambda_reg=50), " in describe(table)
