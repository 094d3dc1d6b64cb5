"""A user's own model: the file, every mistake in it, and the worked example through both real command lines."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

import hyperparam_selection
import spectrum_bounds
from common import arguments, benchmark, training
from common.errors import UserError
from common.records import Workload
from common.user_workload import load_user_workload

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "digits_cnn.py"
SCRIPTS = {"spectrum_bounds": spectrum_bounds.main, "hyperparam_selection": hyperparam_selection.main}

FILE = """
import torch
import torch.nn.functional as F
from torch import nn

from common.records import Examples, GroundTruth, TrainingRecipe, Workload


def samples(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 4, generator=generator), torch.randint(3, (count,), generator=generator)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(4, 5)
        self.out = nn.Linear(5, 3)

    def forward(self, inputs):
        return self.out(self.hidden(inputs).tanh())


def loss(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="none")


def make_workload():
    inputs, targets = samples(33, 1)
    test_inputs, test_targets = samples(9, 2)
    more = {}
    return Workload(
        name="mine",
        make_model=Net,
        train=Examples(inputs, targets),
        test=Examples(test_inputs, test_targets),
        loss=loss,
        recipe=TrainingRecipe(epochs=2, learning_rate=0.1, batch_size=7),
        **more,
    )
"""
TRUTH = """    more = dict(
        ground_truth=GroundTruth(
            torch.stack([torch.randperm(33, generator=torch.Generator().manual_seed(s))[:16] for s in range(8)]),
            torch.rand(8, 9, generator=torch.Generator().manual_seed(3)),
        )
    )
"""
FORWARD = "        return self.out(self.hidden(inputs).tanh())"
RECIPE = "TrainingRecipe(epochs=2, learning_rate=0.1, batch_size=7)"


def write(folder: Path, *changes: tuple[str, str], name: str = "mine.py") -> Path:
    """Write the file with some text replaced; all of it must be there."""
    text = FILE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / name
    path.write_text(text)
    return path


def more(text: str) -> tuple[str, str]:
    return "    more = {}\n", text


def with_truth(old: str, new: str) -> tuple[str, str]:
    assert old in TRUTH
    return more(TRUTH.replace(old, new))


def message(path: Path, **options) -> str:
    with pytest.raises(UserError) as caught:
        load_user_workload(path, **options)
    text = str(caught.value)
    assert text.startswith(f"--workload {path}: ")
    assert "\n" not in text
    return text.removeprefix(f"--workload {path}: ")


def line_of(text: str, path: Path) -> int:
    return next(i for i, line in enumerate(path.read_text().splitlines(), 1) if text in line)


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


def test_frozen_parameters_beside_trained_ones_are_fine(tmp_path):
    path = write(tmp_path, (FORWARD, "        self.hidden.requires_grad_(False)\n" + FORWARD))
    assert load_user_workload(path).name == "mine"


def test_parameters_that_layers_do_not_explain_are_fine(tmp_path):
    path = write(
        tmp_path,
        ("        self.out = ", "        self.scale = nn.Parameter(torch.ones(5))\n        self.out = "),
        (FORWARD, "        return self.out((self.hidden(inputs) * self.scale).tanh())"),
    )
    assert load_user_workload(path).name == "mine"


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


MISTAKES = {
    "no function": [("def make_workload", "def make_my_workload")],
    "not a function": [("def make_workload", "make_workload = 3\ndef other")],
    "parameters of make_workload": [("make_workload()", "make_workload(data)")],
    "returns nothing": [("    return Workload(", "    Workload(")],
    "name type": [('"mine"', "None")],
    "name characters": [('"mine"', '"my/model"')],
    "name dots": [('"mine"', '".."')],
    "name empty": [('"mine"', '""')],
    "name of a pair": [('"mine"', '"mnist_mlp"')],
    "loss missing": [("loss=loss", "loss=None")],
    "target sign": [more("    more = dict(target_sign=0)\n")],
    "target sign type": [more("    more = dict(target_sign=-1.0)\n")],
    "train not examples": [("train=Examples(inputs, targets)", "train=(inputs, targets)")],
    "array": [("train=Examples(inputs, targets)", "train=Examples(inputs.numpy(), targets)")],
    "empty train": [("train=Examples(inputs, targets)", "train=Examples(inputs[:0], targets[:0])")],
    "empty test": [("test=Examples(test_inputs, test_targets)", "test=Examples(test_inputs[:0], test_targets[:0])")],
    "lengths": [("train=Examples(inputs, targets)", "train=Examples(inputs, targets[:-1])")],
    "no rows": [("train=Examples(inputs, targets)", "train=Examples(inputs, torch.tensor(1))")],
    "other kind": [("test=Examples(test_inputs,", "test=Examples(test_inputs.double(),")],
    "device": [("train=Examples(inputs,", "train=Examples(inputs.to('meta'),")],
    "recipe type": [(RECIPE, "dict(epochs=2)")],
    "epochs": [("epochs=2", "epochs=0")],
    "batch size": [("batch_size=7", "batch_size=2.5")],
    "learning rate": [("learning_rate=0.1", "learning_rate=float('nan')")],
    "momentum": [("batch_size=7", "momentum=1.0")],
    "optimizer": [("batch_size=7", "optimizer='lion'")],
    "no module": [("make_model=Net", "make_model=lambda: loss")],
    "make_model raises": [("make_model=Net", "make_model=lambda: Net(7)")],
    "model device": [("make_model=Net", "make_model=lambda: Net().to('meta')")],
    "all frozen": [("make_model=Net", "make_model=lambda: Net().requires_grad_(False)")],
    "no parameters": [("make_model=Net", "make_model=nn.Identity")],
    "same model": [("make_model=Net", "make_model=lambda net=Net(): net")],
    "shared part": [("make_model=Net", "make_model=lambda part=nn.Linear(4, 4): nn.Sequential(part, Net())")],
    "forward": [("nn.Linear(4, 5)", "nn.Linear(6, 5)")],
    "loss raises": [("return F.cross_entropy(outputs,", "return F.cross_entropy(outputs.flatten(),")],
    "loss scalar": [(', reduction="none"', "")],
    "loss shape": [('reduction="none")', 'reduction="none")[:, None]')],
    "loss number": [('reduction="none")', 'reduction="none").sum().item()')],
    "loss type": [('reduction="none")', 'reduction="none").long()')],
    "loss not finite": [('reduction="none")', 'reduction="none") / 0')],
    "loss not finite, test": [("Examples(test_inputs,", "Examples(test_inputs * float('nan'),")],
    "loss random": [(FORWARD, FORWARD + " + torch.randn(3)")],
    "samples mix in the model": [("self.hidden(inputs)", "self.hidden(inputs - inputs.mean(dim=0))")],
    "samples mix in the loss": [('reduction="none")', 'reduction="none").mean().expand(len(outputs))')],
    "batch statistics": [("nn.Linear(4, 5)", "nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, affine=False))"),
                         ("BatchNorm1d(5, affine=False", "BatchNorm1d(5, track_running_stats=False")],
    "squeezed batch": [(FORWARD, FORWARD + ".squeeze()")],
    "unused": [("        self.out = ", "        self.spare = nn.Linear(2, 2)\n        self.out = ")],
    "detached": [("self.hidden(inputs)", "self.hidden(inputs).detach()")],
    "all detached": [(FORWARD, FORWARD + ".detach()")],
    "no gradient of a sample": [
        ("        self.out = ", "        self.scale = nn.Parameter(torch.ones(5))\n        self.out = "),
        (FORWARD, "        hidden = self.hidden(inputs) * self.scale\n"
                  "        return self.out(hidden.tanh() if inputs.sum().item() else hidden)"),
    ],
    "training loss": [more("    more = dict(training_loss=loss)\n")],
    "training loss number": [more("    more = dict(training_loss=lambda o, t: loss(o, t).mean().item())\n")],
    "training loss detached": [more("    more = dict(training_loss=lambda o, t: loss(o, t).mean().detach())\n")],
    "training loss raises": [more("    more = dict(training_loss=lambda o, t: o @ t)\n")],
    "last batch": [("nn.Linear(4, 5)", "nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5))"),
                   ("batch_size=7", "batch_size=8")],
    "correct type": [more("    more = dict(correct=lambda o, t: (o.argmax(1) == t).float())\n")],
    "correct share": [more("    more = dict(correct=lambda o, t: (o.argmax(1) == t).all())\n")],
    "correct number": [more("    more = dict(correct=lambda o, t: 0.5)\n")],
    "truth type": [more("    more = dict(ground_truth=(1, 2))\n")],
    "truth lists": [with_truth("torch.rand(8, 9, generator=torch.Generator().manual_seed(3))", "[[0.0]]")],
    "truth losses shape": [with_truth("torch.rand(8, 9,", "torch.rand(9, 8,")],
    "truth losses dimensions": [with_truth("torch.rand(8, 9,", "torch.rand(8,")],
    "truth losses finite": [with_truth("manual_seed(3))", "manual_seed(3)) / 0")],
    "truth index too large": [with_truth("[:16] for", "[:16] + 1 for"), ("range(8)", "range(50)"), ("(8, 9", "(50, 9")],
    "truth index negative": [with_truth("[:16] for", "[:16] - 34 for")],
    "truth index type": [with_truth("[:16] for", "[:16].float() for")],
    "truth index repeated": [with_truth("[:16] for", "[:16] * 0 for")],
}  # fmt: skip
MESSAGES = {
    "no function": "it has no function make_workload()",
    "not a function": "it has no function make_workload()",
    "parameters of make_workload": "make_workload() fails: TypeError: make_workload() missing 1 required",
    "returns nothing": "make_workload() returns None; it must return a common.records.Workload",
    "name type": "name None must be",
    "name characters": "name 'my/model' must be up to 80 letters, digits",
    "name dots": "name '..' must be",
    "name empty": "name '' must be",
    "name of a pair": "name 'mnist_mlp' is that of a built-in pair",
    "loss missing": "loss must be a function, got None",
    "target sign": "target_sign must be 1 or -1, got 0",
    "target sign type": "target_sign must be 1 or -1, got -1.0",
    "train not examples": "train must be common.records.Examples, got tuple",
    "array": "train.inputs must be a torch.Tensor, got ndarray",
    "empty train": "train is empty",
    "empty test": "test is empty",
    "lengths": "train has 33 inputs but 32 targets",
    "no rows": "train.targets must have one row a sample",
    "other kind": "inputs differ in kind: (N, 4) float32 for train, (N, 4) float64 for test",
    "device": "train.inputs must be on the CPU, got meta",
    "recipe type": "recipe must be a common.records.TrainingRecipe, or None for a trained model: dict",
    "epochs": "recipe: epochs must be an integer >= 1, got 0",
    "batch size": "recipe: batch_size must be an integer >= 1, got 2.5",
    "learning rate": "recipe: learning_rate must be a number > 0, got nan",
    "momentum": "recipe: momentum must be a number >= 0 and < 1, got 1.0",
    "optimizer": "recipe: optimizer must be one of sgd, adam, got 'lion'",
    "no module": "make_model() returns function; it must return a torch.nn.Module",
    "make_model raises": "make_model() fails, line ",
    "model device": "make_model() must return a model on the CPU; hidden.weight is on meta",
    "all frozen": "all 4 parameters of the model are frozen",
    "no parameters": "the model has no parameters",
    "same model": "make_model() returns the same hidden.weight each time",
    "shared part": "make_model() returns the same 0.weight each time",
    "forward": "RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x4 and 6x5)",
    "loss raises": "loss on a batch of 2 fails, line ",
    "loss scalar": "loss returns shape () for a batch of 2; it must be (2,), one loss a sample; a mean or sum",
    "loss shape": "loss returns shape (2, 1) for a batch of 2",
    "loss number": "loss returns float; it must return a tensor",
    "loss type": "loss returns torch.int64; it must be floating point",
    "loss not finite": "the loss of train sample 0 is inf; it must be finite",
    "loss not finite, test": "the loss of test sample 0 is nan; it must be finite",
    "loss random": "the loss is random in eval mode",
    "samples mix in the model": "depends on its batch mates",
    "samples mix in the loss": "depends on its batch mates",
    "batch statistics": "the model's forward pass on a batch of 1 fails",
    "squeezed batch": "loss returns shape () for a batch of 1",
    "unused": "no gradient of the loss reaches spare.weight, spare.bias: unused, or detached",
    "detached": "no gradient of the loss reaches hidden.weight, hidden.bias: unused, or detached",
    "all detached": "no gradient of the loss reaches hidden.weight, hidden.bias, out.weight, out.bias: unused",
    "no gradient of a sample": "computing the gradient of each sample fails, line ",
    "training loss": "training_loss must be a scalar, a tensor of shape (); got shape (2,)",
    "training loss number": "training_loss must be a scalar, a tensor of shape (); got float",
    "training loss detached": "training_loss must be finite and have a gradient",
    "training loss raises": "training_loss in training mode on a batch of 2 fails, line ",
    "last batch": "the mean loss in training mode on a batch of 1 (the last of 33 or 16 samples in batches of 8) fails",
    "correct type": "correct must return (2,) torch.bool for a batch of 2, got (2,) float32",
    "correct share": "correct must return (2,) torch.bool for a batch of 2, got () bool",
    "correct number": "correct must return (2,) torch.bool for a batch of 2, got float",
    "truth type": "ground_truth must be a common.records.GroundTruth or None, got tuple",
    "truth lists": "ground_truth.losses must be a torch.Tensor, got list",
    "truth losses shape": "ground_truth.losses must have shape (8, 9), one row a subset, one column a test sample; got",
    "truth losses dimensions": "ground_truth.losses must have shape (subset models, ...), got (8,)",
    "truth losses finite": "ground_truth.losses must be finite floating-point numbers",
    "truth index too large": "ground_truth.subset_indices must be in 0..32, one of them is 33",
    "truth index negative": "ground_truth.subset_indices must be in 0..32, one of them is -",
    "truth index type": "ground_truth.subset_indices must be (S, h) int64 with h >= 1, got (8, 16) float32",
    "truth index repeated": "ground_truth.subset_indices has a row with a repeated sample",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_that_names_it(tmp_path, mistake):
    assert MESSAGES[mistake] in message(write(tmp_path, *MISTAKES[mistake]))


def test_a_cut_training_set_is_checked_for_a_last_batch_of_one_too(tmp_path):
    batch_norm = ("nn.Linear(4, 5)", "nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5))")
    path = write(tmp_path, batch_norm)
    assert load_user_workload(path).name == "mine"
    assert "batch of 1 (the last of 29 or 14 samples in batches of 7) fails" in message(path, num_train=29)


def test_without_a_recipe_the_model_is_taken_as_it_is_and_nothing_is_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "train_model", None)
    path = write(tmp_path, (RECIPE, "None"), ("make_model=Net", "make_model=lambda net=Net(): net"))
    workload = load_user_workload(path)
    trained = benchmark.load_trained_model(workload, tmp_path / "benchmarks", "cpu")
    assert trained.model is workload.make_model()
    assert not trained.model.training
    assert not (tmp_path / "benchmarks").exists()


@pytest.fixture
def run(tmp_path, monkeypatch, capsys, one_thread):
    """Run a script in this process; return exit status, stdout, stderr."""

    def call(experiment, *options):
        folders = [f"--{name}_dir={tmp_path / name}" for name in ("output", "benchmark", "cache")]
        monkeypatch.setattr(sys, "argv", [f"{experiment}.py", *map(str, options), "--device", "cpu", *folders])
        with pytest.raises(SystemExit) as stop:
            arguments.run_script(SCRIPTS[experiment])
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
