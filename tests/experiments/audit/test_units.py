"""λ in other libraries: where one is installed, its own solve must give the scores of the audit, up to one factor."""

from __future__ import annotations

import pytest
import torch

from common.experiments.audit.scores import make_scorer
from common.experiments.audit.units import READ, RUN, describe, library_ridges
from tests.experiments.audit import cases
from tests.stores.cases import everything

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
