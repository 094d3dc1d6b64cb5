from __future__ import annotations

import importlib.util
import sys

import pytest
import torch

import hyperparam_selection
from common.experiments.lds import sweep as lds_sweep
from common.experiments.script import run_script
from common.foundations.errors import UserError
from common.workloads import models
from common.workloads.published import load_published_benchmark
from tests.reference_training import random_examples

TRAIN, TEST = random_examples(5000, 1, (1, 28, 28), 10), random_examples(510, 2, (1, 28, 28), 10)

# Stands in for the package that is not installed here: two files of samples below `path`.
TORCHVISION_DATASETS = """
import torch
class MNIST(torch.utils.data.Dataset):
    def __init__(self, path, train, download, transform):
        self.data = torch.load(path / ("train.pt" if train else "test.pt"))
    def __len__(self):
        return len(self.data[1])
    def __getitem__(self, i):
        return self.data[0][i], int(self.data[1][i])
"""
TORCHVISION_TRANSFORMS = """
class Compose:
    def __init__(self, steps): pass
class ToTensor: pass
class Normalize:
    def __init__(self, mean, std): pass
"""


@pytest.fixture
def torchvision(tmp_path, monkeypatch):
    package = tmp_path / "packages" / "torchvision"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "datasets.py").write_text(TORCHVISION_DATASETS)
    (package / "transforms.py").write_text(TORCHVISION_TRANSFORMS)
    monkeypatch.syspath_prepend(package.parent)
    yield
    for name in ("torchvision", "torchvision.datasets", "torchvision.transforms"):
        sys.modules.pop(name, None)


@pytest.fixture
def published(tmp_path, torchvision):
    """Write a folder as dattri's download leaves it; return it with its weights, targets and subsets."""
    folder = tmp_path / "dattri" / "benchmark" / "mnist_lr"
    weights = models.make_lr().state_dict()
    for kind in ("models_full", "models_half"):
        (folder / kind / "0").mkdir(parents=True)
        torch.save(weights, folder / kind / "0" / "model_weights_0.pt")
    values, indices = torch.rand(4, 500), torch.stack([torch.randperm(5000)[:2500] for _ in range(4)])
    (folder / "lds").mkdir()
    torch.save(values, folder / "lds" / "target_values_lds.pt")
    torch.save(indices, folder / "lds" / "indices_lds.pt")
    data = tmp_path / "dattri" / "dataset"
    data.mkdir()
    torch.save((TRAIN.inputs, TRAIN.targets), data / "train.pt")
    torch.save((TEST.inputs, TEST.targets), data / "test.pt")
    return folder, weights, values, indices


def test_the_published_files_become_our_records(tmp_path, published):
    _, weights, values, indices = published
    trained, truth, train, test = load_published_benchmark("mnist", "lr", tmp_path, "cpu")
    assert torch.equal(train.inputs, TRAIN.inputs)
    assert torch.equal(train.targets, TRAIN.targets)
    assert torch.equal(test.inputs, TEST.inputs[:500])
    assert torch.equal(test.targets, TEST.targets[:500])
    assert torch.equal(trained.model.linear.weight.detach(), weights["linear.weight"])
    assert not trained.model.training
    right = (trained.model(test.inputs).argmax(1) == test.targets).float().mean().item()
    assert trained.test_accuracy == pytest.approx(right)
    assert torch.equal(truth.losses, values)
    assert torch.equal(truth.subset_indices, indices)


@pytest.mark.slow
def test_hyperparam_selection_judges_by_the_published_ground_truth(tmp_path, published, monkeypatch):
    _, _, values, indices = published
    used = []
    make = lds_sweep.make_task
    monkeypatch.setattr(lds_sweep, "make_task", lambda *args: used.append(make(*args)) or make(*args))
    options = "--model lr --benchmark dattri --num_subsets 3 --num_test_grads 40 --predict_only --max_m 64"
    folders = [f"--{name}={tmp_path / name}" for name in ("cache_dir", "output_dir")]
    monkeypatch.setattr("sys.argv", ["script", *options.split(), f"--benchmark_dir={tmp_path}", *folders])
    hyperparam_selection.main()
    (summary,) = (tmp_path / "output_dir").glob("*/*/summary.csv")
    assert used[0].num_subsets == 3
    assert any(torch.equal(used[0].losses[:, 0], column) for column in values[:3].T.double())
    assert torch.equal(used[0].geometry.scored.subsets, indices[:3])
    assert summary.stat().st_size > 0
    assert not list(tmp_path.glob("mnist_lr_*"))  # nothing was trained here


def test_more_subset_models_than_were_published_are_refused_before_anything_is_computed(
    tmp_path, published, monkeypatch, capsys
):
    folders = [f"--{name}={tmp_path / name}" for name in ("cache_dir", "output_dir")]
    options = ["--model", "lr", "--benchmark", "dattri", f"--benchmark_dir={tmp_path}", *folders]
    monkeypatch.setattr("sys.argv", ["script", *options])
    with pytest.raises(SystemExit) as stop:
        run_script(hyperparam_selection.main)
    assert stop.value.code == 2
    assert "--num_subsets 50 exceeds the 4 subset models" in capsys.readouterr().err


def test_published_files_that_do_not_fit_their_data_are_one_line(tmp_path, published):
    folder, _, values, _ = published
    torch.save(values[:, :499], folder / "lds" / "target_values_lds.pt")
    with pytest.raises(UserError, match=r"does not fit its data: targets \(4, 499\)"):
        load_published_benchmark("mnist", "lr", tmp_path, "cpu")


@pytest.mark.parametrize("name", ["lds/target_values_lds.pt", "models_full/0/model_weights_0.pt"])
def test_unreadable_published_files_are_one_line(tmp_path, published, name):
    (published[0] / name).write_bytes(b"half a download")
    with pytest.raises(UserError, match="--benchmark local works offline") as caught:
        load_published_benchmark("mnist", "lr", tmp_path, "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed")
def test_without_torchvision_one_line_says_so(tmp_path):
    with pytest.raises(UserError, match=r"needs the package torchvision for mnist.*--benchmark local works offline"):
        load_published_benchmark("mnist", "lr", tmp_path, "cpu")


def test_without_network_one_line_says_so(tmp_path, torchvision, monkeypatch):
    # A proxy on a closed port is what "no network" looks like on every machine.
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(UserError, match=r"cannot download models_full.*--benchmark local works offline") as caught:
        load_published_benchmark("mnist", "lr", tmp_path, "cpu")
    assert "\n" not in str(caught.value)
