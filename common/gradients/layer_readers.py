"""What the calls mean whose per-sample gradients follow from their input and their error alone, without autograd.

One reader a function, with that function's own signature. A reader returns None where its function is used in a way
that it does not describe; such calls, and those without a reader, are differentiated on their own (layer_capture.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


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
class Reading:
    """One call of a function that a reader describes."""

    kind: str
    """`linear`, `conv`, `lookup`, `layer_norm` or `batch_norm`."""
    input: Tensor
    """What the layer was given."""
    weight: Tensor | None
    """None where the layer has none."""
    bias: Tensor | None
    """Likewise."""
    setting: Any = None
    """linear: `LinearOrder`; conv: `ConvGeometry`; norms: input -> normalised input; lookup: padding index."""


@dataclass(frozen=True)
class LinearOrder:
    """How the output of a linear map, Σ_c weight[r, c] input[..., c], lies in memory."""

    transposed: bool = False
    """Whether the weight is stored as (c, r)."""
    input_dims: tuple[int, ...] | None = None
    """The sample's dimensions of the input in the order positions, c; None: as they are."""
    error_dims: tuple[int, ...] | None = None
    """The sample's dimensions of the output in the order positions, r; None: as they are."""
    features: tuple[int, int] = (1, 1)
    """How many of these dimensions c and r take."""


def _read_linear(input, weight, bias=None):
    # a bias may have a single number for all outputs
    if weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[:1]):
        return None
    return Reading("linear", input, weight, bias, LinearOrder())


def _read_matmul(input, other):
    return Reading("linear", input, other, None, LinearOrder(transposed=True)) if other.ndim == 2 else None


def _read_mm(input, mat2):
    return _read_matmul(input, mat2)


def _read_addmm(input, mat1, mat2, *, beta=1, alpha=1, out=None):
    if (beta, alpha, out) != (1, 1, None) or tuple(input.shape) != tuple(mat2.shape[1:]):
        return None
    return Reading("linear", mat1, mat2, input, LinearOrder(transposed=True))


def _read_einsum(equation, *operands):
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    if not isinstance(equation, str) or len(operands) != 2:
        return None
    equation = equation.replace(" ", "")
    if not equation.replace(",", "").replace("->", "").isalpha() or "->" not in equation:
        return None
    terms, result = equation.split("->")
    given, of_weight = terms.split(",")
    if any(len(set(letters)) != len(letters) for letters in (given, of_weight, result)):
        return None
    rows = [letter for letter in of_weight if letter in result and letter not in given]
    cols = [letter for letter in of_weight if letter in given and letter not in result]
    places = [letter for letter in given if letter in result and letter not in of_weight]
    # letters of other roles (a sum over one operand alone, a weight for each position) are no linear map
    if not rows or not cols or len(rows) + len(cols) != len(of_weight):
        return None
    if (len(places) + len(cols), len(places) + len(rows)) != (len(given), len(result)):
        return None
    order = "".join(rows + cols)
    if of_weight not in (order, "".join(cols + rows)):
        return None
    # a parameter is a matrix of its first dimension and all others
    if len(rows if of_weight == order else cols) > 1:
        return None
    return Reading(
        "linear",
        operands[0],
        operands[1],
        None,
        LinearOrder(
            transposed=of_weight != order,
            input_dims=tuple(given.index(letter) for letter in places + cols),
            error_dims=tuple(result.index(letter) for letter in places + rows),
            features=(len(cols), len(rows)),
        ),
    )


def _read_conv(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    # only a single image a sample, as a batch of one
    if groups != 1 or weight.ndim != 4 or input.ndim != 4 or len(input) != 1:
        return None
    kernel = tuple(weight.shape[2:])
    if isinstance(padding, str):
        border = _same_border(kernel, dilation) if padding == "same" else (0, 0, 0, 0)
        return Reading("conv", input, weight, bias, ConvGeometry(kernel, stride, 0, dilation, border))
    return Reading("conv", input, weight, bias, ConvGeometry(kernel, stride, padding, dilation))


def _same_border(kernel: tuple[int, int], dilation: int | tuple[int, ...]) -> tuple[int, int, int, int]:
    steps = (dilation, dilation) if isinstance(dilation, int) else tuple(dilation)
    high, wide = (step * (size - 1) for step, size in zip(steps, kernel, strict=True))
    return wide // 2, wide - wide // 2, high // 2, high - high // 2


def _read_embedding(
    input, weight, padding_idx=None, max_norm=None, norm_type=2.0, scale_grad_by_freq=False, sparse=False
):
    if max_norm is not None or scale_grad_by_freq:
        return None
    return Reading("lookup", input, weight, None, None if padding_idx is None else padding_idx % len(weight))


def _read_layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5):
    shape = tuple(normalized_shape)
    return Reading("layer_norm", input, weight, bias, partial(_layer_normalised, shape=shape, eps=eps))


def _layer_normalised(values: Tensor, shape: tuple[int, ...], eps: float) -> Tensor:
    return F.layer_norm(values, shape, None, None, eps)


def _read_batch_norm(input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
    if training:
        return None
    return Reading("batch_norm", input, weight, bias, partial(_batch_normalised, running_mean, running_var, eps))


def _batch_normalised(mean: Tensor, variance: Tensor, eps: float, values: Tensor) -> Tensor:
    return F.batch_norm(values, mean, variance, None, None, False, 0.0, eps)


READERS: dict[Callable, Callable[..., Reading | None]] = {
    F.linear: _read_linear,
    torch.matmul: _read_matmul,
    torch.mm: _read_mm,
    torch.Tensor.matmul: _read_matmul,
    torch.Tensor.__matmul__: _read_matmul,
    torch.Tensor.mm: _read_mm,
    torch.addmm: _read_addmm,
    torch.einsum: _read_einsum,
    F.conv2d: _read_conv,
    F.embedding: _read_embedding,
    F.layer_norm: _read_layer_norm,
    F.batch_norm: _read_batch_norm,
}
_SPARSE = {F.embedding: 6, torch.embedding: 4, torch.embedding_bag: 5}
"""Function -> position of the argument that asks for a sparse gradient."""


def with_dense_gradient(func: Callable, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Return the arguments of a call such that its gradient is no sparse tensor, of which vmap can make nothing."""
    position = _SPARSE.get(func)
    if position is None:
        return args, kwargs
    if len(args) > position:
        return (*args[:position], False, *args[position + 1 :]), kwargs
    return args, {**kwargs, "sparse": False}
