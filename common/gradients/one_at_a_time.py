"""Per-sample gradients the slow and certain way: one sample, one backward pass of plain autograd."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from common.workloads.records import Examples, Loss
from common.workloads.running import backward_pass, run_model


def sample_gradients(model: nn.Module, loss: Loss, batch: Examples, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return the (B, *shape) gradient of each sample's loss by each parameter; zero where a sample does not use it."""
    rows = [one_gradient(model, loss, batch.subset(slice(i, i + 1)), parameters) for i in range(len(batch))]
    return [torch.stack(gradients) for gradients in zip(*rows, strict=True)]


def one_gradient(model: nn.Module, loss: Loss, one: Examples, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradient of the loss of a single sample by each parameter."""
    with torch.enable_grad():
        total = loss(run_model(model, one.inputs), one.targets).sum()
        return gradients(total, parameters)


def gradients(total: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return the dense gradient of a scalar by each parameter; zero where it does not depend on one."""
    if not total.requires_grad:
        return [torch.zeros_like(parameter) for parameter in parameters]
    found = backward_pass(total, parameters)
    # an embedding with sparse=True has a sparse gradient
    return [_dense(gradient, parameter) for gradient, parameter in zip(found, parameters, strict=True)]


def _dense(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    if gradient is None:
        return torch.zeros_like(parameter)
    return gradient.to_dense() if gradient.is_sparse else gradient
