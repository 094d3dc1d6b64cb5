"""bergson's gradient index (2.5.1): `gradients.bin`, all modules side by side, with `info.json`."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from common.foundations.errors import UserError
from common.stores.store import Module, Region, Store, as_dtype, make_store

INFO, NUMBERS, PROCESSOR = "info.json", "gradients.bin", "processor_config.yaml"


def matches(path: Path) -> bool:
    """Whether `path` is a folder with both files."""
    return (path / INFO).is_file() and (path / NUMBERS).is_file()


def open_store(path: Path, role: str) -> Store:
    """Return the index in `path`.

    Raises:
        UserError: info.json lacks something, or rows are single tokens.
    """
    try:
        info = json.loads((path / INFO).read_text(encoding="utf-8"))
        sizes = {str(name): int(size) for name, size in info["grad_sizes"].items()}
        num_rows, dtype = int(info["num_grads"]), as_dtype(str(info["base_dtype"]), path / INFO)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        needed = "num_grads, grad_sizes and base_dtype"
        raise UserError(f"{path / INFO} is not what bergson 2.5 writes: it must hold {needed}") from error
    if info.get("attribute_tokens"):
        raise UserError(f"{path} holds one row a token; an audit needs one row a sample")
    modules, start = [], 0
    for name, size in sizes.items():
        modules.append(Module(name, start, start + size))
        start += size
    region = Region(path / NUMBERS, 0, num_rows, start, dtype)
    return make_store(path, "bergson", [[region]], modules=tuple(modules), projection=_projection(path))


def _projection(path: Path) -> str | None:
    """Return the law of P: two-sided for each module unless the target is `global`; None where nothing says."""
    try:
        settings = yaml.safe_load((path / PROCESSOR).read_text(encoding="utf-8"))
        target, law = settings["projection_target"], settings["projection_type"]
        if not settings["projection_dim"]:
            return None
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return None
    if target == "per_module":
        return "kronecker"
    return law if law in ("normal", "rademacher") else None
