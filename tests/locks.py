"""A file system that cannot lock files."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def no_locks_below(folder: Path, code: int = errno.ENOLCK) -> Iterator[None]:
    """Refuse locks of files below `folder` the way its file system would."""
    flock = fcntl.flock

    def refuse(descriptor, operation):
        if Path(os.readlink(f"/proc/self/fd/{descriptor}")).is_relative_to(folder):
            raise OSError(code, os.strerror(code))
        flock(descriptor, operation)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "flock", refuse)
        yield
