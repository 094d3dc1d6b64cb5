"""Libraries warn nobody; the user's own code does, once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import write_tiny

WARNS = """
import sys, warnings
sys.path.insert(0, {library!r})
from common.foundations.quiet import only_the_users_warnings
import noisy

def mine(text):
    warnings.warn(text)

with only_the_users_warnings():
    for _ in range(3):
        noisy.warn_here()
        noisy.warn_there()
        with warnings.catch_warnings():
            mine("look out\\nat this")
        mine("and here")
warnings.warn("as before")
"""
NOISY = """
import warnings

def warn_here():
    warnings.warn("of a library")

def warn_there():
    warnings.warn("of a library, blamed on its user", FutureWarning, stacklevel=2)
"""


def test_a_warning_is_shown_once_where_the_users_code_gives_it_and_never_where_a_library_does(tmp_path):
    library = tmp_path / "site-packages"
    library.mkdir()
    (library / "noisy.py").write_text(NOISY)
    script = tmp_path / "script.py"
    script.write_text(WARNS.format(library=str(library)))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, env=_environment())
    lines = done.stderr.splitlines()
    assert lines[:2] == [f"{script}:8: UserWarning: look out", f"{script}:8: UserWarning: and here"]
    assert lines[2].endswith("UserWarning: as before")
    assert len(lines) == 4  # Python's own form shows the line of code as well


COMPILES = """
from common.foundations.quiet import only_the_users_warnings

with only_the_users_warnings():
    import torch

    add = torch.compile(lambda x, n: x + n, backend="eager", dynamic=False)
    for i in range(10):
        add(torch.ones(i + 1), i)
"""


def test_what_torch_logs_where_a_model_is_compiled_again_and_again_is_not_shown():
    done = subprocess.run([sys.executable, "-c", COMPILES], capture_output=True, text=True, env=_environment())
    assert (done.returncode, done.stderr) == (0, "")


def _environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[2])
    return os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_a_run_shows_the_warnings_of_its_workload_and_none_of_torch(tmp_path):
    change = "import warnings\n"
    change += "class Net(nn.Linear):\n"
    change += "    def forward(self, x):\n"
    change += "        warnings.warn('my own')\n"
    change += "        return super().forward(x)\n"
    change += "torch.nn.utils.weight_norm(nn.Linear(2, 2))\n"
    change += "torch.nested.nested_tensor([inputs[0]])\n"
    change += "return Workload('tiny', lambda: Net(9, 4), train, test, loss, recipe)"
    workload = write_tiny(tmp_path, change)
    words = [sys.executable, "spectrum_bounds.py", "--workload", str(workload), "--predict_only", "--device", "cpu"]
    words += [f"--{name}_dir={tmp_path / name}" for name in ("output", "cache", "benchmark")]
    root = _environment()["PYTHONPATH"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=root, env=_environment(), check=True)
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith("UserWarning: my own\n")
