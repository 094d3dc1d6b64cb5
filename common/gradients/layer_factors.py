"""Per-sample gradients as factors: what a layer was given and the error of its output, never their product.

The gradient of one sample with respect to a (rows, cols) parameter is Σ_t e_t x_tᵀ over the sample's positions t
(tokens, pixels, time steps). What acts on both sides of such a sum (a Kronecker factored sketch, curvature A ⊗ E)
needs the factors alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.foundations.progress import with_progress
from common.gradients.layer_capture import LayerCapture, Routes
from common.gradients.layer_shares import Capture, Convolution, Direct, Linear, Lookup, matrix_shape
from common.workloads.records import Examples, Loss
from common.workloads.running import trainable_parameters

BATCH_BYTES = 1 << 30
"""What activations and errors of one batch take at most, unless one sample takes more."""


@dataclass(frozen=True)
class FlatParameter:
    """A trainable parameter as a matrix, and its columns of the flat gradient."""

    name: str
    """As in `model.named_parameters()`."""
    start: int
    """First column of the flat gradient that belongs to it; its entries follow row by row."""
    rows: int
    """Its first dimension."""
    cols: int
    """Product of all others; 1 for a vector."""

    @property
    def is_matrix(self) -> bool:
        """Whether it has two sides to speak of; biases and scales have one."""
        return self.rows > 1 and self.cols > 1

    @property
    def columns(self) -> slice:
        """Its columns of the flat gradient."""
        return slice(self.start, self.start + self.rows * self.cols)

    def overlap(self, start: int, stop: int) -> slice | None:
        """Return its columns among `start` to `stop` of the flat gradient, counted from `start`; None for none."""
        first, last = max(start, self.columns.start), min(stop, self.columns.stop)
        return slice(first - start, last - start) if first < last else None


@dataclass(frozen=True)
class ParameterFactors:
    """Gradients of the samples of a batch by one parameter: Σ_t e_t x_tᵀ of every factor pair, plus `rest`."""

    parameter: FlatParameter
    """Which."""
    factors: tuple[Linear | Lookup, ...]
    """Pairs (errors, inputs), one or more a parameter that layers share. `Linear`: errors e (B, T, rows), inputs x
    (B, T, cols); a layer that keeps its weight transposed has what it was given in e, and its error in x. `Lookup`:
    inputs (B, T) are the rows that were looked up, e the unit vectors of these rows; errors (B, T, cols) are x."""
    rest: Tensor | None
    """(B, rows, cols) of uses that no layer explains, biases and scales among them; None for none."""

    def dense(self) -> Tensor:
        """Return the (B, rows, cols) gradients themselves."""
        like = self.rest if self.rest is not None else self.factors[0].errors
        size = len(like)
        total = like.new_zeros(size, self.parameter.rows, self.parameter.cols)
        if self.rest is not None:
            total += self.rest
        for pair in self.factors:
            if isinstance(pair, Linear):
                total.baddbmm_(pair.errors.transpose(1, 2), pair.inputs)
            else:
                sample = torch.arange(size, device=total.device)[:, None].expand_as(pair.inputs)
                total.index_put_((sample, pair.inputs), pair.errors, accumulate=True)
        return total

    def squared_norms(self) -> Tensor:
        """Return the (B,) float64 squared lengths of the gradients.

        With few positions by Σ_st (e_sᵀe_t)(x_sᵀx_t), which needs no gradient; else one sample at a time.
        """
        rows, cols = self.parameter.rows, self.parameter.cols
        positions = sum(pair.errors.shape[1] for pair in self.factors)
        if self.rest is None and positions * (rows + cols) < rows * cols:
            return squares_by_grams(self.factors)
        count = len(self.rest if self.rest is not None else self.factors[0].errors)
        parts = [self.subset(slice(i, i + 1)).dense().double().square().sum() for i in range(count)]
        return torch.stack(parts)

    def subset(self, samples: slice) -> ParameterFactors:
        """Return the same of some samples."""
        factors = tuple(pair.map(lambda tensor: tensor[samples]) for pair in self.factors)
        return ParameterFactors(self.parameter, factors, None if self.rest is None else self.rest[samples])


def squares_by_grams(pairs: Sequence[Linear | Lookup]) -> Tensor:
    """Return the (B,) float64 sums over all positions s, t of all pairs of (e_sᵀe_t)(x_sᵀx_t)."""
    total = pairs[0].errors.new_zeros(len(pairs[0].errors), dtype=torch.float64)
    for one in pairs:
        for other in pairs:
            right = torch.bmm(_columns(one).double(), _columns(other).double().mT)
            total += (_row_products(one, other) * right).sum((1, 2))
    # rounding may leave less than 0 where positions cancel
    return total.clamp(min=0)


def _columns(pair: Linear | Lookup) -> Tensor:
    """Return the (B, S, cols) factors x."""
    return pair.inputs if isinstance(pair, Linear) else pair.errors


def _row_products(one: Linear | Lookup, other: Linear | Lookup) -> Tensor:
    """Return the (B, S, T) float64 inner products of the factors e of two pairs; of a lookup they are unit vectors."""
    if isinstance(one, Linear) and isinstance(other, Linear):
        return torch.bmm(one.errors.double(), other.errors.double().mT)
    if isinstance(one, Lookup) and isinstance(other, Lookup):
        return (one.inputs[:, :, None] == other.inputs[:, None, :]).double()
    if isinstance(one, Linear):
        return _row_products(other, one).mT
    chosen = one.inputs[:, None, :].expand(-1, other.errors.shape[1], -1)
    return other.errors.double().gather(2, chosen).mT


class LayerFactors:
    """Factors of per-sample gradients, batch by batch, of a model in eval mode, which stays as it is.

    Parameters that are not followed layer by layer (see `Routes`) come as gradients, in `rest`.
    """

    def __init__(self, model: nn.Module, loss: Loss, routes: Routes):
        self._capture = LayerCapture(model, loss, routes)
        self.dtype = self._capture.dtype
        self.parameters = flat_parameters(model)

    def __call__(self, batch: Examples) -> Iterator[ParameterFactors]:
        """Yield the factors of every parameter that a sample of the batch uses, in the order of `parameters`.

        `batch` lies on the model's device. Tensors are float32, or float64 where a parameter is. Positions that a
        sample does not have are zero. Patches of a convolution exist only while its parameter is the one yielded.
        """
        captures = self._capture(batch)
        for parameter in self.parameters:
            found = captures.pop(parameter.name, [])
            if found:
                yield _factors(parameter, found)

    def batches(
        self, examples: Examples, batch_size: int, device: torch.device
    ) -> Iterator[tuple[slice, Iterator[ParameterFactors]]]:
        """Yield (rows, factors) over all samples, `batch_size` at a time or fewer where memory asks for it."""
        _, sample_bytes = self._capture.probe(examples.subset(slice(1)).to(device))
        size = max(1, min(batch_size, BATCH_BYTES // (2 * sample_bytes)))
        for start in with_progress("factors of gradients", range(0, len(examples), size), unit="batch"):
            rows = slice(start, min(start + size, len(examples)))
            yield rows, self(examples.subset(rows).to(device))


def flat_parameters(model: nn.Module) -> tuple[FlatParameter, ...]:
    """Return the trainable parameters of a model in the order of its flat gradient."""
    found: list[FlatParameter] = []
    start = 0
    for name, parameter in trainable_parameters(model).items():
        found.append(FlatParameter(name, start, *matrix_shape(parameter)))
        start += parameter.numel()
    return tuple(found)


def _factors(parameter: FlatParameter, captures: list[Capture]) -> ParameterFactors:
    factors: list[Linear | Lookup] = []
    rest = None
    for capture in captures:
        if isinstance(capture, Direct):
            rest = capture.errors if rest is None else rest + capture.errors
        elif isinstance(capture, Convolution):
            patches = capture.geometry.patches(capture.inputs)
            factors.append(Linear(capture.errors.flatten(2).transpose(1, 2), patches.transpose(1, 2)))
        else:
            factors.append(capture)
    return ParameterFactors(parameter, tuple(factors), rest)
