"""Public archives: found in the data folder, or downloaded, and always verified."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pooch
from tqdm import tqdm

from common.foundations.errors import UserError


@dataclass(frozen=True)
class Archive:
    """A public file that a dataset is read from."""

    file_name: str
    """Name of the file in the data folder."""
    url: str
    """Where the official file is."""
    checksum: str
    """`md5:<hex>` or `sha256:<hex>` of the official file."""
    size: int
    """Bytes of the official file; only the progress bar uses it."""
    embedded: str
    """Dataset that can be used instead, without any file."""


def fetch(archive: Archive, data_dir: Path) -> Path:
    """Return the path of the verified archive in `data_dir`, downloaded there if it is missing.

    A file that is there is never replaced. A download appears whole and verified, or not at all.

    Raises:
        UserError: the file cannot be downloaded or read, or its checksum is not that of the archive.
    """
    path = Path(data_dir) / archive.file_name
    if not path.exists():
        _download(archive, path)
    algorithm, _, expected = archive.checksum.partition(":")
    try:
        found = pooch.file_hash(str(path), alg=algorithm)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if found != expected:
        raise UserError(
            f"{path} is damaged or incomplete (its {algorithm} is {found}, expected {expected}): delete it and "
            f"place {archive.url} there, or use the embedded --dataset {archive.embedded}"
        )
    return path


def _download(archive: Archive, path: Path) -> None:
    # pooch announces each download; the progress bar and the error message say it already.
    pooch.get_logger().setLevel("WARNING")
    bar = tqdm(
        total=archive.size,
        desc=archive.file_name,
        unit="B",
        unit_scale=True,
        leave=False,
        file=sys.stderr,
        disable=None,
    )
    try:
        with bar:
            downloader = pooch.HTTPDownloader(progressbar=bar, chunk_size=2**18)
            pooch.retrieve(archive.url, archive.checksum, archive.file_name, path.parent, downloader=downloader)
    except (OSError, ValueError) as error:  # network and file errors, and a wrong checksum
        raise UserError(
            f"{path} is missing and downloading it failed ({type(error).__name__}): place {archive.url} "
            f"({archive.checksum}) there, or use the embedded --dataset {archive.embedded}"
        ) from error
