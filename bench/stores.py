"""A store of projected gradients, M = 4,096: ours beside the projectors that dattri and TRAK have for a CPU.

All routes project the same gradients (layer by layer, 32 samples a batch) and write the same two arrays. Neither
library has a sparse projection on the CPU, so both of our kinds stand beside their dense one; each draws its matrix
anew for every batch, ours once for up to 1,024 samples.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bench.gradient_rows import BATCH
from common.experiments.projecting.filling import fill
from common.experiments.projecting.subject import ProjectionSubject, parameter_spans
from common.foundations.distributed import ALONE
from common.gradients.layer_capture import Routes
from common.gradients.layer_gradients import RowGradients
from common.gradients.verification import Subject
from common.sketches.row_projection import make_row_projection
from common.sketches.sample_projection import GradientRows, row_lengths
from common.stores.manifest import StoreIdentity, rows_a_range
from common.stores.writer import StoreWriter
from common.workloads.records import Workload

M = 4096
SEED = 42
SHARE = 8
"""Samples of the other comparisons to one here: the libraries take seconds a batch."""
CPU = torch.device("cpu")
Project = Callable[[Tensor], Tensor]


def steps() -> list[tuple[str, str, Callable]]:
    """Return (what, route, step): ours first, the libraries that are installed after it."""
    others: list[tuple[str, Callable]] = [("dattri", by_dattri)]
    if importlib.util.find_spec("trak") is not None:
        others.append(("TRAK", by_trak))
    else:
        print("stores: TRAK left out, traker is not installed (requirements-interop.txt)")
    ours = {"sjlt": by_sjlt, "normal": by_normal}
    return [(f"store of {kind}", route, step) for kind in ours for route, step in [("ours", ours[kind]), *others]]


def by_sjlt(workload: Workload, model: nn.Module) -> Callable[[], int]:
    """Return what writes our store of an SJLT, and returns its bytes."""
    return lambda: _ours("sjlt", workload, model)


def by_normal(workload: Workload, model: nn.Module) -> Callable[[], int]:
    """Return what writes our store of a normal projection, and returns its bytes."""
    return lambda: _ours("normal", workload, model)


def by_dattri(workload: Workload, model: nn.Module) -> Callable[[], int]:
    """Return what writes the same arrays with dattri's projector for a CPU."""
    from dattri.func.projection import BasicProjector, ProjectionType

    def run() -> int:
        projector = BasicProjector(_dim(model), M, SEED, ProjectionType.normal, CPU)
        return _theirs(workload, model, lambda rows: projector.project(rows, ensemble_id=0))

    return run


def by_trak(workload: Workload, model: nn.Module) -> Callable[[], int]:
    """Return what writes the same arrays with TRAK's projector for a CPU."""
    from trak.projectors import BasicProjector, ProjectionType

    def run() -> int:
        projector = BasicProjector(_dim(model), M, SEED, ProjectionType.normal, CPU)
        return _theirs(workload, model, lambda rows: projector.project(rows, model_id=0) / M**0.5)

    return run


def _ours(kind: str, workload: Workload, model: nn.Module) -> int:
    examples = workload.train.subset(slice(_num_samples(workload)))
    projection = make_row_projection(kind, M, SEED, _dim(model), CPU)
    samples = GradientRows(model, workload.loss, Routes(), projection, BATCH)
    identity = StoreIdentity(
        part="train",
        kind=kind,
        m=M,
        seed=SEED,
        scale="none",
        n=len(examples),
        d=_dim(model),
        dtype="float32",
        parameters=parameter_spans(model),
        modules=(),
        checkpoint="",
        data="",
        device="cpu",
        torch=version("torch"),
        rows_a_range=rows_a_range(len(examples), samples.rows_at_once),
    )
    of_samples = Subject(model, workload.loss, examples, torch.float32)
    subject = ProjectionSubject(of_samples, Routes(), samples, {"train": identity}, {"train": 0})
    with tempfile.TemporaryDirectory() as folder:
        fill(StoreWriter(Path(folder), identity), subject, ALONE)
        return _size(Path(folder))


def _theirs(workload: Workload, model: nn.Module, project: Project) -> int:
    count = _num_samples(workload)
    gradients = RowGradients(model, workload.loss, Routes())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        rows = np.lib.format.open_memmap(path / "projected.npy", mode="w+", dtype=np.float32, shape=(count, M))
        norms = np.lib.format.open_memmap(path / "norms.npy", mode="w+", dtype=np.float64, shape=(count,))
        for start in range(0, count, BATCH):
            batch = gradients(workload.train.subset(slice(start, min(start + BATCH, count))))
            rows[start : start + len(batch)] = project(batch).numpy()
            norms[start : start + len(batch)] = row_lengths(batch).numpy()
        rows.flush()
        norms.flush()
        return _size(path)


def _num_samples(workload: Workload) -> int:
    return max(2, len(workload.train) // SHARE)


def _dim(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.npy"))
