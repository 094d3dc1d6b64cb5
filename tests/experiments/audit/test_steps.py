from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from common.experiments.audit import lds, steps, tables
from common.experiments.audit.score_files import NAMES
from common.experiments.audit.truth import AuditTruth
from common.experiments.options.records import RunRequest
from common.experiments.run import Run
from common.foundations.distributed import ALONE
from common.foundations.errors import UserError
from tests.experiments.audit import cases
from tests.stores.cases import everything

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def chosen(tmp_path):
    return cases.write_stores(tmp_path)


@pytest.fixture
def run(chosen, tmp_path):
    return Run(RunRequest("audit", chosen.train, None, tmp_path / "results", ()))


def test_what_was_read_is_said_in_a_line_and_recorded(chosen, run, capsys):
    audited, truth = steps.read_stores(chosen, run, ALONE)
    assert truth is None
    assert capsys.readouterr().out.startswith("npy: 200 x 96 float64, projection normal\n")
    config = run.config
    assert [config[name] for name in ("format", "dtype", "proj_type", "n", "m", "k")] == [
        "npy", "float64", "normal", cases.NUM_TRAIN, cases.M, cases.NUM_QUERIES,
    ]  # fmt: skip
    assert config["smallest_resolved_ridge"] == audited.spectrum.smallest_ridge
    assert "reading" in config["seconds"]
    # other numbers have another fingerprint
    rows = np.load(chosen.train)
    rows[3, 4] += 1
    np.save(chosen.train, rows)
    before = config["data_fingerprint"]
    steps.read_stores(replace(chosen, proj_type="sjlt"), run, ALONE)
    assert run.config["data_fingerprint"] != before
    assert run.config["proj_type"] == "sjlt"


def test_the_ridge_asked_for_joins_the_grid_in_its_place(chosen):
    audited = cases.audit(chosen)
    mean = torch.linalg.eigvalsh(audited.moments.second).mean().item()
    grid = steps.ridges_of(chosen, audited)
    assert grid == pytest.approx([mean * 10.0**e for e in range(-5, 4)])
    absolute = replace(chosen, lambda_exp_min=-1, lambda_exp_max=1)
    for ridge, expected in ((None, [0.1, 1.0, 10.0]), (3.0, [0.1, 1.0, 3.0, 10.0]), (1.0, [0.1, 1.0, 10.0])):
        assert steps.ridges_of(replace(absolute, ridge=ridge), audited) == expected


def test_a_grid_of_which_the_store_sees_nothing_is_refused_with_the_limit(chosen):
    audited = cases.audit(chosen)
    steps.check_resolved(audited, tables.effective_dimensions(audited, [1e-6, 3.0]))
    with pytest.raises(UserError) as raised:
        steps.check_resolved(audited, tables.effective_dimensions(audited, [1e-7, 1e-6]))
    limit = f"{audited.spectrum.smallest_ridge:.3g}, the smallest ridge that M = 96 columns show"
    assert str(raised.value) == f"every λ of the grid, up to 1e-06, is below {limit}"


def test_the_ridge_of_the_scores_is_the_one_asked_for_else_the_most_useful_else_the_most_faithful(chosen):
    audited = cases.audit(chosen)
    summary = tables.errors(
        audited, tables.make_cells(audited, tables.effective_dimensions(audited, cases.RIDGES)), seed=1
    )
    useful = pd.DataFrame({"m": [48, 96, 96, 96], "lambda": [0.3, 0.3, 3.0, 30.0]})
    useful["corrected_val_lds"] = [0.9, 0.1, 0.3, 0.2]
    asked = replace(chosen, ridge=0.7)
    assert steps.choose_ridge(asked, audited, summary, useful) == (0.7, "asked for")
    assert steps.choose_ridge(chosen, audited, summary, useful) == (3.0, "the best validation LDS at M")
    for nothing in (None, useful.assign(corrected_val_lds=np.nan)):
        expected = tables.choose_ridge(summary, chosen.target_eps, audited)
        assert steps.choose_ridge(chosen, audited, summary, nothing) == expected


def test_scores_are_written_with_their_units_and_all_of_them_where_asked_for(chosen, run, tmp_path):
    audited = cases.audit(chosen)
    every = replace(chosen, write_scores=tmp_path / "all", top_k=4)
    top, elsewhere = steps.score(every, run, audited, 3.0, ALONE)
    pd.testing.assert_frame_equal(pd.read_csv(run.folder / "top_scores.csv"), top)
    pd.testing.assert_frame_equal(pd.read_csv(run.folder / "lambda_units.csv"), elsewhere, check_dtype=False)
    # dense: the solve κ whose implicit ridge κ / (1 − D/M) is λ
    z, q = everything(audited.store), audited.queries
    second, solve = z.T @ z / len(z), run.config["solve"]
    eigenvalues = torch.linalg.eigvalsh(second)
    assert run.config["mean_eigenvalue"] == pytest.approx(eigenvalues.mean().item())
    d = (eigenvalues / (eigenvalues + solve)).sum().item()
    assert solve / (1 - d / cases.M) == pytest.approx(3.0, rel=1e-6)
    expected = q @ torch.linalg.inv(second + solve * torch.eye(cases.M, dtype=torch.float64)) @ z.T
    np.testing.assert_allclose(np.load(tmp_path / "all" / NAMES[0]), expected, rtol=1e-4, atol=1e-5)
    largest = top[(top["query"] == 2) & (top["sign"] == "positive")]
    values, rows = expected[2].topk(4)
    assert largest["row"].tolist() == rows.tolist()
    np.testing.assert_allclose(largest["score"], values, rtol=1e-6)


def test_only_what_is_asked_for_is_written(chosen, run, tmp_path):
    steps.score(chosen, run, cases.audit(chosen), 3.0, ALONE)
    assert not (tmp_path / "all").exists()
    assert "writing scores" not in run.config["seconds"]


def test_usefulness_is_written_chosen_and_said(chosen, run, capsys):
    generator = torch.Generator().manual_seed(2)
    masks = (torch.rand(12, cases.NUM_TRAIN, generator=generator) < 0.5).double()
    truth = AuditTruth(masks, torch.randn(12, cases.NUM_QUERIES, generator=generator, dtype=torch.float64))
    audited = cases.audit(chosen, masks)
    table = steps.measure_lds(chosen, run, audited, truth, cases.RIDGES)
    pd.testing.assert_frame_equal(table, lds.measure(audited, truth, cases.RIDGES, chosen.val_ratio, chosen.seed))
    pd.testing.assert_frame_equal(pd.read_csv(run.folder / "lds.csv"), table, check_dtype=False)
    selection = json.loads((run.folder / "selection.json").read_text())
    own = table[table["m"] == 96].set_index("lambda")["val_lds"]
    assert selection["lambda_star"] == selection["lambda_star_of_m"]["96"] == own.idxmax()
    assert set(selection["lambda_star_of_m"]) == {"24", "48", "96"}
    said = capsys.readouterr().out.splitlines()
    assert any(line.startswith("utility-driven: ") for line in said)
    assert [line.removeprefix("warning: ") for line in said if line.startswith("warning: ")] == selection["warnings"]
