"""Scripts under torchrun give the numbers that one process gives; project_gradients.py has tests of its own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.experiments.audit import cases
from tests.tiny import write_tiny
from tests.torchrun import launcher

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]


def run(processes: int, name: str, *options: object) -> subprocess.CompletedProcess:
    command = [*launcher(processes), str(ROOT / name), *map(str, options)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_an_audit_by_two_processes_has_the_numbers_of_one(tmp_path):
    cases.write_stores(tmp_path)
    stores = ["--train", tmp_path / "train.npy", "--queries", tmp_path / "queries.npy"]
    folders = []
    for processes in (1, 2):
        kept = ["--output_dir", tmp_path / f"out {processes}", "--write_scores", tmp_path / f"scores {processes}"]
        done = run(processes, "audit_projections.py", *stores, *kept)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("how far to trust this") == 1
        folders += (tmp_path / f"out {processes}" / "audit_projections").iterdir()
    for table in ("effective_dimension", "summary", "recommendation", "top_scores", "lambda_units"):
        alone, shared = (pd.read_csv(folder / f"{table}.csv") for folder in folders)
        pd.testing.assert_frame_equal(alone, shared, rtol=1e-6)
    for name in ("scores.npy", "standard_errors.npy"):
        alone, shared = (np.load(tmp_path / f"scores {processes}" / name) for processes in (1, 2))
        np.testing.assert_allclose(alone, shared, rtol=1e-5, atol=1e-8)


def test_what_is_wrong_with_an_audit_is_said_once_whoever_finds_it(tmp_path):
    cases.write_stores(tmp_path)
    done = run(
        2, "audit_projections.py", "--train", tmp_path / "train.npy", "--ridge", "1e-30", "--output_dir", tmp_path
    )
    assert done.returncode != 0
    assert done.stderr.count("--ridge 1e-30 is below") == 1
    assert "died" not in done.stderr


def test_a_ground_truth_by_two_processes_is_that_of_one(tmp_path):
    words = ["--workload", write_tiny(tmp_path), "--max_m", "32", "--num_trials", "1", "--num_test_grads", "20"]
    words += ["--val_ratio", "0.5", "--num_subsets", "25", "--cache_dir", tmp_path / "cache"]
    made, summaries = [], []
    for processes in (1, 2):
        kept = ["--benchmark_dir", tmp_path / f"made {processes}", "--output_dir", tmp_path / f"out {processes}"]
        done = run(processes, "hyperparam_selection.py", *words, *kept)
        assert done.returncode == 0, done.stderr
        root = tmp_path / f"made {processes}"
        made.append({path.relative_to(root): path.read_bytes() for path in root.rglob("*.pt")})
        summaries += [path.read_bytes() for path in (tmp_path / f"out {processes}").rglob("summary.csv")]
    assert len(made[0]) > 30
    assert made[0] == made[1]
    assert summaries[0] == summaries[1]
