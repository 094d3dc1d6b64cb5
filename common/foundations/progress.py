"""Progress bars on stderr, where it is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def progress_bar(description: str, items: Iterable[Item] | int, unit: str = "unit", show: bool = True) -> tqdm[Item]:
    """Return a bar over `items`, or one of so many units to be updated by hand.

    It vanishes when it is done, and is not drawn where stderr is not a terminal or not `show`.
    """
    total, iterable = (items, None) if isinstance(items, int) else (None, items)
    return tqdm(iterable, description, total, unit=unit, file=sys.stderr, disable=None if show else True, leave=False)
