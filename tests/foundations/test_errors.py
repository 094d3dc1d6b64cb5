from __future__ import annotations

import pytest

from common.foundations.errors import first_line, kind_and_line

LONG = "torch.func.vmap: It looks like you're calling .item() on a Tensor, which is not supported"


@pytest.mark.parametrize("most", range(1, len(LONG) + 2))
def test_a_long_line_is_cut_after_a_word_and_the_cut_is_marked(most):
    line = first_line(ValueError(f"{LONG}\nsecond line"), most)
    if most >= len(LONG):
        assert line == LONG
        return
    kept = line.removesuffix(" …")
    assert line != kept
    assert LONG.startswith(kept)
    assert len(kept) <= most
    assert LONG[len(kept)] == " " or " " not in LONG[:most]


def test_what_says_nothing_is_told_by_its_kind():
    assert (first_line(KeyError()), kind_and_line(KeyError())) == ("KeyError", "KeyError")
    assert kind_and_line(ValueError("\n no\nmore")) == "ValueError: no"
