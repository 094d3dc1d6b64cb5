"""From a layer's inputs and errors to its per-sample gradients and to their Gram matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from common.gradients.gram import panels
from common.gradients.layer_shares import Capture, Convolution, Direct, Linear, Lookup

CHUNK_BYTES = 64 << 20
# Writing out larger patches of one sample costs more than it saves over one library convolution a sample.
LARGE_PATCHES = 2 << 20


def write_products(captures: list[Capture], rows: slice, cols: int, out: Tensor) -> None:
    """Fill `out` with these rows of one parameter's per-sample gradients, Σ_s e_s x_sᵀ summed over its captures.

    out: (B, rows * cols) in the captures' dtype, row-major; zero where there is no capture. Works in groups of samples
    whose unfolded patches take at most 64 MB.
    """
    if not captures:
        out.zero_()
        return
    target = out.view(len(out), -1, cols)
    for position, capture in enumerate(captures):
        patch_bytes = 0
        if isinstance(capture, Convolution):
            patch_bytes = capture.errors[0, 0].nbytes * cols
            if patch_bytes > LARGE_PATCHES:
                _convolve_samples(capture, rows, target, accumulate=position > 0)
                continue
        step = CHUNK_BYTES // patch_bytes if patch_bytes else len(out)
        for start in range(0, len(out), step):
            samples = slice(start, start + step)
            _write_group(capture, samples, rows, target[samples], accumulate=position > 0)


def _convolve_samples(capture: Convolution, rows: slice, target: Tensor, accumulate: bool) -> None:
    geometry = capture.geometry
    images = geometry.padded(capture.inputs)
    shape = (target.shape[1], images.shape[1], *geometry.kernel)
    for sample, products in enumerate(target):
        one = slice(sample, sample + 1)
        gradient = conv2d_weight(
            images[one], shape, capture.errors[one, rows], geometry.stride, geometry.padding, geometry.dilation
        ).view_as(products)
        products.add_(gradient) if accumulate else products.copy_(gradient)


def _write_group(capture: Capture, samples: slice, rows: slice, target: Tensor, accumulate: bool) -> None:
    if isinstance(capture, Direct):
        products = capture.errors[samples, rows]
        target.add_(products) if accumulate else target.copy_(products)
    elif isinstance(capture, Lookup):
        if not accumulate:
            target.zero_()
        _scatter_lookups(capture.inputs[samples] - rows.start, capture.errors[samples], target)
    else:
        left, right = _factors(capture, samples, rows)
        if accumulate:
            target.baddbmm_(left, right)
        elif left.shape[2] == 1:
            torch.mul(left, right, out=target)
        else:
            torch.bmm(left, right, out=target)


def _factors(capture: Linear | Convolution, samples: slice, rows: slice) -> tuple[Tensor, Tensor]:
    """Return (B, rows, S) errors and (B, S, cols) inputs."""
    if isinstance(capture, Convolution):
        patches = capture.geometry.patches(capture.inputs[samples])
        return capture.errors[samples, rows].flatten(2), patches.transpose(1, 2)
    return capture.errors[samples, :, rows].transpose(1, 2), capture.inputs[samples]


def _scatter_lookups(indices: Tensor, errors: Tensor, target: Tensor) -> None:
    """Add each (B, S) looked-up row's error to that row of (B, rows, cols); other rows' indices fall outside."""
    inside = (indices >= 0) & (indices < target.shape[1])
    sample = torch.arange(len(indices), device=indices.device)[:, None].expand_as(indices)
    target.index_put_((sample[inside], indices[inside]), errors[inside], accumulate=True)


def select_rows(capture: Capture, rows: slice) -> Capture:
    """Return the capture of a parameter's `rows` alone, themselves numbered from 0."""
    if isinstance(capture, Linear):
        return replace(capture, errors=capture.errors[:, :, rows])
    if isinstance(capture, Lookup):
        return replace(capture, inputs=capture.inputs - rows.start)
    return replace(capture, errors=capture.errors[:, rows])


def joined(captures: list[Capture]) -> list[Capture]:
    """Return a parameter's captures with one of each kind: a layer used at every time step has as many positions."""
    if len(captures) == 1:
        return captures
    found: list[Capture] = []
    for kind in (Linear, Lookup):
        parts = [capture for capture in captures if isinstance(capture, kind)]
        if parts:
            found.append(kind(torch.cat([c.errors for c in parts], 1), torch.cat([c.inputs for c in parts], 1)))
    gradients = [capture.errors for capture in captures if isinstance(capture, Direct)]
    if gradients:
        found.append(Direct(sum(gradients[1:], gradients[0])))
    return [*found, *(capture for capture in captures if isinstance(capture, Convolution))]


def merge(groups: list[tuple[Tensor, dict[str, list[Capture]]]], samples: int) -> dict[str, list[Capture]]:
    """Return the captures of all samples from those of groups of samples: (their indices, their captures)."""
    names = dict.fromkeys(name for _, captures in groups for name in captures)
    merged: dict[str, list[Capture]] = {}
    for name in names:
        merged[name] = []
        for indices, captures in groups:
            place(merged[name], captures.get(name, []), indices, samples)
    return merged


def place(wholes: list[Capture], parts: list[Capture], samples: slice | Tensor, count: int) -> None:
    """Copy a parameter's captures of some samples into their places among those of all `count` samples, in place.

    Samples may have more or fewer positions than others, or other calls: what is missing is zero.
    """
    taken: set[int] = set()
    for part in parts:
        alike = [i for i, whole in enumerate(wholes) if i not in taken and _are_alike(whole, part)]
        number = alike[0] if alike else len(wholes)
        if not alike:
            wholes.append(part.map(lambda tensor: tensor.new_zeros(count, *tensor.shape[1:])))
        taken.add(number)
        wholes[number] = whole = _with_room(wholes[number], part.errors.shape[1])
        for name, tensor in whole.tensors().items():
            values = part.tensors()[name]
            tensor[samples, : values.shape[1]] = values


def _are_alike(whole: Capture, part: Capture) -> bool:
    if isinstance(part, Linear | Lookup):
        return type(whole) is type(part)
    if isinstance(part, Direct):
        return isinstance(whole, Direct) and _shape(whole.errors) == _shape(part.errors)
    return (
        isinstance(whole, Convolution)
        and whole.geometry == part.geometry
        and _shape(whole.errors) == _shape(part.errors)
        and _shape(whole.inputs) == _shape(part.inputs)
    )


def _shape(tensor: Tensor) -> torch.Size:
    """Return the shape of one sample."""
    return tensor.shape[1:]


def _with_room(whole: Capture, positions: int) -> Capture:
    """Return a capture of factors with at least so many positions; others as they are."""
    missing = positions - whole.errors.shape[1]
    if missing <= 0 or not isinstance(whole, Linear | Lookup):
        return whole
    inputs = F.pad(whole.inputs, (0, missing) if isinstance(whole, Lookup) else (0, 0, 0, missing))
    return replace(whole, inputs=inputs, errors=F.pad(whole.errors, (0, 0, 0, missing)))


def split_rows(
    captures: list[Capture], rows: int, cols: int, itemsize: int, budget: int
) -> Iterator[tuple[slice, bool, int]]:
    """Yield (rows, whether to keep factors, bytes a sample) so that each part keeps at most `budget` bytes a sample.

    Factors are kept where they are smaller than the gradients they give. A single row may exceed the budget.
    """
    fixed, per_row = _factor_bytes(captures, rows)
    factors = bool(captures) and fixed + rows * per_row < rows * cols * itemsize and fixed + per_row <= budget
    if not factors:
        fixed, per_row = 0, cols * itemsize
    step = max(1, (budget - fixed) // per_row) if per_row else rows
    for first in range(0, rows, step):
        part = slice(first, min(first + step, rows))
        yield part, factors, fixed + (part.stop - part.start) * per_row


def _factor_bytes(captures: list[Capture], rows: int) -> tuple[int, int]:
    """Return the bytes a sample that factors take whatever the rows, and those each row adds."""
    fixed = sum(c.inputs[0].nbytes for c in captures if not isinstance(c, Direct))
    fixed += sum(c.errors[0].nbytes for c in captures if isinstance(c, Lookup))
    per_row = sum(c.errors[0].nbytes // rows for c in captures if not isinstance(c, Lookup))
    return fixed, per_row


def shared_channels(captures: list[Capture]) -> int:
    """Return how many input channels all captures of a parameter have, if all are convolutions; else 0."""
    channels = {capture.inputs.shape[1] if isinstance(capture, Convolution) else 0 for capture in captures}
    return channels.pop() if len(channels) == 1 else 0


def cheaper_by_grams(captures: list[Capture], rows: int, cols: int) -> Linear | None:
    """Return the only capture where S² products of small Gram matrices cost less than one of expanded gradients."""
    if len(captures) != 1 or not isinstance(captures[0], Linear):
        return None
    positions = captures[0].errors.shape[1]
    return captures[0] if positions**2 * (rows + cols) < rows * cols else None


def add_product_of_grams(gram: Tensor, capture: Linear) -> None:
    """Add Σ_st (X_s X_tᵀ) ∘ (E_s E_tᵀ) to the lower triangle, in float64, for a linear layer's X and E."""
    positions = range(capture.errors.shape[1])
    for rows, before in panels(len(gram)):
        for s in positions:
            for t in positions:
                product = _cross(capture.inputs[rows, s], capture.inputs[before, t])
                gram[rows, before].addcmul_(product, _cross(capture.errors[rows, s], capture.errors[before, t]))


def _cross(a: Tensor, b: Tensor) -> Tensor:
    """Return a bᵀ in float64, converting at most 64 MB of either at a time."""
    step = max(1, CHUNK_BYTES // (8 * max(len(a), len(b))))
    product = torch.zeros(len(a), len(b), dtype=torch.float64, device=a.device)
    for start in range(0, a.shape[1], step):
        product.addmm_(a[:, start : start + step].double(), b[:, start : start + step].double().T)
    return product
