"""Per-sample gradients the slow and certain way: one sample, one backward pass."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def one_by_one_gradients(model: nn.Module, loss, inputs: Tensor, targets: Tensor, dtype=torch.float64) -> Tensor:
    """Return the (N, d) gradients of each sample's loss, by plain autograd on a copy of the model in `dtype`."""
    model = copy.deepcopy(model).to(dtype)
    inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
    rows = []
    for index in range(len(inputs)):
        model.zero_grad(set_to_none=True)
        loss(model(inputs[index : index + 1]), targets[index : index + 1]).sum().backward()
        rows.append(torch.cat([_flat_gradient(p) for p in model.parameters() if p.requires_grad]))
    return torch.stack(rows)


def _flat_gradient(parameter: Tensor) -> Tensor:
    return (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.to_dense()).flatten()
