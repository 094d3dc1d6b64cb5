"""How the layers of a model relate to samples, found by running it and checked against plain autograd."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from common.foundations.errors import UserError
from common.gradients.layer_calls import CallRecorder, LayerCall, trainable_parameters
from common.gradients.layer_capture import LayerLayout, Loss, capture_layers
from common.gradients.layer_products import matrix_shape, write_products
from common.workloads.records import Examples

CHECK_TOLERANCE = 1e-7


def layer_layout(model: nn.Module, loss: Loss, examples: Examples) -> LayerLayout:
    """Return how the model's layers relate to samples, checked against one-by-one backward passes.

    The check runs two samples through a float64 copy of the model: a parameter whose gradients differ from plain
    autograd by more than 1e-7 of the whole gradient's norm is listed as unsupported, whatever the reason.
    `model` must be in eval mode.
    """
    if model.training:
        raise ValueError("per-sample gradients need the model in eval mode")
    few = examples.subset(torch.arange(2) % len(examples))
    device = next(model.parameters()).device
    inputs, targets = few.inputs.to(device), few.targets.to(device)
    layout = _trace_layers(model, inputs)
    try:
        wrong = _differing_parameters(model, loss, cast(inputs, torch.float64), targets, layout)
    except (RuntimeError, UserError) as error:
        reason = f"checking it in float64 failed ({str(error).splitlines()[0]})"
        return replace(layout, unsupported=dict.fromkeys(trainable_parameters(model), reason))
    reason = "its gradient differs from a one-by-one backward pass"
    return replace(layout, unsupported=dict.fromkeys(wrong, reason) | layout.unsupported)


def unsupported_parameters(model: nn.Module, loss: Loss, examples: Examples) -> list[str]:
    """Return the names of parameters whose per-sample gradients need torch.func instead; empty when all are fine."""
    return sorted(layer_layout(model, loss, examples).unsupported)


def require_supported(layout: LayerLayout) -> None:
    """Raise UserError naming a parameter that is not supported, if there is one."""
    if layout.unsupported:
        name, reason = next(iter(layout.unsupported.items()))
        more = len(layout.unsupported) - 1
        others = f" (and {more} more parameters)" if more else ""
        raise UserError(f"no layerwise gradient for parameter {name!r}: {reason}{others}; use stored gradients")


def _trace_layers(model: nn.Module, inputs: Tensor) -> LayerLayout:
    """Return the layout of the model's calls, from forward passes over the first samples of `inputs`.

    The samples' dimension of each layer is the one whose size follows the batch size.
    """
    small, large = (_record(model, inputs[_cycle(len(inputs), size)]) for size in (2, 3))
    unsupported = dict(small.unknown)
    if small.signature() != large.signature():
        unsupported |= dict.fromkeys(trainable_parameters(model), "the layers called depend on the batch size")
        return LayerLayout(small.signature(), (None,) * len(small.calls), unsupported)
    dims = []
    for call, other in zip(small.calls, large.calls, strict=True):
        dim, problem = _batch_dim(call, other)
        dims.append(dim)
        if problem:
            unsupported |= {name: problem for name in (call.weight, call.bias) if name is not None}
    return LayerLayout(small.signature(), tuple(dims), unsupported)


def _cycle(available: int, size: int) -> Tensor:
    return torch.arange(size) % available


def _record(model: nn.Module, inputs: Tensor) -> CallRecorder:
    recorder = CallRecorder(model)
    with torch.enable_grad(), recorder:
        model(inputs)
    return recorder


def _batch_dim(small: LayerCall, large: LayerCall) -> tuple[int | None, str | None]:
    shapes = small.input.shape, large.input.shape
    changed = [dim for dim, (a, b) in enumerate(zip(*shapes, strict=True)) if a != b]
    if len(changed) != 1:
        return None, "its layer's input has no dimension that runs over samples"
    (dim,) = changed
    parts, remainder = divmod(shapes[0][dim], 2)
    if remainder or shapes[1][dim] != 3 * parts:
        return None, "its layer's input has no dimension that runs over samples"
    if small.kind in ("conv", "batch_norm") and dim != 0:
        return None, f"its layer runs over samples in dimension {dim}"
    if small.kind == "conv" and parts != 1:
        return None, "its convolution takes several images of a sample"
    return dim, None


def _differing_parameters(
    model: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor, layout: LayerLayout
) -> list[str]:
    exact = copy.deepcopy(model).double()
    parameters = trainable_parameters(exact)
    captures = capture_layers(exact, loss, inputs, targets, layout)
    wrong = set()
    for sample in range(len(inputs)):
        one = slice(sample, sample + 1)
        total = loss(exact(inputs[one]), targets[one]).sum()
        expected = torch.autograd.grad(total, list(parameters.values()), materialize_grads=True)
        allowed = CHECK_TOLERANCE * torch.stack([gradient.norm() for gradient in expected]).norm()
        if not allowed.isfinite():
            continue
        for (name, parameter), gradient in zip(parameters.items(), expected, strict=True):
            rows, cols = matrix_shape(parameter)
            found = torch.empty(len(inputs), rows * cols, dtype=torch.float64, device=parameter.device)
            write_products(captures.get(name, []), slice(0, rows), cols, found)
            if not (found[sample] - gradient.flatten()).norm() <= allowed:
                wrong.add(name)
    return sorted(wrong)


def cast(inputs: Tensor, dtype: torch.dtype) -> Tensor:
    """Return floating-point inputs in `dtype`, and integers as they are."""
    return inputs.to(dtype) if inputs.is_floating_point() else inputs
