"""The finished runs that are compared: read from their folders, and refused where they are not of one thing.

Nothing here needs torch or pandas.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.experiments.options.records import WorkloadChoice
from common.foundations.errors import UserError

ERRORS, USEFULNESS = "spectrum_bounds", "hyperparam_selection"
# what the runs of one comparison must share, by where config.json has it
SAME_OPTIONS = ("dataset", "model", "workload", "num_train", "epochs", "benchmark")
SAME_FIELDS = ("data_fingerprint", "checkpoint_fingerprint", "workload_checksum")


@dataclass(frozen=True)
class FinishedRun:
    """What one run was asked for, and what its config.json says."""

    folder: Path
    """With its tables."""
    config: dict[str, Any]
    """config.json."""

    @property
    def experiment(self) -> str:
        """ERRORS or USEFULNESS."""
        return self.config["experiment"]

    @property
    def options(self) -> dict[str, Any]:
        """Its command line; options that came later than the run are missing."""
        return self.config["options"]

    @property
    def kronecker_ranks(self) -> tuple[int, int] | None:
        """Kronecker: sizes that every layer becomes; None where m is shared among the layers."""
        text = self.options.get("kronecker_ranks")
        if text is None:
            return None
        a, b = map(int, text.split(","))
        return a, b

    @property
    def law(self) -> str:
        """Name of the projection in tables and figures."""
        ranks = self.options.get("kronecker_ranks")
        return self.options["proj_type"] + (f" {ranks}" if ranks else "")

    def workload(self, data_dir: Path, benchmark_dir: Path) -> WorkloadChoice:
        """Return the workload, with its data and checkpoint in these folders."""
        options = self.options
        return WorkloadChoice(
            dataset=options["dataset"] or "",
            model=options["model"] or "",
            file=Path(options["workload"]) if options["workload"] else None,
            num_train=options["num_train"],
            epochs=options["epochs"],
            benchmark=options["benchmark"],
            data_dir=data_dir,
            benchmark_dir=benchmark_dir,
        )


def read_runs(folders: Sequence[Path]) -> tuple[FinishedRun, ...]:
    """Return the runs of folders.

    Raises:
        UserError: a folder holds no finished run with measured errors or LDS; runs are of different models, data or
            queries; two are of one projection; none has errors.
    """
    runs = tuple(_read(folder) for folder in folders)
    if not any(run.experiment == ERRORS for run in runs):
        raise UserError(f"no run of {ERRORS}.py among {len(runs)}: the errors are its")
    seen: dict[tuple[str, str], Path] = {}
    for run in runs:
        _require_same(run, runs[0], SAME_OPTIONS)
        _require_same(run, next(other for other in runs if other.experiment == run.experiment), ("test_mode",))
        key = run.experiment, run.law
        if key in seen:
            raise UserError(f"{run.folder}: {run.law} is compared already, from {seen[key]}")
        seen[key] = run.folder
    return runs


def _require_same(run: FinishedRun, other: FinishedRun, names: Sequence[str]) -> None:
    pairs = [(name, other.options.get(name), run.options.get(name)) for name in names]
    pairs += [(name, other.config[name], run.config[name]) for name in SAME_FIELDS]
    for name, wanted, found in pairs:
        if wanted != found:
            raise UserError(f"{run.folder}: {name} is {found}, that of {other.folder} {wanted}")


def _read(folder: Path) -> FinishedRun:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        experiment, finished = config["experiment"], config["finished"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: no config.json of a finished run there") from error
    if experiment not in (ERRORS, USEFULNESS) or not finished:
        raise UserError(f"{folder}: no finished run of {ERRORS}.py or {USEFULNESS}.py")
    run = FinishedRun(folder, config)
    for name, wanted in (("predict_only", False), ("scores", "self"), ("sjlt_sparsity", 1)):
        found = run.options.get(name, wanted)
        if found != wanted:
            raise UserError(f"{folder}: a run with --{name} {found} cannot be compared, only with {wanted}")
    return run
