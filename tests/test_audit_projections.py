"""The real command line at toy size: one run in a process of its own, the others inside this one."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from common.experiments import script
from tests.documents import PAGES, commands, read
from tests.drawn import draw_nothing
from tests.experiments.audit import cases
from tests.stores.cases import identity, matrix, save_npy, write_part
from tests.stores.test_bergson import make_folder as make_bergson_folder
from tests.stores.test_trak import make_folder as make_trak_folder

pytestmark = pytest.mark.usefixtures("one_thread")

AUDIT = "audit_projections.py"
ROOT = Path(__file__).resolve().parents[1]
DOCUMENTED = (command for page in PAGES for command in commands(read(page)))
COMMANDS = list(dict.fromkeys(tuple(command[2:]) for command in DOCUMENTED if command[1] == AUDIT))
TABLES = ("effective_dimension.csv", "summary.csv", "recommendation.csv", "top_scores.csv", "lambda_units.csv")


def run(*words, drawn=False) -> int:
    """Run inside this process, without figures unless so wished, and return the exit status."""
    with pytest.MonkeyPatch.context() as patch:
        if not drawn:
            draw_nothing(patch)
        patch.setattr(sys, "argv", [AUDIT, *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            script.run_script(runpy.run_path(str(ROOT / AUDIT))["main"])
    return stop.value.code


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Return a folder with stores and a ground truth."""
    folder = tmp_path_factory.mktemp("stores")
    cases.write_stores(folder, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(20, cases.NUM_TRAIN, generator=generator) < 0.5
    np.save(folder / "masks.npy", masks.numpy())
    np.save(folder / "losses.npy", torch.randn(20, cases.NUM_QUERIES, generator=generator).numpy())
    return folder


def words_of(stores, folder):
    """Return options that audit all there is, and write to a folder."""
    words = ["--train", stores / "train.npy", "--queries", stores / "queries.npy", "--output_dir", folder / "out"]
    words += ["--ground_truth", stores / "masks.npy", stores / "losses.npy", "--val_ratio", "0.5"]
    return [*map(str, words), "--write_scores", str(folder / "all"), "--top_k", "4"]


@pytest.fixture(scope="module")
def finished(stores, tmp_path_factory):
    """Return the folder that a process of its own has written to, and what it said."""
    folder = tmp_path_factory.mktemp("finished")
    command = [sys.executable, str(ROOT / AUDIT), *words_of(stores, folder)]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # as in this process: sums then round alike
    done = subprocess.run(command, capture_output=True, text=True, env=one_thread, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return folder, done.stdout


def results(folder):
    (found,) = (folder / "out" / "audit_projections").iterdir()
    return found


def test_one_command_audits_a_store_and_writes_every_score(finished):
    folder, said = results(finished[0]), finished[1]
    assert folder.name == "train_top_k_4_val_ratio_0.5"
    names = {path.name for path in folder.iterdir()}
    assert names == {*TABLES, "lds.csv", "selection.json", "config.json", "figure.png", "figure.pdf"}
    config = json.loads((folder / "config.json").read_text())
    assert config["finished"]
    assert config["ridge_reason"] == "the best validation LDS at M"
    assert "how far to trust this" in said
    top = pd.read_csv(folder / "top_scores.csv")
    whole = np.load(finished[0] / "all" / "scores.npy")
    assert whole.shape == (cases.NUM_QUERIES, cases.NUM_TRAIN)
    np.testing.assert_allclose(whole[top["query"], top["row"]], top["score"], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_documented_command_runs_where_its_files_are(words, tmp_path, monkeypatch, capsys):
    save_npy(tmp_path / "grads.npy", matrix(40, 24))
    save_npy(tmp_path / "query_grads.npy", matrix(10, 24, seed=1))
    make_trak_folder(tmp_path / "trak_results", rows=matrix(40, 24, seed=2))
    make_bergson_folder(tmp_path / "store", matrix())
    make_bergson_folder(tmp_path / "queries", matrix(seed=3))
    (tmp_path / "lds").mkdir()
    torch.save(torch.arange(20).reshape(5, 4) % 11, tmp_path / "lds" / "indices_lds.pt")
    torch.save(matrix(5, 11), tmp_path / "lds" / "target_values_lds.pt")
    stores = tmp_path / "stores" / "perceptron"
    stores.mkdir(parents=True)
    save_npy(stores / "normal_1024.npy", matrix(40, 24))
    save_npy(stores / "normal_1024_queries.npy", matrix(11, 24, seed=1))
    np.save(stores / "subsets.npy", torch.arange(20).reshape(5, 4).numpy())
    np.save(stores / "losses.npy", matrix(5, 11).numpy())
    for part in ("train", "test"):
        what = identity(part=part, n=11, m=24, rows_a_range=11)
        write_part(
            tmp_path / "stores" / "mlp" / part, what, matrix(11, 24, seed=4), torch.ones(11, dtype=torch.float64)
        )
    monkeypatch.chdir(tmp_path)
    assert run(*words, "--output_dir", tmp_path / "out", drawn=True) == 0
    assert capsys.readouterr().err == ""
    assert list((tmp_path / "out").rglob("config.json"))


def test_the_same_audit_gives_the_same_numbers_in_another_process(stores, finished, tmp_path):
    assert run(*words_of(stores, tmp_path)) == 0
    for table in (*TABLES, "lds.csv"):
        assert (results(tmp_path) / table).read_bytes() == (results(finished[0]) / table).read_bytes()
    for name in ("scores.npy", "standard_errors.npy"):
        assert (tmp_path / "all" / name).read_bytes() == (finished[0] / "all" / name).read_bytes()


def test_an_audit_of_some_rows_is_named_after_them(stores, tmp_path):
    assert run("--train", stores / "train.npy", "--rows", ":150", "--output_dir", tmp_path / "out", drawn=True) == 0
    assert results(tmp_path).name == "train_rows_:150"
    names = {path.name for path in results(tmp_path).iterdir()}
    assert names == {*TABLES, "config.json", "figure.png", "figure.pdf"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train", "nothing.npy"], "--train nothing.npy: there is no such file or folder"),
        (["--train", "{stores}/train.npy", "--write_scores", "README.md"], "cannot write in README.md: File exists"),
        (["--train", "README.md"], "unknown format; looked for a .npy"),
        (["--train", "{stores}/train.npy", "--ridge", "1e-9"], "--ridge 1e-09 is below"),
        (["--train", "{stores}/train.npy", "--ridge", "1e300"], "--ridge 1e+300 must be at most 1e+75"),
        (["--train", "{stores}/train.npy", "--queries", "{stores}/tiny.npy"], "query 0 has numbers of size"),
        (
            ["--train", "{stores}/train.npy", "--lambda_exp_min", "-20", "--lambda_exp_max", "-15"],
            "every λ of the grid",
        ),
        (["--train", "{stores}/bad.npy"], "row 2 of"),
        (["--train", "{stores}/train.npy", "--module", "fc"], "--module fc"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(stores, tmp_path, words, message, monkeypatch, capsys):
    rows = torch.ones(4, 6)
    rows[2, 1] = float("nan")
    save_npy(stores / "bad.npy", rows)
    save_npy(stores / "tiny.npy", torch.full((3, cases.M), 1e-170, dtype=torch.float64))
    words = [word.format(stores=stores) for word in words]
    monkeypatch.chdir(ROOT)
    if "--write_scores" not in words:
        words += ["--write_scores", str(tmp_path / "scores" / "all")]
    assert run(*words, "--output_dir", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert message in said
    assert not (tmp_path / "out" / "audit_projections").exists()
    assert not (tmp_path / "scores").exists()
