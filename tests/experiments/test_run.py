from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from common.experiments import run as run_module
from common.experiments.options import arguments
from common.experiments.options import checks as option_checks
from common.experiments.options import values as option_values
from common.experiments.options.records import Option
from common.experiments.run import Run, git_commit, variant
from common.experiments.units import UnitLog
from common.foundations.errors import UserError

HEADER = {"options": {"seed": 42}, "data_fingerprint": "abc", "device": "cpu", "packages": {"torch": "1"}}
ROWS = [{"trial": 0, "m": 8, "lambda": 1e-3, "eps_95": 0.1 + 0.2}, {"trial": 0, "m": 8, "lambda": 1.0, "eps_95": 1 / 3}]


def make_parser():
    parser = arguments.OneLineParser(prog="script.py")
    arguments.add_shared_options(parser, min_m=1)
    parser.add_argument("--test_mode", choices=("self", "test"), default="self")
    parser.add_argument("--min_d_lambda", type=option_values.non_negative_float, default=5.0)
    parser.add_argument("--target_eps", type=option_values.open_unit_float, default=0.1)
    return parser


def make_run(tmp_path, *options):
    parser = make_parser()
    args = parser.parse_args(["--output_dir", str(tmp_path), *options])
    option_checks.check_shared_options(args)
    return Run(arguments.run_request("experiment", args, parser))


def folder_name(tmp_path, *options):
    return make_run(tmp_path, *options).results.name


# --- the name of the folder ---------------------------------------------------------------------------------


def test_a_default_run_has_no_variant(tmp_path):
    assert make_run(tmp_path).results == tmp_path / "experiment" / "mnist_mlp_normal"
    assert folder_name(tmp_path, "--model", "lr", "--proj_type", "sjlt") == "mnist_lr_sjlt"


def test_options_given_with_their_default_value_add_nothing(tmp_path):
    options = ["--dataset", "mnist", "--seed", "42", "--min_d_lambda", "5", "--test_mode", "self", "--num_trials", "5"]
    assert folder_name(tmp_path, *options) == "mnist_mlp_normal"


def test_the_test_mode_is_the_variant_test(tmp_path):
    assert folder_name(tmp_path, "--test_mode", "test") == "mnist_mlp_normal_test"


@pytest.mark.parametrize(
    "options",
    [
        ("--batch_size", "8"),
        ("--offload", "disk"),
        ("--cache_dir", "elsewhere"),
        ("--benchmark_dir", "elsewhere"),
        ("--device", "cpu"),
        ("--fresh",),
    ],
    ids=" ".join,
)
def test_options_that_say_where_and_how_add_nothing(tmp_path, options):
    assert folder_name(tmp_path, *options) == "mnist_mlp_normal"


CHANGING = [
    ("--seed", "1"),
    ("--num_trials", "2"),
    ("--min_m", "2"),
    ("--max_m", "64"),
    ("--lambda_exp_min", "-4"),
    ("--lambda_exp_max", "0"),
    ("--num_test_grads", "20"),
    ("--num_train", "60"),
    ("--epochs", "3"),
    ("--explicit_projection",),
    ("--ridge_correction",),
    ("--predict_only",),
    ("--min_d_lambda", "1"),
    ("--target_eps", "0.2"),
    ("--test_mode", "test"),
    ("--benchmark", "dattri"),
    ("--grad_dtype", "float16", "--offload", "cpu"),
]


def test_every_option_that_changes_the_numbers_has_a_folder_of_its_own(tmp_path):
    names = [folder_name(tmp_path, *options) for options in CHANGING]
    assert len(set(names)) == len(CHANGING)
    assert all(name.startswith("mnist_mlp_normal_") for name in names)
    together = folder_name(tmp_path, "--seed", "1", "--max_m", "64", "--ridge_correction")
    assert together == "mnist_mlp_normal_seed_1_max_m_64_ridge_correction"
    sparse = folder_name(tmp_path, "--proj_type", "sjlt", "--sjlt_sparsity", "2", "--min_m", "2")
    assert sparse == "mnist_mlp_sjlt_min_m_2_sjlt_sparsity_2"


def test_all_options_changed_at_once_still_make_a_valid_file_name(tmp_path):
    options = [word for change in CHANGING[:15] for word in change if word != "--explicit_projection"]
    assert make_run(tmp_path, *options, "--proj_type", "sjlt", "--min_m", "4", "--sjlt_sparsity", "4").folder.is_dir()


def test_a_name_too_long_for_the_file_system_is_one_line(tmp_path):
    with pytest.raises(UserError, match="too long"):
        make_run(tmp_path, "--seed", "9" * 300)


def test_a_variant_names_the_options_that_differ_from_their_default_and_no_other():
    options = [Option("seed", value=1, default=1), Option("folder", value=Path("b"), default=Path("a"))]
    assert variant(options) == ["folder_b"]


# --- config.json --------------------------------------------------------------------------------------------


def read_config(run):
    return json.loads((run.folder / "config.json").read_text())


def test_the_configuration_is_on_disk_before_anything_is_computed(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/anywhere/script.py", "--seed", "7", "--cache_dir", "a b"])
    config = read_config(make_run(tmp_path, "--seed", "7", "--cache_dir", "a b"))
    assert config["command"] == "script.py --seed 7 --cache_dir 'a b'"
    assert config["finished"] is False
    assert config["options"]["seed"] == 7
    assert config["options"]["cache_dir"] == "a b"
    assert set(config["options"]) == set(vars(make_parser().parse_args([])))
    assert config["packages"]["torch"].startswith("2.")
    assert "cores" in config["machine"]
    assert "git_commit" in config


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A repository of one script and one table of results, both committed; return its folder and what runs git."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]

    def git(*words):
        command = ["git", "-C", str(tmp_path), *who, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    for name in ("script.py", "common/module.py", "results/experiment/summary.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("committed")
    git("add", ".")
    git("commit", "--message", "first")
    return tmp_path, git


def test_results_and_untracked_files_leave_the_commit_clean(clone):
    root, git = clone
    commit = git("rev-parse", "HEAD")
    assert git_commit(root) == commit
    (root / "results/experiment/summary.csv").write_text("changed")
    (root / "results/experiment/trials.csv").write_text("new")
    (root / "notes.txt").write_text("new")
    assert git_commit(root) == commit
    git("add", "results")
    assert git_commit(root) == commit


@pytest.mark.parametrize("name", ["script.py", "common/module.py"])
def test_code_that_differs_from_the_commit_makes_it_dirty(clone, name):
    root, git = clone
    commit = git("rev-parse", "HEAD")
    (root / name).write_text("changed")
    assert git_commit(root) == f"{commit}-dirty"
    git("add", name)
    assert git_commit(root) == f"{commit}-dirty"
    git("commit", "--message", "second")
    assert git_commit(root) == git("rev-parse", "HEAD") != commit
    (root / name).unlink()
    assert git_commit(root).endswith("-dirty")


def test_without_a_commit_or_without_git_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit(tmp_path) is None
    monkeypatch.setenv("PATH", "")
    assert git_commit(tmp_path) is None


def test_phases_add_up_and_a_finished_run_says_so(tmp_path, capsys):
    run = make_run(tmp_path)
    for _ in range(2):
        with run.phase("gradients"):
            sum(range(100_000))
    run.record(rank=12)
    run.finish()
    config = json.loads((run.results / "config.json").read_text())
    assert config["finished"] is True
    assert config["rank"] == 12
    assert 0 <= config["seconds"]["gradients"] <= config["seconds"]["total"]
    assert 2**20 < config["peak_memory_bytes"] < 2**40
    assert str(run.results) in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_one_line_and_nothing_is_left(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write in .*file"):
        make_run(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_tables_keep_every_digit_and_missing_values(tmp_path):
    run = make_run(tmp_path)
    table = pd.DataFrame({"m": pd.array([1, None], dtype="Int64"), "eps": [0.1 + 0.2, math.nan], "λ": [1e-300, 1e300]})
    run.write_table("table.csv", table)
    again = pd.read_csv(run.folder / "table.csv")
    assert again["eps"][0] == 0.1 + 0.2
    assert again["λ"].tolist() == [1e-300, 1e300]
    assert math.isnan(again["eps"][1])
    assert (run.folder / "table.csv").read_text().splitlines()[1].startswith("1,")
    assert sorted(path.name for path in run.folder.iterdir()) == ["config.json", "lock", "table.csv"]


def test_identity_covers_what_the_numbers_depend_on_and_nothing_else(tmp_path):
    def identity(*options, **recorded):
        run = make_run(tmp_path, *options)
        facts = dict(data_fingerprint="a", checkpoint_fingerprint="b", workload_checksum=None, device="cpu")
        run.record(**facts | recorded)
        return run.identity()

    assert identity() == identity("--fresh") == identity("--cache_dir", "elsewhere")
    others = [identity(*options) for options in CHANGING if options != ("--explicit_projection",)]
    others += [identity(data_fingerprint="x"), identity(checkpoint_fingerprint="x"), identity(device="cuda")]
    assert all(other != identity() for other in others)


# --- results of an earlier run ------------------------------------------------------------------------------

FACTS = dict(data_fingerprint="a", checkpoint_fingerprint="b", workload_checksum=None, device="cpu")


def finish_with(tmp_path, text, **recorded):
    with make_run(tmp_path) as run:
        run.record(**FACTS | recorded)
        run.announce_replacement()
        run.write_table("table.csv", pd.DataFrame({"text": [text]}))
    return run.results


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_results_appear_together_at_the_end_and_replace_earlier_ones(tmp_path, capsys):
    with make_run(tmp_path) as run:
        run.write_table("table.csv", pd.DataFrame({"text": ["first"]}))
        assert [path.name for path in run.results.iterdir()] == ["unfinished"]
    assert set(contents(run.results)) == {"config.json", "table.csv"}
    finish_with(tmp_path, "second")
    assert contents(run.results)["table.csv"] == b"text\nsecond\n"


@pytest.mark.parametrize("error", [UserError("no"), KeyboardInterrupt(), MemoryError()], ids=repr)
def test_a_run_that_fails_leaves_earlier_results_as_they_were_and_nothing_of_its_own(tmp_path, error):
    results = finish_with(tmp_path, "first")
    before = contents(results)
    with pytest.raises(type(error)), make_run(tmp_path) as run:
        run.write_table("table.csv", pd.DataFrame({"text": ["second"]}))
        raise error
    assert contents(results) == before


def test_a_run_that_fails_where_nothing_was_leaves_nothing(tmp_path):
    with pytest.raises(UserError), make_run(tmp_path):
        raise UserError("no")
    assert not (tmp_path / "experiment").exists()


@pytest.mark.parametrize("step", ["make_folder", "open_lock", "take_lock"])
def test_ctrl_c_while_the_folder_is_taken_leaves_nothing(tmp_path, monkeypatch, step):
    original = getattr(run_module, step)
    # a process in the background may have inherited that it is ignored; a fixture undoes this
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def pressed(*words, **options):
        signal.raise_signal(signal.SIGINT)
        return original(*words, **options)

    monkeypatch.setattr(run_module, step, pressed)
    with pytest.raises(KeyboardInterrupt):
        make_run(tmp_path)
    assert not (tmp_path / "experiment").exists()


def test_a_run_that_fails_keeps_its_finished_units(tmp_path):
    with pytest.raises(UserError), make_run(tmp_path) as run:
        UnitLog(run.folder, HEADER, fresh=False).append(0, 8, ROWS)
        raise UserError("no")
    assert (0, 8) in UnitLog(make_run(tmp_path).folder, HEADER, fresh=False)


def test_killed_between_any_two_moves_tables_of_two_runs_never_lie_beside_a_config(tmp_path, monkeypatch):
    results = finish_with(tmp_path, "first")
    for allowed in range(3):
        run = make_run(tmp_path)
        run.record(**FACTS)
        for name in ("table.csv", "other.csv"):
            run.write_table(name, pd.DataFrame({"text": [f"killed after {allowed}"]}))
        moves, replace = [], os.replace

        def move(source, target, moves=moves, replace=replace, allowed=allowed):
            if Path(target).parent == results and len(moves) == allowed:
                raise SystemExit  # stands for the kill: nothing of Run runs after it
            moves.extend([target] if Path(target).parent == results else [])
            replace(source, target)

        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr("common.experiments.run.os.replace", move)
            run.finish()
        del run  # a killed process holds no lock
        assert not (results / "config.json").exists()
        assert (results / "unfinished" / "config.json").exists()
    finish_with(tmp_path, "last")
    assert json.loads((results / "config.json").read_text())["finished"] is True
    assert (results / "table.csv").read_text() == "text\nlast\n"


def test_a_folder_that_another_process_is_writing_is_refused_and_left_alone(tmp_path):
    with make_run(tmp_path) as run:
        run.write_table("table.csv", pd.DataFrame({"text": ["first"]}))
        command = [sys.executable, "-c", SECOND, str(tmp_path)]
        second = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
        assert second.returncode == 2, second.stderr
        assert f"{run.results}: another process is writing there; wait for it, or choose another" in second.stderr
        assert second.stderr.count("\n") == 1
    assert set(contents(run.results)) == {"config.json", "table.csv"}


SECOND = """
import sys
from pathlib import Path
from common.experiments.script import run_script
from tests.experiments.test_run import make_run
def main():
    with make_run(Path(sys.argv[1])):
        pass
run_script(main)
"""


def test_the_same_run_again_replaces_without_a_word(tmp_path, capsys):
    finish_with(tmp_path, "first")
    finish_with(tmp_path, "second")
    assert capsys.readouterr().err == ""


def test_replacing_results_of_something_else_is_one_line_that_names_the_difference(tmp_path, capsys):
    results = finish_with(tmp_path, "first")
    finish_with(tmp_path, "second", data_fingerprint="x")
    expected = 'the results there will be replaced at the end: data_fingerprint was "a", wanted is "x"'
    assert capsys.readouterr().err == f"{results}: {expected}\n"
    (results / "config.json").write_text("[]")
    finish_with(tmp_path, "third")
    assert "their config.json cannot be read" in capsys.readouterr().err


# --- progress ---------------------------------------------------------------------------------------------------
