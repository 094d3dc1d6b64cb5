from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from common.experiments.audit import score_files
from common.experiments.audit.score_files import NAMES, PROGRESS, dtype_of, write_scores
from common.experiments.audit.scores import make_scorer
from common.experiments.audit.top_scores import top_scores
from tests.experiments.audit import cases
from tests.stores.cases import everything

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr("common.stores.store.CHUNK_BYTES", 8 * cases.M * 16)


@pytest.fixture
def audited(tmp_path):
    return cases.audit(cases.write_stores(tmp_path))


def expected(audited, ridge):
    return [x.float().numpy() for x in make_scorer(audited, ridge).scores(everything(audited.store))]


def check(folder, audited, ridge):
    for name, values in zip(NAMES, expected(audited, ridge), strict=True):
        np.testing.assert_allclose(np.load(folder / name), values, rtol=1e-5, atol=1e-6)
    assert sorted(path.name for path in folder.iterdir()) == sorted(NAMES)


def stop_after(monkeypatch, chunks):
    real, seen = score_files._write_columns, []

    def write(*args):
        seen.append(args)
        if len(seen) > 2 * chunks:
            raise KeyboardInterrupt
        real(*args)

    monkeypatch.setattr(score_files, "_write_columns", write)
    return seen


def test_both_files_hold_every_score(tmp_path, audited):
    write_scores(tmp_path / "all", make_scorer(audited, 0.3), audited.store, "rows")
    check(tmp_path / "all", audited, 0.3)


def test_what_was_interrupted_goes_on_where_it_stopped(tmp_path, audited, monkeypatch, capsys):
    scorer = make_scorer(audited, 0.3)
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            write_scores(tmp_path / "all", scorer, audited.store, "rows")
    assert (tmp_path / "all" / PROGRESS).exists()
    assert not (tmp_path / "all" / NAMES[0]).exists()
    with monkeypatch.context() as patch:
        seen = stop_after(patch, 1000)
        write_scores(tmp_path / "all", scorer, audited.store, "rows")
    assert "continuing after 80 of 200" in capsys.readouterr().out
    assert len(seen) == 2 * 8  # the last 120 rows
    check(tmp_path / "all", audited, 0.3)


def test_another_ridge_starts_anew(tmp_path, audited, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            write_scores(tmp_path / "all", make_scorer(audited, 0.3), audited.store, "rows")
    write_scores(tmp_path / "all", make_scorer(audited, 3.0), audited.store, "rows")
    assert "continuing" not in capsys.readouterr().out
    check(tmp_path / "all", audited, 3.0)


@pytest.mark.parametrize("other", ["error bars", "order of rows", "queries"])
def test_anything_else_that_decides_the_numbers_starts_anew(tmp_path, audited, monkeypatch, capsys, other):
    scorer = make_scorer(audited, 0.3)
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            write_scores(tmp_path / "all", scorer, audited.store, "rows")
    rows = "other rows" if other == "order of rows" else "rows"
    changed = {
        "error bars": replace(scorer, has_error_bars=False),
        "order of rows": scorer,
        "queries": replace(scorer, queries=2 * scorer.queries),
    }[other]
    write_scores(tmp_path / "all", changed, audited.store, rows)
    assert "continuing" not in capsys.readouterr().out
    for name, values in zip(NAMES, changed.scores(everything(audited.store)), strict=True):
        np.testing.assert_allclose(np.load(tmp_path / "all" / name), values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("factor", [1e-50, 1e-33, 1.0, 1e45])
def test_scores_beyond_float32_are_written_in_float64(tmp_path, audited, factor):
    scorer = make_scorer(audited, 0.3)
    factors = torch.tensor([factor] + [1.0] * (cases.NUM_QUERIES - 1), dtype=torch.float64)
    scorer = replace(scorer, queries=scorer.queries * factors[:, None])
    top = top_scores(scorer, audited.store, audited.query_rows, 3)
    dtype = dtype_of(top)
    assert dtype == ("float32" if factor == 1 else "float64")
    write_scores(tmp_path / "all", scorer, audited.store, "rows", dtype)
    for name, values in zip(NAMES, scorer.scores(everything(audited.store)), strict=True):
        np.testing.assert_allclose(np.load(tmp_path / "all" / name), values, rtol=1e-4)


def test_without_error_bars_scores_decide_how_they_are_written(audited):
    scorer = replace(make_scorer(audited, 0.3), has_error_bars=False)
    for factor, dtype in ((1.0, "float32"), (1e-50, "float64")):
        far = replace(scorer, queries=factor * scorer.queries)
        assert dtype_of(top_scores(far, audited.store, audited.query_rows, 3)) == dtype


def test_files_are_npy_of_float32(tmp_path, audited):
    write_scores(tmp_path / "all", make_scorer(audited, 0.3), audited.store, "rows")
    values = np.load(tmp_path / "all" / NAMES[1], mmap_mode="r")
    assert (values.dtype, values.shape) == (np.float32, (cases.NUM_QUERIES, cases.NUM_TRAIN))
    assert torch.from_numpy(np.array(values)).min() > 0
