"""The real command line of the benchmark."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pandas as pd
import pytest

from bench import factors
from common.experiments import script

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(tmp_path, toy_benchmarks, monkeypatch):
    """Return options -> exit status."""

    def call(*options):
        folders = ["--output_dir", str(tmp_path), "--benchmark_dir", str(toy_benchmarks)]
        monkeypatch.setattr(sys, "argv", ["bench.py", *folders, *options])
        with pytest.raises(SystemExit) as stop:
            script.run_script(runpy.run_path(str(ROOT / "bench.py"))["main"])
        return stop.value.code

    return call


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--num_train", "7"], "--num_train 7"),
        (["--num_train", "0"], "--num_train"),
        (["--max_m", "8"], "--max_m 8: the sweep starts at m = 16"),
        (["--max_m", "24"], "'24' is not allowed"),
    ],
)
def test_bad_input_is_one_line_and_status_2_and_nothing_is_written(run, options, says, tmp_path, capsys):
    assert run(*options) == 2
    message = capsys.readouterr().err
    assert says in message
    assert message.strip().count("\n") == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_small_benchmark_times_all_routes_which_agree(run, tmp_path, capsys):
    """Trains the full checkpoint first; then every route and step runs in a process of its own."""
    assert run("--num_train", "64", "--max_m", "32") == 0
    folder = tmp_path / "bench"
    files = {"bench.csv", "growth.csv", "slopes.csv", "figure.png", "figure.pdf"}
    assert {path.name for path in folder.iterdir()} == files
    table = pd.read_csv(folder / "bench.csv")
    sweep = table[table["what"] == "sweep"]
    assert sweep.groupby("route")["m"].apply(list).tolist() == [[16, 32]] * 3
    assert sweep["eps_95"].between(0, 2).all()
    assert (table[["seconds", "peak_memory_bytes", "ratio_to_ours"]] > 0).all(axis=None)
    steps = {"sweep", "whole sweep", "gradients", "Gram matrix", "ground truth"}
    steps |= {"store of sjlt", "store of normal", factors.SMALL, factors.LARGE}
    assert set(table["what"]) - {"EK-FAC scores", "gradients of GPT-2"} == steps
    assert "in standard deviations: coordinates" in capsys.readouterr().out
