"""The real command line of the comparison at toy size, on runs made by the real experiments."""

from __future__ import annotations

import json
import shutil
import sys

import pandas as pd
import pytest

import hyperparam_selection
import projection_cost
import spectrum_bounds
from common.experiments import script
from common.experiments.costing import figure, timing
from tests.drawn import draw_nothing
from tests.experiments.costing.cases import write_run
from tests.tiny import write_tiny

pytestmark = pytest.mark.usefixtures("one_thread")

LAWS = ("sjlt", "kronecker")


def run(main, name: str, *words: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            script.run_script(main)
    return stop.value.code


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the runs of all projections, and the LDS of one."""
    folder = tmp_path_factory.mktemp("cost")
    words = ["--workload", write_tiny(folder), "--max_m", "16", "--num_trials", "1", "--num_test_grads", "20"]
    words += ["--lambda_exp_min", "-3", "--lambda_exp_max", "-1", "--output_dir", folder, "--device", "cpu"]
    words += [f"--{name}_dir={folder}" for name in ("benchmark", "cache", "data")]
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        for law in LAWS:
            assert run(spectrum_bounds.main, "spectrum_bounds.py", *words, "--proj_type", law) == 0
        extra = ["--proj_type", "sjlt", "--num_subsets", "4", "--val_ratio", "0.5", "--min_m", "8"]
        assert run(hyperparam_selection.main, "hyperparam_selection.py", *words, *extra) == 0
    return folder


@pytest.mark.usefixtures("undrawn")
def test_errors_and_usefulness_of_every_projection_stand_beside_its_cost(made, tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "ENOUGH_SECONDS", 0.0)
    runs = sorted(made.glob("spectrum_bounds/*")) + sorted(made.glob("hyperparam_selection/*"))
    words = ["--runs", *runs, "--min_m", "8", "--benchmark_dir", made, "--data_dir", made, "--output_dir", tmp_path]
    assert run(projection_cost.main, "projection_cost.py", *words) == 0
    (results,) = tmp_path.glob("projection_cost/*")
    table = pd.read_csv(results / "costs.csv")
    assert set(table["proj_type"]) == set(LAWS)
    assert set(table["m"]) == {8, 16}
    assert (table["seconds"] >= 24 * table["seconds_a_sample"]).all()
    assert (table["numbers"] <= table["m"]).all()
    assert table.loc[table["proj_type"] == "sjlt", "test_lds"].notna().all()
    for folder in made.glob("spectrum_bounds/*"):
        summary = pd.read_csv(folder / "summary.csv")
        law = folder.name.split("_")[1]
        there = table[table["proj_type"] == law].merge(summary, on=["m", "lambda"], suffixes=("", "_of_run"))
        assert len(there) == 2 * 3
        pd.testing.assert_series_equal(there["eps_95"], there["eps_95_of_run"], check_names=False)


@pytest.mark.usefixtures("undrawn")
def test_seconds_are_those_of_as_many_calls_as_a_store_needs(made, tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "ENOUGH_SECONDS", 0.0)
    # ten seconds a call, and one a sample
    monkeypatch.setattr(timing, "time_calls", lambda subject, few, many, enough: (10.0, 1.0))
    runs = [next(made.glob("spectrum_bounds/*sjlt*"))]
    words = [
        "--runs",
        *runs,
        "--batch_size",
        "10",
        "--benchmark_dir",
        made,
        "--data_dir",
        made,
        "--output_dir",
        tmp_path,
    ]
    assert run(projection_cost.main, "projection_cost.py", *words, "--min_m", "16") == 0
    (results,) = tmp_path.glob("projection_cost/*")
    assert set(pd.read_csv(results / "costs.csv")["seconds"]) == {3 * 10 + 24}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "--runs: name the folders"),
        (["--runs", "nowhere"], "nowhere: no config.json of a finished run there"),
        (["--runs", "{run}"], "--min_m 256 holds no m of the runs of"),
        (["--runs", "{run}", "--min_m", "4", "--max_m", "3"], "--min_m 4 .. --max_m 3 holds no m of the runs of"),
        (["--runs", "{run}", "--num_samples", "0"], "--num_samples"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(words, line, tmp_path, capsys):
    folder = write_run(tmp_path / "run")
    words = [word.format(run=folder) for word in words]
    out = tmp_path / "out"
    assert run(projection_cost.main, "projection_cost.py", *words, "--output_dir", out) == 2
    err = capsys.readouterr().err
    assert line in err
    assert err.count("\n") == 1
    assert not out.exists()


def test_m_of_usefulness_alone_are_no_m_of_the_runs(tmp_path, capsys):
    usefulness = write_run(tmp_path / "lds", {"experiment": "hyperparam_selection", "ms": [64]})
    words = ["--runs", write_run(tmp_path / "run"), usefulness, "--min_m", "16", "--output_dir", tmp_path / "out"]
    assert run(projection_cost.main, "projection_cost.py", *words) == 2
    assert "--min_m 16 holds no m of the runs of spectrum_bounds.py" in capsys.readouterr().err


def test_the_report_is_at_the_largest_ridge_that_all_have(capsys):
    cells = [("normal", 1e-2), ("normal", 1e-1), ("sjlt", 1e-2), ("sjlt", 1.0)]
    table = pd.DataFrame(cells, columns=["proj_type", "lambda"])
    columns = ["m", "d_lambda", "seconds", "added_memory_bytes", "eps_95", "gaussian_equivalent_m", "test_lds"]
    table = table.assign(**dict.fromkeys(columns, 1.0))
    projection_cost.report(table, figure.shown_ridges(table)[-1])
    out = capsys.readouterr().out
    assert out.startswith("at λ = 0.01, d_λ = 1")
    assert ("normal" in out, "sjlt" in out, "share no λ" in out) == (True, True, False)
    apart = table[table["lambda"] != 1e-2]
    projection_cost.report(apart, figure.shown_ridges(apart)[-1])
    assert "the projections share no λ: normal at other λ in costs.csv" in capsys.readouterr().out


def test_another_checkpoint_is_refused(made, tmp_path, capsys):
    folder = shutil.copytree(next(made.glob("spectrum_bounds/*sjlt*")), tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"checkpoint_fingerprint": "another"}))
    kept = ["--benchmark_dir", made, "--data_dir", made, "--output_dir", tmp_path / "out"]
    assert run(projection_cost.main, "projection_cost.py", "--runs", folder, "--min_m", "8", *kept) == 2
    assert f"--benchmark_dir {made}: the checkpoint there is not the one of the runs" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.csv"))
