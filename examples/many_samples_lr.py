"""Far more samples than parameters: a logistic regression on 60,000 synthetic 28 x 28 images.

python spectrum_bounds.py --workload examples/many_samples_lr.py --max_m 4096 --num_trials 2

No matrix of samples by samples is made: with fewer parameters than samples, F itself (7,850 x 7,850) is decomposed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.records import Examples, TrainingRecipe, Workload

NUM_TRAIN, NUM_TEST = 60_000, 500
PIXELS, CLASSES = 28 * 28, 10


def make_workload() -> Workload:
    """Return images of ten overlapping classes, their pixels correlated, and a model of 7,850 parameters."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, CLASSES, (NUM_TRAIN + NUM_TEST,), generator=generator)
    centres = torch.randn(CLASSES, PIXELS, generator=generator) / 10
    mixing = torch.randn(PIXELS, PIXELS, generator=generator) / PIXELS**0.5
    images = (centres[labels] + torch.randn(len(labels), PIXELS, generator=generator)) @ mixing
    images = images.reshape(-1, 1, 28, 28)
    return Workload(
        name="many_samples_lr",
        make_model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, CLASSES)),
        train=Examples(images[:NUM_TRAIN], labels[:NUM_TRAIN]),
        test=Examples(images[NUM_TRAIN:], labels[NUM_TRAIN:]),
        loss=cross_entropy,
        recipe=TrainingRecipe(epochs=3, learning_rate=0.01),
        correct=lambda outputs, targets: outputs.argmax(dim=1) == targets,
    )


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return one loss a sample."""
    return F.cross_entropy(outputs, targets, reduction="none")
