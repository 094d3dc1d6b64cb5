"""What goes wrong outside the program: full disks, kills, lack of memory, hostile files, degenerate gradients."""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import faithfulness_utility
import hyperparam_selection
import spectrum_bounds
from common.experiments import script
from common.foundations import storage
from common.sketches.projectors import make_projector
from common.workloads import benchmark
from common.workloads.user_file import load_user_workload
from tests import reference
from tests.drawn import draw_nothing
from tests.interrupted import table_bytes
from tests.locks import no_locks_below
from tests.reference_gradients import one_by_one_gradients
from tests.tiny import write_tiny

pytestmark = pytest.mark.usefixtures("one_thread")

MAINS = {
    "spectrum_bounds": spectrum_bounds.main,
    "hyperparam_selection": hyperparam_selection.main,
    "faithfulness_utility": faithfulness_utility.main,
}
ROOT = Path(spectrum_bounds.__file__).parent
MS, RIDGES = [1, 2, 4, 8, 16, 32], [1e-3, 1e-2, 1e-1, 1.0]
TOY = ["--num_trials", "2", "--lambda_exp_min", "-3", "--lambda_exp_max", "0", "--min_m", "1", "--num_test_grads", "12"]
LDS = ["--num_subsets", "5", "--val_ratio", "0.3"]
OWN = {"spectrum_bounds": ["--min_d_lambda", "0"], "hyperparam_selection": LDS, "faithfulness_utility": LDS}


class Scripts:
    """Both scripts on the tiny workload, with folders of their own."""

    def __init__(self, folder: Path, capsys=None):
        self.folder, self.capsys = folder, capsys
        self.benchmark_dir = folder / "benchmarks"
        self.workload = write_tiny(folder)

    def words(self, experiment: str, *options: str) -> list[str]:
        folders = [f"--{name}_dir={self.folder / name}" for name in ("output", "cache")]
        folders += [f"--benchmark_dir={self.benchmark_dir}", f"--workload={self.workload}", "--device=cpu"]
        return [str(ROOT / f"{experiment}.py"), *TOY, *OWN[experiment], *folders, *options]

    def run(self, experiment: str, *options: str, drawn: bool = False) -> tuple[int, str, str]:
        """Run in this process, without figures unless so wished; return status, stdout and stderr."""
        with pytest.MonkeyPatch.context() as patch:
            if not drawn:
                draw_nothing(patch)
            patch.setattr(sys, "argv", self.words(experiment, *options))
            self.capsys.readouterr()
            with pytest.raises(SystemExit) as stop:
                script.run_script(MAINS[experiment])
        return (stop.value.code, *self.capsys.readouterr())

    def start(self, experiment: str, *options: str) -> subprocess.Popen:
        quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, *self.words(experiment, *options)], env=one_thread, **quiet)

    def results(self, experiment: str) -> Path:
        (folder,) = (self.folder / "output" / experiment).iterdir()
        return folder


@pytest.fixture
def scripts(tmp_path, capsys):
    return Scripts(tmp_path, capsys)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def assert_one_line(errors: str, *named: str):
    assert errors.count("\n") == 1
    assert ".py: error: " in errors
    for text in named:
        assert text in errors


# --- disks that are full ------------------------------------------------------------------------------------


@contextmanager
def largest_file(size: int):
    """Refuse to let any file grow beyond `size` bytes: what a full disk does, for this process alone."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(
    ("experiment", "largest"),  # more than predicted.csv, which comes first, and less than all units
    [("spectrum_bounds", 7000), pytest.param("hyperparam_selection", 60_000, marks=pytest.mark.slow)],
)
def test_a_disk_that_fills_up_while_units_are_kept_costs_nothing_that_was_finished(scripts, experiment, largest):
    assert scripts.run(experiment, drawn=True)[0] == 0
    results = scripts.results(experiment)
    before = contents(results)
    with largest_file(largest):
        status, _, errors = scripts.run(experiment)
    assert status == 2
    assert_one_line(errors, "no space left in", str(results))
    assert contents(results) == before
    kept = (results / "unfinished" / "units.jsonl").read_bytes().count(b"\n") - 1
    assert kept >= 1
    status, output, errors = scripts.run(experiment)
    assert (status, errors) == (0, "")
    assert f"continuing after {kept} finished" in output
    assert table_bytes(results) == {name: text for name, text in before.items() if name.endswith(".csv")}


def test_a_disk_that_fills_up_while_a_table_is_written_leaves_earlier_results(scripts):
    options = ("--predict_only", "--lambda_exp_min", "-9")
    assert scripts.run("spectrum_bounds", *options)[0] == 0
    results = scripts.results("spectrum_bounds")
    before = contents(results)
    # room for the configuration, which is written first, and not for the summary
    room = (len(before["summary.csv"]) + len(before["config.json"])) // 2
    assert len(before["summary.csv"]) - 100 > room > len(before["config.json"]) + 100
    with largest_file(room):
        status, _, errors = scripts.run("spectrum_bounds", *options)
    assert status == 2
    assert_one_line(errors, "no space left in", str(results))
    assert contents(results) == before
    assert not (results / "unfinished").exists()


# --- file systems without locks -----------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
@pytest.mark.parametrize(("name", "options"), [("output", ()), ("cache", ("--offload", "disk")), ("benchmarks", ())])
def test_a_file_system_without_locks_is_one_line_that_says_where_to_go(scripts, name, options, code):
    with no_locks_below(scripts.folder / name, code):
        status, _, errors = scripts.run("spectrum_bounds", *options)
    assert status == 2
    assert_one_line(errors, f"cannot lock files in {scripts.folder / name}", "choose a folder on a local disk")
    assert list((scripts.folder / "output").glob("*/*")) == []


def test_a_geometry_that_cannot_be_locked_is_not_kept_and_the_run_goes_on(scripts):
    with no_locks_below(scripts.folder / "cache"):
        status, _, errors = scripts.run("spectrum_bounds")
    assert status == 0
    assert errors.count("\n") == 1
    assert errors.startswith("geometry: not kept in ")
    assert "cannot lock files in " in errors


# --- folders that can only be read --------------------------------------------------------------------------

MOUNT = 'mount -t tmpfs tmpfs "$2" && cp -a "$1/." "$2" && mount -o remount,ro "$2" && shift 2 && exec "$@"'


def with_read_only_copy(source: Path, copy: Path, command: list[str]) -> subprocess.CompletedProcess:
    """Run a command that sees what is in `source` in `copy` as well, on a file system mounted read-only."""
    source.mkdir(exist_ok=True)
    copy.mkdir(exist_ok=True)
    words = ["unshare", "--map-root-user", "--mount", "sh", "-c", MOUNT, "sh", str(source), str(copy), *command]
    return subprocess.run(words, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)


@pytest.fixture(scope="module")
def mounts(tmp_path_factory):
    """Skip where the kernel does not let this process mount a file system in a namespace of its own."""
    folder = tmp_path_factory.mktemp("mounts")
    if shutil.which("unshare") is None:
        pytest.skip("mounting needs the command unshare")
    process = with_read_only_copy(folder / "source", folder / "copy", ["sh", "-c", f"! touch {folder}/copy/file"])
    if process.returncode != 0:
        pytest.skip(f"no mounts here: {process.stderr}")


@pytest.mark.usefixtures("mounts")
@pytest.mark.parametrize(("name", "options"), [("output", ()), ("cache", ("--offload", "disk")), ("benchmark", ())])
def test_a_read_only_folder_that_must_be_written_is_one_line(scripts, name, options):
    folder = scripts.folder / "read_only"
    if name != "benchmark":
        write_tiny(scripts.folder, "recipe = None")  # a model that need not be trained
    words = scripts.words("spectrum_bounds", f"--{name}_dir={folder}", *options)
    process = with_read_only_copy(scripts.folder / "empty", folder, [sys.executable, *words])
    assert process.returncode == 2, process.stderr
    assert_one_line(process.stderr, f"cannot write in {folder}", "Read-only file system; choose another folder")
    assert list((scripts.folder / "output").glob("*/*")) == []


@pytest.mark.slow
@pytest.mark.usefixtures("mounts")
def test_a_read_only_cache_costs_one_line_where_nothing_must_be_kept_in_it(scripts):
    assert scripts.run("spectrum_bounds")[0] == 0
    expected = table_bytes(scripts.results("spectrum_bounds"))
    folder = scripts.folder / "read_only"
    words = scripts.words("spectrum_bounds", f"--cache_dir={folder}")
    process = with_read_only_copy(scripts.folder / "empty", folder, [sys.executable, *words])
    assert process.returncode == 0, process.stderr
    assert process.stderr.startswith(f"geometry: not kept in {folder}")
    assert process.stderr.count("\n") == 1
    assert table_bytes(scripts.results("spectrum_bounds")) == expected


@pytest.mark.usefixtures("mounts")
@pytest.mark.parametrize(
    "experiment", ["spectrum_bounds", pytest.param("hyperparam_selection", marks=pytest.mark.slow)]
)
def test_a_read_only_folder_with_all_that_is_needed_is_used(scripts, experiment):
    shared, copy = scripts.folder / "shared", scripts.folder / "read_only"

    def folders(place):
        return f"--cache_dir={place}", f"--benchmark_dir={place}", "--offload", "disk", "--proj_type", "rademacher"

    assert scripts.run(experiment, *folders(shared))[0] == 0
    expected = table_bytes(scripts.results(experiment))
    process = with_read_only_copy(shared, copy, [sys.executable, *scripts.words(experiment, *folders(copy))])
    assert (process.returncode, process.stderr) == (0, "")
    assert f"geometry: from {copy}" in process.stdout
    assert f"gradients: from {copy}" in process.stdout
    assert table_bytes(scripts.results(experiment)) == expected


# --- kills and Ctrl-C ---------------------------------------------------------------------------------------


def test_ctrl_c_while_a_unit_is_written_finishes_it_and_says_how_to_go_on(scripts, monkeypatch):
    assert scripts.run("spectrum_bounds")[0] == 0
    expected = table_bytes(scripts.results("spectrum_bounds"))
    written, sync = [], os.fsync

    def pressed_twice(descriptor):
        # the third unit: its line is in the file, and not yet on the disk
        if Path(f"/proc/self/fd/{descriptor}").resolve().name == "units.jsonl":
            written.append(descriptor)
            if len(written) == 3:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", pressed_twice)
        status, _, errors = scripts.run("spectrum_bounds")
    assert status == 130
    assert errors == "\ninterrupted: the same command continues after the last finished sketch\n"
    assert table_bytes(scripts.results("spectrum_bounds")) == expected
    status, output, _ = scripts.run("spectrum_bounds")
    assert status == 0
    assert "continuing after 3 finished" in output
    assert table_bytes(scripts.results("spectrum_bounds")) == expected


def test_ctrl_c_while_modules_are_imported_is_one_line_and_leaves_nothing(scripts):
    words = scripts.words("spectrum_bounds", "--dataset=mnist")
    words = [word for word in words if not word.startswith("--workload")]
    pipes = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen([sys.executable, *words], **pipes)
    while not list((scripts.folder / "output").glob("*/*/unfinished/lock")):  # made before torch is imported
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert (process.returncode, errors.count("\n")) == (130, 2), errors
    assert errors.startswith("\ninterrupted: the same command continues")
    assert list((scripts.folder / "output").glob("*/*")) == []


def test_a_fresh_run_forgets_finished_units(scripts):
    with largest_file(7000):
        assert scripts.run("spectrum_bounds")[0] == 2
    status, output, _ = scripts.run("spectrum_bounds", "--fresh")
    assert status == 0
    assert "continuing" not in output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "kills"), [("spectrum_bounds", 10), ("hyperparam_selection", 4), ("faithfulness_utility", 4)]
)
def test_killed_at_random_moments_it_ends_with_the_numbers_of_an_uninterrupted_run(tmp_path, experiment, kills):
    # enough units that kills fall between them, and no checkpoint yet, so that they fall into training as well
    options = ("--proj_type", "rademacher", "--num_trials", "40")
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole, killed = Scripts(tmp_path / "whole"), Scripts(tmp_path / "killed")
    started = time.monotonic()
    assert whole.start(experiment, *options).wait() == 0
    seconds = time.monotonic() - started
    expected = table_bytes(whole.results(experiment))
    moments = random.Random(0)
    for _ in range(kills):
        process = killed.start(experiment, *options)
        try:
            process.wait(timeout=moments.uniform(0.3, 1.1) * seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for folder in (killed.folder / "output").glob("*/*"):
            if (folder / "config.json").exists():  # what looks finished is
                assert json.loads((folder / "config.json").read_text())["finished"] is True
                assert table_bytes(folder) == expected
    assert killed.start(experiment, *options).wait() == 0
    results = killed.results(experiment)
    assert table_bytes(results) == expected
    assert {path.name for path in results.iterdir()} == {path.name for path in whole.results(experiment).iterdir()}


# --- output that nobody reads -------------------------------------------------------------------------------


READER_GOES = """
import os, sys
import spectrum_bounds
from common.experiments.script import run_script
from common.experiments.units import UnitLog
reader, writer = os.pipe()
os.dup2(writer, sys.stdout.fileno())
os.close(writer)
append = UnitLog.append
def append_and_go(log, trial, m, rows):
    append(log, trial, m, rows)
    if (trial, m) == (1, 4):
        os.close(reader)
        print("a line")
UnitLog.append = append_and_go
run_script(spectrum_bounds.main)
"""


def test_a_run_whose_reader_goes_keeps_what_is_finished_and_one_that_never_had_one_completes_it(scripts):
    assert scripts.run("spectrum_bounds")[0] == 0
    results = scripts.results("spectrum_bounds")
    expected = table_bytes(results)
    words = scripts.words("spectrum_bounds")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    errors = dict(stderr=subprocess.PIPE, text=True)

    command = [sys.executable, "-u", "-c", READER_GOES, *words[1:]]
    process = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, **errors)
    line = "stopped: nobody reads the output any more; the same command completes what is missing\n"
    assert (process.returncode, process.stderr) == (1, line)
    assert table_bytes(results) == expected
    assert (results / "unfinished" / "units.jsonl").read_bytes().count(b"\n") - 1 == 9

    reader, writer = os.pipe()
    os.close(reader)
    environment.pop("PYTHONUNBUFFERED", None)  # a pipe is written when the buffer is full: here at the end
    process = subprocess.run([sys.executable, *words], env=environment, stdout=writer, **errors)
    os.close(writer)
    assert (process.returncode, process.stderr) == (1, "")
    assert not (results / "unfinished").exists()
    assert table_bytes(results) == expected


# --- memory -------------------------------------------------------------------------------------------------

LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
import spectrum_bounds
from common.experiments.bounds import steps as error_steps
from common.experiments.bounds import figure as spectrum_figure
from common.experiments.script import run_script
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**27, used + 2**27))
run_script(spectrum_bounds.main)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory in use where Linux tells it")
def test_memory_that_does_not_suffice_is_one_line_and_status_2(scripts):
    # 4,000 x 10,000 gradients of float32 take 153 MiB, more than the 128 MiB that are left
    write_tiny(
        scripts.folder,
        "from torch.nn import Sequential, Linear\n"
        "train = Examples(torch.randn(4000, 9), torch.arange(4000) % 4)\n"
        "model = Sequential(Linear(9, 714), Linear(714, 4))\n"
        "return Workload('tiny', lambda: model, train, test, loss, None)",
    )
    words = scripts.words("spectrum_bounds", "--offload", "cpu")
    command = [sys.executable, "-c", LITTLE_MEMORY, *words[1:]]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, env=one_thread, capture_output=True, text=True, cwd=scripts.folder)
    assert process.returncode == 2, process.stderr
    assert process.stderr.count("\n") == 1
    assert "error: out of memory; less is needed with --offload disk or recompute" in process.stderr


# --- hostile files ------------------------------------------------------------------------------------------


class Malicious:
    """Unpickling it creates a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def forge(scripts, write) -> Path:
    """Let `write` replace the checkpoint of a finished run, and seal it as if it had been trained; return its path."""
    assert scripts.run("spectrum_bounds", "--predict_only")[0] == 0
    (checkpoint,) = scripts.benchmark_dir.rglob("models_full/0/model_weights_0.pt")
    write(checkpoint)
    manifest = checkpoint.with_name("manifest.json")
    storage.seal(manifest, json.loads(manifest.read_text())["made_by"], [checkpoint])
    return checkpoint


def test_code_in_a_checkpoint_is_never_run_even_with_a_forged_manifest(scripts):
    trap = scripts.folder / "broken_in"
    checkpoint = forge(scripts, lambda path: path.write_bytes(pickle.dumps({"weight": Malicious(trap)})))
    before = contents(scripts.results("spectrum_bounds"))
    status, _, errors = scripts.run("spectrum_bounds", "--predict_only")
    assert status == 2
    assert_one_line(errors, "is not what was written there; remove", str(checkpoint))
    assert not trap.exists()
    assert contents(scripts.results("spectrum_bounds")) == before
    with open(checkpoint, "rb") as stream:
        pickle.load(stream)["weight"].close()  # the trap works: plain unpickling springs it
    assert trap.exists()


def test_a_forged_checkpoint_of_another_shape_is_one_line(scripts):
    checkpoint = forge(scripts, lambda path: torch.save({"weight": torch.zeros(2, 2)}, path))
    status, _, errors = scripts.run("spectrum_bounds", "--predict_only")
    assert status == 2
    assert_one_line(errors, "is not what was written there; remove", str(checkpoint))


# --- degenerate gradients -----------------------------------------------------------------------------------

DEGENERATE = {
    "duplicates": "train = Examples(inputs[:6].repeat(4, 1), targets[:6].repeat(4))",
    "rank one": "train = Examples(inputs[:1].repeat(5, 1), targets[:1].repeat(5))",
    "a single sample": "train = Examples(inputs[:1], targets[:1])",
    "some zero gradients": "loss = lambda outputs, targets: cross_entropy(outputs, targets) * (targets != 0)",
}


@pytest.mark.parametrize("change", DEGENERATE.values(), ids=DEGENERATE.keys())
def test_degenerate_gradients_give_the_numbers_of_the_dense_reference(scripts, change):
    write_tiny(scripts.folder, change)
    options = ("--proj_type", "rademacher", "--lambda_exp_min", "-12", "--lambda_exp_max", "-7", "--num_trials", "1")
    options += ("--num_test_grads", "24")  # all samples are queries
    few_eigenvalues = change in (DEGENERATE["rank one"], DEGENERATE["a single sample"])
    status, output, errors = scripts.run("spectrum_bounds", *options, drawn=few_eigenvalues)
    assert (status, errors) == (0, "")
    workload = load_user_workload(scripts.workload)
    model = benchmark.load_trained_model(workload, scripts.benchmark_dir, "cpu").model
    train = one_by_one_gradients(model, workload.loss, workload.train.inputs, workload.train.targets)
    results = scripts.results("spectrum_bounds")

    spectrum = torch.tensor(pd.read_csv(results / "spectrum.csv")["eigenvalue"], dtype=torch.float64)
    expected = torch.linalg.eigvalsh(reference.fisher(train)).flip(0)
    significant = expected > 1e-10 * expected[0]
    assert len(spectrum) >= significant.sum()
    torch.testing.assert_close(spectrum[: significant.sum()], expected[significant], rtol=1e-4, atol=0)
    dimensions = pd.read_csv(results / "effective_dimension.csv").dropna(subset="d_lambda")
    trace = train.square().sum().item() / len(train)
    assert dimensions["lambda"].tolist() == [float(f"1e{e}") for e in range(-12, -6) if 10.0**e >= 1e-12 * trace]
    assert ("left out, below" in output) == (1e-12 * trace > 1e-12)
    for ridge, d_lambda in zip(dimensions["lambda"], dimensions["d_lambda"], strict=True):
        assert d_lambda == pytest.approx(reference.effective_dimension(train, ridge), rel=1e-3)

    norms = train.norm(dim=1, keepdim=True)
    unit = (train / norms)[norms[:, 0] > 0]
    trials = pd.read_csv(results / "trials.csv")
    assert sorted(trials["m"].unique()) == MS
    assert trials["num_bad"].eq(0).all()
    assert trials["num_queries"].eq(len(unit)).all()
    projector = make_projector("rademacher", 42)
    for row in trials[trials["lambda"] >= 1e-8].itertuples():
        P = reference.projection_matrix(projector, train.shape[1], row.m, max(MS), 0)
        exact = reference.influence(train, unit, unit, row._3).diagonal()
        ratios = reference.sketched_influence(P, train, unit, unit, row._3).diagonal() / exact
        assert row.mean_ratio == pytest.approx(ratios.mean().item(), rel=2e-3)
        assert row.eps_max == pytest.approx((ratios - 1).abs().max().item(), rel=2e-3, abs=2e-3)


def test_zero_gradients_of_test_samples_are_counted_and_said_once(scripts):
    write_tiny(scripts.folder, DEGENERATE["some zero gradients"])
    for experiment, options in (("spectrum_bounds", ["--test_mode", "test"]), ("hyperparam_selection", [])):
        status, output, _ = scripts.run(experiment, *options, drawn=experiment == "hyperparam_selection")
        assert status == 0
        assert output.count("training gradients are zero") == output.count("query gradients are zero") == 1
        assert output.count("that are not finite are counted and left out of every mean") == 1
        summary = pd.read_csv(scripts.results(experiment) / "summary.csv")
        columns = [name for name in summary if name.endswith("num_bad")]
        assert summary[columns].to_numpy().sum() > 0
        finite = {"spectrum_bounds": "eps_95", "hyperparam_selection": "test_lds"}[experiment]
        assert np.isfinite(summary[finite]).all()


REFUSED = {
    "no gradient at all": (
        "loss = lambda outputs, targets: cross_entropy(outputs, targets) * 0",
        "all 24 training gradients are zero",
    ),
    "NaN": ("inputs[2, 0] = float('nan')\nrecipe = None", "training sample 2"),
    "infinity": ("inputs[2, 0] = float('inf')\nrecipe = None", "training sample 2"),
    "NaN in training": ("inputs[22, 0] = float('nan')", "the loss of training sample 22 is nan"),
    "NaN in a test sample": ("inputs[24 + 17, 0] = float('nan')", "the loss of test sample 17 is nan"),
    "a label out of range": ("targets[22] = 4", "training sample 22: label 4; the loss accepts 0..3"),
}


@pytest.mark.parametrize("experiment", MAINS)
@pytest.mark.parametrize(("change", "named"), REFUSED.values(), ids=REFUSED.keys())
def test_gradients_that_allow_no_answer_are_one_line(scripts, experiment, change, named):
    write_tiny(scripts.folder, change)
    status, _, errors = scripts.run(experiment)
    assert status == 2
    assert_one_line(errors, named)
    assert list((scripts.folder / "output").glob("*/*")) == []


def test_every_ridge_below_rounding_is_one_line(scripts):
    status, _, errors = scripts.run("spectrum_bounds", "--lambda_exp_min", "-30", "--lambda_exp_max", "-20")
    assert status == 2
    assert_one_line(errors, "every λ is below", "1e-12 tr F", "--lambda_exp_min", "would fit")
