"""From one call's inputs and errors to its share of the per-sample gradients of the parameters that it uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_unflatten

from common.gradients.layer_calls import LayerCall, Source
from common.gradients.layer_readers import ConvGeometry, LinearOrder, Reading

_Kind = TypeVar("_Kind", bound="_Share")


@dataclass(frozen=True)
class _Share:
    """What the kinds of captures have in common: tensors, each with one row a sample."""

    errors: Tensor
    """What the gradients are made of, or a factor of them."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by the names of their fields."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def map(self: _Kind, change: Callable[[Tensor], Tensor]) -> _Kind:
        """Return the capture with every tensor changed."""
        return replace(self, **{name: change(tensor) for name, tensor in self.tensors().items()})

    def of_samples(self: _Kind, samples: Tensor) -> _Kind:
        """Return the capture of some samples."""
        return self.map(lambda tensor: tensor[samples])

    def to(self: _Kind, dtype: torch.dtype) -> _Kind:
        """Return the capture in a floating-point dtype; row indices stay as they are."""
        return self.map(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)


@dataclass(frozen=True)
class Direct(_Share):
    """Gradients themselves."""

    errors: Tensor
    """(B, rows, cols)."""


@dataclass(frozen=True)
class Linear(_Share):
    """Factors of gradients Σ_s e_s x_sᵀ."""

    errors: Tensor
    """(B, S, rows)."""
    inputs: Tensor
    """(B, S, cols)."""


@dataclass(frozen=True)
class Lookup(_Share):
    """Errors of rows of a table that were looked up."""

    errors: Tensor
    """(B, S, cols)."""
    inputs: Tensor
    """(B, S) int64 indices of the rows."""


@dataclass(frozen=True)
class Convolution(_Share):
    """Factors of gradients whose positions are output pixels."""

    errors: Tensor
    """(B, rows, h, w)."""
    inputs: Tensor
    """(B, C, H, W)."""
    geometry: ConvGeometry
    """Which of the input's pixels each output pixel saw."""

    def of_channels(self, channels: slice) -> Convolution:
        """Return the factors of the gradients' columns that belong to some channels of the input."""
        return replace(self, inputs=self.inputs[:, channels])


Capture = Direct | Linear | Lookup | Convolution
"""One call's share of the per-sample gradients of one parameter, viewed as a (rows, cols) matrix."""


def matrix_shape(parameter: Tensor) -> tuple[int, int]:
    """Return the (rows, cols) as which a parameter is treated: its first dimension, and all others."""
    rows = parameter.shape[0] if parameter.ndim else 1
    return rows, parameter.numel() // rows if rows else 0


def direct(gradients: Tensor) -> Direct:
    """Return the capture of (B, ...) gradients of one parameter."""
    rows, cols = matrix_shape(gradients[0])
    return Direct(gradients.reshape(len(gradients), rows, cols))


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
            yield weight, Convolution(error.flatten(0, 1), inputs.flatten(0, 1), reading.setting)
        if bias is not None:
            yield bias, direct(error.flatten(0, 1).sum((2, 3)))
    elif reading.kind == "lookup":
        if weight is not None:
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
        yield weight, Linear(F.pad(rows, (weight.first_row, 0)) if weight.first_row else rows, cols)
    if bias is not None:
        yield bias, direct(error.sum(1))


def _positions_first(values: Tensor, dims: tuple[int, ...] | None, num_features: int) -> Tensor:
    """Return (B, S, features) of (B, ...) values."""
    if dims is not None:
        values = values.permute(0, *(dim + 1 for dim in dims))
    return values.reshape(len(values), -1, values.shape[values.ndim - num_features :].numel())


def _lookup(reading: Reading, indices: Tensor, error: Tensor) -> Lookup:
    indices = indices.reshape(len(indices), -1)
    error = error.reshape(*indices.shape, -1)
    if reading.setting is not None:
        error = error.masked_fill((indices == reading.setting)[..., None], 0)
    return Lookup(error, indices)


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
    if weight is not None:
        yield weight, direct(_summed_to(weight.tensor, reading.setting(inputs) * error))
    if bias is not None:
        yield bias, direct(_summed_to(bias.tensor, error))


def _summed_to(parameter: Tensor, values: Tensor) -> Tensor:
    """Return the sums of (B, ..., *shape) values over all but the samples and the parameter's own dimensions."""
    summed = list(range(1, values.ndim - parameter.ndim))
    return values.sum(summed) if summed else values


def _by_autograd(call: LayerCall, errors: list[Tensor]) -> Iterator[tuple[Source, Capture]]:
    """Differentiate the call alone, sample by sample under vmap; a single sample without, which vmap may not run."""
    parameters = [source.tensor.detach() for source in call.sources.values()]

    def run(values: list[Tensor], parameters: Sequence[Tensor]) -> list[Tensor]:
        leaves = list(call.leaves)
        for position, value in zip([*call.data, *call.sources], [*values, *parameters], strict=True):
            leaves[position] = value
        args, kwargs = tree_unflatten(leaves, call.spec)
        outputs = tree_leaves(call.function(*args, **kwargs))
        return [outputs[place] for place in call.places]

    def one(values: list[Tensor], error: list[Tensor]) -> tuple[Tensor, ...]:
        return torch.func.vjp(lambda *given: run(values, given), *parameters)[1](error)

    gradients: Sequence[Tensor]
    if len(errors[0]) == 1:
        with torch.enable_grad():
            given = [parameter.requires_grad_() for parameter in parameters]
            outputs = run([value[0] for value in call.data.values()], given)
            found = torch.autograd.grad(outputs, given, [error[0] for error in errors], materialize_grads=True)
        gradients = [gradient[None] for gradient in found]
    else:
        gradients = torch.func.vmap(one)(list(call.data.values()), errors)
    for source, gradient in zip(call.sources.values(), gradients, strict=True):
        if source.transposed:
            gradient = gradient.transpose(1, 2)
        if source.first_row:
            gradient = F.pad(gradient, (0, 0, source.first_row, 0))
        yield source, direct(gradient)
