"""The real command line of experiment 1, run again over what an earlier run has kept."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from common.gradients.layer_gradients import LayerwiseGradients, RowGradients
from tests.interrupted import table_bytes
from tests.sketches.test_cache import files_in, files_of_at_most
from tests.test_spectrum_bounds import Command

pytestmark = pytest.mark.usefixtures("mnist_once", "one_thread")
SHORT = ("--min_m", "4", "--max_m", "16")


@pytest.fixture
def command(tmp_path, toy_benchmarks):
    return Command(tmp_path, toy_benchmarks)


def output(command, name):
    """Return options that send results to a folder of their own, and that folder."""
    return ("--output_dir", str(command.folder / name)), command.folder / name


def tables(folder):
    (run,) = (folder / "spectrum_bounds").iterdir()
    return table_bytes(run)


def config(folder):
    (path,) = folder.rglob("config.json")
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    ("options", "gradients_from_cache"),
    [
        ((), None),
        (("--offload", "disk"), None),
        (("--offload", "cpu", "--test_mode", "test"), None),
        (("--offload", "disk", "--proj_type", "rademacher"), True),
        (("--offload", "none", "--proj_type", "rademacher"), False),
        (("--offload", "recompute", "--proj_type", "rademacher"), False),
        (("--proj_type", "rademacher", "--predict_only"), None),
    ],
)
def test_a_second_run_gives_the_same_bytes_with_no_more_work_than_it_needs(
    command, options, gradients_from_cache, monkeypatch, capsys
):
    (first_options, first), (second_options, second) = output(command, "first"), output(command, "second")
    assert command(*SHORT, *options, *first_options) == 0
    assert config(first)["geometry_from_cache"] is False
    assert config(first)["gradients_from_cache"] is False
    assert "geometry: 0.00 GB (" in capsys.readouterr().out
    monkeypatch.setattr(LayerwiseGradients, "gram", None)
    if gradients_from_cache is not False:
        monkeypatch.setattr(LayerwiseGradients, "_run_pass", None)
        monkeypatch.setattr(RowGradients, "__call__", None)
    assert command(*SHORT, *options, *second_options) == 0
    captured = capsys.readouterr()
    assert captured.out.count("geometry: from ") == 1
    assert captured.err == ""
    assert config(second)["geometry_from_cache"] is True
    assert config(second)["gradients_from_cache"] is gradients_from_cache
    assert tables(second) == tables(first)


def test_a_geometry_of_other_numbers_is_named_and_never_used(command, capsys):
    (first_options, first), (second_options, second) = output(command, "first"), output(command, "second")
    assert command(*SHORT, *first_options) == 0
    (manifest,) = command.folder.rglob("geometry/manifest.json")
    record = json.loads(manifest.read_text())
    record["made_by"]["format"] = 0
    manifest.write_text(json.dumps(record))
    (path,) = command.folder.rglob("geometry.pt")
    path.write_bytes(path.read_bytes()[:-7])
    capsys.readouterr()
    assert command(*SHORT, *second_options) == 0
    assert capsys.readouterr().err == f"{manifest.parent}: made again, because format was 0, wanted is 1\n"
    assert tables(second) == tables(first)


def test_a_checkpoint_trained_again_with_other_weights_is_noticed(command, capsys):
    """The folder is that of the recipe, which stays the same."""
    assert command(*SHORT, "--benchmark_dir", str(command.folder / "benchmarks")) == 0
    (manifest,) = command.folder.rglob("geometry/manifest.json")
    record = json.loads(manifest.read_text())
    record["made_by"]["checkpoint"] = "0" * 64
    manifest.write_text(json.dumps(record))
    capsys.readouterr()
    assert command(*SHORT) == 0
    assert 'because checkpoint was "000' in capsys.readouterr().err


@pytest.mark.slow
def test_two_runs_at_once_share_what_the_first_of_them_makes(command):
    runs = [output(command, name) for name in ("a", "b")]
    options = (*SHORT, "--offload", "disk", "--proj_type", "rademacher", "--num_train", "300")
    processes = [command.start(*options, *folder) for folder, _ in runs]
    for process in processes:
        _, err = process.communicate()
        assert process.returncode == 0, err
        assert all(": waiting for process " in line for line in err.splitlines())
    made = [(config(folder)["geometry_from_cache"], config(folder)["gradients_from_cache"]) for _, folder in runs]
    assert sorted(made) == [(False, False), (True, True)]
    first, second = (tables(folder) for _, folder in runs)
    assert first == second
    assert "trials.csv" in first


def test_a_full_disk_stops_a_run_that_keeps_gradients_and_not_one_that_keeps_geometry(command, capsys):
    options = (*SHORT, "--num_train", "400", "--num_trials", "1")
    assert command(*options, *output(command, "warm up")[0], "--cache_dir", str(command.folder / "other")) == 0
    capsys.readouterr()
    with files_of_at_most(1_000_000):  # 400 x 400 float64 numbers and 400 x 7850 gradients need more
        assert command(*options) == 0
        line = capsys.readouterr().err
        assert "geometry: not kept in " in line
        assert "no space left in " in line
        assert line.count("\n") == 1
        assert len(pd.read_csv(command.run / "trials.csv")) > 0
        assert command(*options, "--offload", "disk", *output(command, "disk")[0]) == 2
    line = capsys.readouterr().err
    assert line.startswith("spectrum_bounds.py: error: no space left in ")
    assert line.count("\n") == 1
    assert files_in(command.folder / "cache") == set()


def test_a_cache_folder_that_cannot_be_written_is_one_line_and_the_run_goes_on(command, capsys):
    (command.folder / "file").write_text("")
    assert command(*SHORT, "--cache_dir", str(command.folder / "file" / "below")) == 0
    line = capsys.readouterr().err
    assert line.startswith(f"geometry: not kept in {command.folder / 'file' / 'below'}")
    assert "going on without (cannot write in " in line
    assert line.count("\n") == 1
    assert command.config["geometry_from_cache"] is False
