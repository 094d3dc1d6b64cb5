"""A workload file so small that a whole run takes a second; tests change a line of it."""

from __future__ import annotations

from pathlib import Path

TINY = """
import torch
from torch import nn

from common.workloads.losses import cross_entropy
from common.records import Examples, TrainingRecipe, Workload


def make_workload():
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(44, 9, generator=generator)
    targets = inputs[:, :4].argmax(1)
    train, test = Examples(inputs[:24], targets[:24]), Examples(inputs[24:], targets[24:])
    loss, recipe = cross_entropy, TrainingRecipe(epochs=3, learning_rate=0.1)
    # change
    return Workload("tiny", lambda: nn.Linear(9, 4), train, test, loss, recipe)
"""


def write_tiny(folder: Path, change: str = "") -> Path:
    """Write the file with the statements `change` (one line each) before it returns."""
    path = folder / "tiny_workload.py"
    lines = "".join(f"    {line}\n" for line in change.splitlines())
    path.write_text(TINY.replace("    # change\n", lines))
    return path
