"""The real command line of experiment 3 at toy size."""

from __future__ import annotations

import json
import sys

import numpy as np
import pandas as pd
import pytest

import faithfulness_utility
from common.experiments import script
from tests.interrupted import stopped_after, table_bytes
from tests.tiny import write_tiny

pytestmark = pytest.mark.usefixtures("one_thread")

TOY = ["--num_test_grads", "20", "--num_trials", "2", "--min_m", "4", "--max_m", "32", "--val_ratio", "0.5"]
TOY += ["--lambda_exp_min", "-3", "--lambda_exp_max", "0", "--num_subsets", "6", "--num_train_grads", "15"]
FILES = {"config.json", "trials.csv", "summary.csv", "predicted.csv", "by_m.csv", "verdict.json"}
FILES |= {"figure.png", "figure.pdf"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a workload, and with the checkpoints and ground truth that all runs share."""
    folder = tmp_path_factory.mktemp("faithfulness")
    write_tiny(folder, "recipe = TrainingRecipe(epochs=30, learning_rate=0.3)")
    return folder


@pytest.fixture
def run(folder, tmp_path, monkeypatch, capsys):
    """Run the script in this process; return exit status, stdout, stderr and the only result folder (or None)."""

    def call(*options):
        words = ["--workload", str(folder / "tiny_workload.py"), "--device", "cpu", "--output_dir", str(tmp_path)]
        words += [f"--{name}_dir={folder / name}" for name in ("benchmark", "cache")]
        monkeypatch.setattr(sys, "argv", ["faithfulness_utility.py", *TOY, *words, *options])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            script.run_script(faithfulness_utility.main)
        out = capsys.readouterr()
        found = list(tmp_path.glob("faithfulness_utility/*"))
        return stop.value.code, out.out, out.err, found[0] if len(found) == 1 else None

    return call


def test_a_run_writes_every_file_and_ends_in_a_verdict(run):
    status, out, err, results = run("--proj_type", "sjlt")
    assert (status, err) == (0, "")
    assert {path.name for path in results.iterdir()} == FILES
    verdict = json.loads((results / "verdict.json").read_text())
    assert verdict["words"] in out
    assert verdict["threshold"] == 0.01
    summary, by_m = pd.read_csv(results / "summary.csv"), pd.read_csv(results / "by_m.csv")
    sketched = summary[np.isfinite(summary["m"])]
    assert by_m["m"].tolist() == [4, 8, 16, 32]
    for row in by_m.to_dict("records"):
        cells = sketched[sketched["m"] == row["m"]].set_index("lambda")
        assert row["lambda_star"] == cells["val_lds"].idxmax()
        assert row["eps_95"] == cells.loc[row["lambda_star"], "eps_95"]
        assert row["faithful"] == (row["eps_95"] <= 0.01)
        assert row["zero_eps_95"] > 0
    exact = summary[np.isinf(summary["m"])]
    assert exact["eps_95"].isna().all()
    assert exact["test_lds"].notna().all()


@pytest.mark.usefixtures("undrawn")
def test_predictions_alone_give_a_verdict_without_a_sketch(run):
    status, out, _, results = run("--predict_only", "--faithfulness_threshold", "0.5")
    assert status == 0
    assert {path.name for path in results.iterdir()} == FILES - {"trials.csv", "figure.png", "figure.pdf"}
    assert "The closed form, without a sketch: " in out
    verdict = json.loads((results / "verdict.json").read_text())
    assert (verdict["best_m"], verdict["growth"]) == (None, None)
    assert verdict["predicted_faithful_m"] is not None


def test_a_projection_without_a_closed_form_is_measured_and_nothing_is_predicted(run):
    status, _, err, results = run("--proj_type", "kronecker")
    assert (status, err) == (0, "")
    by_m = pd.read_csv(results / "by_m.csv")
    assert by_m["eps_95"].notna().all()
    assert by_m[["predicted_lambda_star", "predicted_eps_95", "predicted_faithful"]].isna().all(axis=None)
    assert "no closed form of this projection is known" in json.loads((results / "verdict.json").read_text())["words"]


def test_predictions_alone_of_a_projection_without_a_closed_form_have_every_m_and_no_number(run):
    status, out, err, results = run("--proj_type", "kronecker", "--predict_only")
    assert (status, err) == (0, "")
    by_m = pd.read_csv(results / "by_m.csv")
    assert by_m["m"].tolist() == [4, 8, 16, 32]
    assert by_m.drop(columns="m").isna().all(axis=None)
    assert "No prediction: no closed form of this projection is known." in out


@pytest.mark.usefixtures("undrawn")
def test_an_interrupted_run_goes_on_to_the_same_numbers(run):
    _, _, _, results = run()
    expected = table_bytes(results)
    with stopped_after(3):
        status, _, err, _ = run()
    assert (status, err.count("\n")) == (130, 2)
    status, out, _, _ = run()
    assert status == 0
    assert "continuing after 3 finished" in out
    assert table_bytes(results) == expected


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--faithfulness_threshold", "0"], "'0' is not allowed"),
        (["--faithfulness_threshold", "1"], "must be a number strictly between 0 and 1"),
        (["--num_train_grads", "-3"], "'-3' is not allowed"),
        (["--num_subsets", "2"], "--num_subsets 2"),
        (["--val_ratio", "0.001"], "leaves 0 to select"),
        (["--scores", "cross"], "unrecognized arguments"),
        (["--reference", "sketch", "--proj_type", "sjlt"], "errors of cross scores need exact scores"),
        (["--proj_type", "sjlt", "--m_steps", "3"], "--m_steps 3: sjlt of size m is a folded larger one"),
    ],
)
def test_bad_input_is_one_line_and_status_2(run, options, says):
    status, _, err, results = run(*options)
    assert (status, err.count("\n"), results) == (2, 1, None)
    assert says in err
