from __future__ import annotations

import argparse

import pytest

from common.experiments.options import values

PARSERS = [
    (
        values.positive_int,
        {"1": 1, "007": 7, "1000000": 10**6},
        ["0", "-1", "1e3", "inf", "nan", "", "1000001"],
        "an integer >= 1 (and at most 1000000)",
    ),
    (
        values.dimension,
        {"1": 1, str(2**40): 2**40},
        ["0", "-1", "1.5", str(2**40 + 1)],
        "an integer >= 1 (and at most 2^40)",
    ),
    (values.seed_int, {"0": 0, "12": 12}, ["-1", "0.0"], "an integer >= 0"),
    (values.ridge_exponent, {"-300": -300, "300": 300}, ["-301", "301", "1e2"], "an integer between -300 and 300"),
    (
        values.grid_steps,
        {"0": 0, "2": 2, "1000": 1000},
        ["1", "-2", "1001", "2.0"],
        "0, or an integer from 2 to 1000",
    ),
    (values.non_negative_float, {"0": 0.0, "1e-3": 1e-3}, ["-1e-9", "nan", "inf", "1e999", "x"], "a number >= 0"),
    (values.positive_float, {"2.5": 2.5, "1e-300": 1e-300}, ["0", "-1", "nan", "inf", "x"], "a number > 0"),
    (
        values.open_unit_float,
        {"0.1": 0.1, "1e-9": 1e-9},
        ["0", "1", "nan", "-0.5", "2", "1e-300"],
        "a number strictly between 0 and 1 (and at least 1e-9)",
    ),
    (values.power_of_two, {"1": 1, "1024": 1024}, ["0", "3", "-2", "6", "2.0"], "a power of two: 1, 2, 4, ..."),
    (
        values.two_ranks,
        {"64,32": (64, 32), "1, 2": (1, 2)},
        ["64", "64,", "0,4", "4,4,4", "a,b", ""],
        "two integers >= 1, as in 64,64",
    ),
]


@pytest.mark.parametrize(("parser", "good", "bad", "allowed"), PARSERS, ids=[parser.__name__ for parser, *_ in PARSERS])
def test_a_value_is_parsed_or_refused_with_what_is_allowed(parser, good, bad, allowed):
    for text, value in good.items():
        assert parser(text) == value
        assert type(parser(text)) is type(value)
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError) as error:
            parser(text)
        assert str(error.value) == f"{text!r} is not allowed; must be {allowed}"


def test_dimensions_come_in_order_each_once_and_the_one_that_is_bad_is_named():
    assert values.dimensions("64,8,08,1") == "1,8,64"
    with pytest.raises(argparse.ArgumentTypeError, match=r"^'' is not allowed; must be an integer >= 1"):
        values.dimensions("8,,64")


def test_ranks_in_messages_are_the_option_that_was_given():
    assert values.named_ranks(values.two_ranks("64,32")) == "--kronecker_ranks 64,32"
