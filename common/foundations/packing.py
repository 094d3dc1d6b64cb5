"""Groups of things that fit in memory together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

_Item = TypeVar("_Item")


def packed(items: Iterable[_Item], size: Callable[[_Item], int], most: int) -> list[list[_Item]]:
    """Return the items, in order, in groups of at most `most` in size, or of a single larger item; [[]] for none."""
    groups: list[list[_Item]] = [[]]
    used = 0
    for item in items:
        if groups[-1] and used + size(item) > most:
            groups.append([])
            used = 0
        groups[-1].append(item)
        used += size(item)
    return groups
