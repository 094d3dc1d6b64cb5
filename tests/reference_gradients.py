"""Per-sample gradients the slow and certain way: one sample, one backward pass."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def one_by_one_gradients(model: nn.Module, loss, inputs, targets: Tensor, dtype=torch.float64) -> Tensor:
    """Return the (N, d) gradients of each sample's loss, by plain autograd on a copy of the model in `dtype`.

    `inputs` is a tensor, or a dict of the model's named arguments.
    """
    model = copy.deepcopy(model).to(dtype)
    rows = []
    for index in range(len(targets)):
        model.zero_grad(set_to_none=True)
        if isinstance(inputs, dict):
            outputs = model(**{name: _one(tensor, index, dtype) for name, tensor in inputs.items()})
        else:
            outputs = model(_one(inputs, index, dtype))
        loss(outputs, targets[index : index + 1]).sum().backward()
        rows.append(torch.cat([_flat_gradient(p) for p in model.parameters() if p.requires_grad]))
    return torch.stack(rows)


def _one(tensor: Tensor, index: int, dtype: torch.dtype) -> Tensor:
    one = tensor[index : index + 1]
    return one.to(dtype) if one.is_floating_point() else one


def _flat_gradient(parameter: Tensor) -> Tensor:
    return (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.to_dense()).flatten()
