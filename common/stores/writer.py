"""Write one part of a store, range by range: a range is finished or absent, also after kill -9."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.foundations.errors import UserError
from common.foundations.storage import first_difference, make_folder, write_atomically, write_json, writing_to
from common.stores.manifest import (
    MANIFEST,
    NORMS,
    NUMPY_NAMES,
    PROJECTED,
    RANGES,
    SUFFIX,
    UNFINISHED,
    StoreIdentity,
    npy_header,
    read_record,
    torch_dtype,
)

LOSS_GAP = 1e-3


class StoreWriter:
    """One part of a store, which any number of processes may fill, each range once.

    One process calls `begin` before the others write, and `finish` when all have written.
    """

    def __init__(self, folder: Path, identity: StoreIdentity):
        self.folder, self.identity = folder, identity
        self._dtype = torch_dtype(identity.dtype)
        self._row_bytes = identity.m * self._dtype.itemsize
        self._headers = {
            PROJECTED: npy_header(NUMPY_NAMES[identity.dtype], (identity.n, identity.m)),
            NORMS: npy_header("<f8", (identity.n,)),
        }

    def check(self) -> None:
        """Raise UserError where the folder holds rows of anything else: another seed, checkpoint, kind, ..."""
        for name in (MANIFEST, UNFINISHED):
            there = read_record(self.folder / name)
            if there is None:
                continue
            wanted = self.identity.record()
            losses = wanted.pop("losses")
            difference = first_difference({key: there.get(key) for key in wanted}, wanted)
            if not difference and not _agree(there.get("losses"), losses):
                difference = "the loss, or what the model does with the same weights, was another"
            if difference:
                raise UserError(
                    f"{self.folder} is a store of something else: {difference}; choose another --store, or remove it"
                )

    def threads(self) -> int:
        """Return with how many threads rows are computed, on which their last bit depends: as an earlier run began."""
        for name in (MANIFEST, UNFINISHED):
            record = read_record(self.folder / name)
            if record is not None:
                return int(record["threads"])
        return torch.get_num_threads()

    def begin(self) -> None:
        """Make files of the final size, or keep those of an interrupted run."""
        self.check()
        make_folder(self.folder / RANGES)
        with writing_to(self.folder):
            if read_record(self.folder / UNFINISHED) is None:
                self._write_unfinished()
            for name in (PROJECTED, NORMS):
                path = self._path(name)
                size = len(self._headers[name]) + self.identity.n * (self._row_bytes if name == PROJECTED else 8)
                if path.exists() and path.stat().st_size == size:
                    continue
                with open(path, "wb") as stream:
                    stream.write(self._headers[name])
                    stream.truncate(size)

    def finished(self, spans: Iterable[range]) -> list[range]:
        """Return those of the ranges that are there and whole: their bytes are read and compared with the checksums."""
        known = self._finished_part()
        found = []
        for span in spans:
            checksum = known.get(span.start) if known is not None else self._recorded(span)
            if checksum is not None and checksum == self._checksum(span):
                found.append(span)
        return found

    def write(self, span: range, rows: Tensor, norms: Tensor) -> None:
        """Write the rows of one range; it counts as finished when this returns, and not before.

        Args:
            span: one of `identity.ranges`.
            rows: (b, m) projected gradients, not scaled.
            norms: (b,) float64 lengths of the unprojected gradients.

        Raises:
            UserError: a number does not fit the dtype, or the disk is full.
        """
        content = {PROJECTED: self._stored(span, rows, norms), NORMS: norms.cpu().double().numpy().tobytes()}
        self._range_path(span).unlink(missing_ok=True)
        digest = hashlib.sha256()
        with writing_to(self.folder):
            for name, part in content.items():
                self._pwrite(name, span, part)
                digest.update(part)
        self._record(span, digest.hexdigest())

    def finish(self, notes: dict[str, Any]) -> None:
        """Put the arrays in their places and write the manifest, last; every range must have been written."""
        spans = self.identity.ranges
        checksums = [self._recorded(span) for span in spans]
        missing = [span.start for span, checksum in zip(spans, checksums, strict=True) if checksum is None]
        if missing:
            raise ValueError(f"{self.folder}: ranges from rows {missing[:5]} have not been written")
        ranges = [[s.start, s.stop, checksum] for s, checksum in zip(spans, checksums, strict=True)]
        with writing_to(self.folder):
            for name in (PROJECTED, NORMS):
                if self._path(name).name != name:
                    os.replace(self._path(name), self.folder / name)
            made = self.identity.record() | {"threads": self.threads()}
            write_json(self.folder / MANIFEST, made | {"ranges": ranges, "notes": notes})
            (self.folder / UNFINISHED).unlink(missing_ok=True)
            shutil.rmtree(self.folder / RANGES, ignore_errors=True)

    def reopen(self) -> None:
        """Take back that the part is finished, with the ranges that are whole: damaged ones can be written again."""
        record = read_record(self.folder / MANIFEST)
        if record is None:
            return
        make_folder(self.folder / RANGES)
        self._write_unfinished()
        for start, stop, checksum in record["ranges"]:
            self._record(range(start, stop), checksum)
        (self.folder / MANIFEST).unlink()

    def is_finished(self) -> bool:
        """Whether the manifest is there."""
        return (self.folder / MANIFEST).exists()

    def _write_unfinished(self) -> None:
        write_json(self.folder / UNFINISHED, self.identity.record() | {"threads": self.threads()})

    def _stored(self, span: range, rows: Tensor, norms: Tensor) -> bytes:
        if self.identity.scale == "unit":
            rows = rows.double() * torch.where(norms == 0, 0.0, 1 / norms).to(rows.device)[:, None]
        stored = rows.to(self._dtype).cpu().contiguous()
        bad = ~stored.isfinite().all(dim=1)
        if bad.any():
            row = int(bad.nonzero()[0])
            advice = "" if self.identity.scale == "unit" else "; --scale unit keeps rows within its range"
            raise UserError(
                f"{self.identity.part} sample {span.start + row}: a projected gradient of length "
                f"{norms[row].item():.3g} is beyond {self.identity.dtype}{advice}"
            )
        return stored.view(torch.uint8).numpy().tobytes()

    def _path(self, name: str) -> Path:
        final = self.folder / name
        return final if final.exists() else self.folder / f"{name}{SUFFIX}"

    def _range_path(self, span: range) -> Path:
        return self.folder / RANGES / f"{span.start}.json"

    def _place(self, name: str, span: range) -> tuple[int, int]:
        width = self._row_bytes if name == PROJECTED else 8
        return len(self._headers[name]) + span.start * width, len(span) * width

    def _pwrite(self, name: str, span: range, content: bytes) -> None:
        offset, size = self._place(name, span)
        if len(content) != size:
            raise ValueError(f"{len(content)} bytes for {len(span)} rows that take {size}")
        # plain writes: pages of a memory map would count as memory of this process
        descriptor = os.open(self._path(name), os.O_WRONLY)
        try:
            view = memoryview(content)
            while view:
                written = os.pwrite(descriptor, view, offset)
                view, offset = view[written:], offset + written
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)

    def _checksum(self, span: range) -> str | None:
        """Return the sha256 (hex) of the rows and norms of a range as they lie on disk; None where they do not."""
        digest = hashlib.sha256()
        for name in (PROJECTED, NORMS):
            offset, size = self._place(name, span)
            try:
                with open(self._path(name), "rb") as stream:
                    stream.seek(offset)
                    content = stream.read(size)
            except FileNotFoundError:
                return None
            digest.update(content)
        return digest.hexdigest()

    def _record(self, span: range, checksum: str) -> None:
        write_atomically(self._range_path(span), json.dumps({"stop": span.stop, "sha256": checksum}))

    def _recorded(self, span: range) -> str | None:
        try:
            record = json.loads(self._range_path(span).read_text(encoding="utf-8"))
            return str(record["sha256"]) if record["stop"] == span.stop else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _finished_part(self) -> dict[int, str] | None:
        record = read_record(self.folder / MANIFEST)
        return None if record is None else {start: checksum for start, _, checksum in record["ranges"]}


def _agree(found: Any, wanted: list[float]) -> bool:
    """Whether losses are the same but for rounding, which depends on threads and batches; none are known to differ."""
    return not found or (
        len(found) == len(wanted) and np.allclose(found, wanted, rtol=LOSS_GAP, atol=LOSS_GAP, equal_nan=True)
    )
