"""MAESTRO v2.0.0: piano performances as MIDI event tokens, from the official MIDI archive."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

from common.foundations.errors import UserError
from common.foundations.progress import with_progress
from common.workloads.datasets.download import Archive, fetch
from common.workloads.datasets.midi_events import encode, to_examples, windows
from common.workloads.records import Dataset

ARCHIVE = Archive(
    file_name="maestro-v2.0.0-midi.zip",
    url="https://storage.googleapis.com/magentadata/datasets/maestro/v2.0.0/maestro-v2.0.0-midi.zip",
    checksum="sha256:ec2cc9d94886c6b376db1eaa2b8ad1ce62ff9f0a28b3744782b13163295dadf3",
    size=59_243_107,
    embedded="chorales",
)
TRAIN_SAMPLES = 5000
"""Training samples of dattri's published benchmark: the first ones."""
TEST_SAMPLES = 178
"""Test samples of dattri's published benchmark, which are generated music, not the test split read here."""

_FOLDER = "maestro-v2.0.0"
_METADATA = f"{_FOLDER}/maestro-v2.0.0.json"
_SPLITS = ("train", "validation", "test")


def load(data_dir: Path, archive: Archive = ARCHIVE) -> Dataset:
    """Return the train and test splits of the metadata as sequences of 256 event tokens and their next tokens.

    Tokens, cutting and order (pieces by file name, then time) are those of dattri's preprocessing, with one
    exception: the first sequence of a piece begins at its first token, where dattri's `process_midi` reads
    offset 0 as "anywhere" and draws a random place. The tokens are kept in `data_dir` in a file named after
    the archive's checksum, because encoding all 1,282 pieces takes minutes.

    Hawthorne et al. (2019), Enabling Factorized Piano Music Modeling and Generation with the MAESTRO Dataset.

    Returns:
        inputs (N, 256) int64; targets (N, 256) int64, each the token after the input at its place.

    Raises:
        UserError: the archive, or the file of tokens, is missing, damaged, or not what the format says.
    """
    cache = Path(data_dir) / f"{_FOLDER}-tokens-{archive.checksum.partition(':')[2]}.npz"
    if not cache.exists():
        _write_whole(cache, _encode_archive(fetch(archive, data_dir)))
    rows = _read_cache(cache)
    return Dataset(train=to_examples(rows["train"]), test=to_examples(rows["test"]))


def _encode_archive(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            pieces = _pieces(archive, path)
            bar = with_progress("maestro: encoding pieces", pieces, "piece")
            rows: dict[str, list[np.ndarray]] = {"train": [], "test": []}
            for split, name in bar:
                rows[split].append(windows(encode(archive.read(f"{_FOLDER}/{name}"), f"{path}: {name}")))
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise UserError(f"{path} is not a complete zip archive: {error}") from error
    except KeyError as error:  # zipfile's: no such member
        raise UserError(f"{path} is incomplete: {error.args[0]}") from error
    empty = [split for split, parts in rows.items() if not sum(len(part) for part in parts)]
    if empty:
        raise UserError(f"{path} has no {empty[0]} piece with more than 256 events")
    return {split: np.concatenate(parts) for split, parts in rows.items()}


def _pieces(archive: zipfile.ZipFile, path: Path) -> list[tuple[str, str]]:
    """Return (split, file name) of the training and test pieces in dattri's order."""
    content = archive.read(_METADATA)
    try:
        pieces = [(piece["split"], piece["midi_filename"]) for piece in json.loads(content)]
        # dattri sorts by file name, whatever the folder.
        pieces.sort(key=lambda piece: piece[1].split("/")[-1])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: {_METADATA} is not a list of pieces with split and midi_filename") from error
    unknown = [split for split, _ in pieces if split not in _SPLITS]
    if unknown:
        raise UserError(f"{path}: {_METADATA} has split {unknown[0]!r}, allowed are {', '.join(_SPLITS)}")
    return [piece for piece in pieces if piece[0] != "validation"]


def _write_whole(path: Path, arrays: dict[str, np.ndarray]) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            np.savez(file, train=arrays["train"], test=arrays["test"])
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


def _read_cache(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {split: file[split] for split in ("train", "test")}
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, KeyError) as error:
        raise UserError(f"{path} is damaged: delete it and it will be written again") from error
