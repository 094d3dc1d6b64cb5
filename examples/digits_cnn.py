"""A workload of one's own: a small convolutional network on scikit-learn's 8 x 8 digits.

python spectrum_bounds.py --workload examples/digits_cnn.py
python hyperparam_selection.py --workload examples/digits_cnn.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from common.records import Examples, TrainingRecipe, Workload

TRAIN_SAMPLES = 1_297


def make_workload() -> Workload:
    """Return 1,297 training and 500 test digits, and a network of 3,818 parameters."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16  # (1797, 1, 8, 8) in 0..1
    labels = torch.from_numpy(digits.target).long()
    # the digits come writer by writer: mix them, the same way each time
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[:TRAIN_SAMPLES], order[TRAIN_SAMPLES:]
    return Workload(
        name="digits_cnn",
        make_model=make_cnn,
        train=Examples(images[train], labels[train]),
        test=Examples(images[test], labels[test]),
        loss=cross_entropy,
        recipe=TrainingRecipe(epochs=15, learning_rate=0.05, momentum=0.9),
        correct=lambda outputs, targets: outputs.argmax(dim=1) == targets,
    )


def make_cnn() -> nn.Module:
    """Return an untrained network; its weights come from torch's global generator, which the caller seeds."""
    return nn.Sequential(
        nn.Conv2d(1, 8, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, kernel_size=3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 4 * 4, 10),
    )


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return one loss a sample: without reduction="none" it would be their mean."""
    return F.cross_entropy(outputs, targets, reduction="none")
