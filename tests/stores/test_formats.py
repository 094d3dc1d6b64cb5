from __future__ import annotations

import pytest

from common.foundations.errors import UserError
from common.stores.formats import FORMATS, open_store


def test_where_nothing_is_recognised_the_message_says_what_was_looked_for(tmp_path):
    (tmp_path / "grads.csv").write_text("1,2")
    for path in (tmp_path, tmp_path / "grads.csv"):
        with pytest.raises(UserError, match=r"unknown format; looked for a \.npy.*TRAK.*bergson.*dattri.*LogIX"):
            open_store(path, None, "train")


def test_a_path_that_does_not_exist_is_named_with_its_option(tmp_path):
    with pytest.raises(UserError, match=r"--queries .*nothing: there is no such file"):
        open_store(tmp_path / "nothing", None, "queries")


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_that_is_asked_for_and_not_there_is_refused(tmp_path, name):
    (tmp_path / "grads").write_bytes(b"something else")
    with pytest.raises(UserError, match="grads"):
        open_store(tmp_path / "grads", name, "train")
