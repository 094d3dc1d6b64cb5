from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from common.experiments.audit import reading, tables
from common.experiments.audit.scores import make_scorer
from common.foundations.errors import UserError
from tests.experiments.audit import cases
from tests.stores.cases import everything, matrix, save_npy

pytestmark = pytest.mark.usefixtures("one_thread")


def test_coordinates_are_rows_in_the_eigenbasis_of_s(tmp_path):
    audited = cases.audit(cases.write_stores(tmp_path))
    rotated = audited.basis.T @ audited.moments.second @ audited.basis
    torch.testing.assert_close(rotated, audited.spectrum.eigenvalues.diag(), rtol=1e-8, atol=1e-10)
    queries = audited.tabled_queries
    torch.testing.assert_close(queries.norm(dim=1), torch.ones(cases.NUM_QUERIES).double())
    back = queries @ audited.basis.T * audited.queries.norm(dim=1, keepdim=True)
    torch.testing.assert_close(back, audited.queries)


def test_without_queries_training_rows_take_their_place(tmp_path):
    chosen = cases.options(cases.write_stores(tmp_path).train, None)
    audited = cases.audit(chosen)
    assert audited.queries_are_rows
    assert len(audited.query_rows) == 20
    assert torch.equal(audited.queries, everything(audited.store)[audited.query_rows])


def test_unit_rows_with_their_norms_are_the_rows(tmp_path):
    chosen = cases.write_stores(tmp_path)
    rows = torch.from_numpy(np.load(chosen.train))
    lengths = rows.norm(dim=1)
    units = save_npy(tmp_path / "units.npy", rows / lengths[:, None])
    np.save(tmp_path / "norms.npy", lengths.numpy())
    audited = cases.audit(cases.options(units, chosen.queries, norms=tmp_path / "norms.npy"))
    torch.testing.assert_close(audited.moments.second, cases.audit(chosen).moments.second)


@pytest.mark.parametrize(
    "norms",
    [np.ones(3), np.ones((200, 2)), np.full(200, np.nan), np.full(200, -1.0)],
    ids=["few", "many", "nan", "< 0"],
)
def test_norms_that_do_not_fit_are_refused(tmp_path, norms):
    chosen = cases.write_stores(tmp_path)
    np.save(tmp_path / "norms.npy", norms)
    with pytest.raises(UserError, match=r"--norms .*200 finite numbers >= 0"):
        reading.open_stores(cases.options(chosen.train, None, norms=tmp_path / "norms.npy"))


def test_queries_with_other_columns_are_refused(tmp_path):
    chosen = cases.write_stores(tmp_path)
    queries = save_npy(tmp_path / "other.npy", matrix())
    with pytest.raises(UserError, match=r"other\.npy has 6 columns and .*train\.npy has 96"):
        reading.open_stores(cases.options(chosen.train, queries))


def test_queries_whose_modules_lie_in_other_columns_are_refused(tmp_path):
    """A dict keeps the order in which it was filled: the same columns in another order have scores all the same."""
    parts = {name: matrix(11, 3, seed) for seed, name in enumerate(("first", "second", "third"))}
    for name, order in (
        ("train", "first second third"),
        ("same", "first second third"),
        ("other", "first third second"),
    ):
        torch.save({part: parts[part] for part in order.split()}, tmp_path / f"{name}.pt")
    train, same, other = (tmp_path / f"{name}.pt" for name in ("train", "same", "other"))
    reading.open_stores(cases.options(train, same))
    with pytest.raises(
        UserError, match="second in columns 3:6 and third in columns 3:6: their columns must be those of"
    ):
        reading.open_stores(cases.options(train, other))
    # by name the right columns are found, whatever stands beside them
    store, queries = reading.open_stores(cases.options(train, other, module="third"))
    assert torch.equal(everything(store), everything(queries))


def test_queries_that_are_all_zero_are_refused(tmp_path):
    chosen = cases.write_stores(tmp_path)
    queries = save_npy(tmp_path / "zero.npy", torch.zeros(3, cases.M))
    with pytest.raises(UserError, match="every query row is zero"):
        cases.audit(cases.options(chosen.train, queries))


def test_the_law_is_the_one_asked_for_then_the_stores_then_normal(tmp_path):
    chosen = cases.write_stores(tmp_path)
    assert cases.audit(chosen).proj_type == "normal"
    assert cases.audit(cases.options(chosen.train, None, proj_type="sjlt")).proj_type == "sjlt"
    torch.save({"a": matrix(40, 20), "b": matrix(40, 20, 1)}, tmp_path / "g.pt")
    assert cases.audit(cases.options(tmp_path / "g.pt", None)).proj_type == "blocks"
    assert cases.audit(cases.options(tmp_path / "g.pt", None, module="b")).proj_type == "normal"


@pytest.mark.parametrize("factor", [1e-170, 1e-145, 1e145])
def test_queries_beyond_what_float64_can_compute_with_are_refused(tmp_path, factor):
    chosen = cases.write_stores(tmp_path)
    queries = torch.from_numpy(np.load(chosen.queries))
    queries[4] *= factor
    far = cases.options(chosen.train, save_npy(tmp_path / "far.npy", queries))
    with pytest.raises(UserError, match=r"far\.npy: query 4 has numbers of size .*, whose squares leave float64"):
        cases.audit(far)


@pytest.mark.parametrize("factor", [1e-130, 1e130])
def test_scores_go_with_the_size_of_a_query(tmp_path, factor):
    chosen = cases.write_stores(tmp_path)
    queries = torch.from_numpy(np.load(chosen.queries)) * factor
    far = cases.audit(cases.options(chosen.train, save_npy(tmp_path / "far.npy", queries)))
    near, known = cases.audit(chosen), [3.0, 30.0]
    expected = tables.errors(near, tables.make_cells(near, tables.effective_dimensions(near, known)), 1)
    found = tables.errors(far, tables.make_cells(far, tables.effective_dimensions(far, known)), 1)
    pd.testing.assert_frame_equal(found, expected)
    for one, other in zip(*(make_scorer(a, 3.0).scores(everything(a.store)) for a in (far, near)), strict=True):
        torch.testing.assert_close(one / factor, other, rtol=1e-9, atol=0)


def test_norms_that_are_all_zero_are_refused_as_what_they_are(tmp_path):
    chosen = cases.write_stores(tmp_path)
    np.save(tmp_path / "norms.npy", np.zeros(cases.NUM_TRAIN))
    for queries in (chosen.queries, None):
        with pytest.raises(UserError, match=r"norms\.npy: every norm is zero"):
            cases.audit(cases.options(chosen.train, queries, norms=tmp_path / "norms.npy"))


@pytest.mark.parametrize("factor", [1e-40, 1e35])
def test_rows_beyond_what_float64_can_compute_with_are_refused(tmp_path, factor):
    """Their squares underflow or overflow further on, and a float32 file can hold the first kind."""
    rows = torch.from_numpy(np.load(cases.write_stores(tmp_path).train))
    chosen = cases.options(save_npy(tmp_path / "far.npy", rows * factor), None)
    with pytest.raises(UserError, match=r"far\.npy: numbers of size .* multiply training rows and queries"):
        cases.audit(chosen)
