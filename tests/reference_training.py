"""Tiny workloads for the tests of training and benchmarks, and a command line that makes their ground truth."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from common.workloads.benchmark import load_ground_truth
from common.workloads.losses import argmax_correct, cross_entropy
from common.workloads.records import Examples, TrainingRecipe, Workload

FEATURES, CLASSES = 5, 3


def random_examples(count: int, seed: int, shape: tuple[int, ...] = (FEATURES,), classes: int = CLASSES) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, *shape, generator=generator)
    return Examples(inputs, torch.randint(classes, (count,), generator=generator))


def perceptron(dropout: float = 0.0) -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, CLASSES))


def dropout_perceptron() -> nn.Module:
    return perceptron(0.2)


def batch_norm_perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES))


def tiny_workload(make_model=dropout_perceptron, epochs: int = 3, **changes) -> Workload:
    fields = {
        "name": "tiny",
        "make_model": make_model,
        "train": random_examples(60, seed=1),
        "test": random_examples(7, seed=2),
        "loss": cross_entropy,
        "correct": argmax_correct,
        "recipe": TrainingRecipe(epochs=epochs, learning_rate=0.1, momentum=0.9, batch_size=8),
    }
    return Workload(**{**fields, **changes})


def minus_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return -cross_entropy(outputs, targets)


if __name__ == "__main__":
    load_ground_truth(tiny_workload(epochs=int(sys.argv[2])), Path(sys.argv[1]), int(sys.argv[3]), "cpu")
