"""Runs that are stopped between two sketches, and the tables that must come out the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from common.experiments.units import UnitLog


@contextmanager
def stopped_after(units: int) -> Iterator[None]:
    """Press Ctrl-C inside the block once that many (trial, m) are finished and kept."""
    append = UnitLog.append

    def stop(log, trial, m, rows):
        append(log, trial, m, rows)
        if len(log.units) == units:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UnitLog, "append", stop)
        yield


def table_bytes(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all tables and logs of sketches of a result folder, by their names."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".csv", ".jsonl")}
