"""From one call's inputs and errors to its share of the per-sample gradients of the parameters that it uses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_unflatten

from common.gradients.layer_calls import LayerCall, Source
from common.gradients.layer_readers import ConvGeometry, LinearOrder, Reading


@dataclass(frozen=True)
class Capture:
    """One call's share of the per-sample gradients of one parameter, viewed as a (rows, cols) matrix."""

    kind: str
    """`direct`: the gradients themselves; `linear`, `conv`, `lookup`: factors whose product they are."""
    inputs: Tensor | None
    """linear: (B, S, cols); conv: (B, C, H, W); lookup: (B, S) int64 row indices; direct: None."""
    errors: Tensor
    """linear: (B, S, rows); conv: (B, rows, h, w); lookup: (B, S, cols); direct: (B, rows, cols)."""
    geometry: ConvGeometry | None = None
    """conv only."""

    @property
    def nbytes(self) -> int:
        """Bytes of inputs and errors."""
        return self.errors.nbytes + (0 if self.inputs is None else self.inputs.nbytes)

    def to(self, dtype: torch.dtype) -> Capture:
        """Return the capture in a floating-point dtype; row indices stay as they are."""
        inputs = self.inputs if self.inputs is None or self.kind == "lookup" else self.inputs.to(dtype)
        return replace(self, inputs=inputs, errors=self.errors.to(dtype))


def matrix_shape(parameter: Tensor) -> tuple[int, int]:
    """Return the (rows, cols) as which a parameter is treated: its first dimension, and all others."""
    rows = parameter.shape[0] if parameter.ndim else 1
    return rows, parameter.numel() // rows if rows else 0


def direct(gradients: Tensor) -> Capture:
    """Return the capture of (B, ...) gradients of one parameter."""
    rows, cols = matrix_shape(gradients[0])
    return Capture("direct", None, gradients.reshape(len(gradients), rows, cols))


def shares(call: LayerCall, errors: list[Tensor]) -> Iterator[tuple[Source, Capture]]:
    """Yield each parameter that the call uses (or tensor computed from parameters) with its capture.

    Args:
        call: the function, its arguments and what they mean.
        errors: one (B, ...) tensor for each differentiable output.
    """
    reading = call.reading
    if reading is None:
        yield from _by_autograd(call, errors)
        return
    (error,) = errors
    sources = {id(call.leaves[position]): source for position, source in call.sources.items()}
    weight, bias = sources.get(id(reading.weight)), sources.get(id(reading.bias))
    found = [values for position, values in call.data.items() if call.leaves[position] is reading.input]
    inputs = found[0] if found else reading.input.expand(len(error), *reading.input.shape)
    if reading.kind == "linear":
        yield from _linear(reading.setting, weight, bias, inputs, error)
    elif reading.kind == "conv":
        if weight is not None:
            yield weight, Capture("conv", inputs.flatten(0, 1), error.flatten(0, 1), reading.setting)
        if bias is not None:
            yield bias, direct(error.flatten(0, 1).sum((2, 3)))
    elif reading.kind == "lookup":
        yield weight, _lookup(reading, inputs, error)
    else:
        yield from _norm(reading, weight, bias, inputs, error)


def _linear(
    order: LinearOrder, weight: Source | None, bias: Source | None, inputs: Tensor, error: Tensor
) -> Iterator[tuple[Source, Capture]]:
    inputs = _positions_first(inputs, order.input_dims, order.features[0])
    error = _positions_first(error, order.error_dims, order.features[1])
    if weight is not None:
        cols, rows = (error, inputs) if order.transposed != weight.transposed else (inputs, error)
        yield weight, Capture("linear", cols, F.pad(rows, (weight.first_row, 0)) if weight.first_row else rows)
    if bias is not None:
        yield bias, direct(error.sum(1))


def _positions_first(values: Tensor, dims: tuple[int, ...] | None, num_features: int) -> Tensor:
    """Return (B, S, features) of (B, ...) values."""
    if dims is not None:
        values = values.permute(0, *(dim + 1 for dim in dims))
    return values.reshape(len(values), -1, values.shape[values.ndim - num_features :].numel())


def _lookup(reading: Reading, indices: Tensor, error: Tensor) -> Capture:
    indices = indices.reshape(len(indices), -1)
    error = error.reshape(*indices.shape, -1)
    if reading.setting is not None:
        error = error.masked_fill((indices == reading.setting)[..., None], 0)
    return Capture("lookup", indices, error)


def _norm(
    reading: Reading, weight: Source | None, bias: Source | None, inputs: Tensor, error: Tensor
) -> Iterator[tuple[Source, Capture]]:
    if reading.kind == "batch_norm":
        # (B, 1, C, ...): one image or row a sample, though a model may fold several into it
        summed = [dim for dim in range(1, error.ndim) if dim != 2]
        if weight is not None:
            normalised = reading.setting(inputs.flatten(0, 1)).view_as(inputs)
            yield weight, direct((normalised * error).sum(summed))
        if bias is not None:
            yield bias, direct(error.sum(summed))
        return
    affine = (weight or bias).tensor
    summed = list(range(1, error.ndim - affine.ndim))
    if weight is not None:
        products = reading.setting(inputs) * error
        yield weight, direct(products.sum(summed) if summed else products)
    if bias is not None:
        yield bias, direct(error.sum(summed) if summed else error)


def _by_autograd(call: LayerCall, errors: list[Tensor]) -> Iterator[tuple[Source, Capture]]:
    """Differentiate the call alone, sample by sample under vmap."""

    def one(values: list[Tensor], error: list[Tensor]) -> tuple[Tensor, ...]:
        def run(*parameters: Tensor) -> list[Tensor]:
            leaves = list(call.leaves)
            for position, value in zip([*call.data, *call.sources], [*values, *parameters], strict=True):
                leaves[position] = value
            args, kwargs = tree_unflatten(leaves, call.spec)
            outputs = tree_leaves(call.function(*args, **kwargs))
            return [outputs[place] for place in call.places]

        _, pull_back = torch.func.vjp(run, *(source.tensor.detach() for source in call.sources.values()))
        return pull_back(error)

    gradients = torch.func.vmap(one)(list(call.data.values()), errors)
    for source, gradient in zip(call.sources.values(), gradients, strict=True):
        if source.transposed:
            gradient = gradient.transpose(1, 2)
        if source.first_row:
            gradient = F.pad(gradient, (0, 0, source.first_row, 0))
        yield source, direct(gradient)
