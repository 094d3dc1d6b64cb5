from __future__ import annotations

import functools
import gc
import hashlib
import http.server
import threading
import warnings

import pytest

from common.foundations.errors import UserError
from common.workloads.datasets.download import Archive, fetch

CONTENT = bytes(range(256)) * 1000


def archive_at(url: str, content: bytes = CONTENT) -> Archive:
    digest = hashlib.sha256(content).hexdigest()
    return Archive(file_name="data.bin", url=url, checksum=f"sha256:{digest}", size=len(content), embedded="photos2")


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A real web server for tmp_path/served; yields its address."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "data.bin").write_bytes(CONTENT)
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        thread = threading.Thread(target=web.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{web.server_port}"
        web.shutdown()
        thread.join()
    # pooch leaves the connection of a refused request (404) to the garbage collector
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def test_a_file_that_is_there_is_used_without_network(tmp_path):
    (tmp_path / "data.bin").write_bytes(CONTENT)
    assert fetch(archive_at("http://127.0.0.1:9/data.bin"), tmp_path) == tmp_path / "data.bin"


def test_a_missing_file_is_downloaded_into_a_new_folder(tmp_path, server, capfd):
    folder = tmp_path / "new" / "data"
    path = fetch(archive_at(f"{server}/data.bin"), folder)
    assert path.read_bytes() == CONTENT
    assert [file.name for file in folder.iterdir()] == ["data.bin"]
    # stderr is not a terminal here, so the progress bar stays away too
    assert capfd.readouterr() == ("", "")


def test_a_download_with_another_checksum_leaves_no_file(tmp_path, server):
    folder = tmp_path / "data"
    with pytest.raises(UserError, match=r"downloading it failed \(ValueError\)"):
        fetch(archive_at(f"{server}/data.bin", content=b"something else"), folder)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("found", ["refused", "404"])
def test_without_the_file_one_line_says_what_to_place_where_and_the_alternative(tmp_path, server, found):
    url = "http://127.0.0.1:9/data.bin" if found == "refused" else f"{server}/nothing.bin"
    archive = archive_at(url)
    with pytest.raises(UserError) as raised:
        fetch(archive, tmp_path)
    message = str(raised.value)
    assert "\n" not in message
    for part in (str(tmp_path / "data.bin"), url, archive.checksum, "--dataset photos2"):
        assert part in message


@pytest.mark.parametrize("content", [CONTENT[:-1], b"", b"x" + CONTENT[1:]], ids=["short", "empty", "changed"])
def test_a_damaged_file_is_named_and_never_replaced(tmp_path, server, content):
    (tmp_path / "data.bin").write_bytes(content)
    archive = archive_at(f"{server}/data.bin")
    with pytest.raises(UserError, match="damaged or incomplete") as raised:
        fetch(archive, tmp_path)
    assert str(tmp_path / "data.bin") in str(raised.value)
    assert hashlib.sha256(CONTENT).hexdigest() in str(raised.value)
    assert (tmp_path / "data.bin").read_bytes() == content


def test_a_folder_in_place_of_the_file_is_a_user_error(tmp_path):
    (tmp_path / "data.bin").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        fetch(archive_at("http://127.0.0.1:9/data.bin"), tmp_path)
