"""CIFAR-2: the cats and dogs of CIFAR-10, from its official python archive."""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.foundations.errors import UserError
from common.workloads.datasets.download import Archive, fetch
from common.workloads.records import Dataset, Examples

ARCHIVE = Archive(
    file_name="cifar-10-python.tar.gz",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    checksum="md5:c58f30108f718f92721af3b95e74349a",
    size=170_498_071,
    embedded="photos2",
)
TRAIN_SAMPLES = 5000
"""Training samples of dattri's published benchmark: the first ones."""
TEST_SAMPLES = 500
"""Test samples of dattri's published benchmark: the first ones."""

_FOLDER = "cifar-10-batches-py"
_TRAIN_BATCHES = tuple(f"data_batch_{index}" for index in range(1, 6))
_TEST_BATCHES = ("test_batch",)
_CAT, _DOG = 3, 5
_CLASSES = 10
_PIXELS = 3 * 32 * 32


def load(data_dir: Path, archive: Archive = ARCHIVE) -> Dataset:
    """Return all cats (label 0) and dogs (label 1) of CIFAR-10, 10,000 for training and 2,000 for testing.

    Order (that of the official batches) and pixel scale are those of dattri's CIFAR-2. The archive is
    downloaded to `data_dir` if it is missing.

    Krizhevsky (2009), Learning Multiple Layers of Features from Tiny Images.

    Returns:
        inputs (N, 3, 32, 32) float32 in [-1, 1]; targets (N,) int64.

    Raises:
        UserError: the archive is missing, damaged, or not what the format says.
    """
    path = fetch(archive, data_dir)
    batches = _read_members(path, (*_TRAIN_BATCHES, *_TEST_BATCHES))
    return Dataset(
        train=_cats_and_dogs([read_batch(batches[name], f"{path}: {name}") for name in _TRAIN_BATCHES]),
        test=_cats_and_dogs([read_batch(batches[name], f"{path}: {name}") for name in _TEST_BATCHES]),
    )


def normalise(images: Tensor) -> Tensor:
    """Return uint8 pixels x as float32 (x/255 - 0.5)/0.5, which lies in [-1, 1]; any shape."""
    return images.to(torch.float32).div(255).sub(0.5).div(0.5)


def read_batch(content: bytes, source: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images (N, 3072) uint8 and labels (N,) int64 of one pickled CIFAR-10 batch.

    The pickle is not trusted: no code that it names is run, and only a matrix of bytes and a list of
    labels are taken from it.

    Args:
        content: the pickle, as written by Python 2 for the official archive.
        source: what errors call this batch.

    Raises:
        UserError: the pickle asks for anything that the format does not have, or has wrong shapes or labels.
    """
    try:
        batch = _BatchUnpickler(content).load()
        images = _byte_matrix(batch[b"data"])
        labels = np.array(batch[b"labels"])
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise UserError(f"{source} is not a CIFAR-10 batch: {error}") from error
    if labels.dtype.kind != "i" or labels.ndim != 1 or not np.isin(labels, range(_CLASSES)).all():
        raise UserError(f"{source}: labels must be a list of integers 0 to {_CLASSES - 1}")
    if images.shape != (len(labels), _PIXELS):
        raise UserError(f"{source}: data has shape {images.shape}, expected ({len(labels)}, {_PIXELS})")
    return images, labels.astype(np.int64)


def _read_members(path: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    wanted = {f"{_FOLDER}/{name}": name for name in names}
    contents = {}
    try:
        with tarfile.open(path, "r:gz") as tar:
            # In the archive's own order: gzip cannot seek backwards without starting over.
            for member in tar:
                file = tar.extractfile(member) if member.name in wanted and member.isfile() else None
                if file is not None:
                    contents[wanted[member.name]] = file.read()
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise UserError(f"{path} is not a complete tar.gz archive: {error}") from error
    missing = [name for name in names if name not in contents]
    if missing:
        raise UserError(f"{path} has no {_FOLDER}/{missing[0]}")
    return contents


def _cats_and_dogs(batches: list[tuple[np.ndarray, np.ndarray]]) -> Examples:
    images = np.concatenate([images for images, _ in batches])
    labels = np.concatenate([labels for _, labels in batches])
    chosen = np.isin(labels, (_CAT, _DOG))
    pixels = torch.from_numpy(images[chosen]).reshape(-1, 3, 32, 32)
    return Examples(normalise(pixels), torch.from_numpy((labels[chosen] == _DOG).astype(np.int64)))


class _Recorded:
    """Stands in for numpy's array and dtype while unpickling: keeps what it is given and runs nothing."""

    def __init__(self, *arguments):
        self.arguments = arguments
        self.state = None

    def __setstate__(self, state):
        self.state = state


class _BatchUnpickler(pickle.Unpickler):
    _ALLOWED = frozenset({("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")})

    def __init__(self, content: bytes):
        super().__init__(io.BytesIO(content), encoding="bytes")

    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is refused")
        return _Recorded


def _byte_matrix(array: _Recorded) -> np.ndarray:
    _, shape, dtype, fortran_order, content = array.state
    if dtype.arguments[0] != b"u1" or fortran_order:
        raise ValueError("its data is not a row-major array of bytes")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)
