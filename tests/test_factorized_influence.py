"""The real command line of experiment 4 at toy size."""

from __future__ import annotations

import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch

import factorized_influence
import hyperparam_selection
from common.curvature import fisher, sketches
from common.experiments import script
from common.experiments.curvature import sweep as curvature_sweep
from common.experiments.options import checks as option_checks
from tests.layer_cases import SAME_EVEN_KERNEL
from tests.pretended_device import pretended_device
from tests.tiny import write_tiny

FILES = {"config.json", "lds.csv", "layers.csv", "summary.csv", "layer_errors.csv", "figure.png", "figure.pdf"}
TOY = ["--num_trials", "2", "--lambda_exp_min", "-3", "--lambda_exp_max", "0", "--num_test_grads", "20"]
TOY += ["--num_subsets", "5", "--val_ratio", "0.5"]
SIZES = ["--m_a", "3,20", "--m_e", "2,8"]


@pytest.fixture
def run(tmp_path, toy_benchmarks, monkeypatch, capsys):
    """Run a script in this process; return exit status, stdout, stderr and its only result folder (or None)."""
    workload = str(write_tiny(tmp_path, "recipe = TrainingRecipe(epochs=30, learning_rate=0.3)"))

    def call(*options, script_module=factorized_influence, output="results", subject=("--workload", workload)):
        folders = ["--output_dir", str(tmp_path / output), "--benchmark_dir", str(toy_benchmarks)]
        folders += ["--cache_dir", str(toy_benchmarks / "cache")]
        monkeypatch.setattr(sys, "argv", [f"{script_module.__name__}.py", *subject, *TOY, *folders, *options])
        with pytest.raises(SystemExit) as stop:
            script.run_script(script_module.main)
        out = capsys.readouterr()
        found = list((tmp_path / output).glob(f"{script_module.__name__}/*"))
        return stop.value.code, out.out, out.err, found[0] if len(found) == 1 else None

    return call


def tables(folder):
    return {path.stem: pd.read_csv(path) for path in folder.glob("*.csv")}


def test_a_run_writes_every_file_and_says_what_each_curvature_is_good_for(run):
    status, out, _, folder = run(*SIZES)
    assert status == 0
    assert {path.name for path in folder.iterdir()} == FILES
    assert [line.split(":")[0] for line in out.splitlines() if "best validation LDS" in line] == [
        "K-FAC",
        "EK-FAC",
        "F itself",
    ]
    found = tables(folder)
    assert (found["lds"]["lambda"].tolist(), len(found["summary"])) == ([1e-3, 1e-2, 1e-1, 1.0] * 3, 2 * 4 * 4)
    assert (found["summary"]["num_bad"] == 0).all()
    # one linear layer: 9 inputs and a bias, 4 outputs
    (block,) = found["layers"]["block"].unique()
    assert (block, *found["layers"].loc[0, ["rows", "cols", "kind"]]) == ("weight", 4, 10, "layer")


@pytest.mark.usefixtures("undrawn")
def test_sketches_that_keep_everything_are_exact_and_others_are_not(run):
    _, _, _, folder = run(*SIZES)
    summary = tables(folder)["summary"]
    whole = summary["m"] == 40
    assert whole.sum() == 2 * 4
    assert (summary.loc[whole, "eps_max"] < 1e-6).all()
    assert (summary.loc[~whole, "eps_95"] > 1e-3).all()
    assert sorted(summary["m"].unique()) == [6, 12, 20, 40]


@pytest.mark.usefixtures("undrawn")
def test_a_model_of_one_layer_has_the_dimensions_and_the_lds_of_f_in_both_experiments(run):
    """F_l of the only layer is F, and the scores of F itself are those of hyperparam_selection."""
    _, _, _, folder = run(*SIZES)
    found = tables(folder)
    full = found["lds"][found["lds"]["curvature"] == "full"]
    np.testing.assert_allclose(found["layers"]["d_lambda_fisher"], full["d_lambda"], rtol=1e-6)
    _, _, _, other = run("--min_m", "8", "--max_m", "16", script_module=hyperparam_selection, output="other")
    exact = pd.read_csv(other / "summary.csv").query("m == inf")
    for column in ("val_lds", "test_lds", "test_lds_low", "test_lds_high"):
        np.testing.assert_allclose(full[column], exact[column], rtol=1e-12)


@pytest.mark.usefixtures("undrawn")
def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(run, monkeypatch):
    _, _, _, uninterrupted = run(*SIZES, output="uninterrupted")
    measure = curvature_sweep.measure

    def stop_at_the_second(task, trial):
        if trial == 1:
            raise KeyboardInterrupt
        return measure(task, trial)

    monkeypatch.setattr(curvature_sweep, "measure", stop_at_the_second)
    assert run(*SIZES)[0] == 130
    measured = []
    monkeypatch.setattr(curvature_sweep, "measure", lambda task, trial: measured.append(trial) or measure(task, trial))
    status, _, _, folder = run(*SIZES)
    assert (status, measured) == (0, [1])
    for path in uninterrupted.glob("*.csv"):
        assert (folder / path.name).read_bytes() == path.read_bytes()


@pytest.mark.usefixtures("undrawn")
def test_what_is_too_large_is_left_empty_and_said(run, monkeypatch):
    monkeypatch.setattr(sketches, "JOINT_COST", 6**2 * 40)
    monkeypatch.setattr(fisher, "LARGEST_SIDE", 3)
    status, out, _, folder = run(*SIZES)
    assert status == 0
    assert "joint sketches of 2 sizes (m_A, m_E) were too large to be drawn: they are predicted alone" in out
    assert "d_λ of the empirical Fisher: too large for 1 of 1 blocks" in out
    found = tables(folder)
    empty = found["summary"]["eps_95"].isna()
    assert set(zip(found["summary"]["kind"][empty], found["summary"]["m"][empty], strict=True)) == {
        ("joint", 12),
        ("joint", 20),
    }
    assert (found["summary"]["num_trials"][empty] == 0).all()
    assert (found["summary"]["predicted_eps_95"][empty] > 0.1).all()
    assert found["layers"]["d_lambda_fisher"].isna().all()


@pytest.mark.usefixtures("undrawn")
def test_relative_ridges_are_in_units_of_each_curvature(run):
    status, _, _, folder = run(*SIZES, "--lambda_scale", "relative")
    assert status == 0
    layers, config = tables(folder)["layers"], json.loads((folder / "config.json").read_text())
    assert layers["lambda"].tolist() == [1e-3, 1e-2, 1e-1, 1.0]
    for name in ("kfac", "ekfac"):
        ratio = layers[f"ridge_{name}"] / layers["lambda"]
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-12)
    # EK-FAC has the trace of F over all 40 parameters
    assert layers["ridge_ekfac"][3] * 40 == pytest.approx(config["mean_eigenvalue"] * config["rank"], rel=1e-5)


@pytest.mark.usefixtures("undrawn")
def test_on_a_pretended_gpu_no_two_devices_meet_and_the_numbers_are_those_of_the_cpu(run, tmp_path, monkeypatch):
    monkeypatch.setattr(option_checks, "version", lambda name: "of a build with CUDA")
    options = [*SIZES, "--cache_dir", str(tmp_path / "cache")]
    _, _, _, expected = run(*options, "--device", "cpu", output="cpu")
    with pretended_device():
        status, _, _, folder = run(*options, "--device", "cuda", output="cuda")
    assert status == 0
    for name, table in tables(folder).items():
        pd.testing.assert_frame_equal(table, tables(expected)[name], rtol=1e-6)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.usefixtures("undrawn")
def test_a_gpu_gives_the_numbers_of_the_cpu(run, tmp_path):
    """Gradients are float32 and summed in another order; sketches are drawn on the CPU."""
    options = [*SIZES, "--cache_dir", str(tmp_path / "cache")]
    found, expected = (tables(run(*options, "--device", device, output=device)[-1]) for device in ("cuda", "cpu"))
    for name, column in (("summary", "mean_ratio"), ("layers", "d_lambda_kfac"), ("layers", "d_lambda_ekfac")):
        np.testing.assert_allclose(found[name][column], expected[name][column], rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--m_a", "16,0"], "'0' is not allowed; must be an integer >= 1"),
        (["--m_e", "8;16"], "'8;16' is not allowed"),
        (["--m_a", ""], "'' is not allowed"),
        (["--num_subsets", "2"], "--num_subsets 2: a rank correlation needs at least 3"),
        (["--val_ratio", "0.001"], "leaves 0 to select"),
        (["--proj_type", "sjlt"], "unrecognized arguments: --proj_type sjlt"),
        (["--lambda_exp_min", "3"], "--lambda_exp_min 3 exceeds --lambda_exp_max 0"),
    ],
)
def test_bad_input_is_one_line_and_status_2(run, options, says):
    status, _, err, folder = run(*options)
    assert status == 2
    assert says in err
    assert err.strip().count("\n") == 0
    assert folder is None


IMAGES = """
from tests.layer_cases import small_conv_net
inputs, targets = torch.randn(30, 2, 8, 8, generator=generator), torch.randint(0, 3, (30,), generator=generator)
train, test = Examples(inputs[:20], targets[:20]), Examples(inputs[20:], targets[20:])
return Workload("images", small_conv_net, train, test, loss, recipe)
"""
TOKENS = """
from tests.layer_cases import last_token_loss, music_transformer
inputs = torch.randint(0, 300, (30, 16), generator=generator)
targets = inputs[:, 0]
train, test = Examples(inputs[:20], targets[:20]), Examples(inputs[20:], targets[20:])
return Workload("tokens", music_transformer, train, test, last_token_loss, recipe)
"""


@SAME_EVEN_KERNEL
@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("change", "num_blocks"), [(IMAGES, 6), (TOKENS, 13)], ids=["images", "tokens"])
def test_convolutions_attention_norms_and_tables_go_through_the_same_command(run, tmp_path, change, num_blocks):
    workload = str(write_tiny(tmp_path, change.strip()))
    status, _, err, folder = run(*SIZES, "--num_trials", "1", "--num_subsets", "3", subject=("--workload", workload))
    assert status == 0, err
    layers = tables(folder)["layers"]
    assert layers["block"].nunique() == num_blocks
    assert {"layer", "vector"} <= set(layers["kind"])
    assert np.isfinite(layers.filter(like="d_lambda")).all(axis=None)
    assert (layers["d_lambda_fisher"] <= 20).all()
