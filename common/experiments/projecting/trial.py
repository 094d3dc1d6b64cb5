"""A trial run: a few samples are projected, nothing is written, and what the whole takes is said."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from common.experiments.projecting.filling import project_range
from common.experiments.projecting.subject import ProjectionSubject
from common.foundations.progress import without_exponent
from common.gradients.planning import gigabytes


@dataclass(frozen=True)
class Forecast:
    """What a whole run takes in one process."""

    seconds: float
    """Of projecting every sample of both parts."""
    seconds_a_call: float
    """Of one call of the projection, however many samples it has: drawing P, above all."""
    seconds_a_sample: float
    """Of one sample more."""
    num_bytes: int
    """Of the store."""


def forecast(subject: ProjectionSubject, limit: int) -> Forecast:
    """Return what the whole takes, from projecting at most `limit` training samples, and a quarter of them.

    Two at least: one sample alone cannot tell what a call costs from what a sample does.
    """
    size = min(max(limit, 2), subject.identities["train"].n, subject.projection.rows_at_once)
    _seconds(subject, 1)  # what only the first call takes
    a_call, a_sample = time_calls(subject, max(1, size // 4), size)
    calls = sum(_num_calls(subject, part) for part in subject.identities)
    samples = sum(identity.n for identity in subject.identities.values())
    num_bytes = sum(identity.num_bytes for identity in subject.identities.values())
    return Forecast(calls * a_call + samples * a_sample, a_call, a_sample, num_bytes)


def time_calls(subject: ProjectionSubject, few: int, many: int, enough: float = 0.0) -> tuple[float, float]:
    """Return (a, b) of the seconds a + b·(samples) that a call of the projection takes, from calls of two sizes.

    Calls of either size are repeated for `enough` seconds, and the fastest counts: other work only ever adds time.
    """
    short, long = (_fastest(subject, count, enough) for count in (few, many))
    a_sample = max(0.0, (long - short) / (many - few)) if many > few else long / many
    return max(0.0, long - a_sample * many), a_sample


def describe(found: Forecast, subject: ProjectionSubject) -> str:
    """Return the forecast for people."""
    samples = " + ".join(f"{identity.n} {part}" for part, identity in subject.identities.items())
    return (
        f"the whole, {samples} samples: about {without_exponent(found.seconds, 3)} s in one process like this one "
        f"({found.seconds_a_sample:.3g} s a sample, {without_exponent(found.seconds_a_call, 3)} s a call of at most "
        f"{subject.projection.rows_at_once}), {gigabytes(found.num_bytes)} on disk; nothing has been written"
    )


def _num_calls(subject: ProjectionSubject, part: str) -> int:
    size = subject.projection.rows_at_once
    return sum(math.ceil(len(span) / size) for span in subject.identities[part].ranges)


def _fastest(subject: ProjectionSubject, count: int, enough: float) -> float:
    taken = [_seconds(subject, count)]
    while sum(taken) < enough:
        taken.append(_seconds(subject, count))
    return min(taken)


def _seconds(subject: ProjectionSubject, count: int) -> float:
    started = time.perf_counter()
    for _ in project_range(subject, "train", range(count)):
        pass
    return time.perf_counter() - started
