"""The real command line at toy size, alone and under torchrun."""

from __future__ import annotations

import os
import random
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from common.experiments import script
from tests.documents import PAGES, commands, read
from tests.experiments.projecting.cases import contents
from tests.tiny import write_tiny
from tests.torchrun import launcher

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = str(ROOT / "project_gradients.py")
DOCUMENTED = (command for page in PAGES for command in commands(read(page)))
COMMANDS = list(dict.fromkeys(tuple(command[2:]) for command in DOCUMENTED if command[1] == "project_gradients.py"))
# many ranges of samples: what is killed is killed between some of them
LARGE = """
inputs = torch.randn(30500, 9, generator=generator)
targets = inputs[:, :4].argmax(1)
train, test = Examples(inputs[:30000], targets[:30000]), Examples(inputs[30000:], targets[30000:])
recipe = TrainingRecipe(epochs=1, learning_rate=0.1)
"""


def words(folder: Path, store: Path, *more: str) -> list[str]:
    workload = folder / "tiny_workload.py"
    kept = ["--data_dir", str(folder), "--benchmark_dir", str(folder / "benchmarks")]
    return [SCRIPT, "--workload", str(workload), "--m", "8", "--store", str(store), "--device", "cpu", *kept, *more]


def run(processes: int, folder: Path, store: Path, *more: str) -> subprocess.CompletedProcess:
    command = [*launcher(processes), *words(folder, store, *more)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def run_here(script_path: str, *options: object) -> int:
    """Run a script in this process, which has imported everything already; return its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [Path(script_path).name, *map(str, options)])
        with pytest.raises(SystemExit) as stop:
            script.run_script(runpy.run_path(script_path)["main"])
    return stop.value.code


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Return a folder with a small workload and its finished store."""
    folder = tmp_path_factory.mktemp("small")
    write_tiny(folder)
    assert run_here(*words(folder, folder / "store")) == 0
    return folder


def test_one_command_writes_a_store_that_plain_numpy_maps_and_an_audit_reads(small, tmp_path, capsys):
    store = small / "store"
    for part, count in (("train", 24), ("test", 20)):
        assert np.load(store / part / "projected.npy", mmap_mode="r").shape == (count, 8)
        assert np.load(store / part / "norms.npy", mmap_mode="r").shape == (count,)
    audit = [str(ROOT / "audit_projections.py"), "--train", store, "--queries", store, "--output_dir", tmp_path]
    assert run_here(*audit, "--target_eps", "0.9") == 0
    said = capsys.readouterr().out
    assert "sketchlab: 24 x 8 float32, projection sjlt" in said
    assert "the laws of a sjlt projection hold from 16 on" in said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--seed", "7"], "is a store of something else: seed was 42, wanted is 7"),
        (["--proj_type", "normal"], 'kind was "sjlt", wanted is "normal"'),
        (["--m", "4000"], "--m 4000 must be below the 40 parameters"),
        (["--modules", "fc*"], "--modules fc* matches none of the parameters: weight, bias"),
        (["--dtype", "int8"], "--dtype"),
        (["--timeout", "0"], "--timeout"),
    ],
)
def test_bad_input_is_one_line_and_leaves_the_store_alone(small, more, message, capsys):
    before = contents(small / "store")
    assert run_here(*words(small, small / "store", *more)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert message in said
    assert contents(small / "store") == before


def test_a_trial_run_says_what_the_whole_takes_and_writes_nothing(small, tmp_path, capsys):
    assert run_here(*words(small, tmp_path / "store", "--limit", "10")) == 0
    assert "the whole, 24 train + 20 test samples: about" in capsys.readouterr().out
    assert not (tmp_path / "store").exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workload")
    write_tiny(folder, LARGE.strip())
    return folder


@pytest.fixture(scope="module")
def whole(folder):
    """Return what one process writes, which needs no launcher."""
    done = run(1, folder, folder / "whole")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return contents(folder / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_writes_the_same_bytes(folder, whole, tmp_path, processes):
    done = run(processes, folder, tmp_path / "store")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("store:") == 1
    assert contents(tmp_path / "store") == whole


@pytest.mark.slow
@pytest.mark.parametrize("options", COMMANDS, ids=" ".join)
def test_every_documented_command_runs(options, tmp_path, toy_benchmarks):
    small = ["--num_train", "30", "--epochs", "1", "--m", "64", "--data_dir", tmp_path]
    assert run_here(SCRIPT, *options, *small, "--benchmark_dir", toy_benchmarks, "--store", tmp_path / "store") == 0
    if "--limit" not in options:
        assert np.load(tmp_path / "store" / "train" / "projected.npy", mmap_mode="r").shape[0] == 30


@pytest.mark.slow
def test_under_torchrun_a_mistake_is_said_once(folder, whole):
    done = run(2, folder, folder / "whole", "--seed", "7")
    assert done.returncode != 0
    assert done.stderr.count("seed was 42, wanted is 7") == 1
    assert contents(folder / "whole") == whole


def ranks_of(launched: int) -> list[int]:
    """Return the processes that a launcher has started, in the order of their ranks."""
    children = Path(f"/proc/{launched}/task/{launched}/children").read_text().split()
    ranks = {}
    for child in map(int, children):
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        ranks |= {int(v[5:]): child for v in variables if v.startswith(b"RANK=")}
    return [ranks[rank] for rank in sorted(ranks)]


@pytest.mark.slow
def test_one_of_two_ranks_killed_at_ten_moments_is_named_and_the_store_ends_in_the_same_bytes(folder, whole, tmp_path):
    store, generator = tmp_path / "store", random.Random(0)

    def finished() -> int:
        return len(list(store.glob("train/ranges/*.json")))

    for _ in range(10):
        # a moment is a number of ranges that are finished in this run, not a time
        moment, victim = finished() + generator.randint(1, 6), generator.randrange(2)
        command = [*launcher(2), *words(folder, store)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as launched:
            while launched.poll() is None and finished() < moment:
                time.sleep(0.001)
            os.kill(ranks_of(launched.pid)[victim], signal.SIGKILL)
            errors = launched.communicate()[1]
        assert launched.returncode != 0
        assert errors.count("died or stopped answering") == errors.count(f"rank {victim} (process ") == 1
        assert not (store / "train" / "manifest.json").exists()
    assert run(3, folder, store).returncode == 0
    assert contents(store) == whole
