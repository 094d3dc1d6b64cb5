from __future__ import annotations

import os
import re
import runpy
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from common.experiments import script
from common.foundations.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def raising(error):
    def main():
        raise error

    return main


def test_a_user_error_is_one_line_and_status_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/somewhere/script.py"])
    with pytest.raises(SystemExit) as stop:
        script.run_script(raising(UserError("--x 3 must be 4")))
    assert stop.value.code == 2
    assert capsys.readouterr() == ("", "script.py: error: --x 3 must be 4\n")


def test_ctrl_c_is_status_130_and_says_how_to_go_on(capsys):
    with pytest.raises(SystemExit) as stop:
        script.run_script(lambda: os.kill(os.getpid(), signal.SIGINT))
    os.kill(os.getpid(), signal.SIGINT)  # pressed once more, while the interpreter shuts down
    assert stop.value.code == 130
    assert "the same command continues" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(path.name for path in ROOT.glob("*.py")))
def test_what_a_script_advises_are_options_that_it_has(name, monkeypatch, capsys):
    said = {}

    def advise(main, **advice):
        said.update(advice)
        main()

    monkeypatch.setattr(script, "run_script", advise)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / name), run_name="__main__")
    options = set(re.findall(r"^  (--\w+)", capsys.readouterr().out, re.MULTILINE))
    advice = [said.get("less_memory", script.LESS_MEMORY), said.get("resumes", script.RESUMES)]
    advised = set(re.findall(r"--\w+", " ".join(advice)))
    assert advised
    assert advised <= options


def test_a_script_that_works_ends_with_status_0():
    with pytest.raises(SystemExit) as stop:
        script.run_script(lambda: None)
    assert stop.value.code == 0


@pytest.mark.parametrize(
    "error", [ZeroDivisionError(), RuntimeError("shapes differ"), OSError(5, "I/O error")], ids=repr
)
def test_other_errors_are_not_hidden(error):
    with pytest.raises(type(error)):
        script.run_script(raising(error))


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.empty(2**60),
        lambda: np.empty(2**57),
        lambda: bytearray(2**60),
        raising(OSError(12, os.strerror(12))),
    ],
    ids=["torch", "numpy", "python", "system"],
)
def test_memory_that_does_not_suffice_is_one_line_that_names_options_and_status_2(monkeypatch, allocate, capsys):
    monkeypatch.setattr(sys, "argv", ["/somewhere/script.py"])
    with pytest.raises(SystemExit) as stop:
        script.run_script(allocate)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("script.py: error: out of memory; less is needed with --offload disk or recompute")
    assert captured.err.count("\n") == 1
