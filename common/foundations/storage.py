"""Files that appear whole or not at all, and caches that know what made them."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

from common.foundations.errors import UserError

FORMAT_VERSION = 1
_PARTIAL = ".partial"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR)
_MANIFEST_KEYS = {"made_by", "files", "notes"}


def versions() -> dict[str, Any]:
    """Return the manifest entries that every cache carries: format, torch and dattri versions."""
    return {"format": FORMAT_VERSION, "torch": version("torch").split("+")[0], "dattri": version("dattri")}


def file_checksum(path: Path) -> str:
    """Return the sha256 (hex) of a file, read in pieces: RAM use does not grow with its size."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while piece := stream.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C wait until the block is done, however often it is pressed."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals arrive in the main thread alone
        return
    pressed = []
    before = signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        signal.raise_signal(signal.SIGINT)


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write into one line that names `folder`.

    Raises:
        UserError: the disk is full, or the folder is read-only, forbidden or not a folder.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL + _DENIED:
            raise _refusal(folder, error) from error
        raise


def make_folder(folder: Path) -> Path:
    """Create `folder` with its parents and return it; UserError where that is refused, whatever the reason."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refusal(folder, error) from error
    return folder


def _refusal(folder: Path, error: OSError) -> UserError:
    if error.errno in _FULL:
        return UserError(f"no space left in {folder}: free some, or choose another folder")
    return UserError(f"cannot write in {folder}: {error.strerror}; choose another folder")


def write_atomically(path: Path, content: bytes | str | Callable[[BinaryIO], object]) -> None:
    """Write `path` so that readers see the old file or the whole new one, also after kill -9.

    `content` is the bytes, the text (UTF-8), or a function that writes to the binary file it is given. The folder
    is created when it is missing.

    Raises:
        UserError: see `writing_to`; nothing is left behind.
    """
    make_folder(path.parent)
    partial = path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL}")
    with writing_to(path.parent):
        try:
            with open(partial, "wb") as stream:
                if callable(content):
                    content(stream)
                else:
                    stream.write(content.encode() if isinstance(content, str) else content)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(partial, path)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise


def write_json(path: Path, record: dict) -> None:
    """Write a JSON file atomically, indented, in full precision."""
    write_atomically(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def seal(manifest: Path, made_by: dict, files: Iterable[Path], notes: dict | None = None) -> None:
    """Write the manifest of `files` that are already there: what made them, and their checksums.

    Args:
        manifest: path of the JSON file; `files` are recorded relative to its folder and lie in or below it.
        made_by: JSON-able; everything that changes the content. `mismatch` compares all of it.
        files: finished files.
        notes: JSON-able remarks that are kept but never compared.
    """
    checksums = {str(path.relative_to(manifest.parent)): file_checksum(path) for path in files}
    write_json(manifest, {"made_by": made_by, "files": checksums, "notes": notes or {}})


def mismatch(manifest: Path, made_by: dict) -> str | None:
    """Say why the files of a manifest must not be used; None means that they are whole and made by `made_by`."""
    try:
        record = json.loads(manifest.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "there is no manifest"
    except (ValueError, OSError):
        return "its manifest cannot be read"
    if not isinstance(record, dict) or not set(record) >= _MANIFEST_KEYS or not isinstance(record["files"], dict):
        return "its manifest is incomplete"
    difference = first_difference(record["made_by"], json.loads(json.dumps(made_by)))
    if difference:
        return difference
    for name, checksum in record["files"].items():
        try:
            if file_checksum(manifest.parent / name) != checksum:
                return f"{name} is damaged (its checksum differs)"
        except (OSError, ValueError):
            return f"{name} is missing"
    return None


def reusable(manifest: Path, made_by: dict) -> bool:
    """Whether the files of a manifest may be used; if some are there but may not, print one line saying why."""
    reason = mismatch(manifest, made_by)
    if reason and manifest.exists():
        print(f"{manifest.parent}: made again, because {reason}", file=sys.stderr)
    return reason is None


def unseal(manifest: Path) -> None:
    """Remove a manifest before its files are rewritten, so that a mixture of old and new is never trusted."""
    with writing_to(manifest.parent):
        manifest.unlink(missing_ok=True)


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; others wait. Not reentrant: one process must not nest it on one folder.

    The lock is the kernel's (flock on `.lock`), so it is free the moment its owner dies, however it dies. The file
    names the owner's host and process id for those who wait. Leftovers of killed writers are removed on entry.

    Raises:
        UserError: the folder cannot be written, or files in it cannot be locked.
    """
    path = make_folder(folder) / ".lock"
    lock = open_lock(path)
    try:
        if not take_lock(lock, path, wait=False):
            print(f"{folder}: waiting for {_owner(path)}, which is using it", file=sys.stderr)
            take_lock(lock, path, wait=True)
        with suppress(OSError):
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        for leftover in folder.rglob(f".*{_PARTIAL}"):
            with suppress(OSError):
                leftover.unlink()
        yield
    finally:
        os.close(lock)


def open_lock(path: Path) -> int:
    """Return a descriptor of the lock file `path`, created when it is missing; closing it frees the lock.

    Raises:
        UserError: its folder cannot be written.
    """
    with writing_to(path.parent):
        return os.open(path, os.O_CREAT | os.O_RDWR, 0o644)


def take_lock(lock: int, path: Path, *, wait: bool) -> bool:
    """Lock what `open_lock` has opened at `path`; where another process holds it, wait, or else return False.

    Raises:
        UserError: the file system cannot lock files.
    """
    try:
        fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        line = f"cannot lock files in {path.parent}: {error.strerror}; choose a folder on a local disk"
        raise UserError(line) from error
    return True


def _owner(lock_path: Path) -> str:
    try:
        return lock_path.read_text().strip() or "another process"
    except OSError:
        return "another process"


def first_difference(stored: Any, wanted: Any, name: str = "") -> str | None:
    """Name the first entry (dotted path) in which two JSON values differ."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for key in dict.fromkeys([*wanted, *stored]):
            missing = object()
            entry = f"{name}.{key}" if name else key
            if stored.get(key, missing) != wanted.get(key, missing):
                return first_difference(stored.get(key), wanted.get(key), entry)
        return None
    if stored == wanted:
        return None
    return f"{name or 'the manifest'} was {_short(stored)}, wanted is {_short(wanted)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
