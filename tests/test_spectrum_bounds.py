"""The real command line of experiment 1 at toy size."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import spectrum_bounds
from common import arguments

ROOT = Path(__file__).resolve().parent.parent
TOY = ["--model", "lr", "--num_train", "60", "--num_test_grads", "40", "--num_trials", "2", "--max_m", "128"]
TOY += ["--lambda_exp_min", "-4", "--lambda_exp_max", "0", "--min_d_lambda", "1"]
FILES = {"config.json", "trials.csv", "summary.csv", "spectrum.csv", "effective_dimension.csv", "recommendation.csv"}
FILES |= {"figure.png", "figure.pdf"}


@pytest.fixture(scope="module")
def benchmark_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("benchmarks")


@pytest.fixture
def run(tmp_path, benchmark_dir, monkeypatch, capsys):
    """Run the script in this process; return exit status, stdout, stderr and the only result folder (or None)."""

    def call(*options, output="results"):
        folders = ["--output_dir", str(tmp_path / output), "--benchmark_dir", str(benchmark_dir)]
        monkeypatch.setattr(sys, "argv", ["spectrum_bounds.py", *options, *folders, "--cache_dir", str(tmp_path / "c")])
        with pytest.raises(SystemExit) as stop:
            arguments.run_script(spectrum_bounds.main)
        out = capsys.readouterr()
        found = list((tmp_path / output).glob("spectrum_bounds/*"))
        return stop.value.code, out.out, out.err, found[0] if len(found) == 1 else None

    return call


def test_a_run_writes_every_file_and_a_table_to_act_on(run):
    status, out, err, folder = run(*TOY)
    assert (status, err) == (0, "")
    assert {path.name for path in folder.iterdir()} == FILES
    assert "smallest m with ε_95 <= 0.1" in out
    config = json.loads((folder / "config.json").read_text())
    assert config["finished"]
    assert (config["n"], config["k"], config["d"]) == (60, 40, 7850)
    assert {"gradients", "geometry", "sketches", "prediction"} <= set(config["seconds"])
    trials, summary = pd.read_csv(folder / "trials.csv"), pd.read_csv(folder / "summary.csv")
    num_ridges = summary["lambda"].nunique()
    assert len(trials) == 2 * 8 * num_ridges
    assert len(summary) == 8 * num_ridges
    means = trials.groupby(["m", "lambda"])["eps_95"].mean().to_numpy()
    np.testing.assert_allclose(summary.sort_values(["m", "lambda"])["eps_95"], means, rtol=1e-12)
    assert (trials["num_bad"] == 0).all()


def test_small_effective_dimensions_and_large_m_are_left_out_with_a_line_and_a_row(run):
    options = [*TOY, "--lambda_exp_max", "4", "--min_d_lambda", "5", "--min_m", "4096", "--max_m", "16384"]
    status, out, _, folder = run(*options, "--num_trials", "1")
    assert status == 0
    assert "left out, d_λ below --min_d_lambda 5" in out
    assert "left out, not below d = 7850: m = 8192, 16384" in out
    table = pd.read_csv(folder / "effective_dimension.csv")
    skipped = table[table["skipped"].notna()]
    assert (skipped["d_lambda"].dropna() < 5).all()
    assert skipped["m"].dropna().tolist() == [8192, 16384]
    assert set(pd.read_csv(folder / "summary.csv")["m"]) == {4096}


@pytest.mark.parametrize("kind", ["normal", "rademacher", "sjlt"])
def test_measured_and_predicted_error_agree_for_every_kind_of_projection(run, kind):
    """20 sketches of one kind; the spread of their mean is measured, 5 of it allow one false alarm in 10^5."""
    options = ["--proj_type", kind, "--num_trials", "20", "--min_m", "128"]
    status, _, _, folder = run(*TOY, *options, *(["--explicit_projection"] if kind == "normal" else []))
    assert status == 0
    summary = pd.read_csv(folder / "summary.csv")
    allowed = 5 * summary["mean_ratio_std"] / 20**0.5 + 0.01
    assert ((summary["mean_ratio"] - summary["predicted_mean_ratio"]).abs() < allowed).all()


def test_offload_modes_give_the_same_numbers(run):
    tables = {}
    for mode in ("none", "cpu", "disk"):
        status, out, _, folder = run(*TOY, "--proj_type", "sjlt", "--offload", mode, output=mode)
        assert status == 0
        assert f"gradients: 60 x 7850 float32, 0.00 GB ({60 * 7850 * 4} bytes)" in out
        tables[mode] = (folder / "trials.csv").read_text()
    assert tables["none"] == tables["cpu"] == tables["disk"]
    _, _, _, folder = run(*TOY, "--proj_type", "sjlt", "--offload", "recompute", output="recompute")
    cpu = folder.parents[2] / "cpu" / folder.parent.name / folder.name
    recomputed, stored = (pd.read_csv(path / "trials.csv") for path in (folder, cpu))
    # sketches are float32: their rounding is amplified by at most (largest eigenvalue) / λ
    np.testing.assert_allclose(recomputed["eps_50"], stored["eps_50"], rtol=1e-3)


def test_test_queries_report_their_energy_outside_the_range(run):
    status, out, _, folder = run(*TOY, "--test_mode", "test")
    assert status == 0
    assert folder.name.endswith("_test") or "_test_" in folder.name
    assert "query energy outside range(F): median" in out
    assert 0 < json.loads((folder / "config.json").read_text())["outside_energy_median"] < 1


def test_predict_only_draws_no_sketch(run):
    status, _, _, folder = run(*TOY, "--predict_only")
    assert status == 0
    assert not (folder / "trials.csv").exists()
    summary = pd.read_csv(folder / "summary.csv")
    assert "eps_95" not in summary
    assert (summary["predicted_eps_95"] > 0).all()


def test_the_ridge_correction_stands_beside_the_raw_numbers_and_lowers_the_error(run):
    status, _, _, folder = run(*TOY, "--ridge_correction")
    assert status == 0
    summary = pd.read_csv(folder / "summary.csv")
    defined = summary["m"] > summary["d_lambda"]
    assert summary.loc[~defined, "corrected_eps_95"].isna().all()
    cells = summary[defined & (summary["mean_ratio"] < 0.8)]
    assert len(cells) > 0
    assert ((cells["corrected_mean_ratio"] - 1).abs() < (cells["mean_ratio"] - 1).abs()).all()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--proj_type", "gauss"], "'gauss'"),
        (["--dataset", "mnist", "--model", "resnet9"], "there is no pair --dataset mnist --model resnet9"),
        (["--min_m", "512", "--max_m", "256"], "--min_m 512 .. --max_m 256"),
        (["--num_trials", "0"], "'0' is not allowed"),
        (["--batch_size", "-3"], "'-3' is not allowed"),
        (["--lambda_exp_min", "3", "--lambda_exp_max", "1"], "--lambda_exp_min 3 exceeds --lambda_exp_max 1"),
        (["--num_train", "99999"], "--num_train 99999 exceeds the 4500"),
        (["--min_d_lambda", "1e9"], "leaves no λ"),
        (["--sjlt_sparsity", "3"], "'3' is not allowed"),
        (["--seed", "x"], "'x' is not allowed"),
    ],
)
def test_bad_input_is_one_line_and_status_2(run, options, says):
    status, _, err, _ = run(*TOY, *options)
    assert status == 2
    assert says in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_cuda_that_is_missing_is_an_error_when_asked_for(run):
    status, _, err, _ = run(*TOY, "--device", "cuda")
    assert (status, err.count("\n")) == (2, 1)
    assert "no CUDA device" in err


def test_an_output_folder_that_cannot_be_made_is_an_error(run, tmp_path):
    (tmp_path / "results").write_text("a file where a folder is wanted")
    status, _, err, _ = run(*TOY)
    assert (status, err.count("\n")) == (2, 1)
    assert "results" in err


def command(tmp_path, benchmark_dir, *options):
    folders = ["--output_dir", str(tmp_path), "--benchmark_dir", str(benchmark_dir)]
    return [sys.executable, str(ROOT / "spectrum_bounds.py"), *TOY, "--max_m", "4096", *options, *folders]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_continues_with_the_numbers_of_an_uninterrupted_one(tmp_path, benchmark_dir, how):
    many = ["--num_trials", "40", "--num_train", "400"]
    subprocess.run(command(tmp_path / "whole", benchmark_dir, *many), check=True, capture_output=True)
    process = subprocess.Popen(
        command(tmp_path / "cut", benchmark_dir, *many), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while not (logs := list((tmp_path / "cut").glob("*/*/unfinished.jsonl"))) or logs[0].read_text().count("\n") < 20:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    process.send_signal(how)
    _, err = process.communicate()
    assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL)
    if how == signal.SIGINT:
        assert b"the same command continues" in err
    again = subprocess.run(command(tmp_path / "cut", benchmark_dir, *many), check=True, capture_output=True, text=True)
    assert "continuing after" in again.stdout
    whole, cut = (next((tmp_path / name).glob("*/*/trials.csv")).read_text() for name in ("whole", "cut"))
    assert whole == cut
