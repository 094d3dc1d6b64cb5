from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from common.foundations.errors import UserError
from common.foundations.storage import (
    exclusive_lock,
    make_folder,
    mismatch,
    reusable,
    seal,
    uninterrupted,
    unseal,
    write_atomically,
    write_json,
    writing_to,
)
from tests.locks import no_locks_below

MADE_BY = {"format": 1, "recipe": {"epochs": 20, "learning_rate": 0.01}, "shapes": [[2, 3], [3]], "note": None}


@pytest.fixture
def sealed(tmp_path):
    path = tmp_path / "deep" / "data.bin"
    write_atomically(path, os.urandom(5000))
    seal(tmp_path / "manifest.json", MADE_BY, [path])
    return tmp_path / "manifest.json", path


@pytest.mark.parametrize("content", [b"new", "new", lambda stream: stream.write(b"new")])
def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path, content):
    path = tmp_path / "a" / "b" / "file"
    write_atomically(path, "a longer old content")
    write_atomically(path, content)
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_a_writer_that_fails_leaves_the_old_file(tmp_path):
    def fail(stream):
        stream.write(b"half")
        raise KeyboardInterrupt

    path = tmp_path / "file"
    write_atomically(path, "old")
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_ctrl_c_waits_for_what_must_not_be_interrupted_however_often_it_is_pressed():
    # a shell's background job starts with Ctrl-C ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    done = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
        done.append(True)
    assert done == [True]
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler
    with ThreadPoolExecutor(1) as pool:  # signals never reach other threads
        assert pool.submit(lambda: uninterrupted().__enter__()).result() is None


def test_a_full_disk_is_one_line_that_names_the_folder_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, "old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(UserError) as caught:
            write_atomically(path, bytes(1_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM])
def test_every_refusal_of_the_system_to_write_names_the_folder(tmp_path, code):
    with pytest.raises(UserError, match=tmp_path.name), writing_to(tmp_path):
        raise OSError(code, os.strerror(code))


def test_errors_that_are_no_refusal_stay_what_they_are(tmp_path):
    with pytest.raises(ConnectionResetError), writing_to(tmp_path):
        raise ConnectionResetError(errno.ECONNRESET, "reset")


def test_a_folder_below_a_file_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write in"):
        make_folder(tmp_path / "file" / "below")
    with pytest.raises(UserError, match="cannot write in"):
        make_folder(tmp_path / "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_one_line(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot write in"):
        write_atomically(tmp_path / "file", "x")


def test_files_with_their_own_manifest_are_reused(sealed, capsys):
    assert mismatch(sealed[0], MADE_BY) is None
    assert reusable(sealed[0], MADE_BY)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"format": 2}, "format was 1, wanted is 2"),
        ({"recipe": {"epochs": 21, "learning_rate": 0.01}}, "recipe.epochs was 20, wanted is 21"),
        ({"shapes": [[2, 3], [4]]}, "shapes"),
        ({"note": "new"}, "note was null"),
        ({"more": 1}, "more"),
    ],
)
def test_the_entry_that_differs_is_named_in_one_line(sealed, capsys, change, named):
    assert not reusable(sealed[0], {**MADE_BY, **change})
    line = capsys.readouterr().err
    assert named in line
    assert line.count("\n") == 1


def test_an_entry_that_is_no_longer_wanted_is_a_difference(sealed):
    assert "format" in mismatch(sealed[0], {key: value for key, value in MADE_BY.items() if key != "format"})


def test_every_flipped_bit_and_every_truncation_of_a_file_is_detected(sealed):
    manifest, path = sealed
    content = path.read_bytes()
    for position in range(0, len(content), 701):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        assert "damaged" in mismatch(manifest, MADE_BY)
        path.write_bytes(content[:position])
        assert "damaged" in mismatch(manifest, MADE_BY)
    path.unlink()
    assert "missing" in mismatch(manifest, MADE_BY)


def test_a_damaged_manifest_is_a_mismatch_and_never_an_error(sealed):
    manifest, _ = sealed
    text = manifest.read_bytes()
    for position in range(len(text)):
        manifest.write_bytes(text[:position])
        assert mismatch(manifest, MADE_BY) is not None or text[position:].isspace()
        manifest.write_bytes(text[:position] + bytes([text[position] ^ 128]) + text[position + 1 :])
        assert mismatch(manifest, MADE_BY) is not None
    for content in ("[]", "null", '{"made_by": 3, "files": {}, "notes": {}}', '{"files": {}}'):
        manifest.write_text(content)
        assert mismatch(manifest, MADE_BY) is not None


def test_nothing_there_is_made_without_a_word(tmp_path, capsys):
    assert not reusable(tmp_path / "manifest.json", MADE_BY)
    assert capsys.readouterr().err == ""


def test_unsealed_files_are_not_reused(sealed):
    unseal(sealed[0])
    assert not reusable(sealed[0], MADE_BY)
    unseal(sealed[0])


def test_json_keeps_full_precision(tmp_path):
    write_json(tmp_path / "x.json", {"value": 0.1 + 0.2, "λ": 1e-300})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"value": 0.1 + 0.2, "λ": 1e-300}


HOLD = """
import sys, time
from pathlib import Path
from common.foundations.storage import exclusive_lock
with exclusive_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""

COUNT = """
import sys, time
from pathlib import Path
from common.foundations.storage import exclusive_lock
counter = Path(sys.argv[1]) / "counter"
for _ in range(100):
    with exclusive_lock(Path(sys.argv[1])):
        counter.write_text(str(int(counter.read_text()) + 1))
"""


def test_a_lock_is_free_when_its_owner_was_killed_and_leftovers_are_removed(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout.readline() == b"held\n"
        assert f"process {holder.pid} on " in (tmp_path / ".lock").read_text()
        leftover = tmp_path / "models" / f".weights.pt.{holder.pid}.partial"
        write_atomically(leftover, "half")
        holder.kill()
    with exclusive_lock(tmp_path):
        assert f"process {os.getpid()} on " in (tmp_path / ".lock").read_text()
        assert not leftover.exists()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_one_line_that_says_where_to_go(tmp_path, code):
    descriptors = len(os.listdir("/dev/fd"))
    with no_locks_below(tmp_path, code), pytest.raises(UserError) as caught, exclusive_lock(tmp_path):
        pass
    line = f"cannot lock files in {tmp_path}: {os.strerror(code)}; choose a folder on a local disk"
    assert str(caught.value) == line
    assert len(os.listdir("/dev/fd")) == descriptors


def test_a_lock_that_fails_for_another_reason_is_not_hidden(tmp_path):
    with (
        no_locks_below(tmp_path, errno.EIO),
        pytest.raises(OSError, match=os.strerror(errno.EIO)),
        exclusive_lock(tmp_path),
    ):
        pass


def test_processes_take_turns(tmp_path):
    (tmp_path / "counter").write_text("0")
    workers = [subprocess.Popen([sys.executable, "-c", COUNT, str(tmp_path)], stderr=subprocess.PIPE) for _ in range(2)]
    for worker in workers:
        with worker:
            worker.communicate()
            assert worker.returncode == 0
    assert (tmp_path / "counter").read_text() == "200"


def test_who_waits_says_for_whom(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout.readline() == b"held\n"
        waiter = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stderr=subprocess.PIPE)
        with waiter:
            assert f"waiting for process {holder.pid} on ".encode() in waiter.stderr.readline()
            waiter.kill()
        holder.kill()
