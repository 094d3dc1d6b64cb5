"""Writes small archives in the format of cifar-10-python.tar.gz."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np

from common.workloads.datasets.download import Archive
from tests.workloads.datasets.reference_archive import archive_of

BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")


class Python2Pickler(pickle._Pickler):
    """Writes what Python 2 wrote: strings as BINSTRING, which Python 3's pickler cannot."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def _save_string(self, value):
        content = value.encode("latin1") if isinstance(value, str) else value
        short = len(content) < 256
        self.write(b"U" + bytes([len(content)]) if short else b"T" + struct.pack("<i", len(content)))
        self.write(content)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = _save_string


def python2_pickle(value) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def batch_pickle(images: np.ndarray, labels: list) -> bytes:
    names = [f"picture_{index}.png" for index in range(len(labels))]
    return python2_pickle({"batch_label": "a batch", "labels": labels, "data": images, "filenames": names})


def random_batches(seed: int = 0, size: int = 20) -> dict[str, tuple[np.ndarray, list]]:
    """(images, labels) of every batch."""
    rng = np.random.default_rng(seed)
    return {
        name: (rng.integers(0, 256, (size, 3072), dtype=np.uint8), rng.integers(0, 10, size).tolist())
        for name in BATCHES
    }


def write_archive(folder: Path, members: dict[str, bytes]) -> Archive:
    """Write the members to cifar-10-python.tar.gz and return its record."""
    path = folder / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return archive_of(path, embedded="photos2")
