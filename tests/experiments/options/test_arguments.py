from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from common.experiments.options import arguments
from common.experiments.options import checks as option_checks

ROOT = Path(__file__).parents[3]


def parse(*options, min_m=1):
    parser = arguments.OneLineParser(prog="script.py")
    arguments.add_shared_options(parser, min_m)
    args = parser.parse_args(list(options))
    option_checks.check_shared_options(args)
    return args


# --- defaults -----------------------------------------------------------------------------------------------


def test_defaults_are_the_documented_ones():
    documented = {
        "dataset": "mnist",
        "model": "mlp",
        "proj_type": "normal",
        "batch_size": 32,
        "seed": 42,
        "num_trials": 5,
        "min_m": 1,
        "max_m": None,
        "lambda_exp_min": -8,
        "lambda_exp_max": 2,
        "num_test_grads": 500,
        "num_train": None,
        "explicit_projection": False,
        "sjlt_sparsity": 1,
        "kronecker_ranks": None,
        "m_steps": 0,
        "lambda_steps": 0,
        "benchmark": "local",
        "ridge_correction": False,
    }
    found = vars(parse())
    assert {name: found[name] for name in documented} == documented
    folders = [str(found[name]) for name in ("cache_dir", "output_dir", "benchmark_dir")]
    assert folders == ["grad_cache", "results", "benchmarks"]


def test_the_smallest_m_is_the_scripts_own():
    assert parse(min_m=32).min_m == 32
    assert parse("--min_m", "4", min_m=32).min_m == 4


# --- bad values ---------------------------------------------------------------------------------------------

COUNTS = ["--batch_size", "--num_trials", "--min_m", "--max_m", "--num_test_grads", "--num_train", "--sjlt_sparsity"]
BAD_OPTIONS = [
    *((option, value) for option in COUNTS for value in ("0", "-3", "1.5", "many", "")),
    *((option, "unknown") for option in ("--dataset", "--model", "--proj_type", "--offload", "--device")),
    *((option, "unknown") for option in ("--benchmark", "--grad_dtype")),
    *((option, value) for option in ("--lambda_exp_min", "--lambda_exp_max") for value in ("301", "-301", "0.5", "x")),
    ("--seed", "-1"),
    ("--seed", "x"),
    *(("--kronecker_ranks", value) for value in ("64", "64,", "0,4", "4,4,4", "a,b")),
    ("--sjlt_sparsity", "3"),
    ("--m_steps", "1"),
    ("--lambda_steps", "-1"),
    ("--lambda_steps", "1001"),
    ("--seed", "1\n2"),
    ("--num_trials",),
    ("--no_such_option",),
    ("surplus",),
]


@pytest.mark.parametrize("options", BAD_OPTIONS, ids=" ".join)
def test_a_bad_value_is_one_line_with_the_value_and_status_2(options, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(*options)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("script.py: error: ")
    assert captured.err.endswith("\n")
    assert captured.err.count("\n") == 1
    assert repr(options[-1])[1:-1] in captured.err


# --- no waiting for what is not needed ----------------------------------------------------------------------

HEAVY = ("torch", "numpy", "pandas", "scipy", "sklearn", "matplotlib", "mlxtend", "dattri")
LIST_IMPORTED = """
import atexit, runpy, sys
heavy = {heavy!r}
atexit.register(lambda: print("imported:", *[name for name in heavy if name in sys.modules]))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("name", ["spectrum_bounds.py", "hyperparam_selection.py", "bench.py"])
@pytest.mark.parametrize(
    ("options", "status"),
    [
        (("--help",), 0),
        (("--no_such_option",), 2),
        (("--num_train", "many"), 2),
        (("--output_dir", "/dev/null/below"), 2),
    ],
    ids=str,
)
def test_help_and_refusals_import_nothing_that_takes_time(name, options, status):
    check_imports(name, options, status)


@pytest.mark.parametrize("name", ["spectrum_bounds.py", "hyperparam_selection.py"])
@pytest.mark.parametrize(
    "options",
    [
        ("--lambda_exp_min", "3"),
        ("--dataset", "mnist", "--model", "resnet9"),
        ("--workload", "no_such_file.py"),
        ("--workload", "/dev/null", "--model", "lr"),
        ("--output_dir", "/proc/1/below"),
    ],
    ids=" ".join,
)
def test_contradictions_import_nothing_that_takes_time(name, options):
    check_imports(name, options, 2)


@pytest.mark.skipif(not version("torch").endswith("+cpu"), reason="torch must be asked whether there is a GPU")
def test_a_gpu_that_this_build_of_torch_cannot_use_is_refused_without_importing_it():
    check_imports("spectrum_bounds.py", ("--device", "cuda"), 2)


def check_imports(name, options, status):
    command = [sys.executable, "-c", LIST_IMPORTED.format(heavy=HEAVY), str(ROOT / name), *options]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == status, process.stderr
    assert process.stdout.splitlines()[-1] == "imported:"
    assert process.stderr.count("\n") == (0 if status == 0 else 1)
