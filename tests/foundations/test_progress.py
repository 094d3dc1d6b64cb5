from __future__ import annotations

import pytest

from common.foundations.progress import progress_bar, with_progress, without_exponent


def test_progress_bars_are_silent_where_stderr_is_no_terminal(capsys):
    with progress_bar("sketches", 3) as bar:
        bar.update(3)
    assert capsys.readouterr() == ("", "")


def test_items_come_through_a_bar_in_their_order(capsys):
    assert list(with_progress("rows", [3, 1, 2])) == [3, 1, 2]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("number", "text"), [(103.7, "100"), (0.0123456, "0.012"), (12345.0, "12000"), (9.96, "10"), (0.0, "0")]
)
def test_seconds_have_two_digits_and_no_exponent(number, text):
    assert without_exponent(number, 2) == text
