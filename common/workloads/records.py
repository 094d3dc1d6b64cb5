"""The small records that a (dataset, model) pair is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Examples:
    """Samples that travel together, one row a sample."""

    inputs: Tensor
    """(N, ...) float32 or int64, as the model takes them."""
    targets: Tensor
    """(N, ...) int64, as the loss takes them."""

    def __len__(self) -> int:
        return len(self.inputs)

    def subset(self, indices) -> Examples:
        """Return the samples at `indices` (a slice, list or (K,) int64 tensor), in that order."""
        return Examples(self.inputs[indices], self.targets[indices])


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
    loss: Callable[[Tensor, Tensor], Tensor]
    """(outputs (B, ...), targets (B, ...)) -> (B,) losses: the quantity whose change is attributed."""
    recipe: TrainingRecipe | None
    """How the model, and every subset model of the LDS ground truth, is trained; None: make_model's is trained."""
    training_loss: Callable[[Tensor, Tensor], Tensor] | None = None
    """(outputs, targets) -> scalar that training minimises; None means the mean of `loss`."""
    correct: Callable[[Tensor, Tensor], Tensor] | None = None
    """(outputs, targets) -> (B,) bool; None where accuracy means nothing."""
    target_sign: int = 1
    """Stored LDS target values are target_sign times the loss."""
    ground_truth: GroundTruth | None = None
    """Test losses of models that were retrained elsewhere; None: they are trained here, with `recipe`."""

    def objective(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the scalar that training minimises."""
        if self.training_loss is not None:
            return self.training_loss(outputs, targets)
        return self.loss(outputs, targets).mean()
