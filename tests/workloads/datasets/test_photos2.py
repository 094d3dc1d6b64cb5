from __future__ import annotations

import numpy as np
import torch

from common.workloads.datasets import photos2


def test_no_pixel_is_in_both_a_training_and_a_test_patch():
    # A photograph whose every pixel is its own number shows where each patch comes from.
    numbers = np.arange(427 * 640).reshape(427, 640, 1)
    train, test = photos2.split_patches(numbers, np.random.default_rng(0))
    assert train.shape == (1000, 1, 32, 32)
    assert test.shape == (200, 1, 32, 32)
    assert not np.isin(train, test).any()
    for patches in (train, test):
        assert len(np.unique(patches[:, 0, 0, 0])) == len(patches)


def test_parts_are_balanced_shuffled_scaled_and_typed():
    data = photos2.load()
    for part, size in ((data.train, 2000), (data.test, 400)):
        assert part.inputs.shape == (size, 3, 32, 32)
        assert part.inputs.dtype == torch.float32
        assert part.targets.dtype == torch.int64
        assert part.targets.sum() == size // 2
        assert set(part.targets.tolist()) == {0, 1}
        assert part.inputs.min() >= -1
        assert part.inputs.max() <= 1
        assert part.inputs.std() > 0.2
        # Five standard deviations of a fair shuffle: it fails once in a million, and the seed is fixed.
        half = part.targets[: size // 2].double()
        assert abs(half.mean() - 0.5) < 5 * 0.5 / (size / 2) ** 0.5


def test_labels_name_the_photographs():
    from sklearn.datasets import load_sample_images

    sample = load_sample_images()
    assert [name.split("/")[-1] for name in sample.filenames] == ["china.jpg", "flower.jpg"]
    data = photos2.load()
    patches = ((data.test.inputs * 0.5 + 0.5) * 255).round().to(torch.uint8)
    for patch, label in zip(patches[:20], data.test.targets[:20].tolist(), strict=True):
        found = [occurs(photo, patch.permute(1, 2, 0).numpy()) for photo in sample.images]
        assert found == [label == 0, label == 1]


def occurs(photo: np.ndarray, patch: np.ndarray) -> bool:
    """Whether the (32, 32, 3) patch is somewhere in the (427, 640, 3) photograph."""
    rows, columns = np.nonzero((photo[:-31, :-31] == patch[0, 0]).all(axis=2))
    return any(
        np.array_equal(photo[row : row + 32, column : column + 32], patch)
        for row, column in zip(rows, columns, strict=True)
    )


def test_every_call_gives_the_same_patches():
    first, second = photos2.load(), photos2.load()
    assert torch.equal(first.train.inputs, second.train.inputs)
    assert torch.equal(first.test.targets, second.test.targets)
