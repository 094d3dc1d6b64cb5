from __future__ import annotations

import dataclasses
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from common.foundations.errors import UserError
from common.foundations.seeds import derive_seed
from common.workloads import models, subset_models, training
from common.workloads.benchmark import GROUP_SIZE, load_ground_truth, load_trained_model, random_half, workload_folder
from common.workloads.records import TrainingRecipe
from tests.locks import no_locks_below
from tests.reference_training import (
    batch_norm_perceptron,
    minus_cross_entropy,
    perceptron,
    random_examples,
    tiny_workload,
)

REPOSITORY = Path(__file__).parents[2]


class Interrupted(BaseException):
    pass


def forbid_training(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(training, "train_model", refuse)
    monkeypatch.setattr(training, "train_together", refuse)


def edit_manifest(path, **made_by):
    record = json.loads(path.read_text())
    record["made_by"].update(made_by)
    path.write_text(json.dumps(record))


def checkpoint_path(workload, folder):
    return workload_folder(workload, folder) / "models_full" / "0" / "model_weights_0.pt"


def test_a_checkpoint_is_trained_once(tmp_path, monkeypatch, capsys):
    workload = tiny_workload()
    first = load_trained_model(workload, tmp_path, "cpu")
    forbid_training(monkeypatch)
    again = load_trained_model(workload, tmp_path, "cpu")
    assert again.fingerprint == first.fingerprint
    assert not again.model.training
    assert 0 <= again.test_accuracy <= 1
    assert again.train_accuracy == first.train_accuracy
    assert capsys.readouterr() == ("", "")


class Counting(nn.Module):
    """Counts its training batches beside its tensors, and lets the number decide its outputs."""

    def __init__(self):
        super().__init__()
        self.layers, self.batches = perceptron(), 0

    def forward(self, x):
        self.batches += self.training
        return self.layers(x) / (1 + self.batches)

    def get_extra_state(self):
        return {"batches": self.batches}

    def set_extra_state(self, state):
        self.batches = state["batches"]


def test_what_a_module_keeps_beside_tensors_comes_back_with_its_weights(tmp_path):
    workload = tiny_workload(Counting)
    first, again = (load_trained_model(workload, tmp_path, "cpu") for _ in range(2))
    assert first.model.batches == 3 * 8  # epochs of eight batches
    assert again.model.batches == first.model.batches
    assert again.fingerprint == first.fingerprint
    assert not training.can_train_together(workload)  # the count would be that of the first model
    load_ground_truth(workload, tmp_path, 2, "cpu")


def test_a_checkpoint_does_not_depend_on_the_folder(tmp_path):
    first, other = (load_trained_model(tiny_workload(), tmp_path / name, "cpu") for name in "ab")
    assert first.fingerprint == other.fingerprint


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "malicious", "missing"])
def test_a_damaged_checkpoint_is_made_again_with_one_line(tmp_path, monkeypatch, capsys, damage):
    monkeypatch.chdir(tmp_path)
    workload = tiny_workload()
    first = load_trained_model(workload, tmp_path, "cpu")
    path = checkpoint_path(workload, tmp_path)
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[:-100])
    elif damage == "flipped":
        path.write_bytes(content[:900] + bytes([content[900] ^ 4]) + content[901:])
    elif damage == "malicious":
        path.write_bytes(pickle.dumps(Bomb()))
    else:
        path.unlink()
    again = load_trained_model(workload, tmp_path, "cpu")
    assert again.fingerprint == first.fingerprint
    assert path.read_bytes() == content
    assert not Path("exploded").exists()
    err = capsys.readouterr().err
    assert "model_weights_0.pt is " in err
    assert err.count("\n") == 1


def test_a_checkpoint_from_another_version_is_made_again_and_the_entry_is_named(tmp_path, capsys):
    workload = tiny_workload()
    load_trained_model(workload, tmp_path, "cpu")
    edit_manifest(checkpoint_path(workload, tmp_path).with_name("manifest.json"), torch="1.0")
    load_trained_model(workload, tmp_path, "cpu")
    assert 'torch was "1.0", wanted is' in capsys.readouterr().err
    load_trained_model(workload, tmp_path, "cpu")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"make_model": lambda: nn.Linear(5, 3)}, "parameters"),
        ({"make_model": lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3))}, "losses"),
        ({"loss": minus_cross_entropy}, "initial_losses"),
        ({"training_loss": lambda outputs, targets: outputs.square().sum()}, "initial_losses"),
    ],
)
def test_a_checkpoint_of_another_model_or_loss_is_never_used(tmp_path, capsys, change, named):
    load_trained_model(tiny_workload(), tmp_path, "cpu")
    load_trained_model(tiny_workload(**change), tmp_path, "cpu")
    err = capsys.readouterr().err
    assert named in err
    assert err.count("\n") == 1


def test_other_data_or_another_recipe_has_its_own_folder(tmp_path):
    workload = tiny_workload()
    others = [
        tiny_workload(train=random_examples(60, seed=3)),
        tiny_workload(train=workload.train.subset(slice(59))),
        tiny_workload(test=random_examples(7, seed=4)),
        tiny_workload(epochs=4),
        tiny_workload(target_sign=-1),
    ]
    assert len({workload_folder(each, tmp_path) for each in [workload, *others]}) == 1 + len(others)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write in"):
        load_trained_model(tiny_workload(), tmp_path / "file", "cpu")
    with pytest.raises(UserError, match="cannot write in"):
        load_ground_truth(tiny_workload(), tmp_path / "file", 2, "cpu")


def test_what_lies_in_a_folder_that_cannot_be_locked_is_used_or_the_difference_named(tmp_path, capsys):
    model = load_trained_model(tiny_workload(), tmp_path, "cpu")
    truth = load_ground_truth(tiny_workload(), tmp_path, 2, "cpu")
    with no_locks_below(tmp_path):
        assert load_trained_model(tiny_workload(), tmp_path, "cpu").fingerprint == model.fingerprint
        assert torch.equal(load_ground_truth(tiny_workload(), tmp_path, 2, "cpu").losses, truth.losses)
        capsys.readouterr()
        with pytest.raises(UserError, match="cannot lock files in"):
            load_trained_model(tiny_workload(loss=minus_cross_entropy), tmp_path, "cpu")
    assert "made again, because initial_losses" in capsys.readouterr().err


def test_subsets_are_random_halves_that_depend_on_their_number_only():
    halves = torch.stack([random_half(61, s) for s in range(200)])
    assert halves.shape == (200, 30)
    assert (halves.diff(dim=1) > 0).all()
    assert halves.min() == 0
    assert halves.max() == 60
    assert torch.equal(random_half(61, 7), halves[7])
    # Each sample is in Binomial(200, 30/61) of them; 61 two-sided 5-sigma events: false alarm below 1e-4.
    counts = halves.flatten().bincount(minlength=61)
    assert (counts - 200 * 30 / 61).abs().max() < 5 * (200 * 0.25) ** 0.5


def test_ground_truth_is_the_test_losses_of_models_trained_on_the_subsets(tmp_path):
    workload = tiny_workload(perceptron)
    truth = load_ground_truth(workload, tmp_path, 12, "cpu")
    assert truth.subset_indices.shape == (12, 30)
    assert truth.subset_indices.dtype == torch.int64
    assert truth.losses.shape == (12, 7)
    assert truth.losses.dtype == torch.float32
    for s in (0, 9, 11):
        assert torch.equal(truth.subset_indices[s], random_half(60, s))
        seed = derive_seed(subset_models.SEED, s, subset_models.SUBSET_MODEL)
        model = training.train_model(workload, truth.subset_indices[s], seed, "cpu")
        alone = training.evaluate_losses(workload, model, workload.test, "cpu")
        torch.testing.assert_close(truth.losses[s], alone, rtol=1e-4, atol=1e-5)


def test_fewer_subsets_are_the_first_of_more(tmp_path, monkeypatch):
    workload = tiny_workload()
    few = load_ground_truth(workload, tmp_path / "a", 3, "cpu")
    more = load_ground_truth(workload, tmp_path / "a", 2 * GROUP_SIZE + 1, "cpu")
    at_once = load_ground_truth(workload, tmp_path / "b", 2 * GROUP_SIZE + 1, "cpu")
    assert torch.equal(more.losses, at_once.losses)
    assert torch.equal(few.losses, more.losses[:3])
    assert torch.equal(few.subset_indices, more.subset_indices[:3])
    forbid_training(monkeypatch)
    assert torch.equal(load_ground_truth(workload, tmp_path / "a", 5, "cpu").losses, more.losses[:5])
    assert torch.equal(load_ground_truth(workload, tmp_path / "a", 3 * GROUP_SIZE, "cpu").losses[:5], more.losses[:5])


def test_the_stored_sign_is_the_workloads_and_losses_come_back_as_losses(tmp_path):
    plus, minus = tiny_workload(), tiny_workload(target_sign=-1)
    truths = [load_ground_truth(workload, tmp_path, 2, "cpu") for workload in (plus, minus)]
    assert torch.equal(truths[0].losses, truths[1].losses)
    stored = [torch.load(workload_folder(w, tmp_path) / "lds" / "target_values_lds.pt") for w in (plus, minus)]
    assert torch.equal(stored[0], -stored[1])
    assert (stored[0] > 0).all()


@pytest.mark.parametrize(("make_model", "num_subsets"), [(perceptron, 2 * GROUP_SIZE), (batch_norm_perceptron, 3)])
def test_interrupted_at_any_write_it_goes_on_with_the_same_numbers(tmp_path, monkeypatch, make_model, num_subsets):
    workload = tiny_workload(make_model, epochs=1)
    replace, writes = os.replace, 0

    def count(*args):
        nonlocal writes
        writes += 1
        replace(*args)

    monkeypatch.setattr(os, "replace", count)
    whole = load_ground_truth(workload, tmp_path / "whole", num_subsets, "cpu")
    for last in range(0, writes, max(1, writes // 12)):
        left = last

        def interrupt(*args):
            nonlocal left
            if left == 0:
                raise Interrupted
            left -= 1
            replace(*args)

        monkeypatch.setattr(os, "replace", interrupt)
        with pytest.raises(Interrupted):
            load_ground_truth(workload, tmp_path / str(last), num_subsets, "cpu")
        monkeypatch.setattr(os, "replace", replace)
        resumed = load_ground_truth(workload, tmp_path / str(last), num_subsets, "cpu")
        assert torch.equal(resumed.losses, whole.losses)
        assert torch.equal(resumed.subset_indices, whole.subset_indices)


def test_finished_groups_are_not_trained_again(tmp_path, monkeypatch):
    workload = tiny_workload()
    load_ground_truth(workload, tmp_path, GROUP_SIZE, "cpu")
    trained = []
    train_together = training.train_together

    def spy(workload, subset_indices, *args, **kwargs):
        trained.append(subset_indices)
        return train_together(workload, subset_indices, *args, **kwargs)

    monkeypatch.setattr(training, "train_together", spy)
    load_ground_truth(workload, tmp_path, 2 * GROUP_SIZE, "cpu")
    assert len(trained) == 1
    assert torch.equal(trained[0][0], random_half(60, GROUP_SIZE))


def test_a_damaged_subset_model_costs_its_own_group_only(tmp_path, capsys):
    workload = tiny_workload()
    truth = load_ground_truth(workload, tmp_path, 2 * GROUP_SIZE, "cpu")
    half = workload_folder(workload, tmp_path) / "models_half"
    for name in ("model_weights_0.pt", "test_losses.pt"):
        stamps = {path: path.stat().st_mtime_ns for path in half.glob("*/*.pt")}
        (half / "3" / name).write_bytes(b"x")
        again = load_ground_truth(workload, tmp_path, 2 * GROUP_SIZE, "cpu")
        assert torch.equal(again.losses, truth.losses)
        err = capsys.readouterr().err
        assert f"{name} is damaged" in err
        assert err.count("\n") == 1
        changed = {path.parent.name for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp}
        assert changed == {str(s) for s in range(GROUP_SIZE)}


def test_damaged_lds_files_are_written_again_without_training(tmp_path, monkeypatch):
    workload = tiny_workload()
    truth = load_ground_truth(workload, tmp_path, 3, "cpu")
    forbid_training(monkeypatch)
    path = workload_folder(workload, tmp_path) / "lds" / "target_values_lds.pt"
    path.write_bytes(path.read_bytes()[:-1])
    assert torch.equal(load_ground_truth(workload, tmp_path, 3, "cpu").losses, truth.losses)


def test_ground_truth_of_another_version_or_model_is_removed_with_one_line(tmp_path, capsys):
    workload = tiny_workload()
    load_ground_truth(workload, tmp_path, 2 * GROUP_SIZE, "cpu")
    half = workload_folder(workload, tmp_path) / "models_half"
    edit_manifest(half / "manifest.json", dattri="0.1")
    load_ground_truth(workload, tmp_path, 3, "cpu")
    err = capsys.readouterr().err
    assert 'dattri was "0.1"' in err
    assert err.count("\n") == 1
    assert sum(path.is_dir() for path in half.iterdir()) == GROUP_SIZE
    other = tiny_workload(loss=minus_cross_entropy, training_loss=lambda o, t: -minus_cross_entropy(o, t).mean())
    losses = load_ground_truth(other, tmp_path, 3, "cpu").losses
    assert (losses < 0).all()


def test_large_models_are_trained_one_by_one_and_the_expected_time_is_printed(tmp_path, capsys):
    workload = tiny_workload(batch_norm_perceptron)
    truth = load_ground_truth(workload, tmp_path, 3, "cpu")
    half = workload_folder(workload, tmp_path) / "models_half"
    assert sum(path.is_dir() for path in half.iterdir()) == 3
    assert "expected for all 3" in capsys.readouterr().err
    model = training.fresh_model(workload, 0)
    model.load_state_dict(torch.load(half / "2" / "model_weights_0.pt"))
    assert torch.equal(training.evaluate_losses(workload, model, workload.test, "cpu"), truth.losses[2])


@pytest.mark.parametrize(("num_subsets", "num_train"), [(0, 60), (3, 1)])
def test_too_few_subsets_or_samples_are_one_line(tmp_path, num_subsets, num_train):
    workload = tiny_workload()
    workload = dataclasses.replace(workload, train=workload.train.subset(slice(num_train)))
    with pytest.raises(UserError, match=f"got {num_subsets} subsets and {num_train} samples"):
        load_ground_truth(workload, tmp_path, num_subsets, "cpu")


def start_making(folder, epochs, num_subsets):
    command = [sys.executable, "-m", "tests.reference_training", str(folder), str(epochs), str(num_subsets)]
    return subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE)


def killed_and_resumed(folder, kills, epochs, num_subsets, rng):
    """Kill the making at random moments after its first files; return how many kills hit a live process."""
    hits = 0
    for _ in range(kills):
        process = start_making(folder, epochs, num_subsets)
        with process:
            files = len(list(folder.rglob("*.pt"))) + rng.randrange(GROUP_SIZE)
            while process.poll() is None and len(list(folder.rglob("*.pt"))) <= files:
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.03))
            process.kill()
            process.communicate()
            hits += process.returncode == -signal.SIGKILL
    return hits


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_ends_with_the_numbers_of_an_uninterrupted_run(tmp_path, kills):
    # no kill waits for more than two groups, so that the last one still finds something to do
    epochs, num_subsets = 6, GROUP_SIZE * 3 * kills
    assert killed_and_resumed(tmp_path / "killed", kills, epochs, num_subsets, random.Random(kills)) > kills // 2
    resumed = load_ground_truth(tiny_workload(epochs=epochs), tmp_path / "killed", num_subsets, "cpu")
    whole = load_ground_truth(tiny_workload(epochs=epochs), tmp_path / "whole", num_subsets, "cpu")
    assert torch.equal(resumed.losses, whole.losses)
    assert not list(tmp_path.rglob("*.partial"))


def test_two_processes_make_one_ground_truth(tmp_path):
    processes = [start_making(tmp_path / "both", 6, 30) for _ in range(2)]
    for process in processes:
        with process:
            _, err = process.communicate()
            assert process.returncode == 0, err
            assert b"made again" not in err
    both = load_ground_truth(tiny_workload(epochs=6), tmp_path / "both", 30, "cpu")
    assert torch.equal(both.losses, load_ground_truth(tiny_workload(epochs=6), tmp_path / "one", 30, "cpu").losses)


def test_dattris_own_loader_reads_it_and_its_loss_function_gives_the_stored_targets(tmp_path, monkeypatch):
    load_module = pytest.importorskip("dattri.benchmark.load")
    workload = tiny_workload(
        models.make_lr,
        name="mnist_lr",
        train=random_examples(40, 1, (1, 28, 28), 10),
        test=random_examples(6, 2, (1, 28, 28), 10),
        recipe=TrainingRecipe(epochs=2, learning_rate=0.01, batch_size=8),
    )
    trained = load_trained_model(workload, tmp_path, "cpu")
    truth = load_ground_truth(workload, tmp_path, GROUP_SIZE, "cpu")
    datasets = [TensorDataset(part.inputs, part.targets) for part in (workload.train, workload.test)]
    monkeypatch.setitem(load_module.SUPPORTED_DATASETS, "mnist", lambda path: datasets)
    download_path = workload_folder(workload, tmp_path).parents[1]
    parts, (values, indices) = load_module.load_benchmark("lr", "mnist", "lds", download_path=download_path)
    assert torch.equal(indices, truth.subset_indices)
    assert torch.equal(values, truth.losses)
    assert len(parts["models_half"]) == GROUP_SIZE
    assert len(parts["models_full"]) == 1
    loader = DataLoader(parts["test_dataset"], batch_size=4)
    for path, target in zip(parts["models_half"], values, strict=True):
        torch.testing.assert_close(parts["loss_func"](path, loader), target)
    full = training.evaluate_losses(workload, trained.model, workload.test, "cpu")
    torch.testing.assert_close(parts["loss_func"](parts["models_full"][0], loader), full)
