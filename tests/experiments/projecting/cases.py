"""A tiny workload with a few ranges, and options to project it."""

from __future__ import annotations

from pathlib import Path

from common.experiments.options.records import WorkloadChoice
from common.experiments.projecting.options import ProjectOptions
from tests.tiny import write_tiny


def options(folder: Path, change: str = "", **changes) -> ProjectOptions:
    """Return options that project a tiny workload into `folder`/store."""
    workload = WorkloadChoice("", "", write_tiny(folder, change), None, None, "local", folder, folder / "benchmarks")
    plain = dict(
        workload=workload, modules=(), kind="sjlt", m=8, kronecker_ranks=None, seed=5, store=folder / "store",
        dtype="float32", scale="none", batch_size=4, device="cpu", limit=None, timeout=60.0,
    )  # fmt: skip
    return ProjectOptions(**plain | changes)


def contents(store: Path) -> dict[Path, bytes]:
    """Return the bytes of all arrays of a store, by their place in it."""
    return {path.relative_to(store): path.read_bytes() for path in sorted(store.rglob("*.npy"))}
