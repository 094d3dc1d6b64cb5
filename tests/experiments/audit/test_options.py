from __future__ import annotations

import sys

import pytest

from common.experiments.audit.options import FORMAT_NAMES, parse
from common.foundations.errors import UserError
from common.stores.formats import FORMATS


def parsed(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["audit_projections.py", *words])
    return parse("")


def test_the_formats_of_the_option_are_those_that_are_read():
    assert tuple(FORMATS) == FORMAT_NAMES


def test_the_grid_is_relative_to_the_mean_eigenvalue_unless_exponents_are_given(monkeypatch):
    options, _ = parsed(monkeypatch, "--train", "g.npy")
    assert options.ridges(2.0) == pytest.approx([2 * 10.0**e for e in range(-5, 4)])
    options, _ = parsed(monkeypatch, "--train", "g.npy", "--lambda_exp_min", "-3", "--lambda_exp_max", "-1")
    assert options.ridges(2.0) == [1e-3, 1e-2, 1e-1]
    with pytest.raises(UserError, match="--lambda_exp_min 3 exceeds --lambda_exp_max 2"):
        parsed(monkeypatch, "--train", "g.npy", "--lambda_exp_min", "3")


def test_the_folder_is_named_after_the_store_and_what_changes_the_numbers(monkeypatch):
    words = ["--train", "a/grads.npy", "--queries", "q.npy", "--rows", "10:20", "--proj_type", "sjlt", "--ridge", "0.5"]
    options, request = parsed(monkeypatch, *words, "--write_scores", "all")
    assert options.rows == slice(10, 20)
    assert request.subject == options.train
    changed = {option.name for option in request.options if option.value != option.default}
    assert changed == {"train", "queries", "rows", "proj_type", "ridge", "write_scores"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train", "g", "--rows", "x"], "--rows: 'x' is not allowed; must be START:STOP"),
        (["--train", "g", "--rows", "1:5:0"], "STEP >= 1"),
        (["--train", "g", "--ridge", "0"], "--ridge: '0' is not allowed; must be a number > 0"),
        (["--train", "g", "--format", "csv"], "invalid choice: 'csv'"),
    ],
)
def test_bad_values_are_one_line_and_status_2(monkeypatch, capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        parsed(monkeypatch, *words)
    error = capsys.readouterr().err
    assert (stop.value.code, error.count("\n")) == (2, 1)
    assert message in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ground_truth", "a", "b", "c"], "a folder or two files, got 3"),
        (["--ground_truth", "a", "--rows", "1:5"], "drop --rows"),
        (["--ground_truth", "a"], "name their store with --queries"),
        (["--lambda_exp_max", "-9"], "--lambda_exp_min -8 exceeds --lambda_exp_max -9"),
    ],
)
def test_contradictions_are_refused(monkeypatch, words, message):
    with pytest.raises(UserError, match=message):
        parsed(monkeypatch, "--train", "g", *words)
    with pytest.raises(UserError, match="--train: name the store"):
        parsed(monkeypatch)
