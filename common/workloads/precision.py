"""A model and its samples in another floating-point precision."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import Tensor, nn

from common.workloads.records import Examples, map_tensors


def in_dtype(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy of a model with all floating-point parameters and buffers in `dtype`."""
    with warnings.catch_warnings():
        # a compiled script's parameters are no leaves
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
        return copy.deepcopy(model).to(dtype)


def match_inputs(examples: Examples, dtype: torch.dtype) -> Examples:
    """Return the samples with floating-point inputs and targets in `dtype`, and all else as it is."""

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return Examples(map_tensors(cast, examples.inputs), cast(examples.targets))
