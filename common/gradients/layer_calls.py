"""Recognise, while a model runs, every call that uses its trainable parameters.

Calls are intercepted where they use a parameter (`torch.nn.functional.linear` and the like), not at modules, so that
parameters which a module hands to a function, shares or reuses are seen too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

RELATIVE_POSITION_EQUATION = "hld,md->hlm"


@dataclass(frozen=True)
class ConvGeometry:
    """Which input pixels each output pixel of a convolution sees."""

    kernel: tuple[int, int]
    """Height and width."""
    stride: int | tuple[int, ...]
    """As for `torch.nn.functional.conv2d`, like the next two."""
    padding: int | tuple[int, ...]
    """Zeros around the image, the same before and after."""
    dilation: int | tuple[int, ...]
    """Distance between kernel pixels."""
    border: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Zeros left, right, above, below the image, applied first (`padding="same"`)."""

    def padded(self, images: Tensor) -> Tensor:
        """Return the images inside their border."""
        return F.pad(images, self.border) if any(self.border) else images

    def patches(self, images: Tensor) -> Tensor:
        """Return (B, channels * kernel pixels, S): what each of the S output pixels saw."""
        return F.unfold(self.padded(images), self.kernel, self.dilation, self.padding, self.stride)


@dataclass(frozen=True)
class LayerCall:
    """One use of parameters in a forward pass."""

    kind: str
    """`linear`, `conv`, `lookup`, `layer_norm` or `batch_norm`."""
    weight: str | None
    """Name of the parameter, None where the layer has none that is trained."""
    bias: str | None
    """Likewise."""
    input: Tensor
    """What the layer was given, detached."""
    version: int
    """The input's in-place version when it was given."""
    edge: GradientEdge
    """Where the error of the output arrives, whatever is later done to the output in place."""
    setting: Any
    """conv: ConvGeometry; norms: input -> normalised input; lookup: padding index; linear: the row
    of the parameter at which the used rows begin."""


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are differentiated, by name, in the order of the flat gradient."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


# How calls are recognised: one reader a function, with that function's own signature


def _read_linear(input, weight, bias=None):
    return "linear", input, weight, bias, 0


def _read_einsum(equation, *operands):
    if equation != RELATIVE_POSITION_EQUATION:
        return None
    return "linear", operands[0], operands[1], None, 0


def _read_conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    if groups != 1 or input.ndim != 4:
        return None
    kernel = tuple(weight.shape[2:])
    if isinstance(padding, str):
        border = _same_border(kernel, dilation) if padding == "same" else (0, 0, 0, 0)
        return "conv", input, weight, bias, ConvGeometry(kernel, stride, 0, dilation, border)
    return "conv", input, weight, bias, ConvGeometry(kernel, stride, padding, dilation)


def _same_border(kernel: tuple[int, int], dilation: int | tuple[int, ...]) -> tuple[int, int, int, int]:
    steps = (dilation, dilation) if isinstance(dilation, int) else tuple(dilation)
    high, wide = (step * (size - 1) for step, size in zip(steps, kernel, strict=True))
    return wide // 2, wide - wide // 2, high // 2, high - high // 2


def _read_embedding(
    input, weight, padding_idx=None, max_norm=None, norm_type=2.0, scale_grad_by_freq=False, sparse=False
):
    if max_norm is not None or scale_grad_by_freq or sparse:
        return None
    return "lookup", input, weight, None, padding_idx


def _read_layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5):
    if len(normalized_shape) != 1:
        return None
    return "layer_norm", input, weight, bias, partial(_layer_normalised, shape=tuple(normalized_shape), eps=eps)


def _layer_normalised(values: Tensor, shape: tuple[int, ...], eps: float) -> Tensor:
    return F.layer_norm(values, shape, None, None, eps)


def _read_batch_norm(input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
    if training:
        return None
    return "batch_norm", input, weight, bias, partial(_batch_normalised, running_mean, running_var, eps)


def _batch_normalised(mean: Tensor, variance: Tensor, eps: float, values: Tensor) -> Tensor:
    return F.batch_norm(values, mean, variance, None, None, False, 0.0, eps)


_READERS = {
    F.linear: _read_linear,
    torch.einsum: _read_einsum,
    F.conv2d: _read_conv2d,
    F.embedding: _read_embedding,
    F.layer_norm: _read_layer_norm,
    F.batch_norm: _read_batch_norm,
}


class CallRecorder(TorchFunctionMode):
    """Lists the calls that use trainable parameters, and the parameters used in a way that is not understood."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.calls: list[LayerCall] = []
        self.unknown: dict[str, str] = {}
        # Tensor identity -> (tensor, parameter name, first row): holding the tensor keeps the identity unique.
        self._known = {id(p): (p, name, 0) for name, p in trainable_parameters(model).items()}

    def signature(self) -> tuple[tuple[str, str | None, str | None], ...]:
        return tuple((call.kind, call.weight, call.bias) for call in self.calls)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        used = {self._known[id(leaf)][1] for leaf in tree_leaves((args, kwargs)) if id(leaf) in self._known}
        if used and not self._understood(func, args, kwargs, output, used) and _is_differentiable(output):
            name = getattr(func, "__name__", str(func))
            self.unknown |= dict.fromkeys(used, f"it is used by {name} in a way that is not supported")
        return output

    def _understood(self, func, args, kwargs, output, used: set[str]) -> bool:
        if func is torch.Tensor.__getitem__:
            return self._follow_rows(args, output)
        reading = _READERS[func](*args, **kwargs) if func in _READERS else None
        if reading is None:
            return False
        kind, inputs, weight, bias, setting = reading
        _, weight_name, first_row = self._known.get(id(weight), (None, None, 0))
        _, bias_name, bias_row = self._known.get(id(bias), (None, None, 0))
        # A parameter in any other role, or part of one where all is expected, is not what the reader describes.
        if used != {weight_name, bias_name} - {None} or bias_row or (first_row and kind != "linear"):
            return False
        edge = get_gradient_edge(output)
        offset = first_row if kind == "linear" else setting
        self.calls.append(LayerCall(kind, weight_name, bias_name, inputs.detach(), inputs._version, edge, offset))
        return True

    def _follow_rows(self, args, output) -> bool:
        """Remember `parameter[start:]` and `parameter[start:, :]` as the last rows of a parameter."""
        tensor, index = args
        index = index if isinstance(index, tuple) else (index,)
        rows, rest = index[0], index[1:]
        if not isinstance(rows, slice) or rows.stop is not None or rows.step is not None:
            return False
        if id(tensor) not in self._known or any(part != slice(None) for part in rest):
            return False
        _, name, first_row = self._known[id(tensor)]
        self._known[id(output)] = (output, name, first_row + tensor.shape[0] - output.shape[0])
        return True


def _is_differentiable(output) -> bool:
    return any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_leaves(output))
