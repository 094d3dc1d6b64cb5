"""The real command line of experiment 2 at toy size."""

from __future__ import annotations

import contextlib
import io
import json
import sys

import numpy as np
import pandas as pd
import pytest

import hyperparam_selection
from common.experiments import script
from common.gradients.layer_gradients import LayerwiseGradients
from tests.drawn import draw_nothing

TOY = ["--model", "lr", "--num_train", "200", "--num_test_grads", "300", "--num_trials", "2", "--max_m", "256"]
TOY += ["--lambda_exp_min", "-3", "--lambda_exp_max", "1", "--num_subsets", "20"]
FILES = {"config.json", "trials.csv", "summary.csv", "predicted.csv", "selection.json", "figure.png", "figure.pdf"}


@pytest.fixture(scope="module")
def benchmark_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("benchmarks")


def run_script(folder, benchmark_dir, *options, drawn=False):
    """Run the script in this process; return its exit status and its only result folder (or None)."""
    folders = ["--output_dir", str(folder), "--benchmark_dir", str(benchmark_dir)]
    folders += ["--cache_dir", str(benchmark_dir / "cache")]
    with pytest.MonkeyPatch.context() as patch:
        if not drawn:
            draw_nothing(patch)
        patch.setattr(sys, "argv", ["hyperparam_selection.py", *folders, *options])
        with pytest.raises(SystemExit) as stop:
            script.run_script(hyperparam_selection.main)
    found = list(folder.glob("hyperparam_selection/*"))
    return stop.value.code, found[0] if len(found) == 1 else None


@pytest.fixture
def run(tmp_path, benchmark_dir, capsys):
    """Return options -> exit status, stdout, stderr and the only result folder (or None)."""

    def call(*options, output="results", drawn=False):
        status, found = run_script(tmp_path / output, benchmark_dir, *options, drawn=drawn)
        return (status, *capsys.readouterr(), found)

    return call


@pytest.fixture(scope="module")
def finished(tmp_path_factory, benchmark_dir):
    """Return the folder of a finished run, and what it said."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status, folder = run_script(tmp_path_factory.mktemp("finished"), benchmark_dir, *TOY, drawn=True)
    assert status == 0
    return folder, said.getvalue()


def test_a_run_writes_every_file_and_ends_in_a_recommendation(finished):
    folder, out = finished
    assert {path.name for path in folder.iterdir()} == FILES
    last_words = out.strip().splitlines()[-2]
    assert last_words.startswith(("Recommendation: m = ", "No recommendation: "))
    summary = pd.read_csv(folder / "summary.csv")
    exact = summary[np.isinf(summary["m"])]
    assert exact["lambda"].tolist() == [1e-3, 1e-2, 1e-1, 1.0, 10.0]
    assert (summary["test_lds_low"] <= summary["test_lds"]).all()
    assert (summary["test_lds"] <= summary["test_lds_high"]).all()
    assert (summary[["val_num_bad", "test_num_bad"]] == 0).all(axis=None)


def test_a_second_run_needs_no_gradient_and_gives_the_same_bytes(run, tmp_path, monkeypatch):
    options = (*TOY, "--num_test_grads", "100", "--num_trials", "1", "--cache_dir", str(tmp_path / "cache"))
    _, _, _, first = run(*options, output="first")
    assert json.loads((first / "config.json").read_text())["geometry_from_cache"] is False
    monkeypatch.setattr(LayerwiseGradients, "_run_pass", None)
    status, out, err, second = run(*options, output="second")
    assert (status, err) == (0, "")
    assert "geometry: from " in out
    assert json.loads((second / "config.json").read_text())["geometry_from_cache"] is True
    for name in sorted(FILES - {"config.json", "figure.png", "figure.pdf"}):
        assert (second / name).read_bytes() == (first / name).read_bytes()


@pytest.mark.slow
def test_a_reference_sketch_takes_the_place_of_exact_scores_and_leaves_those_of_sketches_as_they_are(run):
    options = (*TOY, "--proj_type", "sjlt", "--lambda_exp_max", "0")
    _, _, _, exact = run(*options, output="exact")
    status, _, _, seen = run(*options, "--reference", "sketch", "--reference_m", "2048", output="seen")
    assert status == 0
    both = [pd.read_csv(folder / "summary.csv") for folder in (exact, seen)]
    assert set(both[1]) - set(both[0]) == {"val_lds_reference_loss", "test_lds_reference_loss"}
    # λ between those of the grid are the predicted best ones, which need not be the same
    grid = both[0].merge(both[1], on=["m", "lambda"], suffixes=("", "_seen"))
    sketched, unsketched = grid[np.isfinite(grid["m"])], grid[np.isinf(grid["m"])]
    assert len(sketched) >= 16
    # ranks of scores that are nearly equal may turn
    assert (sketched["test_lds_seen"] - sketched["test_lds"]).abs().max() < 1e-3
    assert len(unsketched) == 4
    loss = unsketched["test_lds_reference_loss"]
    assert (loss > 0).all()
    left = unsketched["test_lds_seen"] + loss - unsketched["test_lds"]
    # one reference: its own LDS strays by about what it loses
    assert (left.abs() < 2 * loss).all(), unsketched


def test_the_choice_maximises_validation_lds_at_the_largest_m_and_never_sees_test_lds(finished):
    folder, _ = finished
    chosen = json.loads((folder / "selection.json").read_text())
    trials = pd.read_csv(folder / "trials.csv")
    largest = trials[trials["m"] == 256].groupby("lambda")["val_lds"].mean()
    assert chosen["lambda_star"] == largest.idxmax()
    assert chosen["val_lds"] == pytest.approx(largest.max(), abs=1e-12)
    at_star = trials[trials["lambda"] == chosen["lambda_star"]].groupby("m")["val_lds"].mean()
    grid = at_star[[m for m in at_star.index if m & (m - 1) == 0]]
    by_m = {record["m"]: record for record in chosen["by_m"]}
    assert list(by_m) == [32, 64, 128, 256]
    on_grid = trials[trials["lambda"].isin([1e-3, 1e-2, 1e-1, 1.0, 10.0])]
    for m, cells in on_grid[on_grid["m"].isin(by_m)].groupby("m"):
        val = cells.groupby("lambda")["val_lds"].mean()
        assert by_m[m]["lambda_star"] == val.idxmax()
        assert by_m[m]["val_lds"] == pytest.approx(val.max())
        assert by_m[m]["val_lds_low"] < by_m[m]["val_lds"] < by_m[m]["val_lds_high"]
    predicted = pd.read_csv(folder / "predicted.csv")
    for m, record in by_m.items():
        cells = predicted[predicted["m"] == m].set_index("lambda")["predicted_val_lds"]
        assert record["predicted_lambda_star"] == cells.idxmax()
        at = trials[(trials["m"] == m) & (trials["lambda"] == record["predicted_lambda_star"])]
        assert record["measured_test_lds_at_predicted"] == pytest.approx(at["test_lds"].mean())
    joint = chosen["joint"]
    assert joint["m_95_low"] <= joint["m_95"] <= joint["m_95_high"]
    best = {"m": joint["best"]["m"], "lambda": joint["best"]["lambda"]}
    assert best in [{"m": cell["m"], "lambda": cell["lambda"]} for cell in joint["not_distinguishable"]]
    assert chosen["m_95"] == grid[grid >= 0.95 * largest.max()].index[0]
    assert [choice["epsilon"] for choice in chosen["theory_m"]] == [0.1, 0.2, 0.3]


def test_prediction_and_measurement_agree_on_a_real_workload(run):
    """8 sketches: their mean LDS has a standard error below 0.005 here, 6 of them false-alarm once in 10^8."""
    status, _, _, folder = run(*TOY, "--num_trials", "8", "--min_m", "64")
    assert status == 0
    summary = pd.read_csv(folder / "summary.csv")
    sketched = summary[np.isfinite(summary["m"])]
    assert (sketched["test_lds"] - sketched["predicted_test_lds"]).abs().max() < 0.03


def test_corrected_scores_have_columns_of_their_own(run):
    status, _, _, folder = run(*TOY, "--ridge_correction", drawn=True)
    assert status == 0
    summary = pd.read_csv(folder / "summary.csv")
    sketched = summary[np.isfinite(summary["m"])]
    undefined = sketched["m"] <= sketched["d_lambda"]
    assert undefined.any()
    assert sketched.loc[undefined, "corrected_test_lds"].isna().all()
    assert sketched.loc[~undefined, ["corrected_test_lds", "predicted_corrected_test_lds"]].notna().all(axis=None)


def test_predictions_alone_of_a_projection_without_a_closed_form_have_every_m_and_no_number(run):
    status, out, _, folder = run(*TOY, "--predict_only", "--proj_type", "kronecker", drawn=True)
    assert status == 0
    by_m = pd.DataFrame(json.loads((folder / "selection.json").read_text())["by_m"])
    assert by_m["m"].tolist() == json.loads((folder / "config.json").read_text())["ms"]
    assert by_m.drop(columns="m").isna().all(axis=None)
    assert "No recommendation: no closed form of this projection is known." in out


def test_predict_only_draws_no_sketch_and_still_recommends(run):
    status, out, _, folder = run(*TOY, "--predict_only", drawn=True)
    assert status == 0
    assert not (folder / "trials.csv").exists()
    assert "not measured" in out or "No recommendation" in out
    chosen = json.loads((folder / "selection.json").read_text())
    assert set(chosen) == {"predicted_choice", "by_m"}
    assert all(record["lambda_star"] is None for record in chosen["by_m"])
    assert all(record["predicted_lambda_star"] > 0 for record in chosen["by_m"])


@pytest.mark.parametrize("kind", ["rademacher", "sjlt", "tensorsketch"])
def test_explicit_projections_run_and_recommend_an_m_they_can_make(run, kind):
    status, _, _, folder = run(*TOY, "--proj_type", kind, "--max_m", "512")
    assert status == 0
    advice = json.loads((folder / "selection.json").read_text())["predicted_choice"]
    if kind != "rademacher" and advice is not None:
        assert advice["m"] & (advice["m"] - 1) == 0
    assert (pd.read_csv(folder / "summary.csv")["test_lds"] > 0).any()


def test_few_validation_queries_are_warned_about(run):
    status, out, _, folder = run(*TOY, "--num_test_grads", "60", "--val_ratio", "0.1")
    assert status == 0
    assert any(
        "validation queries" in warning for warning in json.loads((folder / "selection.json").read_text())["warnings"]
    )
    assert "warning: " in out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--val_ratio", "0"], "'0' is not allowed"),
        (["--val_ratio", "1.5"], "'1.5' is not allowed"),
        (["--val_ratio", "0.001"], "leaves 0 to select"),
        (["--val_ratio", "0.999"], "0 to judge"),
        (["--num_subsets", "2"], "--num_subsets 2"),
        (["--benchmark", "dattri"], "--benchmark dattri comes trained on all its samples"),
    ],
)
def test_bad_input_is_one_line_and_status_2(run, options, says):
    status, _, err, _ = run(*TOY, *options)
    assert status == 2
    assert says in err
    assert err.strip().count("\n") == 0
