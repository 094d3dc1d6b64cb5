"""Progress bars on stderr, where it is a terminal, of the first of several processes; they vanish when done."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

from common.foundations.distributed import is_first

Item = TypeVar("Item")


def progress_bar(description: str, total: int, unit: str = "unit") -> tqdm[Any]:
    """Return a bar over so many units, to be updated by hand."""
    return tqdm(total=total, desc=description, unit=unit, file=sys.stderr, disable=_disabled(), leave=False)


def with_progress(description: str, items: Iterable[Item], unit: str = "unit") -> tqdm[Item]:
    """Return `items` under a bar that moves as they are taken."""
    return tqdm(items, desc=description, unit=unit, file=sys.stderr, disable=_disabled(), leave=False)


def without_exponent(number: float, digits: int) -> str:
    """Return a number of seconds for people, rounded to so many digits: 100, where `.2g` makes 1e+02 of it."""
    return f"{float(f'{number:.{digits}g}'):.12g}"


def _disabled() -> bool | None:
    return None if is_first() else True
