"""The real command line at toy size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tests.documents import PAGES, commands, read
from tests.experiments.audit import cases
from tests.stores.cases import identity, matrix, save_npy, write_part
from tests.stores.test_bergson import make_folder as make_bergson_folder
from tests.stores.test_trak import make_folder as make_trak_folder

AUDIT = "audit_projections.py"
ROOT = Path(__file__).resolve().parents[1]
DOCUMENTED = (command for page in PAGES for command in commands(read(page)))
COMMANDS = list(dict.fromkeys(tuple(command[2:]) for command in DOCUMENTED if command[1] == AUDIT))
TABLES = ("effective_dimension.csv", "summary.csv", "recommendation.csv", "top_scores.csv", "lambda_units.csv")


def run(*words, cwd=ROOT):
    command = [sys.executable, str(ROOT / AUDIT), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    cases.write_stores(folder, dtype=torch.float32)
    return folder


def test_one_command_audits_a_store_and_writes_every_score(stores, tmp_path):
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(20, cases.NUM_TRAIN, generator=generator) < 0.5
    np.save(tmp_path / "masks.npy", masks.numpy())
    np.save(tmp_path / "losses.npy", torch.randn(20, cases.NUM_QUERIES, generator=generator).numpy())
    words = ["--train", stores / "train.npy", "--queries", stores / "queries.npy", "--output_dir", tmp_path / "out"]
    words += ["--ground_truth", tmp_path / "masks.npy", tmp_path / "losses.npy", "--val_ratio", "0.5"]
    done = run(*words, "--write_scores", tmp_path / "all", "--top_k", "4")
    assert (done.returncode, done.stderr) == (0, "")
    folder = next((tmp_path / "out" / "audit_projections").iterdir())
    assert folder.name == "train_top_k_4_val_ratio_0.5"
    names = {path.name for path in folder.iterdir()}
    assert names == {*TABLES, "lds.csv", "selection.json", "config.json", "figure.png", "figure.pdf"}
    config = json.loads((folder / "config.json").read_text())
    assert config["finished"]
    assert config["ridge_reason"] == "the best validation LDS at M"
    assert "how far to trust this" in done.stdout
    top = pd.read_csv(folder / "top_scores.csv")
    whole = np.load(tmp_path / "all" / "scores.npy")
    assert whole.shape == (cases.NUM_QUERIES, cases.NUM_TRAIN)
    np.testing.assert_allclose(whole[top["query"], top["row"]], top["score"], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_documented_command_runs_where_its_files_are(words, tmp_path):
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
    done = run(*words, "--output_dir", tmp_path / "out", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert list((tmp_path / "out").rglob("config.json"))


def test_the_same_audit_gives_the_same_numbers(stores, tmp_path):
    tables = []
    for name in ("a", "b"):
        assert run("--train", stores / "train.npy", "--rows", ":150", "--output_dir", tmp_path / name).returncode == 0
        folder = next((tmp_path / name / "audit_projections").iterdir())
        assert folder.name == "train_rows_:150"
        tables.append([(folder / table).read_text() for table in TABLES])
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train", "nothing.npy"], "--train nothing.npy: there is no such file or folder"),
        (["--train", "README.md"], "unknown format; looked for a .npy"),
        (["--train", "{stores}/train.npy", "--ridge", "1e-9"], "--ridge 1e-09 is below"),
        (
            ["--train", "{stores}/train.npy", "--lambda_exp_min", "-20", "--lambda_exp_max", "-15"],
            "every λ of the grid",
        ),
        (["--train", "{stores}/bad.npy"], "row 2 of"),
        (["--train", "{stores}/train.npy", "--module", "fc"], "--module fc"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(stores, tmp_path, words, message):
    rows = torch.ones(4, 6)
    rows[2, 1] = float("nan")
    save_npy(stores / "bad.npy", rows)
    words = [word.format(stores=stores) for word in words]
    done = run(*words, "--output_dir", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert not (tmp_path / "out" / "audit_projections").exists() or not list((tmp_path / "out").rglob("*.csv"))
