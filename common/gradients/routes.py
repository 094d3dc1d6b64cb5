"""Choose, for each parameter, the fastest step of the ladder that gives the gradient of plain autograd."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import torch

from common.foundations.errors import UserError, first_line
from common.foundations.progress import without_exponent
from common.gradients.hidden_uses import UNSEEN
from common.gradients.layer_capture import LAYERS, ONE_AT_A_TIME, VMAP, LayerCapture, Routes, row_dtype
from common.gradients.verification import (
    Mismatch,
    Subject,
    default_dtype,
    in_float64,
    mixing_in_a_crowd,
    mixing_samples,
    relative_difference,
    representative,
    with_every_gradient,
    wrong_parameters,
)
from common.workloads.records import Examples, Loss
from common.workloads.running import MIXED, RANDOM, draws_random_numbers

ROUNDED = 0.01
"""Difference of a gradient to that in float64, relative to its length, from which on it is said."""
SampleName = Callable[[int], str]
"""Row of a sample -> how messages call it."""


@dataclass(frozen=True)
class CheckedRoutes:
    """Routes that agree with plain autograd, and how that was found."""

    routes: Routes
    """Which step each parameter takes."""
    rows: list[int]
    """Samples on which they were compared."""
    in_float64: bool
    """Whether they were compared in float64 too, not only in the model's own dtype."""
    unseen: list[str]
    """Parameters whose gradient is zero at every sample that was looked at: nothing was compared for them."""
    seconds: float
    """What choosing and comparing took."""
    sample_seconds: float
    """What the gradient of one sample takes in a batch of the size asked for, judged by two small ones."""
    num_parameters: int
    """Trained parameters (tensors)."""
    rounding: dict[int, float] = field(default_factory=dict)
    """Sample -> how far its gradient is from that in float64, relative to the length; empty: not compared."""

    def describe_rounding(self, name_sample: SampleName) -> str | None:
        """Return in one line how far gradients are from those in float64; None: not further than `ROUNDED`."""
        rounded = {row: error for row, error in self.rounding.items() if error > ROUNDED}
        if not rounded:
            return None
        worst = max(rounded, key=lambda row: rounded[row])
        return (
            f"float32 arithmetic moves {len(rounded)} of {len(self.rounding)} compared by more than {ROUNDED:.0%} of "
            f"their length, that of {name_sample(worst)} by {rounded[worst]:.2g} lengths: give a float64 model"
        )

    def describe(self, num_samples: int) -> str:
        """Return in one line how many parameters take which step, why, and the time expected for all samples."""
        names = self.routes
        parts = []
        for step, reasons in ((VMAP, names.by_vmap), (ONE_AT_A_TIME, names.one_at_a_time)):
            if reasons:
                name, reason = next(iter(reasons.items()))
                others = f" and {len(reasons) - 1} more" if len(reasons) > 1 else ""
                parts.append(f"{len(reasons)} {step} ({name}{others}: {reason})")
        by_layers = self.num_parameters - len(names.by_vmap) - len(names.one_at_a_time)
        if by_layers:
            singly = f", followed on single samples ({names.singly})" if names.singly else ""
            parts.insert(0, f"{by_layers} parameters {LAYERS}{singly}")
        elif parts:
            parts[0] = parts[0].replace(" ", " parameters ", 1)
        seconds = self.sample_seconds * num_samples
        return f"{', '.join(parts)}; about {without_exponent(seconds, 2)} s a pass over {num_samples} samples"


def check_routes(
    model: torch.nn.Module,
    loss: Loss,
    examples: Examples,
    batch_size: int = 32,
    name_sample: SampleName = "sample {}".format,
) -> CheckedRoutes:
    """Return for each trained parameter the fastest step whose gradients are those of plain autograd.

    Compared on samples that stand for all (`representative`), in float64 where the model runs in it, and in its own
    dtype. `model` must be in eval mode.

    Raises:
        UserError: plain autograd cannot differentiate the loss of a sample, or samples influence one another.
    """
    if model.training:
        raise ValueError("per-sample gradients need the model in eval mode")
    torch.func.vmap(torch.neg)(torch.zeros(1))  # torch loads what the gradients need as well: no cost of checking
    start = time.perf_counter()
    own = Subject(model, loss, examples, row_dtype(model))
    rows = representative(examples)
    reference = _plain_gradients(own, rows, name_sample)
    exact = own if own.dtype == torch.float64 else in_float64(own, int(rows[0]))
    finest = exact or own
    _require_independence(own, finest, rows, name_sample)
    reference, unseen = with_every_gradient(own, reference, batch_size)
    rows = torch.tensor(sorted(reference))
    routes = _first_routes(own, rows)
    known = reference if finest is own else dict(zip(rows.tolist(), finest.one_by_one(rows), strict=True))
    # which samples share a batch is a matter of the route, not of the precision: one of them is asked
    routes = _corrected(finest, routes, [rows, rows[1::2].flip(0)], known, name_sample)
    rounding: dict[int, float] = {}
    if finest is not own:
        rounding = {row: relative_difference(reference[row], known[row]) for row in known}
        routes = _corrected(own, routes, [rows], reference, name_sample)
    seconds = _sample_seconds(own, routes, rows, min(batch_size, len(examples)))
    return CheckedRoutes(
        routes,
        rows.tolist(),
        exact is not None,
        unseen,
        time.perf_counter() - start,
        seconds,
        len(own.parameters),
        rounding,
    )


def _sample_seconds(subject: Subject, routes: Routes, rows: torch.Tensor, batch_size: int) -> float:
    """Return the share of a sample in the time of a batch of `batch_size`, part of which any batch takes."""
    capture = LayerCapture(subject.model, subject.loss, routes)

    def seconds(few: torch.Tensor) -> float:
        start = time.perf_counter()
        capture(subject.batch(few))
        return time.perf_counter() - start

    one, several = seconds(rows[:1]), seconds(rows)
    more = max(0.0, several - one) / max(1, len(rows) - 1)
    return more + max(0.0, one - more) / batch_size


def drop(routes: Routes, mismatches: Collection[Mismatch], name_sample: SampleName) -> Routes:
    """Return the routes with some parameters one step further down the ladder, after one line that says why.

    Raises:
        UserError: there is no further step.
    """
    worst = max(mismatches, key=lambda mismatch: mismatch.difference)
    size = f"{worst.difference:.2g} of the gradient's length"
    if any(routes.step(mismatch.parameter) == ONE_AT_A_TIME for mismatch in mismatches):
        raise UserError(
            f"the gradient of {name_sample(worst.row)} in {worst.parameter} differs from one computation to the next, "
            f"by {size}; a model in eval mode must be deterministic"
        )
    by_vmap, one_at_a_time = dict(routes.by_vmap), dict(routes.one_at_a_time)
    for mismatch in mismatches:
        name, step = mismatch.parameter, routes.step(mismatch.parameter)
        reason = f"wrong {step}, by {mismatch.difference:.2g} of the gradient's length at {name_sample(mismatch.row)}"
        if step == LAYERS and not routes.singly:
            by_vmap[name] = reason
        else:
            by_vmap.pop(name, None)
            one_at_a_time[name] = reason
    more = f" and {len(mismatches) - 1} more parameters" if len(mismatches) > 1 else ""
    print(
        f"gradients: {worst.parameter}{more} {routes.step(worst.parameter)} not as by plain autograd: off by {size} at "
        f"{name_sample(worst.row)}; the next step is taken"
    )
    return Routes(by_vmap, one_at_a_time, routes.singly)


def _first_routes(subject: Subject, rows: torch.Tensor) -> Routes:
    """Return the routes that a forward pass suggests: parameters used in unknown ways go by vmap, all else by layers.

    Parameters used where nobody can see it, as in a script, go one sample at a time. Where vmap cannot run the model,
    layers are followed on single samples.
    """
    try:
        unknown, hidden = _strict(subject, Routes()).not_followed(subject.batch(rows[:1]))
        routes = Routes(by_vmap=unknown, one_at_a_time=hidden)
        _strict(subject, routes)(subject.batch(rows))
    except Exception as error:  # what vmap does to a user's model may raise anything
        return _without_vmap(subject, rows, error)
    return routes


def _without_vmap(subject: Subject, rows: torch.Tensor, error: Exception) -> Routes:
    """Return the routes of a model that vmap cannot run: layers are followed on single samples.

    Parameters used in unknown ways, or where nobody can see it, as in a script, go one sample at a time.
    """
    reason = f"torch.func.vmap cannot run the model ({_first_sentence(error)})"
    try:
        unknown, hidden = _strict(subject, Routes(singly=reason)).not_followed(subject.batch(rows[:1]))
        alone = unknown | hidden
        followed = Routes(one_at_a_time=alone, singly=reason)
        seen = _strict(subject, followed)(subject.batch(rows))
    except Exception:  # following a user's model may raise anything too
        return _all_one_at_a_time(subject, reason)
    alone |= {name: UNSEEN for name in subject.parameters if name not in seen}
    if len(alone) == len(subject.parameters):
        return _all_one_at_a_time(subject, reason)
    return Routes(one_at_a_time=alone, singly=reason)


def _strict(subject: Subject, routes: Routes) -> LayerCapture:
    return LayerCapture(subject.model, subject.loss, routes, is_strict=True)


def _all_one_at_a_time(subject: Subject, reason: str) -> Routes:
    return Routes(one_at_a_time=dict.fromkeys(subject.parameters, reason))


def _corrected(
    subject: Subject,
    routes: Routes,
    parts: list[torch.Tensor],
    reference: dict[int, dict[str, torch.Tensor]],
    name_sample: SampleName,
) -> Routes:
    """Return the routes with every parameter so far down the ladder that its gradients are right.

    `parts` are batches of samples, the first of them all; `reference` has the gradients of plain autograd of each.
    """
    while True:
        names = [name for name in subject.parameters if routes.step(name) != ONE_AT_A_TIME]
        wrong: dict[str, Mismatch] = {}
        try:
            for part in parts if names else []:
                if not len(part):
                    continue
                with default_dtype(subject.dtype):
                    captures = _strict(subject, routes)(subject.batch(part), names)
                expected = [reference[row] for row in part.tolist()]
                wrong |= wrong_parameters(captures, expected, part, names, subject)
        except Exception as error:  # as above: other samples, another precision
            if routes.singly:
                return _all_one_at_a_time(subject, routes.singly)
            routes = _without_vmap(subject, parts[0], error)
            continue
        if not wrong:
            return routes
        routes = drop(routes, wrong.values(), name_sample)


def _plain_gradients(
    subject: Subject, rows: torch.Tensor, name_sample: SampleName
) -> dict[int, dict[str, torch.Tensor]]:
    """Return the gradient of each sample by plain autograd."""
    found = {}
    for row in rows.tolist():
        try:
            (found[row],) = subject.one_by_one(torch.tensor([row]))
        except Exception as error:  # a user's model or loss may raise anything
            raise UserError(
                f"plain autograd cannot differentiate the loss of {name_sample(row)}: {type(error).__name__}: "
                f"{_first_sentence(error)}"
            ) from error
    return found


def _require_independence(own: Subject, exact: Subject, rows: torch.Tensor, name_sample: SampleName) -> None:
    """Raise UserError where a loss depends on the samples beside it; the many of a crowd are run in the own dtype."""
    found = mixing_samples(exact, rows) or mixing_in_a_crowd(own, rows)
    if found is not None:
        row, together, alone, size = found
        if draws_random_numbers(lambda: own.losses(rows), next(iter(own.parameters.values())).device):
            raise UserError(RANDOM)
        raise UserError(
            f"the loss of {name_sample(row)} depends on its batch mates: {together:.8g} in a batch of {size}, "
            f"{alone:.8g} alone; {MIXED}"
        )


def _first_sentence(error: Exception) -> str:
    return first_line(error).split(". ")[0].rstrip(".")
