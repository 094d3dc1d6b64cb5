"""A user's own model: reading the file, and the worked example through both real command lines."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

import hyperparam_selection
import spectrum_bounds
from common.experiments import script
from common.foundations.errors import UserError
from common.workloads import benchmark, training
from common.workloads.records import Workload
from common.workloads.user_file import load_user_workload
from tests.workload_file import RECIPE, TRUTH, line_of, message, more, write

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "digits_cnn.py"
SCRIPTS = {"spectrum_bounds": spectrum_bounds.main, "hyperparam_selection": hyperparam_selection.main}


def test_the_file_gives_its_workload(tmp_path):
    workload = load_user_workload(write(tmp_path, more(TRUTH)))
    assert isinstance(workload, Workload)
    assert (workload.name, len(workload.train), len(workload.test)) == ("mine", 33, 9)
    assert workload.ground_truth.losses.shape == (8, 9)


def test_a_relative_path_will_do(tmp_path, monkeypatch):
    write(tmp_path, name="relative.py")
    monkeypatch.chdir(tmp_path)
    assert load_user_workload(Path("relative.py")).name == "mine"


def test_it_may_import_its_neighbours_and_leaves_the_import_path_as_it_was(tmp_path):
    (tmp_path / "neighbour_of_mine.py").write_text("NAME = 'from_next_door'\n")
    before = list(sys.path)
    path = write(tmp_path, ('"mine"', "__import__('neighbour_of_mine').NAME"))
    assert load_user_workload(path).name == "from_next_door"
    assert sys.path == before


def test_the_file_does_not_disturb_the_random_numbers_of_the_experiment(tmp_path):
    path = write(tmp_path, more("    torch.manual_seed(5)\n    more = {}\n"))
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    load_user_workload(path)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("line", ["import torch\n", "def make_workload():\n", "        super().__init__()\n"])
def test_a_file_that_disables_gradients_leaves_them_to_the_experiment(tmp_path, line):
    indent = " " * (0 if line.startswith("import") else 8 if "super" in line else 4)
    path = write(tmp_path, (line, f"{line}{indent}torch.set_grad_enabled(False)\n"))
    workload = load_user_workload(path)
    assert torch.is_grad_enabled()
    training.fresh_model(workload, 0)
    assert torch.is_grad_enabled()


def test_num_train_cuts_it_and_says_that_the_ground_truth_no_longer_fits(tmp_path, capsys):
    path = write(tmp_path, more(TRUTH))
    assert len(load_user_workload(path, 33).ground_truth.losses) == 8
    assert capsys.readouterr().out == ""
    cut = load_user_workload(path, 20)
    assert len(cut.train) == 20
    assert cut.ground_truth is None
    assert "--num_train 20: the ground_truth of mine" in capsys.readouterr().out
    with pytest.raises(UserError, match="--num_train 34 exceeds the 33 training samples"):
        load_user_workload(path, 34)


def test_a_missing_file_is_named(tmp_path):
    assert message(tmp_path / "nothing.py") == "there is no such file"
    assert message(tmp_path) == "there is no such file"


def test_a_file_that_is_not_python_is_refused(tmp_path):
    assert "must be a Python file" in message(write(tmp_path, name="mine.txt"))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("import torch.nn.functional as F", "import no_such_module", "ModuleNotFoundError: No module named"),
        ("class Net(nn.Module):", "class Net(nn.Module:", "SyntaxError: "),
        ("class Net(nn.Module):", "raise SystemExit(3)\nclass Net(nn.Module):", "SystemExit: 3"),
        ("def samples(count, seed):", "1 / 0\ndef samples(count, seed):", "ZeroDivisionError: division by zero"),
    ],
)
def test_what_importing_raises_is_named_with_its_line(tmp_path, old, new, expected):
    path = write(tmp_path, (old, new))
    text = message(path)
    assert text.startswith(f"importing it fails, line {line_of(new.splitlines()[0], path)}: {expected}")


def test_what_a_neighbour_raises_is_traced_to_the_line_that_imports_it(tmp_path):
    (tmp_path / "broken_neighbour.py").write_text("x = = 1\n")
    path = write(tmp_path, ("import torch.nn.functional as F", "import broken_neighbour"))
    assert f"importing it fails, line {line_of('broken_neighbour', path)}: SyntaxError" in message(path)


def test_what_make_workload_raises_is_named_with_its_line_and_only_the_first_of_its_own(tmp_path):
    path = write(tmp_path, more("    raise ValueError('first\\nsecond')\n"))
    assert message(path) == f"make_workload() fails, line {line_of('raise', path)}: ValueError: first"


def test_without_a_recipe_the_model_is_taken_as_it_is_and_nothing_is_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "train_model", None)
    path = write(tmp_path, (RECIPE, "None"), ("make_model=Net", "make_model=lambda net=Net(): net"))
    workload = load_user_workload(path)
    trained = benchmark.load_trained_model(workload, tmp_path / "benchmarks", "cpu")
    assert trained.model is workload.make_model()
    assert not trained.model.training
    assert not (tmp_path / "benchmarks").exists()


@pytest.fixture
def run(tmp_path, monkeypatch, capsys, one_thread, undrawn):
    """Run a script in this process; return exit status, stdout, stderr."""

    def call(experiment, *options):
        folders = [f"--{name}_dir={tmp_path / name}" for name in ("output", "benchmark", "cache")]
        monkeypatch.setattr(sys, "argv", [f"{experiment}.py", *map(str, options), "--device", "cpu", *folders])
        with pytest.raises(SystemExit) as stop:
            script.run_script(SCRIPTS[experiment])
        return (stop.value.code, *capsys.readouterr())

    return call


TOY = ("--num_trials", 2, "--max_m", 64, "--lambda_exp_min", -2, "--lambda_exp_max", -1, "--num_test_grads", 40)


def test_the_worked_example_runs_in_both_scripts(run, tmp_path):
    shared = ("--workload", EXAMPLE, *TOY, "--num_train", 200, "--epochs", 1)
    status, out, err = run("spectrum_bounds", *shared, "--min_d_lambda", 1)
    assert (status, err) == (0, "")
    assert "digits_cnn: 200 training samples, 3818 parameters" in out
    (folder,) = (tmp_path / "output" / "spectrum_bounds").iterdir()
    assert folder.name.startswith("digits_cnn_normal_")
    assert "num_train_200_epochs_1" in folder.name
    assert "workload" not in folder.name
    config = json.loads((folder / "config.json").read_text())
    assert (config["n"], config["k"], config["d"], config["finished"]) == (200, 40, 3818, True)
    assert config["options"]["workload"] == str(EXAMPLE)
    assert len(config["workload_checksum"]) == 64
    assert len(pd.read_csv(folder / "summary.csv")) > 0

    status, out, err = run("hyperparam_selection", *shared, "--num_subsets", 6, "--proj_type", "sjlt")
    assert (status, err) == (0, "")
    (folder,) = (tmp_path / "output" / "hyperparam_selection").iterdir()
    assert folder.name.startswith("digits_cnn_sjlt_")
    assert pd.read_csv(folder / "summary.csv")["test_lds"].notna().all()
    (made,) = (tmp_path / "benchmark").iterdir()
    assert made.name.startswith("digits_cnn_")


def test_the_worked_example_learns_the_digits(tmp_path):
    trained = benchmark.load_trained_model(load_user_workload(EXAMPLE), tmp_path, "cpu", progress=False)
    assert trained.test_accuracy > 0.95


LDS_TOY = (*TOY, "--max_m", 32, "--val_ratio", 0.4, "--num_subsets", 8)
RECIPE_FOR_LDS = (RECIPE, RECIPE.replace("epochs=2", "epochs=30"))


def write_as_trained(folder: Path, files: Path, losses: str) -> Path:
    """Write the file with a checkpoint and a ground truth that were made before, in place of a recipe."""
    weights = files / "models_full" / "0" / "model_weights_0.pt"
    return write(
        folder,
        ("nn.Linear(5, 3)\n", f"nn.Linear(5, 3)\n        self.load_state_dict(torch.load({str(weights)!r}))\n"),
        (RECIPE, "None"),
        more(
            f"    indices = torch.load({str(files / 'lds' / 'indices_lds.pt')!r})[:8]\n"
            f"    losses = torch.load({str(files / 'lds' / 'target_values_lds.pt')!r})[:8]\n"
            f"    more = dict(ground_truth=GroundTruth(indices, {losses}))\n"
        ),
    )


def test_a_model_and_ground_truth_that_come_trained_give_the_numbers_of_those_trained_here(run, tmp_path, monkeypatch):
    (tmp_path / "trained").mkdir()
    path = write(tmp_path, RECIPE_FOR_LDS)
    assert run("hyperparam_selection", "--workload", path, *LDS_TOY)[::2] == (0, "")
    (results,) = (tmp_path / "output" / "hyperparam_selection").iterdir()
    expected = pd.read_csv(results / "summary.csv")
    assert expected["test_lds"].abs().max() > 0.1
    trained = write_as_trained(
        tmp_path / "trained", benchmark.workload_folder(load_user_workload(path), tmp_path / "benchmark"), "losses"
    )
    monkeypatch.setattr(training, "train_model", None)
    monkeypatch.setattr(training, "train_together", None)
    status, _, err = run("hyperparam_selection", "--workload", trained, *LDS_TOY)
    assert status == 0
    assert err.startswith(f"{results}: the results there will be replaced at the end: data_fingerprint was ")
    assert err.count("\n") == 1
    pd.testing.assert_frame_equal(pd.read_csv(results / "summary.csv"), expected, rtol=1e-9)
    status, _, err = run("hyperparam_selection", "--workload", trained, *LDS_TOY, "--num_subsets", 50)
    assert status == 2
    assert err.endswith("--num_subsets 50 exceeds the 8 subset models in the ground_truth of mine\n")


def test_another_ground_truth_or_file_never_continues_an_interrupted_run(run, tmp_path, monkeypatch):
    files = tmp_path / "files"
    path = write(tmp_path, RECIPE_FOR_LDS)
    workload = load_user_workload(path)
    benchmark.load_trained_model(workload, files, "cpu")
    benchmark.load_ground_truth(workload, files, 8, "cpu")
    identities = []
    take = hyperparam_selection.Run.identity
    monkeypatch.setattr(hyperparam_selection.Run, "identity", lambda self: identities.append(take(self)) or take(self))
    for number, losses in enumerate(("losses", "2 * losses")):
        (tmp_path / str(number)).mkdir()
        path = write_as_trained(tmp_path / str(number), benchmark.workload_folder(workload, files), losses)
        assert run("hyperparam_selection", "--workload", path, *LDS_TOY)[0] == 0
    one, other = identities[0], identities[-1]
    assert one["options"] == other["options"]
    assert one["checkpoint_fingerprint"] == other["checkpoint_fingerprint"]
    assert one["data_fingerprint"] != other["data_fingerprint"]
    assert one["workload_checksum"] != other["workload_checksum"]


def test_a_trained_model_without_ground_truth_serves_spectrum_bounds_alone(run, tmp_path):
    path = write(tmp_path, (RECIPE, "None"))
    status, _, err = run("hyperparam_selection", "--workload", path)
    assert status == 2
    assert "mine has neither ground_truth nor a recipe to retrain its model" in err
    assert err.count("\n") == 1
    assert run("spectrum_bounds", "--workload", path, *TOY, "--max_m", 16, "--min_d_lambda", 0.1)[0] == 0
    status, _, err = run("spectrum_bounds", "--workload", path, "--epochs", 3)
    assert (status, err) == (2, "spectrum_bounds.py: error: --epochs 3: mine has no recipe, its model comes trained\n")


def test_frozen_parameters_are_not_counted(run, tmp_path):
    path = write(
        tmp_path,
        ("        self.out = ", "        self.hidden.requires_grad_(False)\n        self.out = "),
        (RECIPE, RECIPE.replace("epochs=2", "epochs=1")),
    )
    status, out, err = run("spectrum_bounds", "--workload", path, *TOY, "--max_m", 16, "--min_d_lambda", 0.1)
    assert (status, err) == (0, "")
    assert "18 parameters" in out


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--dataset", "mnist"), "brings its own data and model; drop --dataset mnist"),
        (("--model", "lr"), "brings its own data and model; drop --model lr"),
        (("--benchmark", "dattri"), "is nothing that --benchmark dattri has published"),
    ],
)
def test_options_that_exclude_each_other_are_one_line(run, tmp_path, options, expected):
    status, _, err = run("spectrum_bounds", "--workload", write(tmp_path), *options)
    assert status == 2
    assert expected in err
    assert err.count("\n") == 1


def test_a_mistake_in_the_file_leaves_no_folder_behind(run, tmp_path):
    path = write(tmp_path, ("def make_workload", "def make"))
    status, _, err = run("spectrum_bounds", "--workload", path)
    assert status == 2
    assert err.startswith(f"spectrum_bounds.py: error: --workload {path}: it has no function make_workload()")
    assert not (tmp_path / "output").exists()


def test_epochs_override_the_recipe_of_a_built_in_pair_too(run, tmp_path):
    options = ("--model", "lr", "--num_train", 60, *TOY, "--min_d_lambda", 1, "--epochs", 2)
    status, _, err = run("spectrum_bounds", *options)
    assert (status, err) == (0, "")
    (folder,) = (tmp_path / "output" / "spectrum_bounds").iterdir()
    assert folder.name.startswith("mnist_lr_normal_")
    assert "num_train_60_epochs_2" in folder.name
    (manifest,) = (tmp_path / "benchmark").rglob("manifest.json")
    assert json.loads(manifest.read_text())["made_by"]["recipe"]["epochs"] == 2
