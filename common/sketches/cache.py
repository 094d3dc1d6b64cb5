"""Gradients and geometry of earlier runs, kept on disk and used again where all that made them is the same.

    <cache_dir>/<workload>_<key>/gradients/    rows.bin, norms.pt    (--offload disk)
    <cache_dir>/<workload>_<key>/geometry/     geometry.pt

`key` stands for what the user chooses. Beside the files lie manifests (common/storage.py) that also cover what may
change under one key (common/provenance.py).
"""

from __future__ import annotations

import shutil
import sys
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from common.foundations import storage, tensor_files
from common.foundations.errors import UserError
from common.gradients.kept_rows import Gradients, StoredGradients
from common.gradients.planning import GradientPlan, compute_gradients, fill, gigabytes
from common.gradients.provenance import describe, key
from common.sketches.basis import Basis, ParameterBasis, SampleBasis


class Cache:
    """What earlier runs of one gradient plan have left, and this one leaves.

    One process at a time makes gradients or geometry; another one that needs the same waits, and uses them. A folder
    that can only be read serves where all that is needed is there.
    """

    def __init__(self, cache_dir: Path, plan: GradientPlan, checkpoint: str, workload_file: Path | None = None):
        self.plan = plan
        self.made_by = describe(plan, checkpoint, workload_file)
        self.folder = Path(cache_dir) / f"{plan.workload.name}_{key(plan)}"

    @contextmanager
    def geometry_lock(self) -> Iterator[bool]:
        """Hold the geometry for this process; yield whether it can be read or kept, after one line where it cannot.

        Raises:
            UserError: the folder cannot be written, and gradients that are not there are to be kept in it too.
        """
        with _held(self._geometry_folder) as refusal:
            usable = refusal is None or storage.reusable(self._geometry_folder / "manifest.json", self.made_by)
            if refusal is not None and not usable:
                if self.plan.offload == "disk" and storage.mismatch(self._gradients_manifest, self.made_by):
                    raise refusal
                self._say_not_kept(refusal)
            yield usable

    def read_basis(self) -> Basis | None:
        """Return the basis that an earlier run has left; None where there is none to be trusted."""
        if not storage.reusable(self._geometry_folder / "manifest.json", self.made_by):
            return None
        print(f"geometry: from {self._geometry_folder}")
        stored = tensor_files.read_tensors(self._geometry_folder / "geometry.pt")
        rank, num_train = int(stored.pop("rank")), len(self.plan.parts[0][1])
        tensors = {name: tensor.to(self.plan.device) for name, tensor in stored.items()}
        kind = SampleBasis if "rows" in tensors else ParameterBasis
        return kind(**tensors, rank=rank, num_train=num_train)

    def keep_basis(self, basis: Basis) -> None:
        """Keep a basis for later runs; where that is refused, say so in one line and go on."""
        path = self._geometry_folder / "geometry.pt"
        tensors = {name: tensor.cpu() for name, tensor in basis.tensors().items()}
        try:
            with _renewed(self._geometry_folder / "manifest.json", self.made_by, [path]):
                tensor_files.write_tensors(path, tensors)
            size = path.stat().st_size
        except (UserError, OSError) as error:
            self._say_not_kept(error)
        else:
            print(f"geometry: {gigabytes(size)} kept in {self._geometry_folder}")

    def gradients(self, norms: Tensor | None = None) -> tuple[Gradients, bool]:
        """Return the gradients, and whether they come from an earlier run; only those of `disk` are kept.

        `norms`: see `compute_gradients`.

        Raises:
            UserError: a gradient is not finite (says which sample and parameter), a layer is not supported by
                `recompute`, or the disk does not suffice.
        """
        if self.plan.offload != "disk":
            return compute_gradients(self.plan, norms), False
        manifest = self._gradients_manifest
        folder = manifest.parent
        rows_path, norms_path = folder / "rows.bin", folder / "norms.pt"
        with _held(folder) as refusal:
            reused = storage.reusable(manifest, self.made_by)
            if not reused:
                if refusal is not None:
                    raise refusal
                with _renewed(manifest, self.made_by, [rows_path, norms_path]):
                    tensor_files.write_tensors(norms_path, write_gradients(self.plan, rows_path))
            print(f"gradients: {'from' if reused else 'kept in'} {folder}")
            return open_gradients(self.plan, rows_path, tensor_files.read_tensors(norms_path)), reused

    @property
    def _geometry_folder(self) -> Path:
        return self.folder / "geometry"

    @property
    def _gradients_manifest(self) -> Path:
        return self.folder / "gradients" / "manifest.json"

    def _say_not_kept(self, error: Exception) -> None:
        print(f"geometry: not kept in {self._geometry_folder}, going on without ({error})", file=sys.stderr)


def write_gradients(plan: GradientPlan, path: Path) -> Tensor:
    """Compute all gradients into a file, which appears whole or not at all; return their (N,) float64 lengths.

    Raises:
        UserError: a gradient is not finite (says which sample and parameter), or the disk does not suffice.
    """
    print(f"gradients: {plan.stored_size} in {path.parent}")
    free = shutil.disk_usage(storage.make_folder(path.parent)).free
    if plan.num_bytes > free:
        raise UserError(
            f"--cache_dir: {path.parent} has {free} bytes free, the gradients need {plan.num_bytes}; use another "
            "folder, --grad_dtype float16, or --offload recompute"
        )
    norms = torch.zeros(plan.num_rows, dtype=torch.float64)

    def write(stream: BinaryIO) -> None:
        gradients = StoredGradients(plan.num_rows, plan.num_columns, "disk", plan.dtype, plan.device, stream)
        fill(gradients, plan)
        norms.copy_(gradients.norms)

    storage.write_atomically(path, write)
    return norms


def open_gradients(plan: GradientPlan, path: Path, norms: Tensor) -> StoredGradients:
    """Return the gradients of a file that `write_gradients` has written, and whose lengths it has returned.

    The file stays open, so that they can be read to the end also when another one takes its name.
    """
    file = open(path, "rb")  # noqa: SIM115 - lives as long as the gradients
    gradients = StoredGradients(plan.num_rows, plan.num_columns, "disk", plan.dtype, plan.device, file)
    weakref.finalize(gradients, file.close)
    gradients.norms.copy_(norms)
    return gradients


@contextmanager
def _held(folder: Path) -> Iterator[Exception | None]:
    """Hold `folder` for this process; where that is refused, yield why: nothing can be written there, only read."""
    with ExitStack() as stack:
        refusal = None
        try:
            stack.enter_context(storage.exclusive_lock(folder))
        except (UserError, OSError) as error:
            refusal = error
        yield refusal


@contextmanager
def _renewed(manifest: Path, made_by: dict, files: list[Path]) -> Iterator[None]:
    """Remove `files`, let the block write them anew, and seal them; where that fails, nothing of them is left."""
    _remove(manifest, files)
    try:
        yield
        storage.seal(manifest, made_by, files)
    except BaseException:
        with suppress(UserError, OSError):
            _remove(manifest, files)
        raise


def _remove(manifest: Path, files: list[Path]) -> None:
    storage.unseal(manifest)
    with storage.writing_to(manifest.parent):
        for path in files:
            path.unlink(missing_ok=True)
