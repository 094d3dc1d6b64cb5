"""photos2, embedded: 32 x 32 patches of the two photographs that ship with scikit-learn.

Not a benchmark: a stand-in with the shapes of CIFAR-2 for when there is no network.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

from common.workloads.datasets.cifar2 import normalise
from common.workloads.records import Dataset, Examples

TRAIN_SAMPLES = 2000
"""Training patches, half of each photograph."""
TEST_SAMPLES = 400
"""Test patches, half of each photograph."""

_PATCH = 32
_TEST_COLUMNS = 160
_TRAIN_STRIDE = 12
_TEST_STRIDE = 16
_SEED = 0


def load(data_dir: Path | None = None) -> Dataset:
    """Return 2,000 training and 400 test patches of china.jpg (label 0) and flower.jpg (label 1).

    Test patches come from the rightmost 160 columns of each photograph, training patches from the rest: no
    pixel is in both. Patches of one part overlap (strides 12 and 16). Which of them are taken, and their order,
    is drawn with a fixed seed.

    Args:
        data_dir: not used; the photographs are part of scikit-learn.

    Returns:
        inputs (N, 3, 32, 32) float32 in [-1, 1], scaled like CIFAR-2; targets (N,) int64.
    """
    from sklearn.datasets import load_sample_images

    generator = np.random.default_rng(_SEED)
    parts = [split_patches(photo, generator) for photo in load_sample_images().images]
    train, test = zip(*parts, strict=True)
    return Dataset(train=_shuffled(train, generator), test=_shuffled(test, generator))


def split_patches(photo: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return training (1000, 3, 32, 32) and test (200, 3, 32, 32) patches of one (427, 640, 3) photograph."""
    border = photo.shape[1] - _TEST_COLUMNS
    return (
        _patches(photo[:, :border], _TRAIN_STRIDE, TRAIN_SAMPLES // 2, generator),
        _patches(photo[:, border:], _TEST_STRIDE, TEST_SAMPLES // 2, generator),
    )


def _patches(region: np.ndarray, stride: int, count: int, generator: np.random.Generator) -> np.ndarray:
    grid = sliding_window_view(region, (_PATCH, _PATCH), axis=(0, 1))[::stride, ::stride]
    patches = grid.reshape(-1, *grid.shape[2:])
    return patches[generator.choice(len(patches), count, replace=False)]


def _shuffled(classes: tuple[np.ndarray, ...], generator: np.random.Generator) -> Examples:
    patches = torch.from_numpy(np.concatenate(classes))
    labels = torch.arange(len(classes)).repeat_interleave(len(classes[0]))
    order = torch.from_numpy(generator.permutation(len(patches)))
    return Examples(normalise(patches[order]), labels[order])
