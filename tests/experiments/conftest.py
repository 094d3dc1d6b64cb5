from __future__ import annotations

import pytest

from common.experiments.options import arguments
from common.experiments.options import checks as option_checks
from common.experiments.preparing.preparation import prepare
from common.experiments.run import Run

TOY = ["--model", "lr", "--num_train", "40", "--max_m", "16", "--num_test_grads", "9", "--device", "cpu"]


@pytest.fixture
def start(tmp_path, toy_benchmarks):
    """Return options -> (records of the options, run, prepared)."""

    def run_prepare(*options, kind="self", toy=TOY, num_subsets=None, cross=None):
        parser = arguments.make_parser("", min_m=1)
        folders = ["--output_dir", tmp_path, "--benchmark_dir", toy_benchmarks, "--cache_dir", tmp_path / "cache"]
        args = parser.parse_args([*toy, *map(str, folders), *options])
        option_checks.check_shared_options(args)
        run = Run(arguments.run_request("toy", args, parser))
        shared = arguments.shared_options(args, kind)
        return shared, run, prepare(shared, run, num_subsets, cross)

    return run_prepare
