from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.workloads.datasets.parsed import kept_or_parsed

MADE_BY = {"package": "1.2", "pieces": 3}


class Parser:
    """Counts how often it is asked."""

    calls = 0

    def __call__(self):
        self.calls += 1
        return {"inputs": torch.arange(6).view(2, 3), "targets": torch.tensor([0.5, -1.0])}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data" / "tensors.pt"


def load(path, parse, **made_by):
    found = kept_or_parsed(path, MADE_BY | made_by, parse)
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "inputs": [[0, 1, 2], [3, 4, 5]],
        "targets": [0.5, -1.0],
    }


def test_what_was_parsed_once_is_kept_for_the_next_call(path, capsys):
    parse = Parser()
    for _ in range(3):
        load(path, parse)
    assert parse.calls == 1
    assert {file.name for file in path.parent.iterdir()} == {".lock", "tensors.pt", "manifest.json"}
    assert capsys.readouterr() == ("", "")


def test_what_others_made_is_parsed_again_said_and_kept(path, capsys):
    parse = Parser()
    load(path, parse)
    load(path, parse, pieces=4)
    assert parse.calls == 2
    assert capsys.readouterr().err == f"{path.parent}: made again, because pieces was 3, wanted is 4\n"
    load(path, parse, pieces=4)
    assert parse.calls == 2


def test_a_damaged_file_is_named_and_made_again(path, capsys):
    parse = Parser()
    load(path, parse)
    path.write_bytes(path.read_bytes()[:-9])
    load(path, parse)
    why = "because tensors.pt is damaged (its checksum differs)"
    assert capsys.readouterr().err == f"{path.parent}: made again, {why}\n"
    load(path, parse)
    assert parse.calls == 2


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(path, capsys):
    path.parent.write_text("a file")
    parse = Parser()
    load(path, parse)
    load(path, parse)
    assert parse.calls == 2
    assert capsys.readouterr() == ("", "")


def test_a_parser_that_fails_leaves_no_file(path):
    with pytest.raises(ZeroDivisionError):
        kept_or_parsed(path, MADE_BY, lambda: 1 / 0)
    assert not path.exists()


def test_two_processes_at_once_keep_the_tensors_once(path):
    code = (
        "import sys; from pathlib import Path; from tests.workloads.datasets.test_parsed import Parser, load; "
        "load(Path(sys.argv[1]), Parser())"
    )
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", code, str(path)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=root) for _ in range(2)]
    for process in processes:
        _, errors = process.communicate()
        assert (process.returncode, errors) == (0, "")
    load(path, None)
    assert {file.name for file in path.parent.iterdir()} == {".lock", "tensors.pt", "manifest.json"}
