from __future__ import annotations

import argparse
import os
import signal
import sys

import numpy as np
import pytest
import torch

from common.experiments import arguments, script
from common.foundations.errors import UserError


def parse(*options, min_m=1):
    parser = arguments.OneLineParser(prog="script.py")
    arguments.add_shared_options(parser, min_m)
    args = parser.parse_args(list(options))
    arguments.check_shared_options(args)
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
    ("--sjlt_sparsity", "3"),
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


@pytest.mark.parametrize(
    ("parser", "good", "bad"),
    [
        (arguments.positive_int, {"1": 1, "007": 7}, ["0", "-1", "1e3", "inf", "nan", "", "1000001"]),
        (arguments.dimension, {"1": 1, str(2**40): 2**40}, ["0", "-1", "1.5", str(2**40 + 1)]),
        (arguments.seed_int, {"0": 0, "12": 12}, ["-1", "0.0"]),
        (arguments.ridge_exponent, {"-300": -300, "0": 0, "300": 300}, ["-301", "301", "1e2"]),
        (arguments.non_negative_float, {"0": 0.0, "2.5": 2.5, "1e-3": 1e-3}, ["-1e-9", "nan", "inf", "1e999", "x"]),
        (arguments.open_unit_float, {"0.1": 0.1, "1e-9": 1e-9}, ["0", "1", "nan", "-0.5", "2", "1e-300"]),
        (arguments.power_of_two, {"1": 1, "2": 2, "1024": 1024}, ["0", "3", "-2", "6", "2.0"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_parsers_take_what_they_allow_and_say_so_otherwise(parser, good, bad):
    for text, value in good.items():
        assert parser(text) == value
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match=r"is not allowed; must be") as error:
            parser(text)
        assert repr(text) in str(error.value)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--lambda_exp_min", "3"), "--lambda_exp_min 3 exceeds --lambda_exp_max 2"),
        (("--proj_type", "sjlt", "--explicit_projection"), "--explicit_projection is for --proj_type normal"),
        (("--proj_type", "sjlt", "--sjlt_sparsity", "4"), "--sjlt_sparsity 4 needs --min_m of at least that, got 1"),
        (("--sjlt_sparsity", "4"), "--sjlt_sparsity 4 is for --proj_type sjlt, got normal"),
        (("--grad_dtype", "float16"), "--grad_dtype float16 needs stored gradients"),
        (("--grad_dtype", "bfloat16", "--offload", "recompute"), "--grad_dtype bfloat16 needs stored gradients"),
    ],
)
def test_options_that_contradict_each_other_are_named(options, named):
    with pytest.raises(UserError, match=named) as error:
        parse(*options)
    assert "\n" not in str(error.value)


def test_equal_exponents_are_one_ridge():
    assert arguments.ridge_grid(parse("--lambda_exp_min", "2")) == [100.0]


def test_ridges_are_the_correctly_rounded_powers_of_ten():
    args = parse("--lambda_exp_min", "-300", "--lambda_exp_max", "300")
    ridges = arguments.ridge_grid(args)
    assert len(ridges) == 601
    assert ridges[0] == 1e-300
    assert ridges[301 + 22] == 1e23
    assert ridges[300 - 3] == 0.001
    assert ridges == sorted(ridges)


# --- the grid of projection dimensions ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "num_parameters", "used", "left_out"),
    [
        ((), 10, [1, 2, 4, 8], []),
        ((), 8, [1, 2, 4], []),
        ((), 7850, [2**j for j in range(13)], []),
        ((), 10**7, [2**j for j in range(17)], []),
        (("--max_m", "64"), 20, [1, 2, 4, 8, 16], [32, 64]),
        (("--max_m", "16"), 16, [1, 2, 4, 8], [16]),
        (("--min_m", "3", "--max_m", "33"), 100, [4, 8, 16, 32], []),
        (("--min_m", "4", "--max_m", "4"), 5, [4], []),
        ((), 2, [1], []),
    ],
)
def test_m_runs_over_the_powers_of_two_below_d(options, num_parameters, used, left_out):
    assert arguments.projection_dimensions(parse(*options), num_parameters) == (used, left_out)


@pytest.mark.parametrize(
    ("options", "num_parameters"),
    [
        (("--min_m", "5", "--max_m", "7"), 100),
        (("--min_m", "64", "--max_m", "32"), 100),
        (("--min_m", "128"), 100),
        (("--min_m", "64", "--max_m", "64"), 64),
        ((), 1),
    ],
)
def test_an_empty_range_of_m_is_a_user_error_with_its_limits(options, num_parameters):
    with pytest.raises(
        UserError, match=rf"--min_m \d+ \.\. --max_m \d+ holds no power of two below the {num_parameters}"
    ):
        arguments.projection_dimensions(parse(*options), num_parameters)


# --- device -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_that_is_missing_is_an_error_and_without_a_wish_one_line(capsys):
    with pytest.raises(UserError, match="--device cuda: no CUDA device"):
        arguments.choose_device("cuda")
    assert capsys.readouterr().out == ""
    assert arguments.choose_device(None) == torch.device("cpu")
    assert capsys.readouterr().out == "no CUDA device: running on the CPU\n"


def test_an_explicit_cpu_is_silent(capsys):
    assert arguments.choose_device("cpu") == torch.device("cpu")
    assert capsys.readouterr().out == ""


# --- how a script ends --------------------------------------------------------------------------------------


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
