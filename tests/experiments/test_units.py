"""Finished units of a run: kept with every digit, and never continued by a run that they do not belong to."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest

from common.experiments.units import UnitLog

HEADER = {"options": {"seed": 42}, "data_fingerprint": "abc", "device": "cpu", "packages": {"torch": "1"}}
ROWS = [
    {"trial": 0, "m": 8, "lambda": 1e-3, "ratios": [0.1 + 0.2, math.nan]},
    {"trial": 0, "m": 8, "lambda": 1.0, "ratios": [1 / 3, math.inf]},
]


def test_finished_units_survive_with_every_digit(tmp_path, capsys):
    log = UnitLog(tmp_path, HEADER, fresh=False)
    log.append(1, 4, [{"trial": 1, "m": 4, "lambda": 0.1, "ratios": [1.0, 2.0]}])
    log.append(0, 8, ROWS)
    assert capsys.readouterr() == ("", "")
    again = UnitLog(tmp_path, HEADER, fresh=False)
    assert (0, 8) in again
    assert (1, 4) in again
    assert (0, 4) not in again
    pd.testing.assert_frame_equal(again.table().explode("ratios"), log.table().explode("ratios"), check_exact=True)
    assert again.table()["trial"].tolist() == [0, 0, 1]
    assert [ratios[0] for ratios in again.table()["ratios"]] == [0.1 + 0.2, 1 / 3, 1.0]
    assert math.isnan(again.table()["ratios"][0][1])
    assert again.table()["ratios"][1][1] == math.inf
    assert "continuing after 2 finished" in capsys.readouterr().out


def test_a_fresh_run_forgets_them(tmp_path, capsys):
    UnitLog(tmp_path, HEADER, fresh=False).append(0, 8, ROWS)
    assert (0, 8) not in UnitLog(tmp_path, HEADER, fresh=True)
    assert (0, 8) not in UnitLog(tmp_path, HEADER, fresh=False)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"options": {"seed": 43}}, "options"),
        ({"data_fingerprint": "abd"}, "data_fingerprint"),
        ({"packages": {"torch": "2"}}, "packages"),
        ({"extra": 1}, "extra"),
    ],
)
def test_units_of_another_run_are_not_used_and_the_difference_is_named(tmp_path, change, named, capsys):
    UnitLog(tmp_path, HEADER, fresh=False).append(0, 8, ROWS)
    assert (0, 8) not in UnitLog(tmp_path, HEADER | change, fresh=False)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert f"{named} differs" in captured.err


@pytest.mark.parametrize("older_format", [{}, {"format": 1}])
def test_units_whose_rows_older_code_wrote_are_not_used(tmp_path, older_format, capsys):
    log = UnitLog(tmp_path, HEADER, fresh=False)
    log.append(0, 8, ROWS)
    header, unit = map(json.loads, log.path.read_text().splitlines())
    older = {name: value for name, value in header.items() if name != "format"} | older_format
    log.path.write_text(f"{json.dumps(older)}\n{json.dumps(unit)}\n")
    assert (0, 8) not in UnitLog(tmp_path, HEADER, fresh=False)
    assert "not continued, because format differs" in capsys.readouterr().err


def test_headers_with_tuples_are_recognised_again(tmp_path):
    header = HEADER | {"ms": (1, 2)}
    UnitLog(tmp_path, header, fresh=False).append(0, 8, ROWS)
    assert (0, 8) in UnitLog(tmp_path, header, fresh=False)


def test_whatever_a_crash_leaves_of_the_file_complete_units_are_used_and_no_other(tmp_path):
    log = UnitLog(tmp_path, HEADER, fresh=False)
    log.append(0, 8, ROWS)
    log.append(0, 16, ROWS)
    content = log.path.read_bytes()
    ends = [i for i, byte in enumerate(content) if byte == ord("\n")]
    cuts = {*range(0, len(content), 11), *(end + step for end in ends for step in (-1, 0, 1))}
    for cut in sorted(cuts):
        log.path.write_bytes(content[:cut])
        again = UnitLog(tmp_path, HEADER, fresh=False)
        assert ((0, 8) in again, (0, 16) in again) == (cut >= ends[1], cut >= ends[2]), cut
        again.append(0, 32, ROWS)
        assert (0, 32) in UnitLog(tmp_path, HEADER, fresh=False), cut


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe", b"null\n", b"12\n", b"[]\n", b'{"a": 1}\n[]\n'])
def test_a_file_of_anything_else_is_as_good_as_none(tmp_path, content):
    (tmp_path / "units.jsonl").write_bytes(content)
    log = UnitLog(tmp_path, HEADER, fresh=False)
    assert log.units == {}
    log.append(0, 8, ROWS)
    assert (0, 8) in UnitLog(tmp_path, HEADER, fresh=False)


def test_lines_that_are_no_units_are_not_used(tmp_path):
    log = UnitLog(tmp_path, HEADER, fresh=False)
    log.append(0, 8, ROWS)
    with open(log.path, "a") as stream:
        stream.write("0\n")  # what a page of a damaged disk may hold
    assert list(UnitLog(tmp_path, HEADER, fresh=False).units) == [(0, 8)]
