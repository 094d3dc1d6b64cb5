"""Run folders: configuration saved before computing, finished units kept as they come, results replaced at the end."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import shlex
import shutil
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.experiments.options.records import Option, RunRequest, WorkloadChoice
from common.foundations.errors import UserError
from common.foundations.storage import (
    first_difference,
    make_folder,
    open_lock,
    take_lock,
    uninterrupted,
    write_atomically,
    write_json,
    writing_to,
)

if TYPE_CHECKING:
    import pandas as pd

PACKAGES = (
    "torch",
    "numpy",
    "scipy",
    "pandas",
    "matplotlib",
    "dattri",
    "scikit-learn",
    "mlxtend",
    "statsmodels",
    "tqdm",
)
# options that say where and how, not what: they do not change the numbers, so they do not name the folder
WHERE_AND_HOW = {
    "dataset",
    "model",
    "workload",
    "proj_type",
    "batch_size",
    "offload",
    "cache_dir",
    "data_dir",
    "output_dir",
    "benchmark_dir",
    "device",
    "fresh",
    # of audits: paths, whose content is in the fingerprint of the data
    "train",
    "queries",
    "format",
    "norms",
    "ground_truth",
    "write_scores",
    "timeout",
    # of comparisons: folders, which all have runs of the one workload that names the folder
    "runs",
}
ROOT = Path(__file__).resolve().parents[2]
UNITS, LOCK = "units.jsonl", "lock"


class Run:
    """One run of one experiment: its folder, its configuration, and where the time went.

    Everything is written to `unfinished/` below the folder of the results. A run that ends well moves it up,
    config.json last; until then the results of an earlier run stay as they were. A folder with tables and no
    config.json was being replaced when the process was killed: the same command completes it. A run that fails removes
    its `unfinished/`, unless it holds units to continue from.
    """

    def __init__(self, request: RunRequest):
        parts = [subject_name(request.subject), *filter(None, [request.proj_type]), *variant(request.options)]
        self.results = request.output_dir / request.experiment / "_".join(parts)
        self._release: Callable[[], object] | None = None
        self.started = time.perf_counter()
        try:
            with uninterrupted():  # the folder is made and known to be this run's, or neither
                self.folder = make_folder(self.results / "unfinished")
                self._release = self._take_folder()
            self.config = _describe(request)
            self.save_config()
        except BaseException:  # Ctrl-C above all: importing torch takes a second
            if self._release is not None:
                self._clear()
                self._release()
            raise

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type | None, error: object, traceback: object) -> None:
        """Finish the run, or remove what a failed one has written."""
        if kind is None:
            self.finish()
        else:
            self._clear()
        if self._release is not None:
            self._release()

    def _clear(self) -> None:
        """Remove what a failed run has written, unless it holds units to continue from."""
        if not (self.folder / UNITS).exists():
            shutil.rmtree(self.folder, ignore_errors=True)
            with suppress(OSError):  # results of an earlier run, and of others, stay
                self.results.rmdir()
                self.results.parent.rmdir()

    def _take_folder(self) -> weakref.finalize:
        """Lock the folder; return what frees it. The kernel does when this process ends, however it ends."""
        path = self.folder / LOCK
        lock = open_lock(path)
        release = weakref.finalize(self, os.close, lock)
        try:
            taken = take_lock(lock, path, wait=False)
        except UserError:
            self._clear()
            raise
        if not taken:
            raise UserError(
                f"{self.results}: another process is writing there; wait for it, or choose another --output_dir"
            )
        return release

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the wall time of the block to config.json under `name`, and say on the terminal what is going on."""
        started = time.perf_counter()
        yield
        seconds = self.config["seconds"]
        seconds[name] = round(seconds.get(name, 0) + time.perf_counter() - started, 3)

    def record(self, **entries) -> None:
        """Add entries to config.json and save it."""
        self.config.update(entries)
        self.save_config()

    def identity(self) -> dict:
        """Return what the numbers of this run depend on: units of an interrupted run with the same may be used."""
        what = {name: value for name, value in self.config["options"].items() if name not in WHERE_AND_HOW}
        made_of = ("data_fingerprint", "checkpoint_fingerprint", "workload_checksum", "device", "packages")
        return {"options": what} | {name: self.config[name] for name in made_of}

    def announce_replacement(self) -> None:
        """Say in one line if the folder holds finished results of another identity (same options, other data, ...)."""
        try:
            earlier = json.loads((self.results / "config.json").read_text(encoding="utf-8"))
            options = {name: value for name, value in earlier["options"].items() if name not in WHERE_AND_HOW}
            there = {name: earlier.get(name) for name in self.identity()} | {"options": options}
            difference = first_difference(there, self.identity())
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            difference = "their config.json cannot be read"
        if difference:
            print(f"{self.results}: the results there will be replaced at the end: {difference}", file=sys.stderr)

    def save_config(self) -> None:
        """Write config.json with the time and memory used so far."""
        self.config["seconds"]["total"] = round(time.perf_counter() - self.started, 3)
        self.config["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if _torch().cuda.is_available():
            self.config["peak_cuda_memory_bytes"] = _torch().cuda.max_memory_allocated()
        write_json(self.folder / "config.json", self.config)

    def write_table(self, name: str, table: pd.DataFrame) -> None:
        """Write a CSV file in full precision, whole or not at all."""
        write_atomically(self.folder / name, table.to_csv(index=False))

    def write_json(self, name: str, record: dict) -> None:
        """Write a JSON file, whole or not at all."""
        write_json(self.folder / name, record)

    def finish(self) -> None:
        """Put the results in the place of earlier ones, config.json last, and say where they are."""
        self.record(finished=True)
        config = self.results / "config.json"
        with uninterrupted(), writing_to(self.results):
            config.unlink(missing_ok=True)
            for path in self.folder.iterdir():
                if path.name not in (UNITS, LOCK, config.name):
                    os.replace(path, self.results / path.name)
            os.replace(self.folder / config.name, config)
            shutil.rmtree(self.folder)
        print(f"results: {self.results}{os.sep}  ({self.config['seconds']['total']:.0f} s)")


def _describe(request: RunRequest) -> dict:
    """Return what config.json says before anything is computed."""
    return {
        "experiment": request.experiment,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "options": {o.name: _plain(o.value) for o in sorted(request.options, key=lambda o: o.name)},
        "git_commit": git_commit(ROOT),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {_torch().get_num_threads()} threads",
        "finished": False,
        "seconds": {},
    }


def bad_values(summary: pd.DataFrame, what: str, file: str = "summary.csv") -> str | None:
    """Return one line that says how many values of a table (columns ..num_bad) were not finite; None where none."""
    names = [name for name in summary.columns if name.endswith("num_bad") and summary[name].any()]
    counts = {name: int(summary[name].sum()) for name in names}
    if not counts:
        return None
    where = ", ".join(f"{count} in {name}" for name, count in counts.items())
    return f"warning: {what} that are not finite are counted and left out of every mean: {where} of {file}"


def subject_name(subject: WorkloadChoice | Path) -> str:
    """Return the name of the workload, or of the store that is audited."""
    return subject.resolve().stem if isinstance(subject, Path) else workload_name(subject)


def workload_name(choice: WorkloadChoice) -> str:
    """Return the name of the pair or of the user's own workload.

    Raises:
        UserError: see `load_user_workload`.
    """
    if choice.file is None:
        return f"{choice.dataset}_{choice.model}"
    from common.workloads.user_file import load_user_workload  # runs the file, which needs torch

    return load_user_workload(choice.file).name


def variant(options: Sequence[Option]) -> list[str]:
    """Return the parts of a folder name that tell options which change the numbers from their defaults."""
    parts = []
    for option in options:
        if option.name in WHERE_AND_HOW or option.value == option.default:
            continue
        if option.name in ("test_mode", "scores"):
            parts.append(str(option.value))
        else:
            parts.append(option.name if option.value is True else f"{option.name}_{_plain(option.value)}")
    return parts


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value) if isinstance(value, Path) else value


def _torch():
    """Return torch, imported only once the folder is taken: a run that is refused need not wait for it."""
    import torch

    return torch


def git_commit(root: Path) -> str | None:
    """Return the commit of the code in `root`, with -dirty where its code differs from that; None without git.

    The results below `root` are committed too, and every run changes them: they do not count.
    """
    git = ["git", "--no-optional-locks", "-C", str(root)]
    changes = ["status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)results"]
    try:
        commit, changed = (
            subprocess.run([*git, *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "HEAD"], changes)
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}-dirty" if changed else commit
