"""Values of options: text in, a checked value out, or what is allowed in one line."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def positive_int(text: str) -> int:
    """Parse a count: an integer from 1 to a million, beyond which no count of samples, trials or models is feasible."""
    return _parse(text, int, lambda value: 1 <= value <= 10**6, "an integer >= 1 (and at most 1000000)")


def dimension(text: str) -> int:
    """Parse an integer from 1 to 2^40, far beyond the parameters of any model that fits a computer."""
    return _parse(text, int, lambda value: 1 <= value <= 2**40, "an integer >= 1 (and at most 2^40)")


def dimensions(text: str) -> str:
    """Parse dimensions with commas between them; return them as such a text, ascending, each once."""
    return ",".join(map(str, sorted({dimension(part) for part in text.split(",")})))


def seed_int(text: str) -> int:
    """Parse an integer >= 0."""
    return _parse(text, int, lambda value: value >= 0, "an integer >= 0")


def ridge_exponent(text: str) -> int:
    """Parse an integer in [-300, 300], so that its power of ten is a float64."""
    return _parse(text, int, lambda value: abs(value) <= 300, "an integer between -300 and 300")


def grid_steps(text: str) -> int:
    """Parse the number of points of a grid: 0 for the usual one, else 2 to 1000."""
    return _parse(text, int, lambda value: value == 0 or 2 <= value <= 1000, "0, or an integer from 2 to 1000")


def non_negative_float(text: str) -> float:
    """Parse a finite number >= 0."""
    return _parse(text, float, lambda value: 0 <= value < float("inf"), "a number >= 0")


def positive_float(text: str) -> float:
    """Parse a finite number > 0."""
    return _parse(text, float, lambda value: 0 < value < float("inf"), "a number > 0")


def open_unit_float(text: str) -> float:
    """Parse a number strictly between 0 and 1, large enough for its square to divide by."""
    return _parse(text, float, lambda value: 1e-9 <= value < 1, "a number strictly between 0 and 1 (and at least 1e-9)")


def power_of_two(text: str) -> int:
    """Parse 1, 2, 4, 8, ..."""
    return _parse(text, int, lambda value: value >= 1 and int(value).bit_count() == 1, "a power of two: 1, 2, 4, ...")


def two_ranks(text: str) -> tuple[int, int]:
    """Parse A,B: two integers from 1 to a million."""
    try:
        cols, rows = (positive_int(part) for part in text.split(","))
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; must be two integers >= 1, as in 64,64") from None
    return cols, rows


def named_ranks(ranks: tuple[int, int]) -> str:
    """Return the option that `two_ranks` has parsed, for messages."""
    return "--kronecker_ranks {},{}".format(*ranks)


def _parse(text: str, kind: type, allowed: Callable[[float], bool], description: str):
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not allowed(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; must be {description}")
    return value
