"""A model and its samples in another floating-point precision."""

from __future__ import annotations

import copy
import warnings
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from common.workloads.records import Examples, map_tensors


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
