"""Random command lines, valid and absurd: each ends in complete results, or in one line and status 2."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import factorized_influence
import faithfulness_utility
import hyperparam_selection
import spectrum_bounds
from common.experiments import script
from tests.tiny import write_tiny

pytestmark = pytest.mark.usefixtures("mnist_once", "one_thread")

SCRIPTS = (spectrum_bounds, hyperparam_selection, faithfulness_utility, factorized_influence)
MAINS = {module.__name__: module.main for module in SCRIPTS}
FILES = {
    "spectrum_bounds": {"trials.csv", "summary.csv", "spectrum.csv", "effective_dimension.csv", "recommendation.csv"},
    "hyperparam_selection": {"trials.csv", "summary.csv", "predicted.csv", "selection.json"},
    "faithfulness_utility": {"trials.csv", "summary.csv", "predicted.csv", "by_m.csv", "verdict.json"},
    "factorized_influence": {"lds.csv", "layers.csv", "summary.csv", "layer_errors.csv"},
}
ABSURD = ["0", "-1", "-0", "1.5", "1e3", "nan", "inf", "", " ", "x", "²", "９", "9" * 25, str(2**40), str(2**63)]


def texts(*values):
    return st.sampled_from([str(value) for value in values])


def mostly(values):
    """Return good values three times out of four: several options at once else never pass the parser."""
    return st.one_of(values, values, values, st.sampled_from(ABSURD))


OPTIONS = {
    "--proj_type": texts("normal", "rademacher", "sjlt", "sjlt", "tensorsketch", "kronecker", "gauss"),
    "--batch_size": mostly(texts(1, 3, 1000, 10**6)),
    "--offload": texts("none", "cpu", "disk", "recompute", "tape"),
    "--grad_dtype": texts("float32", "float16", "bfloat16", "float64"),
    "--seed": mostly(texts(0, 7, 2**31, 2**64, 10**30)),
    "--device": texts("cpu", "cpu", "tpu"),
    "--num_trials": mostly(texts(1, 2, 3)),
    "--min_m": mostly(texts(1, 2, 5, 16, 32)),
    "--max_m": mostly(texts(1, 7, 16, 39, 40, 64, 10**9, 2**40)),
    "--lambda_exp_min": mostly(st.integers(-301, 301).map(str)),
    "--lambda_exp_max": mostly(st.integers(-301, 301).map(str)),
    "--m_steps": mostly(texts(0, 2, 3)),
    "--lambda_steps": mostly(texts(0, 2, 4)),
    "--num_test_grads": mostly(texts(1, 2, 15, 10**6)),
    "--num_train": mostly(texts(1, 2, 3, 20, 24, 25, 10**6)),
    "--epochs": mostly(texts(1, 2)),
    "--sjlt_sparsity": mostly(texts(1, 2, 4, 2**70)),
    "--kronecker_ranks": texts("2,2", "1000,1000", "3", "0,1"),
    "--explicit_projection": st.none(),
    "--ridge_correction": st.none(),
    "--predict_only": st.none(),
    "--fresh": st.none(),
    "--benchmark": texts("local", "local", "remote"),
    "--dataset": texts("mnist", "photos2", "imagenet"),
    "--model": texts("lr", "lr", "transformer"),
    "--workload": texts("/dev/null", "no_such_file.py"),
    "--no_such_option": st.none(),
}
GROUND_TRUTH = {
    "--val_ratio": mostly(texts(1e-9, 0.1, 0.5, 0.99)),
    "--num_subsets": mostly(texts(1, 2, 3, 4, 12)),
}
OWN = {
    "spectrum_bounds": {
        "--test_mode": texts("self", "test", "train"),
        "--scores": texts("self", "cross", "cross", "both"),
        "--num_train_grads": mostly(texts(1, 3, 10, 10**6)),
        "--min_d_lambda": mostly(texts(0, 1e-300, 0.5, 5, 1e300)),
        "--target_eps": mostly(texts(1e-300, 1e-9, 0.01, 0.3, 0.999999)),
    },
    "hyperparam_selection": GROUND_TRUTH,
    "faithfulness_utility": GROUND_TRUTH
    | {"--num_train_grads": mostly(texts(1, 3, 10**6)), "--faithfulness_threshold": mostly(texts(1e-9, 0.3))},
    "factorized_influence": GROUND_TRUTH
    | {"--m_a": mostly(texts(1, "2,3", "16,9,16", 2**40)), "--m_e": mostly(texts(1, "4,1", "1,,2", 10**6))},
}
# a narrow range of m and λ that every option added to it can still change
SANE = {"--lambda_exp_min": "-3", "--lambda_exp_max": "0", "--num_trials": "2", "--num_test_grads": "15"}
SANE_OWN = {"spectrum_bounds": {"--min_d_lambda": "0"}, "hyperparam_selection": {"--val_ratio": "0.3", "--min_m": "4"}}
SANE_OWN["hyperparam_selection"]["--num_subsets"] = "5"
SANE_OWN["faithfulness_utility"] = SANE_OWN["hyperparam_selection"]
SANE_OWN["factorized_influence"] = {"--val_ratio": "0.3", "--num_subsets": "5"}


@st.composite
def command_lines(draw):
    """Return (experiment, options) with up to six options other than those of a run that works."""
    experiment = draw(st.sampled_from(sorted(MAINS)))
    choices = OPTIONS | OWN[experiment]
    names = draw(st.lists(st.sampled_from(sorted(choices)), max_size=6, unique=True))
    options = SANE | SANE_OWN[experiment] | {name: draw(choices[name]) for name in names}
    return experiment, options


def check(experiment, options, workload, benchmark_dir, capsys):
    words = [word for name, value in options.items() for word in ([name] if value is None else [name, value])]
    if not {"--workload", "--dataset", "--model"} & set(options):
        words += ["--workload", str(workload)]
    elif "--num_train" not in options:
        words += ["--num_train", "20"]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        folders = [
            "--output_dir",
            f"{folder}/out",
            "--benchmark_dir",
            str(benchmark_dir),
            "--cache_dir",
            f"{folder}/cache",
        ]
        patch.setattr(sys, "argv", [f"{experiment}.py", *words, *folders])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            script.run_script(MAINS[experiment])
        errors = capsys.readouterr().err
        runs = list(Path(folder, "out", experiment).glob("*"))
        if stop.value.code == 0:
            expected = FILES[experiment] | {"config.json", "figure.png", "figure.pdf"}
            expected -= {"trials.csv"} if "--predict_only" in options else set()
            expected |= {"queries.csv", "slopes.csv"} if options.get("--scores") == "cross" else set()
            (run,) = runs
            assert {path.name for path in run.iterdir()} == expected
            assert errors == ""
        else:
            assert stop.value.code == 2
            assert errors.startswith(f"{experiment}.py: error: ")
            assert errors.endswith("\n")
            assert errors.count("\n") == 1
            assert runs == []
    return stop.value.code


FIXED = dict(derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture
def workload(tmp_path):
    return write_tiny(tmp_path)


@settings(max_examples=10, **FIXED)
@given(line=command_lines())
def test_a_random_command_line_succeeds_whole_or_is_one_line(line, workload, toy_benchmarks, capsys):
    check(*line, workload, toy_benchmarks, capsys)


@pytest.mark.slow
@settings(max_examples=100, **FIXED)
@given(line=command_lines())
def test_many_random_command_lines_succeed_whole_or_are_one_line(line, workload, toy_benchmarks, capsys):
    check(*line, workload, toy_benchmarks, capsys)


@pytest.mark.parametrize("experiment", MAINS)
def test_the_command_that_random_options_change_works(experiment, workload, toy_benchmarks, capsys):
    assert check(experiment, SANE | SANE_OWN[experiment], workload, toy_benchmarks, capsys) == 0
