"""What every layer saw in one batched forward and backward pass: its input and the error of its output.

For a loss summed over the batch, the gradient of one sample with respect to a layer's parameters follows from that
sample's rows of the layer's input and of the back-propagated error of its output.

Reference: Goodfellow, "Efficient per-example gradient computations", arXiv 1510.01799.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.foundations.errors import UserError
from common.gradients.layer_calls import CallRecorder, ConvGeometry, LayerCall

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class LayerLayout:
    """How the calls of one model relate to samples."""

    calls: tuple[tuple[str, str | None, str | None], ...]
    """(kind, weight, bias) of every call, in order."""
    batch_dims: tuple[int | None, ...]
    """The dimension of each call's input that runs over samples (or, sample by sample, over their parts)."""
    unsupported: dict[str, str]
    """Parameter name -> why its per-sample gradient cannot be had this way."""


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


def capture_layers(
    model: nn.Module,
    loss: Loss,
    inputs: Tensor,
    targets: Tensor,
    layout: LayerLayout,
    wanted: set[str] | None = None,
) -> dict[str, list[Capture]]:
    """Return each parameter's captures from one forward and one backward pass over a batch.

    `wanted` restricts the answer, and the backward pass, to these parameters; None means all that are supported.
    Parameters that the model does not use are absent. Raises UserError when the model's calls differ from the layout's.
    """
    batch = len(inputs)
    with torch.enable_grad():
        recorder = CallRecorder(model)
        with recorder:
            outputs = model(inputs)
        if recorder.signature() != layout.calls:
            raise UserError("the model calls different layers from one batch to the next; use stored gradients")
        total = loss(outputs, targets).sum()
        chosen = [
            (call, dim)
            for call, dim in zip(recorder.calls, layout.batch_dims, strict=True)
            if dim is not None and _is_wanted(call, wanted)
        ]
        edges = [call.edge for call, _ in chosen]
        errors = torch.autograd.grad(total, edges, allow_unused=True) if edges else ()
    captures: dict[str, list[Capture]] = {}
    for (call, dim), error in zip(chosen, errors, strict=True):
        if call.input._version != call.version:
            raise UserError(f"the input of the layer of {call.weight or call.bias!r} is changed in place after use")
        if error is None:
            continue
        for name, capture in _shares(call, dim, batch, error):
            if name is not None and (wanted is None or name in wanted):
                captures.setdefault(name, []).append(capture)
    return captures


def _is_wanted(call: LayerCall, wanted: set[str] | None) -> bool:
    return wanted is None or call.weight in wanted or call.bias in wanted


# What a call means for its parameters


def _shares(call: LayerCall, dim: int, batch: int, error: Tensor) -> Iterator[tuple[str | None, Capture]]:
    if call.kind == "linear":
        inputs, errors = _samples_first(call.input, dim, batch), _samples_first(error, dim, batch)
        yield call.weight, Capture("linear", inputs, F.pad(errors, (call.setting, 0)) if call.setting else errors)
        if call.bias is not None:
            yield call.bias, Capture("direct", None, errors.sum(1)[..., None])
    elif call.kind == "conv":
        yield call.weight, Capture("conv", call.input, error, call.setting)
        if call.bias is not None:
            yield call.bias, Capture("direct", None, error.sum((2, 3))[..., None])
    elif call.kind == "lookup":
        indices, errors = call.input.movedim(dim, 0).reshape(batch, -1), _samples_first(error, dim, batch)
        if call.setting is not None:
            errors = errors.masked_fill((indices == call.setting)[..., None], 0)
        yield call.weight, Capture("lookup", indices, errors)
    else:
        sums = _norm_sums if call.kind == "layer_norm" else _channel_sums
        if call.weight is not None:
            yield call.weight, Capture("direct", None, sums(call.setting(call.input) * error, dim, batch))
        if call.bias is not None:
            yield call.bias, Capture("direct", None, sums(error, dim, batch))


def _samples_first(tensor: Tensor, dim: int, batch: int) -> Tensor:
    """Return (B, S, features): S runs over every dimension but the samples' and the last."""
    return tensor.movedim(dim, 0).reshape(batch, -1, tensor.shape[-1])


def _norm_sums(values: Tensor, dim: int, batch: int) -> Tensor:
    return _samples_first(values, dim, batch).sum(1)[..., None]


def _channel_sums(values: Tensor, dim: int, batch: int) -> Tensor:
    per_row = values.reshape(*values.shape[:2], -1).sum(2)
    return per_row.reshape(batch, -1, values.shape[1]).sum(1)[..., None]
