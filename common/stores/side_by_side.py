"""Files that hold several matrices by name: each becomes a module, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.foundations.errors import UserError
from common.stores.store import Module, Region, Store, make_store


@dataclass(frozen=True)
class Matrix:
    """A two-dimensional tensor of a file."""

    name: str
    """Its name in the file."""
    region: Region
    """Where it lies."""


def store_of_matrices(path: Path, format_name: str, matrices: list[Matrix], shapes: dict[str, tuple]) -> Store:
    """Return the store of one matrix, or of several with equal numbers of rows as modules.

    Args:
        path: the file.
        format_name: as in `formats.FORMATS`.
        matrices: the two-dimensional tensors.
        shapes: shapes of everything that the file holds, for the message where no matrix is among it.

    Raises:
        UserError: there is no matrix, or their rows differ.
    """
    if not matrices:
        there = ", ".join(f"{name} {shape}" for name, shape in list(shapes.items())[:8]) or "nothing"
        raise UserError(f"{path} has no two-dimensional tensor of projected gradients; it holds {there}")
    modules, start = [], 0
    for matrix in matrices:
        modules.append(Module(matrix.name, start, start + matrix.region.num_columns))
        start = modules[-1].stop
    several = len(matrices) > 1
    return make_store(
        path,
        format_name,
        [[matrix.region] for matrix in matrices],
        modules=tuple(modules),
        projection="blocks" if several else None,
    )
