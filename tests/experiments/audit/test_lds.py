from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

from common.experiments.audit import lds
from common.experiments.audit.truth import AuditTruth
from common.foundations.errors import UserError
from tests.experiments.audit import cases
from tests.stores.cases import everything

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def problem(tmp_path):
    """Losses that fall with the exact influence of a subset at λ = 3, and some noise."""
    generator = torch.Generator().manual_seed(2)
    known = cases.gradients()
    masks = (torch.rand(30, cases.NUM_TRAIN, generator=generator) < 0.5).double()
    exact = (
        known.queries
        @ torch.linalg.inv(known.fisher + 3 * torch.eye(cases.DIMENSION, dtype=torch.float64))
        @ known.train.T
    )
    losses = -masks @ exact.T
    losses += 0.3 * losses.std(0) * torch.randn(losses.shape, generator=generator, dtype=torch.float64)
    truth = AuditTruth(masks, losses)
    return cases.audit(cases.write_stores(tmp_path), masks), truth


def test_lds_is_that_of_explicit_solves_of_the_store_and_its_folds(problem):
    audited, truth = problem
    table = lds.measure(audited, truth, [0.3, 3.0], 0.5, seed=1)
    assert sorted(set(table["m"])) == [24, 48, 96]
    z, q = everything(audited.store), audited.queries
    groups = lds._split(cases.NUM_QUERIES, 0.5, 1)
    for m in (96, 48, 24):
        s = z.T @ z / len(z)
        for ridge in (0.3, 3.0):
            sums = truth.masks @ z @ torch.linalg.inv(s + ridge * torch.eye(m, dtype=torch.float64)) @ q.T
            each = [spearmanr(-sums[:, i], truth.losses[:, i]).statistic for i in range(len(q))]
            row = table[(table["m"] == m) & (table["lambda"] == ridge)].iloc[0]
            for name, group in groups.items():
                assert row[f"{name}_lds"] == pytest.approx(np.mean([each[i] for i in group]), abs=1e-9)
        half = m // 2
        z, q = z[:, :half] + z[:, half:], q[:, :half] + q[:, half:]


def test_the_choice_is_that_of_the_grid_and_has_no_warning_about_what_cannot_exist(problem):
    audited, truth = problem
    table = lds.measure(audited, truth, cases.RIDGES, 0.5, seed=1)
    selection, best = lds.choose(table, 6)
    own = table[table["m"] == 96].set_index("lambda")["val_lds"]
    assert selection.lambda_star == own.idxmax()
    assert best["96"] == own.idxmax()
    assert set(best) == {"96", "48", "24"}
    assert selection.exact_test_lds is None
    assert not any("exact" in warning for warning in selection.warnings)
    assert selection.val_lds > 0.5
    assert lds.best_ridge(table) == table[table["m"] == 96].set_index("lambda")["corrected_val_lds"].idxmax()


def test_a_ridge_that_is_not_resolved_has_a_plain_lds_and_no_corrected_one(problem):
    audited, truth = problem
    table = lds.measure(audited, truth, [1e-6], 0.5, seed=1)
    own = table[table["m"] == 96].iloc[0]
    assert np.isfinite(own["val_lds"])
    assert pd.isna(own["corrected_val_lds"])
    assert pd.isna(own["corrected_val_num_bad"])
    assert lds.best_ridge(table) is None


def test_every_query_selects_or_judges():
    groups = lds._split(13, 0.3, 5)
    assert sorted(torch.cat(list(groups.values())).tolist()) == list(range(13))
    with pytest.raises(UserError, match=r"--val_ratio 0\.01 of 13 queries leaves 0 to select"):
        lds.num_val_queries(13, 0.01)
