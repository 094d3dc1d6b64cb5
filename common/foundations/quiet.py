"""Warnings that reach the terminal: those of the user's own code, each once, in one line."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

OURS = str(Path(__file__).resolve().parents[1])
LIBRARIES = {"site-packages", "dist-packages"}
# read when the libraries are imported
LOGS = {"TRANSFORMERS_VERBOSITY": "error", "TORCH_CPP_LOG_LEVEL": "ERROR", "TORCH_LOGS": "-all"}


@contextmanager
def only_the_users_warnings() -> Iterator[None]:
    """Inside the block, keep the warnings of libraries from the terminal: nobody who runs a script can act on them.

    What the user's file warns of appears once, however often it is run. Variables of the environment that ask for the
    logs of a library still decide.
    """
    seen: set[tuple[str, str, int]] = set()

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        text = (str(message).strip().splitlines() or [""])[0]
        if _from_a_library(str(message)) or (text, filename, lineno) in seen:
            return
        seen.add((text, filename, lineno))
        print(f"{filename}:{lineno}: {category.__name__}: {text}", file=sys.stderr)

    for name, level in LOGS.items():
        os.environ.setdefault(name, level)
    before = warnings.showwarning
    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


def _from_a_library(message: str) -> bool:
    """Whether the code that warns is a library's or this project's, whatever line it blames."""
    if "Triggered internally" in message:  # compiled code of torch
        return True
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename == warnings.__file__:
        frame = frame.f_back
    if frame is None:
        return False
    path = frame.f_code.co_filename
    return bool(LIBRARIES & set(Path(path).parts)) or path.startswith(OURS)
