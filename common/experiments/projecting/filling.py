"""Fill a store: ranges of samples are dealt out to the ranks, projected, checked, and written as they come."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.experiments.projecting.subject import ProjectionSubject
from common.foundations.distributed import Ranks
from common.foundations.errors import UserError
from common.foundations.progress import progress_bar
from common.foundations.storage import make_folder, open_lock, take_lock
from common.gradients.length_checks import wrong_length
from common.gradients.planning import gigabytes
from common.sketches.sample_projection import ProjectedRows
from common.stores.manifest import PARTS
from common.stores.writer import StoreWriter

LOCK = ".lock"
CHECK_SHARE = 0.05
"""Share of the time of a range that comparing its gradients with plain autograd may take."""


def make_writers(store: Path, subject: ProjectionSubject) -> list[StoreWriter]:
    """Return the writers of both parts; nothing is written yet."""
    return [StoreWriter(store / part, identity) for part, identity in subject.identities.items()]


def check(writers: list[StoreWriter]) -> None:
    """Raise UserError where the store holds rows of anything else: another seed, checkpoint, kind, ..."""
    for writer in writers:
        writer.check()


@contextmanager
def held(store: Path, ranks: Ranks) -> Iterator[None]:
    """Hold the store for this run, until rank 0 ends.

    Raises:
        UserError: another run is writing there, or its folder cannot be written.
    """
    locks: list[int] = []

    def take() -> None:
        path = make_folder(store) / LOCK
        locks.append(open_lock(path))
        if not take_lock(locks[0], path, wait=False):
            raise UserError(f"{store}: another process is writing there; wait for it, or choose another --store")

    try:
        ranks.first(take)
        yield
    finally:
        for lock in locks:
            os.close(lock)


def fill(writer: StoreWriter, subject: ProjectionSubject, ranks: Ranks) -> int:
    """Write every range of one part that is not there yet; return how many rows that were.

    Raises:
        UserError: a gradient is not finite, not that of plain autograd, or does not fit the dtype of the store.
    """
    # sums in another order end in other bits
    torch.set_num_threads(ranks.first(partial(_begin, writer)))
    spans = writer.identity.ranges
    found = ranks.together(lambda: writer.finished(spans[ranks.rank :: ranks.size]))
    whole = {span.start for part in found for span in part}
    missing = [span for span in spans if span.start not in whole]
    done = sum(len(span) for span in spans if span.start in whole)
    if done:
        print(f"{writer.folder}: {done} of {writer.identity.n} rows are there")
    if writer.is_finished():
        if not missing:
            return 0
        print(f"{writer.folder}: {len(missing)} ranges are damaged, and made again", file=sys.stderr)
        ranks.first(writer.reopen)
    started = time.perf_counter()
    with progress_bar(f"{writer.identity.part} gradients", writer.identity.n, "row") as bar:
        bar.update(done)
        for deal in (missing[start : start + ranks.size] for start in range(0, len(missing), ranks.size)):
            own = deal[ranks.rank : ranks.rank + 1]
            bar.update(sum(ranks.together(partial(_make_range, writer, subject, own))))
    notes = _notes(ranks.size, time.perf_counter() - started, writer.identity.n - done)
    ranks.first(lambda: writer.finish(notes))
    return writer.identity.n - done


def report(store: Path, writers: list[StoreWriter]) -> None:
    """Print where the store is, how large it is, and how to read it."""
    sizes = ", ".join(f"{w.identity.part} {w.identity.n} x {w.identity.m} {w.identity.dtype}" for w in writers)
    rows = "rows of length about 1, to be multiplied by norms.npy" if writers[0].identity.scale == "unit" else "rows Pg"
    print(f"store: {store}{os.sep} ({sizes}; {rows}; {gigabytes(sum(w.identity.num_bytes for w in writers))})")
    train, test = (shlex.quote(str(store / part)) for part in PARTS)
    print(f"audit: python audit_projections.py --train {train} --queries {test}")


def _begin(writer: StoreWriter) -> int:
    """Make or keep the files of a part, and return the threads with which its rows are computed."""
    if not writer.is_finished():
        writer.begin()
    return writer.threads()


def _make_range(writer: StoreWriter, subject: ProjectionSubject, spans: list[range]) -> int:
    """Project, check and write at most one range; return its rows."""
    for span in spans:
        started = time.perf_counter()
        parts = list(project_range(subject, writer.identity.part, span))
        rows = ProjectedRows(torch.cat([p.projected for p in parts]), torch.cat([p.norms for p in parts]))
        _check(writer.identity.part, span, subject, rows.norms, time.perf_counter() - started)
        writer.write(span, rows.projected, rows.norms)
    return sum(len(span) for span in spans)


def project_range(subject: ProjectionSubject, part: str, span: range) -> Iterator[ProjectedRows]:
    """Yield the projected gradients of a range, as many at once as the projection likes."""
    size = subject.projection.rows_at_once
    for start in range(span.start, span.stop, size):
        rows = range(start, min(start + size, span.stop))
        projected = subject.projection(subject.examples(part, rows))
        bad = (~projected.norms.isfinite()).nonzero().flatten().tolist()
        if bad:
            raise UserError(f"the gradient of {part} sample {start + bad[0]} is not finite; all gradients must be")
        yield ProjectedRows(projected.projected.cpu(), projected.norms.cpu())


def _check(part: str, span: range, subject: ProjectionSubject, norms: Tensor, seconds: float) -> None:
    """Compare the lengths of some gradients of a range with those of plain autograd."""
    rows = [subject.starts[part] + row for row in span]
    wrong = wrong_length(subject.subject, rows, norms, CHECK_SHARE * seconds)
    if wrong is not None:
        raise UserError(
            f"the gradient of {part} sample {wrong.row - subject.starts[part]} has length {wrong.found:.6g}, and "
            f"{wrong.expected:.6g} by plain autograd: nothing of this range has been written"
        )


def _notes(num_processes: int, seconds: float, rows: int) -> dict[str, Any]:
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "processes": num_processes,
        "seconds": round(seconds, 3),
        "rows_of_these_seconds": rows,
    }
