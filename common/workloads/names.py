"""The names of the (dataset, model) pairs, and whether a pair or a user's file exists: before any of it is imported."""

from __future__ import annotations

from pathlib import Path

from common.foundations.errors import UserError

PAIR_NAMES = (
    ("mnist", "lr"),
    ("mnist", "mlp"),
    ("mnist60k", "lr"),
    ("mnist60k", "mlp"),
    ("cifar2", "resnet9"),
    ("photos2", "resnet9"),
    ("maestro", "musictransformer"),
    ("chorales", "musictransformer"),
)
DATASET_NAMES = tuple(dict.fromkeys(dataset for dataset, _ in PAIR_NAMES))
MODEL_NAMES = tuple(dict.fromkeys(model for _, model in PAIR_NAMES))


def check_pair(dataset: str, model: str) -> None:
    """Raise UserError if the pair does not exist."""
    if (dataset, model) not in PAIR_NAMES:
        known = ", ".join(f"{d}+{m}" for d, m in PAIR_NAMES)
        raise UserError(f"there is no pair --dataset {dataset} --model {model}; there are: {known}")


def check_file(path: Path) -> None:
    """Raise UserError if a user's workload is not a Python file."""
    if not path.is_file():
        raise UserError(f"--workload {path}: there is no such file")
    if path.suffix != ".py":
        raise UserError(f"--workload {path}: must be a Python file, its name ending in .py")
