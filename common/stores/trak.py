"""Result folders of the package traker (0.3.2): `<model id>/grads.mmap`, and `<name>_grads.mmap` for targets.

Files are .npy. Entries of P have variance 1, not 1/M, and every gradient is divided by √d: λ is relative to that.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from common.foundations.errors import UserError
from common.stores.npy import npy_region
from common.stores.store import Region, Store, make_store

METADATA = "metadata.json"


def matches(path: Path) -> bool:
    """Whether `path` is a TRAKer's save_dir, or the folder of one model id inside it."""
    return any(_is_save_dir(folder) for folder in (path, path.parent)) and path.is_dir()


def open_store(path: Path, role: str) -> Store:
    """Return the gradients of one model id: training samples for the role `train`, else those of the only experiment.

    Raises:
        UserError: several model ids or experiments, none, or samples whose gradients are not there yet.
    """
    root = path if _is_save_dir(path) else path.parent
    folder = _only(_model_folders(path), f"{path}: model ids", "name one, as in", f"{path}/")
    if role == "train":
        region = npy_region(_there(folder / "grads.mmap"))
        _check_featurized(folder, region)
    else:
        found = sorted(file for file in folder.glob("*_grads.mmap"))
        region = npy_region(_only(found, f"{folder}: gradients of targets", "name the file, as in", ""))
    return make_store(path, "trak", [[region]], projection=_projection(root))


def _is_save_dir(folder: Path) -> bool:
    try:
        return "JL dimension" in json.loads((folder / METADATA).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _model_folders(path: Path) -> list[Path]:
    if not _is_save_dir(path):
        return [path]
    return sorted(folder for folder in path.iterdir() if folder.is_dir() and folder.name.isdigit())


def _only(found: list[Path], what: str, remedy: str, prefix: str) -> Path:
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError(f"{what}: there are none")
    names = ", ".join(item.name for item in found)
    raise UserError(
        f"{what}: there are {len(found)} ({names}); {remedy} {prefix or found[0].parent / ''}{found[0].name}"
    )


def _there(path: Path) -> Path:
    if not path.exists():
        raise UserError(f"{path} is missing: TRAKer.finalize_features(del_grads=True) removes it")
    return path


def _check_featurized(folder: Path, region: Region) -> None:
    try:
        missing = int((np.load(folder / "_is_featurized.mmap", mmap_mode="r") != 1).sum())
    except (OSError, ValueError):
        return
    if missing:
        raise UserError(f"{folder}: {missing} of {region.num_rows} training samples have no gradients yet (featurize)")


def _projection(root: Path) -> str | None:
    name = str(json.loads((root / METADATA).read_text(encoding="utf-8")).get("JL matrix type", "")).lower()
    # written as the name, or as str() of traker's enumeration
    return next((known for known in ("normal", "rademacher") if known in name), None)
