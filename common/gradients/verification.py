"""Compare per-sample gradients with those of plain autograd, one sample at a time, on samples that stand for all.

Routes are compared in float64 where the model can run in it, so that nothing but a wrong number makes a difference;
finished rows are compared in the dtype in which they were computed, through their lengths and inner products.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from common.foundations.seeds import make_generator
from common.gradients.layer_products import write_products
from common.gradients.layer_shares import Capture, matrix_shape
from common.gradients.lengths import gradient_length
from common.gradients.one_at_a_time import gradients, one_gradient
from common.workloads.precision import in_dtype, match_inputs
from common.workloads.records import Examples, Loss
from common.workloads.running import run_model, trainable_parameters, without_graph

SEED, STREAM = 42, 1_000_007
SPREAD = 8
"""Samples spread over all that every check has, beside the extremes."""
SEARCHED = 512
"""Samples that are searched for a parameter's gradient that is not zero, or a twentieth of all."""
MANY = 64
"""Samples in the largest batch in which a sample's loss is compared with that alone."""
RELATIVE = {torch.float64: 1e-7, torch.float32: 1e-3}
"""Difference of two gradients, relative to their length, that rounding explains in the worst case."""
ROUNDINGS = 32
"""Roundings of the longest gradient checked that may be found in any other: 1 - softmax rounds absolutely."""


@dataclass(frozen=True)
class Subject:
    """A model and its samples in one precision."""

    model: nn.Module
    """In eval mode."""
    loss: Loss
    """One loss a sample."""
    examples: Examples
    """All samples, on any device."""
    dtype: torch.dtype
    """Of the gradients: float32 or float64."""
    batch_dtype: torch.dtype | None = None
    """What floating-point samples are converted to, a batch at a time; None: they stay as they are."""

    @property
    def precision(self) -> torch.dtype:
        """The dtype that rounds: float32 too where gradients are float64, but some parameters are not."""
        exact = all(p.dtype == torch.float64 for p in self.model.parameters() if p.is_floating_point())
        return torch.float64 if exact and self.dtype == torch.float64 else torch.float32

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name."""
        return trainable_parameters(self.model)

    def batch(self, rows: Tensor) -> Examples:
        """Return some samples on the model's device."""
        batch = self.examples.subset(rows).to(next(iter(self.parameters.values())).device)
        return batch if self.batch_dtype is None else match_inputs(batch, self.batch_dtype)

    def losses(self, rows: Tensor) -> Tensor:
        """Return the losses of a batch of samples."""
        batch = self.batch(rows)
        with default_dtype(self.dtype):
            return without_graph(lambda: self.loss(run_model(self.model, batch.inputs), batch.targets)).detach()

    def losses_alone(self, rows: Tensor) -> Tensor:
        """Return the losses of samples in batches of one."""
        return torch.cat([self.losses(row[None]) for row in rows])

    def one_by_one(self, rows: Tensor) -> list[dict[str, Tensor]]:
        """Return the gradient of each sample by plain autograd: parameter name -> gradient."""
        parameters = self.parameters
        with default_dtype(self.dtype):
            found = [one_gradient(self.model, self.loss, self.batch(row[None]), [*parameters.values()]) for row in rows]
        return [dict(zip(parameters, gradient, strict=True)) for gradient in found]


def in_float64(subject: Subject, row: int) -> Subject | None:
    """Return the model and its samples in float64; None where it does not run in it on a sample."""
    try:
        model = in_dtype(subject.model, torch.float64)
        exact = Subject(model, subject.loss, subject.examples, torch.float64, torch.float64)
        if not all(parameter.is_leaf for parameter in exact.parameters.values()):
            return None  # a compiled script keeps its own parameters, of which these are copies
        exact.one_by_one(torch.tensor([row]))
    except Exception:  # a user's model may raise anything where it is given float64
        return None
    return exact


def relative_difference(gradient: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """Return the distance of one sample's gradient to an exact one, relative to the length of that; 0 for no length."""
    length = gradient_length(exact).item()
    change = gradient_length({name: gradient[name].double() - part for name, part in exact.items()}).item()
    return change / length if length else 0.0


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Give constants that a model makes, such as the first state of a recurrent layer, its own dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def representative(examples: Examples) -> Tensor:
    """Return (k,) ascending indices of samples: seeded ones from every part of the data, the shortest, the longest.

    A sample's length is the number of entries of its inputs that are not zero, as padding is; and their norm.
    """
    count = len(examples)
    generator = make_generator("cpu", SEED, STREAM)
    edges = torch.linspace(0, count, min(SPREAD, count) + 1).long().tolist()
    chosen = [int(torch.randint(low, high, (), generator=generator)) for low, high in pairwise(edges)]
    for tensor in examples.tensors():
        if len(tensor.shape) > 1:
            tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
            flat = tensor.flatten(1).float()
            lengths = flat.sign().abs_().sum(1)  # many times as fast as counting or a sum of bool
            norms = torch.linalg.vector_norm(flat, dim=1)
            chosen += [int(index) for size in (lengths, norms) for index in (size.argmin(), size.argmax())]
    return torch.tensor(sorted({0, count - 1, *chosen}))


def with_every_gradient(
    subject: Subject, known: dict[int, dict[str, Tensor]], batch_size: int
) -> tuple[dict[int, dict[str, Tensor]], list[str]]:
    """Return gradients by sample, of more samples where all known are zero in some parameter, and the parameters left.

    `known` are gradients of plain autograd, sample by sample.
    """
    unseen = {name for name in subject.parameters if not any(gradient[name].any() for gradient in known.values())}
    found = dict(known)
    count = len(subject.examples)
    order = torch.randperm(count, generator=make_generator("cpu", SEED, STREAM, 1))
    for batch in order[: max(SEARCHED, count // 20)].split(batch_size):
        if not unseen:
            break
        if not _has_gradient(subject, batch, sorted(unseen)):
            continue
        for row in batch.tolist():
            (gradient,) = subject.one_by_one(torch.tensor([row]))
            seen = {name for name in unseen if gradient[name].any()}
            if seen:
                found[row] = gradient
            unseen -= seen
            if not unseen:
                break
    return found, [name for name in subject.parameters if name in unseen]


def _has_gradient(subject: Subject, rows: Tensor, names: list[str]) -> bool:
    """Return whether the summed loss of a batch has a gradient that is not zero in one of the parameters named."""
    batch, parameters = subject.batch(rows), subject.parameters
    with torch.enable_grad(), default_dtype(subject.dtype):
        total = subject.loss(run_model(subject.model, batch.inputs), batch.targets).sum()
        return any(gradient.any() for gradient in gradients(total, [parameters[name] for name in names]))


@dataclass(frozen=True)
class Mismatch:
    """A gradient that is not that of plain autograd."""

    parameter: str
    """Name."""
    row: int
    """Of the sample, among all."""
    difference: float
    """Relative to the length of the sample's whole gradient."""


def wrong_parameters(
    captures: dict[str, list[Capture]],
    reference: list[dict[str, Tensor]],
    rows: Tensor,
    names: Collection[str],
    subject: Subject,
) -> dict[str, Mismatch]:
    """Return the parameters whose captured gradients differ from the reference by more than rounding, worst sample."""
    lengths = torch.stack([gradient_length(gradient) for gradient in reference])
    allowed = allowed_difference(lengths, subject.precision)
    wrong = {}
    for name in names:
        height, cols = matrix_shape(reference[0][name])
        found = torch.empty(len(rows), height * cols, dtype=subject.dtype, device=lengths.device)
        write_products(captures.get(name, []), slice(0, height), cols, found)
        for row, gradient in zip(found, reference, strict=True):
            row.sub_(gradient[name].flatten())
        difference = found.norm(dim=1)
        bad = lengths.isfinite() & ~(difference <= allowed)
        if bad.any():
            worst = int(torch.where(bad, (difference / lengths).nan_to_num(torch.inf), -1).argmax())
            wrong[name] = Mismatch(name, int(rows[worst]), float(difference[worst] / lengths[worst]))
    return wrong


def allowed_difference(lengths: Tensor, dtype: torch.dtype) -> Tensor:
    """Return by how much the gradient of each sample may differ, from the (k,) lengths of the gradients."""
    finite = lengths[lengths.isfinite()]
    longest = finite.max() if len(finite) else 0.0
    return RELATIVE[dtype] * lengths + ROUNDINGS * torch.finfo(dtype).eps * longest


Mixing = tuple[int, float, float, int]
"""A sample whose loss depends on the samples beside it: (row, loss there, loss alone, size of the batch)."""


def mixing_samples(subject: Subject, rows: Tensor) -> Mixing | None:
    """Return a sample whose loss depends on the samples beside it, in batches made of `rows`; None if there is none.

    Alone is a batch of one; beside are all of `rows`, in two orders, their halves in turn, and pairs of neighbours.
    """
    if len(rows) < 2:
        return None
    alone = subject.losses_alone(rows)
    places = torch.arange(len(rows))
    order = torch.randperm(len(rows), generator=make_generator("cpu", SEED, STREAM, 2))
    compositions = [places, order, places[::2], places[1::2].flip(0), *order[: len(rows) // 2 * 2].view(-1, 2)]
    found = (_most_changed(subject, rows, alone, chosen, rows[:0]) for chosen in compositions)
    return next(filter(None, found), None)


def mixing_in_a_crowd(subject: Subject, rows: Tensor) -> Mixing | None:
    """Return what `mixing_samples` does, for `rows` behind as many other samples as make a batch of `MANY`.

    A model may need to see that its experts are full.
    """
    others = torch.randperm(len(subject.examples), generator=make_generator("cpu", SEED, STREAM, 4))
    others = others[~torch.isin(others, rows)][: max(0, MANY - len(rows))]
    if not len(others):
        return None
    return _most_changed(subject, rows, subject.losses_alone(rows), torch.arange(len(rows)), others)


def _most_changed(subject: Subject, rows: Tensor, alone: Tensor, chosen: Tensor, before: Tensor) -> Mixing | None:
    """Return the sample whose loss changes most, beyond rounding, in a batch of rows[chosen] behind those `before`.

    `alone` are the losses of all `rows` in batches of one.
    """
    # less may be rounding: a float64 model may compute in float32 in places, where the batch decides the order of sums
    tolerance, least = (1e-5, 1e-12) if subject.precision == torch.float64 else (1e-4, 1e-7)
    scale = alone[alone.isfinite()].abs().max().item() if alone.isfinite().any() else 0.0
    together, expected = subject.losses(torch.cat([before, rows[chosen]]))[len(before) :], alone[chosen]
    bad = expected.isfinite() & ~((together - expected).abs() <= tolerance * (expected.abs() + scale) + least)
    if not bad.any():
        return None
    worst = int(torch.where(bad, (together - expected).abs().nan_to_num(torch.inf), -1).argmax())
    return int(rows[chosen[worst]]), together[worst].item(), expected[worst].item(), len(before) + len(chosen)
