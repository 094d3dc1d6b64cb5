"""A user's workload file that is right, of which tests change a piece, and the line that says what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.foundations.errors import UserError
from common.workloads.user_file import load_user_workload

FILE = """
import torch
import torch.nn.functional as F
from torch import nn

from common.records import Examples, GroundTruth, TrainingRecipe, Workload


def samples(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 4, generator=generator), torch.randint(3, (count,), generator=generator)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(4, 5)
        self.out = nn.Linear(5, 3)

    def forward(self, inputs):
        return self.out(self.hidden(inputs).tanh())


def loss(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="none")


def make_workload():
    inputs, targets = samples(33, 1)
    test_inputs, test_targets = samples(9, 2)
    more = {}
    return Workload(
        name="mine",
        make_model=Net,
        train=Examples(inputs, targets),
        test=Examples(test_inputs, test_targets),
        loss=loss,
        recipe=TrainingRecipe(epochs=2, learning_rate=0.1, batch_size=7),
        **more,
    )
"""
TRUTH = """    more = dict(
        ground_truth=GroundTruth(
            torch.stack([torch.randperm(33, generator=torch.Generator().manual_seed(s))[:16] for s in range(8)]),
            torch.rand(8, 9, generator=torch.Generator().manual_seed(3)),
        )
    )
"""
FORWARD = "        return self.out(self.hidden(inputs).tanh())"
RECIPE = "TrainingRecipe(epochs=2, learning_rate=0.1, batch_size=7)"


def write(folder: Path, *changes: tuple[str, str], name: str = "mine.py") -> Path:
    """Write the file with some text replaced; all of it must be there."""
    text = FILE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / name
    path.write_text(text)
    return path


def more(text: str) -> tuple[str, str]:
    return "    more = {}\n", text


def with_truth(old: str, new: str) -> tuple[str, str]:
    assert old in TRUTH
    return more(TRUTH.replace(old, new))


def message(path: Path, **options) -> str:
    with pytest.raises(UserError) as caught:
        load_user_workload(path, **options)
    text = str(caught.value)
    assert text.startswith(f"--workload {path}: ")
    assert "\n" not in text
    return text.removeprefix(f"--workload {path}: ")


def line_of(text: str, path: Path) -> int:
    return next(i for i, line in enumerate(path.read_text().splitlines(), 1) if text in line)
