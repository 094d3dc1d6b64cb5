from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import norm
from statsmodels.stats.multitest import multipletests

from common.experiments.audit import scores, top_scores
from common.experiments.audit.scores import make_scorer
from common.experiments.audit.top_scores import significant_counts
from tests.experiments.audit import cases
from tests.stores.cases import everything, save_npy

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def audited(tmp_path):
    return cases.audit(cases.write_stores(tmp_path))


@pytest.fixture
def sharp(tmp_path):
    """Rows and queries with much in common: many more rows of a query are significant than not."""
    chosen, generator = cases.write_stores(tmp_path), torch.Generator().manual_seed(3)
    common = torch.randn(cases.M, generator=generator, dtype=torch.float64)
    paths = [
        save_npy(path.with_stem(f"sharp_{path.stem}"), torch.from_numpy(np.load(path)) + factor * common)
        for path, factor in ((chosen.train, torch.linspace(0, 1, cases.NUM_TRAIN)[:, None]), (chosen.queries, 1))
    ]
    return cases.audit(cases.options(*paths))


def all_scores(audited, ridge):
    return make_scorer(audited, ridge).scores(everything(audited.store))


def table_of(audited, ridge, top_k):
    return top_scores.top_scores(make_scorer(audited, ridge), audited.store, audited.query_rows, top_k)


def test_listed_rows_are_the_largest_and_the_smallest_of_all(audited, monkeypatch):
    monkeypatch.setattr("common.stores.store.CHUNK_BYTES", 8 * cases.M * 7)
    table = table_of(audited, 0.3, 5)
    values, errors = all_scores(audited, 0.3)
    assert len(table) == 2 * 5 * cases.NUM_QUERIES
    for query in range(cases.NUM_QUERIES):
        for sign, factor in (("positive", 1), ("negative", -1)):
            rows = table[(table["query"] == query) & (table["sign"] == sign)].sort_values("rank")
            best = (factor * values[query]).topk(5)
            assert rows["row"].tolist() == best.indices.tolist()
            torch.testing.assert_close(torch.tensor(rows["score"].to_numpy()), factor * best.values)
            torch.testing.assert_close(torch.tensor(rows["standard_error"].to_numpy()), errors[query, best.indices])


@pytest.mark.parametrize("kept", [1, 20, cases.NUM_TRAIN])
@pytest.mark.parametrize("store", ["audited", "sharp"])
@pytest.mark.parametrize("ridge", [0.3, 30.0, 300.0])
def test_significance_is_that_of_holms_procedure_over_all_rows(store, ridge, kept, request, monkeypatch):
    """However few of the sharpest rows the first pass keeps, and however few queries a pass can take."""
    audited = request.getfixturevalue(store)
    monkeypatch.setattr(top_scores, "MOST_SIGNIFICANT", kept)
    monkeypatch.setattr(top_scores, "SECOND_LOOK_BYTES", 2 * 8 * cases.NUM_TRAIN)
    monkeypatch.setattr(top_scores, "QUERIES_AT_ONCE", 5)
    monkeypatch.setattr(scores, "BLOCK_BYTES", 8 * 5 * 30)
    table = table_of(audited, ridge, 60)
    values, errors = all_scores(audited, ridge)
    counts = significant_counts(table)
    for query in range(cases.NUM_QUERIES):
        p = 2 * norm.sf((values[query] / errors[query]).abs().numpy())
        rejected, corrected, *_ = multipletests(p, 0.05, method="holm")
        rows = table[table["query"] == query]
        assert rows["significant"].tolist() == rejected[rows["row"]].tolist()
        assert rows["holm_p"].tolist() == pytest.approx(corrected[rows["row"]].tolist(), rel=1e-9, abs=0)
        assert counts[query] == rejected[rows["row"]].sum()
    assert table["significant"].any()
    assert store != "sharp" or ridge < 30 or table["significant"].mean() > 0.5


def test_rows_are_read_again_only_where_more_are_sharp_than_were_kept(sharp, audited, monkeypatch):
    seen = []
    real = top_scores._all_sizes
    monkeypatch.setattr(top_scores, "_all_sizes", lambda scorer, *more: seen.append(scorer) or real(scorer, *more))
    for store, kept, looks in ((sharp, 256, 0), (sharp, 100, 1), (audited, 100, 0)):
        monkeypatch.setattr(top_scores, "MOST_SIGNIFICANT", kept)
        table_of(store, 300.0 if store is sharp else 0.3, 60)
        assert len(seen) == looks, kept
        seen.clear()


def test_zero_rows_have_no_score_and_are_never_significant(tmp_path):
    rows = cases.gradients().train[:, : cases.M].clone()
    rows[3] = 0
    audited = cases.audit(cases.options(save_npy(tmp_path / "train.npy", rows), None, num_test_grads=200))
    table = table_of(audited, 3.0, 200)
    zero = table[(table["row"] == 3) | (table["query"] == 3)]
    assert (zero["score"] == 0).all()
    assert not zero["significant"].any()
    assert not table["holm_p"].isna().any()


def test_without_a_law_scores_stay_and_error_bars_are_empty(audited):
    plain, without = (table_of(known, 3.0, 5) for known in (audited, replace(audited, proj_type="kronecker")))
    assert without["score"].tolist() == plain["score"].tolist()
    assert without[["standard_error", "z", "holm_p", "significant"]].isna().all(axis=None)
    assert significant_counts(without).eq(0).all()
