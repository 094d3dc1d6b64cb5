"""Finished (trial, m) units of a run, kept as they come, so that an interrupted run can continue."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from common.foundations.progress import progress_bar
from common.foundations.storage import uninterrupted, write_atomically, writing_to
from common.sketches.influence import SketchedProblem
from common.sketches.sketchers import Sketcher

UNITS = "units.jsonl"
# of the rows of a unit: raised with every change of what they hold, so that rows of older code are not continued
FORMAT = 3
Measure = Callable[[SketchedProblem, int, int], list[dict]]


class UnitLog:
    """Finished (trial, m) units of a run, appended as they come, so that an interrupted run can continue.

    Each line of `units.jsonl` is one unit. The first line says what the units belong to (options, data,
    checkpoint, versions, format of the rows); units of anything else are never used. A line cut short by a crash is
    ignored.
    """

    def __init__(self, folder: Path, belongs_to: dict, fresh: bool):
        self.path = folder / UNITS
        header = json.loads(json.dumps(belongs_to | {"format": FORMAT}))
        stored = [] if fresh else _complete_lines(self.path)
        if stored and stored[0] != header:
            changed = next(key for key in [*header, *stored[0]] if header.get(key) != stored[0].get(key))
            print(f"{self.path}: not continued, because {changed} differs", file=sys.stderr)
            stored = []
        self.units = {(unit["trial"], unit["m"]): unit["rows"] for unit in stored[1:]}
        lines = [header, *stored[1:]]
        write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in lines))
        if self.units:
            print(f"continuing after {len(self.units)} finished (trial, m) units; --fresh starts anew")

    def __contains__(self, unit: tuple[int, int]) -> bool:
        return unit in self.units

    def append(self, trial: int, m: int, rows: list[dict]) -> None:
        """Keep the rows of one finished unit, on disk before this returns."""
        line = json.dumps({"trial": trial, "m": m, "rows": rows}) + "\n"
        with uninterrupted(), writing_to(self.path.parent), open(self.path, "a", encoding="utf-8") as stream:
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())
        self.units[trial, m] = rows

    def table(self) -> pd.DataFrame:
        """Return all rows, ordered by trial and m."""
        return pd.DataFrame([row for unit in sorted(self.units) for row in self.units[unit]])


def measure_missing(
    log: UnitLog, sketcher: Sketcher, ms: Sequence[int], num_trials: int, measure: Measure
) -> pd.DataFrame:
    """Measure every (trial, m) that an interrupted run has not measured yet; return one row a (trial, m, λ).

    `measure` returns the rows of one sketched problem, given m and the trial.
    """
    with progress_bar("sketches", num_trials * len(ms)) as progress:
        for trial in range(num_trials):
            missing = [m for m in ms if (trial, m) not in log]
            progress.update(len(ms) - len(missing))
            for m, problem in sketcher.problems(trial, missing) if missing else ():
                log.append(trial, m, measure(problem, m, trial))
                progress.update()
    return log.table()


def _complete_lines(path: Path) -> list[dict]:
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        return []
    lines: list[dict] = []
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            break
        is_unit = isinstance(record, dict) and record.keys() >= {"trial", "m", "rows"}
        if not (is_unit if lines else isinstance(record, dict)):
            break
        lines.append(record)
    return lines
