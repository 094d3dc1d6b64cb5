"""The small records that a (dataset, model) pair is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Inputs = Tensor | dict[str, Tensor] | tuple[Tensor, ...]
"""What a model takes: one tensor, or several as its named or positional arguments; the first dimension is samples."""
Loss = Callable[[Any, Tensor], Tensor]
"""(what the model returns for B samples, their targets) -> (B,) losses."""


def map_tensors(change: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """Return the inputs with each tensor changed, in the same form."""
    if isinstance(inputs, dict):
        return {name: change(tensor) for name, tensor in inputs.items()}
    return tuple(change(tensor) for tensor in inputs) if isinstance(inputs, tuple) else change(inputs)


def input_tensors(inputs: Inputs) -> dict[str, Tensor]:
    """Return the tensors of which the inputs consist, in their order, under the model's names or numbered from 0."""
    if isinstance(inputs, dict):
        return inputs
    return {str(i): tensor for i, tensor in enumerate(inputs if isinstance(inputs, tuple) else [inputs])}


@dataclass(frozen=True)
class Examples:
    """Samples that travel together, one row a sample."""

    inputs: Inputs
    """(N, ...) tensor as the model takes it; or a dict or tuple of such tensors, the model's arguments. Arrays of numpy
    become tensors, a list becomes a tuple."""
    targets: Tensor
    """(N, ...) of any dtype, as the loss takes them."""

    def __post_init__(self):
        inputs = tuple(self.inputs) if isinstance(self.inputs, list) else self.inputs
        object.__setattr__(self, "inputs", map_tensors(_as_tensor, inputs))
        object.__setattr__(self, "targets", _as_tensor(self.targets))

    def __len__(self) -> int:
        return len(self.targets)

    def subset(self, indices) -> Examples:
        """Return the samples at `indices` (a slice, list or (K,) int64 tensor), in that order."""
        return Examples(map_tensors(lambda tensor: tensor[indices], self.inputs), self.targets[indices])

    def to(self, device: torch.device | str) -> Examples:
        """Return the samples on a device."""
        return Examples(map_tensors(lambda tensor: tensor.to(device), self.inputs), self.targets.to(device))

    def tensors(self) -> list[Tensor]:
        """Return the tensors of inputs and targets."""
        return [*input_tensors(self.inputs).values(), self.targets]


def concatenate(parts: Sequence[Examples]) -> Examples:
    """Return the samples of all parts, one after the other."""
    named = [input_tensors(part.inputs) for part in parts]
    if any(tensors.keys() != named[0].keys() for tensors in named):
        raise ValueError("parts whose inputs have different names or numbers cannot be one")
    joined = (torch.cat([tensors[name] for tensors in named]) for name in named[0])
    inputs = map_tensors(lambda _: next(joined), parts[0].inputs)
    return Examples(inputs, torch.cat([part.targets for part in parts]))


def _as_tensor(value):
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


@dataclass(frozen=True)
class Dataset:
    """A training and a test part, in a fixed order that does not depend on any option."""

    train: Examples
    test: Examples


@dataclass(frozen=True)
class TrainingRecipe:
    """How one model is trained; everything that changes the trained weights except seed and data."""

    epochs: int
    """Passes over the training samples."""
    learning_rate: float
    """Constant over the whole training."""
    momentum: float = 0.0
    """SGD only."""
    batch_size: int = 64
    """Samples a step; the last, smaller batch of an epoch is used too."""
    optimizer: str = "sgd"
    """`sgd`, or `adam` with betas (0.9, 0.98) and eps 1e-8."""


@dataclass(frozen=True)
class GroundTruth:
    """What retraining on subsets really does to the test samples: the truth behind the LDS."""

    subset_indices: Tensor
    """(S, h) int64: the training samples of each subset model, ascending."""
    losses: Tensor
    """(S, n_test) float32: loss of every test sample under each subset model. Always the loss itself, also where the
    stored targets are minus the loss."""


@dataclass(frozen=True)
class Workload:
    """Everything the experiments need to know about one (dataset, model) pair."""

    name: str
    """Names folders and caches, for example `mnist_mlp`."""
    make_model: Callable[[], nn.Module]
    """Returns an untrained model on the CPU; draws from torch's global generator, which the caller seeds."""
    train: Examples
    """Training samples, rows of G."""
    test: Examples
    """Test samples, never trained on."""
    loss: Loss
    """(outputs of the model for B samples, their targets) -> (B,) losses: the quantity whose change is attributed."""
    recipe: TrainingRecipe | None
    """How the model, and every subset model of the LDS ground truth, is trained; None: make_model's is trained."""
    training_loss: Callable[[Any, Tensor], Tensor] | None = None
    """(outputs, targets) -> scalar that training minimises; None means the mean of `loss`."""
    correct: Callable[[Any, Tensor], Tensor] | None = None
    """(outputs, targets) -> (B,) bool; None where accuracy means nothing."""
    target_sign: int = 1
    """Stored LDS target values are target_sign times the loss."""
    ground_truth: GroundTruth | None = None
    """Test losses of models that were retrained elsewhere; None: they are trained here, with `recipe`."""

    def required_recipe(self) -> TrainingRecipe:
        """Return the recipe.

        Raises:
            ValueError: there is none, because the model comes trained.
        """
        if self.recipe is None:
            raise ValueError(f"{self.name} has no recipe: its model comes trained")
        return self.recipe

    def objective(self, outputs: Any, targets: Tensor) -> Tensor:
        """Return the scalar that training minimises."""
        if self.training_loss is not None:
            return self.training_loss(outputs, targets)
        return self.loss(outputs, targets).mean()
