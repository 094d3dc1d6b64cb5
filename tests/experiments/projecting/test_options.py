from __future__ import annotations

import sys

import pytest

from common.experiments.projecting.options import parse
from common.foundations.errors import UserError


def parsed(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["project_gradients.py", *words])
    return parse("")


@pytest.mark.parametrize(("dtype", "scale"), [("float32", "none"), ("bfloat16", "none"), ("float16", "unit")])
def test_rows_are_scaled_by_default_where_the_dtype_cannot_hold_short_ones(monkeypatch, dtype, scale):
    assert parsed(monkeypatch, "--store", "s", "--dtype", dtype).scale == scale
    assert parsed(monkeypatch, "--store", "s", "--dtype", dtype, "--scale", "none").scale == "none"


def test_a_store_is_needed_unless_the_run_is_a_trial(monkeypatch):
    with pytest.raises(UserError, match="--store: name the folder"):
        parsed(monkeypatch)
    assert parsed(monkeypatch, "--limit", "10").store is None


def test_patterns_of_modules_are_a_list(monkeypatch):
    assert parsed(monkeypatch, "--store", "s", "--modules", "layers*", "!*bias").modules == ("layers*", "!*bias")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--kronecker_ranks", "4,4"), "--kronecker_ranks 4,4 is for --proj_type kronecker, got sjlt"),
        (("--proj_type", "tensorsketch", "--m", "96"), "--m 96: a tensorsketch needs a power of two"),
    ],
)
def test_sizes_that_a_projection_cannot_have_are_refused(monkeypatch, words, message):
    with pytest.raises(UserError, match=message):
        parsed(monkeypatch, "--store", "s", *words)
