"""Progress bars on stderr, where it is a terminal."""

from __future__ import annotations

import sys

from tqdm import tqdm


def progress_bar(description: str, total: int, unit: str = "unit") -> tqdm:
    """Return a progress bar on stderr that vanishes when it is done, and where stderr is not a terminal."""
    return tqdm(total=total, desc=description, unit=unit, file=sys.stderr, disable=None, leave=False)
