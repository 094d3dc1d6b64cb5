"""Which formats there are, and which one a path is in."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from common.foundations.errors import UserError
from common.stores import bergson, dattri, logix, npy, safetensors_file, sketchlab, torch_file, trak
from common.stores.store import Store

FORMATS: dict[str, ModuleType] = {
    "sketchlab": sketchlab,
    "npy": npy,
    "safetensors": safetensors_file,
    "torch": torch_file,
    "trak": trak,
    "bergson": bergson,
    "dattri": dattri,
    "logix": logix,
}
LOOKED_FOR = (
    "a .npy, .safetensors or torch .pt file; or a folder with manifest.json of project_gradients.py, metadata.json "
    "of TRAK, gradients.bin and info.json of bergson, chunk_gradients_*.mmap of dattri, or "
    "log_rank_*_chunk_*.mmap of LogIX"
)


def open_store(path: Path, format_name: str | None, role: str) -> Store:
    """Return the store at `path`; nothing but headers and metadata is read.

    Args:
        path: file or folder.
        format_name: one of FORMATS; None to find it out.
        role: `train` or `queries`, for formats that keep both in one folder.

    Raises:
        UserError: there is nothing at `path`, or nothing in that format, or it is damaged.
    """
    if not path.exists():
        raise UserError(f"--{role} {path}: there is no such file or folder")
    try:
        if format_name is not None:
            if not FORMATS[format_name].matches(path) and format_name not in ("npy", "torch"):
                raise UserError(f"--{role} {path} is no store in the format {format_name}; known are {LOOKED_FOR}")
            return FORMATS[format_name].open_store(path, role)
        for module in FORMATS.values():
            if module.matches(path):
                return module.open_store(path, role)
    except OSError as error:
        raise UserError(f"--{role} {path}: {error.strerror}: {error.filename}") from error
    raise UserError(f"--{role} {path}: unknown format; looked for {LOOKED_FOR}")
