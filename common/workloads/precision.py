"""A model, its samples and its loss in another floating-point precision."""

from __future__ import annotations

import copy
import warnings
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from common.workloads.records import Examples, Loss, map_tensors

MOST_OUTPUTS = 2**20
"""Numbers a sample up to which outputs are converted: 8 MB in float64, of which a loss may hold several at once."""


class LossInFloat64:
    """A loss that is given outputs and targets in float64, of a model in any precision, where they are not too many.

    −log p and its derivative p − 1 are nothing but rounding in float32 where a sample is fit to 1e-7; in float64 they
    have the digits that the outputs have. Outputs of more than `MOST_OUTPUTS` numbers a sample, the logits of long
    texts, stay as they are: there are words among them that are not fit, and have most of the gradient.
    """

    def __init__(self, loss: Loss):
        self._loss = loss

    def __call__(self, outputs: Any, targets: Tensor) -> Tensor:
        """Return the (B,) losses."""
        numbers = sum(leaf.numel() for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor))
        if numbers > MOST_OUTPUTS * len(targets):
            return self._loss(outputs, targets)
        exact = partial(_cast, dtype=torch.float64)
        return self._loss(tree_map_only(Tensor, exact, outputs), exact(targets))


def in_dtype(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy of a model with all floating-point parameters and buffers in `dtype`, complex ones in its twin."""
    with warnings.catch_warnings():
        # a compiled script's parameters are no leaves
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
        # Module.to would keep nothing but the real part of complex numbers
        return copied(model)._apply(partial(_cast, dtype=dtype))


def copied(model: nn.Module) -> nn.Module:
    """Return a copy of a model, also of one that keeps results of its last run, compressed matrices, or a lock.

    Python copies none of these: detached copies take the place of tensors, what else it does not copy belongs to both.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in tree_leaves(vars(module)):
            if isinstance(value, Tensor):
                if not value.is_leaf or value.layout not in (torch.strided, torch.sparse_coo):
                    memo[id(value)] = value.detach().clone()
            elif not (isinstance(value, nn.Module) or _can_be_copied(value)):
                memo[id(value)] = value
    return copy.deepcopy(model, memo)


def _can_be_copied(value: object) -> bool:
    # a bound method would copy its whole model
    if callable(value):
        return True
    try:
        copy.deepcopy(value)
    except Exception:  # whatever an object of a user's says to that
        return False
    return True


def match_inputs(examples: Examples, dtype: torch.dtype) -> Examples:
    """Return the samples with floating-point inputs and targets in `dtype`, complex ones in its twin, others as is."""
    return Examples(map_tensors(partial(_cast, dtype=dtype), examples.inputs), _cast(examples.targets, dtype))


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.is_complex():
        return tensor.to(dtype.to_complex())
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
