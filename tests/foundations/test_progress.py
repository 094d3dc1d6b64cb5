from __future__ import annotations

from common.foundations.progress import progress_bar, with_progress


def test_progress_bars_are_silent_where_stderr_is_no_terminal(capsys):
    with progress_bar("sketches", 3) as bar:
        bar.update(3)
    assert capsys.readouterr() == ("", "")


def test_items_come_through_a_bar_in_their_order(capsys):
    assert list(with_progress("rows", [3, 1, 2])) == [3, 1, 2]
    assert capsys.readouterr() == ("", "")
