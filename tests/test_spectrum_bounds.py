"""The real command line at toy size: most runs inside this process, a few in processes of their own."""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
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
from common.experiments import script
from common.experiments.preparing.queries import QUERY_STREAM
from common.foundations.seeds import make_generator
from common.workloads import pairs
from common.workloads.records import Dataset, Examples
from tests.documents import code_spans, read, sections, tables
from tests.drawn import draw_nothing
from tests.interrupted import stopped_after, table_bytes

pytestmark = pytest.mark.usefixtures("mnist_once", "one_thread")

SCRIPT = Path(spectrum_bounds.__file__)
TOY = ["--model", "lr", "--num_train", "60", "--max_m", "64", "--num_trials", "2", "--num_test_grads", "20"]
TOY += ["--lambda_exp_min", "-4", "--lambda_exp_max", "0", "--min_d_lambda", "1", "--device", "cpu"]
MS, LAMBDAS = [1, 2, 4, 8, 16, 32, 64], [1e-4, 1e-3, 1e-2, 1e-1, 1.0]
FILES = {"config.json", "trials.csv", "summary.csv", "spectrum.csv", "effective_dimension.csv", "recommendation.csv",
         "figure.png", "figure.pdf"}  # fmt: skip
UNDRAWN = FILES - {"figure.png", "figure.pdf"}


class Command:
    """Runs spectrum_bounds.py in one output folder, with the checkpoints that all tests share."""

    def __init__(self, folder: Path, benchmark_dir: Path):
        self.folder = folder
        self.folders = ["--output_dir", str(folder / "results"), "--benchmark_dir", str(benchmark_dir)]
        self.folders += ["--cache_dir", str(folder / "cache")]

    def __call__(self, *options: str, drawn: bool = False) -> int:
        """Run inside this process, without figures unless so wished, and return the exit status."""
        with pytest.MonkeyPatch.context() as patch:
            if not drawn:
                draw_nothing(patch)
            patch.setattr(sys, "argv", [str(SCRIPT), *TOY, *self.folders, *options])
            with pytest.raises(SystemExit) as stop:
                script.run_script(spectrum_bounds.main)
        return stop.value.code

    def start(self, *options: str) -> subprocess.Popen:
        command = [sys.executable, str(SCRIPT), *TOY, *self.folders, *options]
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # as in this process: sums then round alike
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        return subprocess.Popen(command, cwd=self.folder, env=one_thread, **pipes)

    @property
    def runs(self) -> list[Path]:
        return sorted((self.folder / "results" / "spectrum_bounds").glob("*"))

    @property
    def run(self) -> Path:
        (folder,) = self.runs
        return folder

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_csv(self.run / f"{name}.csv")

    @property
    def config(self) -> dict:
        return json.loads((self.run / "config.json").read_text())


@pytest.fixture
def command(tmp_path, toy_benchmarks):
    return Command(tmp_path, toy_benchmarks)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, toy_benchmarks):
    """Return a finished run of a process of its own, its output and its errors."""
    command = Command(tmp_path_factory.mktemp("finished"), toy_benchmarks)
    process = command.start()
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    return command, output, errors


# --- what a run leaves --------------------------------------------------------------------------------------


def test_a_run_writes_exactly_the_documented_files(finished):
    command, _, errors = finished
    assert {path.name for path in command.run.iterdir()} == FILES
    assert errors == ""
    expected = "mnist_lr_normal_num_trials_2_max_m_64_lambda_exp_min_-4_lambda_exp_max_0_num_test_grads_20_num_train_60"
    assert command.run.name == f"{expected}_min_d_lambda_1.0"
    kept = {path.relative_to(command.folder / "cache").parts[1:] for path in (command.folder / "cache").rglob("*.*")}
    assert kept == {("geometry", ".lock"), ("geometry", "geometry.pt"), ("geometry", "manifest.json")}


def test_trials_have_one_row_a_trial_m_and_lambda(finished):
    trials = finished[0].table("trials")
    cells = list(zip(trials["trial"], trials["m"], trials["lambda"], strict=True))
    assert cells == [(trial, m, ridge) for trial in range(2) for m in MS for ridge in LAMBDAS]
    assert trials.notna().all(axis=None)
    assert trials["num_bad"].eq(0).all()


def test_the_summary_has_the_documented_columns_and_fits_the_trials(finished):
    summary, trials = finished[0].table("summary"), finished[0].table("trials")
    documented = (
        "m lambda d_lambda m_over_d_lambda num_trials num_queries mean_ratio mean_ratio_std eps_mean eps_50 eps_95 "
        "eps_95_noise eps_95_trial_mean eps_95_std eps_99 eps_max num_bad gaussian_equivalent_m"
    )
    assert set(documented.split()) <= set(summary.columns)
    assert list(zip(summary["m"], summary["lambda"], strict=True)) == [(m, ridge) for m in MS for ridge in LAMBDAS]
    # equally many good ratios a trial: their pooled mean is the mean of the means; quantiles have no such rule
    groups = trials.groupby(["m", "lambda"])
    for name, of_trials in (("mean_ratio", "mean_ratio"), ("eps_mean", "eps_mean"), ("eps_95_trial_mean", "eps_95")):
        np.testing.assert_allclose(summary[name], groups[of_trials].mean(), rtol=1e-12)
    np.testing.assert_array_equal(summary["eps_max"], groups["eps_max"].max())
    np.testing.assert_allclose(summary["eps_95_std"], groups["eps_95"].std(), rtol=1e-9)
    assert (summary["eps_95"] <= groups["eps_99"].max().to_numpy()).all()
    assert summary["eps_95_noise"].gt(0).all()
    assert summary["num_trials"].eq(2).all()
    assert summary["num_queries"].eq(20).all()
    np.testing.assert_allclose(summary["m_over_d_lambda"], summary["m"] / summary["d_lambda"])


def test_errors_lie_where_the_closed_form_says(finished):
    # two trials of 20 queries: single numbers scatter by some ten percent, and the smallest sketches more
    summary = finished[0].table("summary").query("m >= 16")
    gap = (summary["predicted_eps_95"] / summary["eps_95"] - 1).abs()
    assert gap.median() < 0.15
    gaps = finished[0].config["prediction_gaps"]
    assert 0 < gaps["eps_95_gap_worst_noise"] < 1
    assert 0 <= gaps["eps_95_gap_beyond_noise"] <= gaps["eps_95_gap_cells"] == 5
    assert (
        f"worst {gaps['eps_95_gap_worst']:.1%} (trial noise there {gaps['eps_95_gap_worst_noise']:.1%})" in finished[1]
    )
    assert (summary["predicted_mean_ratio"] - summary["mean_ratio"]).abs().max() < 0.1


def test_effective_dimensions_follow_from_the_spectrum(finished):
    spectrum, dimensions = finished[0].table("spectrum"), finished[0].table("effective_dimension")
    assert spectrum["index"].tolist() == list(range(1, len(spectrum) + 1))
    assert spectrum["eigenvalue"].is_monotonic_decreasing
    assert len(spectrum) == finished[0].config["rank"]
    assert dimensions["lambda"].tolist() == LAMBDAS
    assert dimensions["skipped"].isna().all()
    for ridge, d_lambda in zip(dimensions["lambda"], dimensions["d_lambda"], strict=True):
        assert d_lambda == pytest.approx((spectrum["eigenvalue"] / (spectrum["eigenvalue"] + ridge)).sum())


def test_config_repeats_the_run(finished):
    config = finished[0].config
    assert config["finished"] is True
    assert config["command"].startswith("spectrum_bounds.py --model lr --num_train 60")
    assert config["options"]["seed"] == 42
    assert {"sketches", "prediction", "figure", "gradients", "geometry"} <= set(config["seconds"])
    assert config["train_accuracy"] > 0.5
    assert (config["n"], config["k"], config["d"]) == (60, 20, 7850)


def test_the_terminal_shows_a_table_to_choose_m_from(finished):
    _, output, _ = finished
    advice = finished[0].table("recommendation")
    for d_lambda, m in zip(advice["d_lambda"], advice["m"], strict=True):
        assert any(f"{d_lambda:.4g}" in line and str(m) in line for line in output.splitlines())
    assert "60 training samples, 7850 parameters, accuracy" in output
    assert str(finished[0].run) in output


def test_the_same_command_gives_the_same_numbers_in_another_process(finished, command):
    assert command() == 0
    for name in ("trials", "summary", "spectrum", "effective_dimension", "recommendation"):
        assert (command.run / f"{name}.csv").read_bytes() == (finished[0].run / f"{name}.csv").read_bytes()


# --- options ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        ("--proj_type", "normal"),
        ("--proj_type", "normal", "--explicit_projection"),
        ("--proj_type", "normal", "--test_mode", "test"),
        ("--proj_type", "rademacher", "--offload", "recompute"),
        ("--proj_type", "sjlt"),
        ("--proj_type", "tensorsketch"),
        ("--proj_type", "sjlt", "--sjlt_sparsity", "4", "--grad_dtype", "float16"),
    ],
    ids=" ".join,
)
def test_measured_and_predicted_bias_agree_for_every_kind_of_projection(command, options):
    # 20 sketches; the spread of their mean is measured, and 5 of it allow about one false alarm in 10^5; the closed
    # form is asymptotic, which is what the 0.01 is for
    assert command(*options, "--num_trials", "20", "--min_m", "32", "--max_m", "128") == 0
    assert {path.name for path in command.run.iterdir()} == UNDRAWN
    summary = command.table("summary")
    allowed = 5 * summary["mean_ratio_std"] / 20**0.5 + 0.01
    assert ((summary["mean_ratio"] - summary["predicted_mean_ratio"]).abs() < allowed).all()
    assert summary["num_bad"].eq(0).all()


def test_a_projection_without_a_law_is_measured_and_its_predictions_are_empty(command, capsys):
    assert command("--proj_type", "kronecker", "--min_m", "1", "--max_m", "64", drawn=True) == 0
    summary = command.table("summary")
    assert summary["eps_95"].notna().all()
    assert summary["m"].min() == 2
    assert summary.filter(like="predicted_").isna().all(axis=None)
    assert command.table("recommendation")["m"].isna().all()
    assert json.loads((command.run / "config.json").read_text())["mean_stable_rank"] == pytest.approx(1)
    assert "left out, below one number for each of 2 blocks: m = 1\n" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["self", "test"])
def test_sixteen_bit_gradients_record_what_they_do_to_the_exact_scores(command, mode, capsys):
    options = ("--grad_dtype", "bfloat16", "--offload", "cpu", "--test_mode", mode, "--predict_only")
    assert command(*options) == 0
    config = json.loads((command.run / "config.json").read_text())
    effect = config["grad_dtype_effect"]
    assert [row["lambda"] for row in effect] == config["ridges"]
    assert all(0 < row["median"] <= row["quantile_95"] <= row["max"] for row in effect)
    assert "bfloat16 gradients change exact scores by" in capsys.readouterr().out


@pytest.mark.parametrize("proj_type", ["normal", "sjlt"])
def test_where_stored_gradients_are_kept_changes_no_bit(command, proj_type, capsys):
    tables = []
    for offload in ("none", "cpu", "disk"):
        own_cache = str(command.folder / f"cache_{offload}")
        assert command("--proj_type", proj_type, "--offload", offload, "--cache_dir", own_cache) == 0
        assert command.config["offload"] == offload
        assert f"gradients: 60 x 7850 float32, 0.00 GB ({60 * 7850 * 4} bytes)" in capsys.readouterr().out
        tables.append((command.run / "trials.csv").read_bytes())
    assert tables[0] == tables[1] == tables[2]


@pytest.mark.parametrize(
    ("proj_type", "options"),
    [("rademacher", ["--offload", "recompute"]), ("sjlt", ["--offload", "cpu", "--batch_size", "7"])],
)
def test_rounding_elsewhere_changes_explicit_sketches_by_rounding_alone(command, proj_type, options):
    assert command("--proj_type", proj_type, "--offload", "cpu") == 0
    expected = command.table("trials")
    assert command("--proj_type", proj_type, *options) == 0
    # float32 gradients are rounded at other places, 1e-7 of each row; (largest eigenvalue)/λ amplifies
    pd.testing.assert_frame_equal(command.table("trials"), expected, rtol=1e-3, atol=1e-4)


def test_rounding_elsewhere_leaves_normal_sketches_equal_in_law(command):
    # rounding mixes eigenvectors of nearly equal eigenvalues, and Gaussian numbers multiply their coordinates: the law
    # is the same, single numbers need not be. Means over 16 sketches: Welch's t with 15 to 30 degrees of freedom, of
    # which 8 is exceeded once in 10^6; 70 numbers false-alarm once in 10^4
    trials = 16
    names = ("spectrum", "effective_dimension", "recommendation", "summary")
    assert command("--offload", "cpu", "--num_trials", str(trials)) == 0
    expected = {name: command.table(name) for name in names}
    assert command("--offload", "recompute", "--batch_size", "7", "--num_trials", str(trials)) == 0
    found = {name: command.table(name) for name in names}
    largest = expected["spectrum"]["eigenvalue"][0]
    np.testing.assert_allclose(
        found["spectrum"]["eigenvalue"], expected["spectrum"]["eigenvalue"], rtol=1e-4, atol=1e-7 * largest
    )
    for name in ("effective_dimension", "recommendation"):
        pd.testing.assert_frame_equal(found[name], expected[name], rtol=0.01 if name == "recommendation" else 1e-4)
    ours, theirs = found["summary"], expected["summary"]
    same = ["m", "lambda", "d_lambda", "num_trials", "num_queries", "num_bad"]
    same += [name for name in theirs if name.startswith("predicted_")]
    pd.testing.assert_frame_equal(ours[same], theirs[same], rtol=1e-4)
    for name, deviation in (("mean_ratio", "mean_ratio_std"), ("eps_95_trial_mean", "eps_95_std")):
        spread = ((ours[deviation] ** 2 + theirs[deviation] ** 2) / trials) ** 0.5
        assert ((ours[name] - theirs[name]).abs() < 8 * spread).all()


def test_test_samples_as_queries_report_their_energy_outside_the_range(command, capsys):
    assert command("--test_mode", "test") == 0
    assert command.run.name.endswith("_test_min_d_lambda_1.0")
    assert "query energy outside range(F): median " in capsys.readouterr().out
    assert 0 < command.config["outside_energy_median"] <= command.config["outside_energy_max"] <= 1
    assert len(command.table("spectrum")) == command.config["rank"] <= 60


def test_predicting_alone_draws_no_sketch(command, finished):
    assert command("--predict_only", drawn=True) == 0
    assert {path.name for path in command.run.iterdir()} == FILES - {"trials.csv"}
    assert "sketches" not in command.config["seconds"]
    assert "eps_95" not in command.table("summary")
    measured = finished[0].table("summary")
    for name in (name for name in measured if name.startswith("predicted_")):
        np.testing.assert_allclose(command.table("summary")[name], measured[name], rtol=1e-6)


def test_the_ridge_correction_removes_the_bias_and_leaves_the_raw_numbers_alone(command, finished):
    assert command("--ridge_correction") == 0
    trials, plain = command.table("trials"), finished[0].table("trials")
    np.testing.assert_allclose(trials["eps_95"], plain["eps_95"], rtol=1e-6)
    defined = trials["m"] > trials["d_lambda"]
    corrected = trials["lambda"] * (1 - trials["d_lambda"] / trials["m"])
    np.testing.assert_allclose(trials["corrected_lambda"][defined], corrected[defined], rtol=1e-9)
    assert trials.loc[~defined, ["corrected_lambda", "corrected_eps_95", "corrected_mean_ratio"]].isna().all(axis=None)
    summary = command.table("summary").query("m == 64")
    raw, better = (summary[name].sub(1).abs().mean() for name in ("mean_ratio", "corrected_mean_ratio"))
    assert better < 0.5 * raw
    added = {"corrected_eps_95_noise", "corrected_eps_95_trial_mean", "corrected_eps_95_std"}
    assert added | {"predicted_corrected_eps_95"} <= set(summary.columns)


def test_what_is_left_out_is_one_line_each_and_a_row_with_the_reason(command, capsys):
    assert command("--min_d_lambda", "55", "--min_m", "4096", "--max_m", "16384") == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("left out, d_λ below --min_d_lambda 55: λ = ") for line in lines) == 1
    assert lines.count("left out, not below d = 7850: m = 8192, 16384") == 1
    table = command.table("effective_dimension")
    assert table["m"].dropna().tolist() == [8192, 16384]
    assert table["skipped"][table["m"].notna()].eq("m >= d = 7850").all()
    ridges = table[table["m"].isna()]
    assert ridges["lambda"].tolist() == LAMBDAS
    small = ridges["d_lambda"] < 55
    assert 0 < small.sum() < 5
    assert ridges["skipped"][small].eq("d_lambda below --min_d_lambda 55").all()
    assert ridges["skipped"][~small].isna().all()
    assert set(command.table("trials")["lambda"]) == set(ridges["lambda"][~small])
    assert set(command.table("trials")["m"]) == {4096}


def test_ratios_without_a_value_are_counted_in_the_tables_and_said_once(tmp_path, monkeypatch, capsys):
    # samples of class 3 have no loss, and so a gradient of exactly zero
    pair = pairs.PAIRS["mnist", "lr"]

    def loss(outputs, targets):
        return pair.keywords["loss"](outputs, targets) * (targets != 3)

    monkeypatch.setitem(pairs.PAIRS, ("mnist", "lr"), functools.partial(pair, loss=loss))
    command = Command(tmp_path, tmp_path / "checkpoints")
    # test queries are drawn whatever their gradients; training ones among those that are not zero
    assert command("--test_mode", "test", drawn=True) == 0
    (num_bad,) = command.table("trials")["num_bad"].unique()
    assert 0 < num_bad < 20
    summary = command.table("summary")
    assert summary["num_bad"].eq(2 * num_bad).all()
    assert summary[["eps_95", "predicted_eps_95"]].notna().all(axis=None)
    captured = capsys.readouterr()
    assert sum("not finite" in line for line in (captured.out + captured.err).splitlines()) == 1


# --- a reference sketch in place of exact scores ------------------------------------------------------------


@pytest.mark.slow
def test_errors_against_a_reference_sketch_are_those_against_exact_scores_within_their_standard_error(command, capsys):
    options = ("--proj_type", "sjlt", "--min_m", "8", "--num_trials", "4", "--ridge_correction")
    assert command(*options) == 0
    exact = command.table("summary")
    shutil.rmtree(command.run)
    assert command(*options, "--reference", "sketch", "--reference_m", "512", drawn=True) == 0
    assert "share of the reference in the variance of measured ratios" in capsys.readouterr().out
    assert {path.name for path in command.run.iterdir()} == FILES
    found = command.table("summary")
    (table,) = tables(sections(read("docs/files.md"))["Errors against a reference sketch"])[:1]
    assert set(found) - set(exact) == {name for row in table.rows for name in code_spans(row[0])}
    assert found["lambda"].equals(exact["lambda"])
    assert command.config["reference_m"] == 512
    for prefix in ("", "corrected_"):
        share = found[f"{prefix}reference_share"].dropna()
        assert share.between(0, 0.9).all()
        for name in ("eps_95", "mean_ratio"):
            gap = (found[f"{prefix}{name}"] - exact[f"{prefix}{name}"]) / found[f"{prefix}{name}_reference_std"]
            assert gap.abs().max() < 5, name  # of 35 standard normal numbers that stray together
        # with the share left in, errors are too large where it is largest
        worst = found[f"{prefix}reference_share"].idxmax()
        assert found.loc[worst, f"{prefix}eps_95_with_reference"] > found.loc[worst, f"{prefix}eps_95"]


def test_pairs_have_no_reference_sketch(command, capsys):
    assert command("--scores", "cross", "--reference", "sketch") == 2
    assert "--reference sketch: errors of cross scores need exact scores" in capsys.readouterr().err


# --- scores of pairs ----------------------------------------------------------------------------------------

CROSS = ("--scores", "cross", "--num_train_grads", "15", "--num_trials", "3", "--min_m", "8")


def test_scores_of_pairs_have_tables_slopes_and_a_folder_of_their_own(command, capsys):
    assert command(*CROSS, "--test_mode", "test", "--ridge_correction", drawn=True) == 0
    assert {path.name for path in command.run.iterdir()} == FILES | {"queries.csv", "slopes.csv"}
    assert "_test_cross_num_train_grads_15" in command.run.name
    assert "pairs: 15 training gradients with 20 queries" in capsys.readouterr().out
    summary = command.table("summary")
    assert summary["num_pairs"].eq(300).all()
    assert set(summary["m"]) == {8, 16, 32, 64}
    for name in ("eps_95", "eps0_95", "range_eps_95", "kernel_eps_95"):
        ratio = (summary[f"predicted_{name}"] / summary[name])[summary["m"] < 64]  # the rank, where the law fails
        assert ratio.between(0.7, 1.4).all(), name  # three sketches of few pairs
    assert command.config["prediction_gaps"]["kernel_eps_95_gap_cells"] == 5
    shares = command.table("queries")
    assert (shares["range_share"] + shares["kernel_share"]).to_numpy() == pytest.approx(1)
    slopes = command.table("slopes")
    assert set(slopes["error"]) >= {"eps", "kernel_eps", "corrected_eps"}
    advice = command.table("recommendation")
    assert (advice["zero_eps_95"] > 0).all()
    assert advice.loc[advice["zero_eps_95"] <= 0.1, "m"].isna().all()
    assert (advice["m"].dropna() >= advice["d_lambda"][advice["m"].notna()]).all()


def test_training_queries_have_no_part_in_the_kernel(command):
    assert command(*CROSS) == 0
    assert "_num_train_60_cross_num_train_grads_15" in command.run.name
    assert not [name for name in command.table("summary") if "kernel" in name or "range" in name]
    assert command.table("queries")["kernel_share"].abs().max() < 1e-9


def test_pairs_of_explicit_projections_agree_with_the_closed_form(command):
    assert command(*CROSS, "--test_mode", "test", "--proj_type", "rademacher", "--min_m", "32") == 0
    summary = command.table("summary")
    summary = summary[summary["m"] == 32]  # 64 is the rank, where the law fails
    for name in ("range_eps_95", "kernel_eps_95"):
        assert (summary[f"predicted_{name}"] / summary[name]).between(0.7, 1.4).all(), name


def test_pairs_predicted_alone_draw_no_sketch(command):
    assert command(*CROSS, "--predict_only", "--max_m", "1024") == 0
    assert not (command.run / "trials.csv").exists()
    assert "slope" not in command.table("slopes")
    assert command.table("slopes")["predicted_slope"].notna().any()


def test_an_interrupted_run_of_pairs_goes_on_to_the_same_numbers(command, capsys):
    assert command(*CROSS) == 0
    expected = table_bytes(command.run)
    with stopped_after(5):
        assert command(*CROSS) == 130
    capsys.readouterr()
    assert command(*CROSS) == 0
    assert "continuing after 5 finished" in capsys.readouterr().out
    assert table_bytes(command.run) == expected


# --- bad input ----------------------------------------------------------------------------------------------

BAD = {
    "unknown choice": ["--proj_type", "gaussian"],
    "unknown option": ["--projection", "normal"],
    "no such pair": ["--dataset", "mnist", "--model", "resnet9"],
    "empty range of m": ["--min_m", "128"],
    "no power of two": ["--min_m", "5", "--max_m", "7"],
    "every m too large": ["--min_m", "8192", "--max_m", "8192"],
    "no trials": ["--num_trials", "0"],
    "negative batches": ["--batch_size", "-3"],
    "no number": ["--seed", "x"],
    "negative queries": ["--num_test_grads", "-5"],
    "more samples than there are": ["--num_train", "4501"],
    "exponents reversed": ["--lambda_exp_min", "1"],
    "no lambda left": ["--min_d_lambda", "1000"],
    "correction of nothing": ["--explicit_projection", "--proj_type", "sjlt"],
    "pairs of self-influence": ["--num_train_grads", "7"],
    "no such scores": ["--scores", "both"],
    "sparsity above m": ["--proj_type", "sjlt", "--sjlt_sparsity", "4"],
    "16 bits nowhere": ["--grad_dtype", "float16"],
    "m beyond 64 bits": ["--max_m", str(10**20)],
    "name beyond the file system": ["--seed", "9" * 300],
}


def check_refusal(command, capsys, named=""):
    captured = capsys.readouterr()
    assert captured.err.startswith("spectrum_bounds.py: error: ")
    assert captured.err.count("\n") == 1
    assert captured.err.endswith("\n")
    assert named in captured.err
    assert command.runs == []
    assert [path.name for path in command.folder.rglob("*.partial")] == []


@pytest.mark.parametrize("options", BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line_and_status_2(command, options, capsys):
    assert command(*options) == 2
    check_refusal(command, capsys, options[1][:20] if len(options) == 2 and options[1][0] != "9" else "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_cuda_device_is_one_line_and_status_2(command, capsys):
    assert command("--device", "cuda") == 2
    check_refusal(command, capsys, "--device cuda")


@pytest.mark.parametrize("option", ["--output_dir", "--benchmark_dir", "--cache_dir"])
def test_a_folder_that_cannot_be_written_is_one_line_and_status_2(command, option, capsys):
    blocked = command.folder / "a_file"
    blocked.write_text("")
    assert command("--offload", "disk", option, str(blocked / "below")) == 2
    check_refusal(command, capsys, "a_file")


@pytest.mark.parametrize("offload", ["cpu", "recompute"])
def test_a_gradient_that_is_not_finite_names_part_sample_and_layer(command, offload, mnist_data, monkeypatch, capsys):
    inputs = mnist_data.test.inputs.clone()
    inputs[123, 0, 10, 10] = math.nan
    data = Dataset(mnist_data.train, Examples(inputs, mnist_data.test.targets))
    monkeypatch.setitem(pairs.EMBEDDED, "mnist", lambda data_dir: data)
    options = ["--test_mode", "test", "--num_test_grads", "500", "--offload", offload]
    assert command(*options) == 2
    check_refusal(command, capsys, "the gradient of test sample 123 is not finite in ")


def test_the_sample_named_is_its_number_in_the_test_set_when_only_some_are_queries(
    command, mnist_data, monkeypatch, capsys
):
    # every second test sample is bad, so that about half of the 20 queries are
    inputs = mnist_data.test.inputs.clone()
    inputs[1::2] = math.nan
    data = Dataset(mnist_data.train, Examples(inputs, mnist_data.test.targets))
    monkeypatch.setitem(pairs.EMBEDDED, "mnist", lambda data_dir: data)
    assert command("--test_mode", "test") == 2
    message = capsys.readouterr().err
    named = int(message.split("test sample ")[1].split()[0])
    queries = torch.randperm(500, generator=make_generator("cpu", 42, QUERY_STREAM))[:20].sort().values
    assert named == next(sample for sample in queries.tolist() if sample % 2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("options", [["--device", "cuda"], ["--offload", "disk", "--cache_dir", "/dev/null/cache"]])
def test_a_refused_command_leaves_finished_results_as_they_were(command, options, capsys):
    assert command("--predict_only") == 0
    before = {path.name: path.read_bytes() for path in command.run.iterdir()}
    capsys.readouterr()
    assert command("--predict_only", *options) == 2
    assert {path.name: path.read_bytes() for path in command.run.iterdir()} == before


def test_bad_input_of_a_real_process_has_no_traceback(command):
    process = command.start("--num_train", "4501")
    output, errors = process.communicate()
    assert process.returncode == 2
    assert errors == "spectrum_bounds.py: error: --num_train 4501 exceeds the 4500 training samples of mnist\n"
    assert "Traceback" not in output


# --- interrupted runs ---------------------------------------------------------------------------------------

LONG = ("--proj_type", "rademacher", "--num_trials", "15")
NUM_UNITS = 15 * len(MS)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, toy_benchmarks):
    command = Command(tmp_path_factory.mktemp("uninterrupted"), toy_benchmarks)
    assert command(*LONG) == 0
    return command


def stop_midway(command, sent):
    """Start the long run, send it a signal after its first units, and return (status, errors, units finished)."""
    process = command.start(*LONG)
    log = command.folder / "results" / "spectrum_bounds"
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        lines = sum(path.read_bytes().count(b"\n") for path in log.glob("*/unfinished/units.jsonl"))
        if lines > 4:
            process.send_signal(sent)
            break
        time.sleep(0.005)
    _, errors = process.communicate()
    units = (command.run / "unfinished" / "units.jsonl").read_bytes().count(b"\n") - 1
    assert 4 <= units < NUM_UNITS  # stopped midway indeed
    return process.returncode, errors, units


def assert_same_numbers(command, other):
    for name in ("trials", "summary", "spectrum", "effective_dimension", "recommendation"):
        assert (command.run / f"{name}.csv").read_bytes() == (other.run / f"{name}.csv").read_bytes()
    assert {path.name for path in command.run.iterdir()} == UNDRAWN


def test_killed_midway_the_same_command_ends_with_the_numbers_of_an_uninterrupted_run(command, uninterrupted, capsys):
    status, _, units = stop_midway(command, signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert [path.name for path in command.run.iterdir()] == ["unfinished"]
    assert json.loads((command.run / "unfinished" / "config.json").read_text())["finished"] is False
    with open(command.run / "unfinished" / "units.jsonl", "ab") as stream:
        stream.write(b'{"trial": 9, "m": 64, "rows": [{"tri')  # a line that the power cut short
    assert command(*LONG) == 0
    assert f"continuing after {units} finished" in capsys.readouterr().out
    assert_same_numbers(command, uninterrupted)


def test_ctrl_c_is_one_line_and_status_130_and_the_same_command_goes_on(command, uninterrupted, capsys):
    status, errors, units = stop_midway(command, signal.SIGINT)
    assert status == 130
    assert errors.strip().count("\n") == 0
    assert "the same command continues" in errors
    assert "Traceback" not in errors
    assert command(*LONG) == 0
    assert f"continuing after {units} finished" in capsys.readouterr().out
    assert_same_numbers(command, uninterrupted)


def test_units_of_another_checkpoint_are_not_continued(command, capsys):
    assert command("--predict_only") == 0
    (stale,) = command.runs
    unfinished = stale.with_name(stale.name.replace("_predict_only", "")) / "unfinished"
    unfinished.mkdir(parents=True)
    shutil.rmtree(stale)
    header = {"options": {}, "data_fingerprint": "x", "checkpoint_fingerprint": "x", "device": "cpu", "packages": {}}
    unit = {"trial": 0, "m": 1, "rows": [{"trial": 0, "m": 1, "lambda": 1.0, "eps_95": 99.0}]}
    (unfinished / "units.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (header, unit)))
    capsys.readouterr()
    assert command() == 0
    assert "not continued, because options differs" in capsys.readouterr().err
    assert command.table("trials")["eps_95"].max() < 99
