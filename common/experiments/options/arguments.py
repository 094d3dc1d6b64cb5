"""The command line: options that both scripts share, their validation, and the records made of them.

The only module below the entry scripts that sees the argparse namespace. Imports nothing that takes time, so that a
mistake is named at once.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from common.experiments.options import checks as option_checks
from common.experiments.options import values
from common.experiments.options.records import (
    DEFAULT_TIMEOUT,
    GradientOptions,
    Grid,
    Option,
    QueryChoice,
    RunRequest,
    SharedOptions,
    SketchOptions,
    WorkloadChoice,
)
from common.foundations.projections import PROJECTIONS
from common.workloads.names import DATASET_NAMES, MODEL_NAMES


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print `message` as one line and exit with status 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def make_parser(description: str, min_m: int) -> OneLineParser:
    """Return a parser with the options that both experiments have; `min_m` is the default of --min_m."""
    parser = OneLineParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shared_options(parser, min_m)
    return parser


def make_workload_parser(description: str) -> OneLineParser:
    """Return a parser with the options of `add_workload_options` alone."""
    parser = OneLineParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_workload_options(parser)
    return parser


def add_kronecker_ranks(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the sizes of a Kronecker-factored projection."""
    parser.add_argument("--kronecker_ranks", type=values.two_ranks, default=None, metavar="A,B", help=what)


def add_timeout(parser: argparse.ArgumentParser) -> None:
    """Add --timeout, for scripts that torchrun can start."""
    help_ = "seconds to wait for another process of torchrun"
    parser.add_argument("--timeout", type=values.positive_float, default=DEFAULT_TIMEOUT, help=help_)


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the options of the command line, checked by `checks.check_shared_options`."""
    args = parser.parse_args()
    option_checks.check_shared_options(args)
    return args


def parse_workload_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the options of a parser of `make_workload_parser`, checked by `checks.check_workload_options`."""
    args = parser.parse_args()
    option_checks.check_workload_options(args)
    return args


def add_shared_options(parser: argparse.ArgumentParser, min_m: int) -> None:
    """Add the options that both experiments have; `min_m` is the default of --min_m.

    Their order is that of the parts of a run folder's name.
    """
    add = parser.add_argument
    add("--proj_type", choices=PROJECTIONS, default="normal", help="law of the projection")
    add("--grad_dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="of stored gradients")
    _add_subject_options(parser)
    add("--min_m", type=values.dimension, default=min_m, help="smallest projection dimension")
    add(
        "--max_m", type=values.dimension, default=None, help="largest; default: largest power of two < d, at most 65536"
    )
    add("--m_steps", type=values.grid_steps, default=0, help="log-spaced m from smallest to largest; 0: powers of two")
    _add_sample_options(parser)
    add("--explicit_projection", action="store_true", help="normal: project the d-dimensional gradients")
    add("--sjlt_sparsity", type=values.power_of_two, default=1, help="non-zeros in each column of an SJLT")
    what = "kronecker: every layer's columns become A numbers and its rows B"
    add_kronecker_ranks(parser, f"{what}; default: m is shared among the layers")
    add("--ridge_correction", action="store_true", help="also score with λ(1 - d_λ/m) in place of λ")
    add(
        "--reference",
        choices=("exact", "sketch"),
        default="exact",
        help="scores that sketched ones are compared with: exact, or those of one large sketch, where no matrix of all "
        "samples fits",
    )
    add(
        "--reference_m",
        type=values.power_of_two,
        default=None,
        help=f"size of that sketch; default: {option_checks.DEFAULT_REFERENCE_M}",
    )
    add("--predict_only", action="store_true", help="draw no sketch: closed-form predictions alone")
    add("--fresh", action="store_true", help="do not continue an interrupted run")


def add_workload_options(parser: argparse.ArgumentParser) -> None:
    """Add the options about model, data, gradients, queries, ridges and trials, whatever is sketched."""
    _add_subject_options(parser)
    _add_sample_options(parser)
    parser.add_argument("--fresh", action="store_true", help="do not continue an interrupted run")


def _add_subject_options(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser)
    add = parser.add_argument
    add(
        "--offload",
        choices=("none", "cpu", "disk", "recompute"),
        default=None,
        help="where gradients are kept: device, RAM, disk, or nowhere; default: recompute; for rademacher, "
        "sjlt and --explicit_projection cpu, or disk from 4 GiB on, unless what layers see of the samples is much less",
    )
    add("--cache_dir", type=Path, default=Path("grad_cache"), help="folder of kept gradients and geometry")
    add("--output_dir", type=Path, default=Path("results"), help="folder of results")
    add("--num_trials", type=values.positive_int, default=5, help="sketches per configuration")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options about model and data, and those of `add_computing_options`."""
    add = parser.add_argument
    add("--dataset", choices=DATASET_NAMES, default=None, help=f"data; default: {option_checks.DEFAULT_PAIR[0]}")
    add("--model", choices=MODEL_NAMES, default=None, help=f"model; default: {option_checks.DEFAULT_PAIR[1]}")
    add("--workload", type=Path, default=None, help="Python file with your own model and data, in place of a pair")
    add(
        "--benchmark",
        choices=("local", "dattri"),
        default="local",
        help="checkpoint and ground truth: trained here, or published",
    )
    add("--seed", type=values.seed_int, default=42, help="seed of queries and sketches")
    add_computing_options(parser)


def add_computing_options(parser: argparse.ArgumentParser) -> None:
    """Add the options about the batches and the device of gradients, and where checkpoints and data lie."""
    add = parser.add_argument
    add("--batch_size", type=values.positive_int, default=32, help="samples per gradient batch")
    add("--data_dir", type=Path, default=Path("data"), help="folder of downloaded datasets and parsed digits")
    add("--benchmark_dir", type=Path, default=Path("benchmarks"), help="folder of checkpoints and ground truth")
    add("--device", choices=("cuda", "cpu"), default=None, help="default: cuda where there is one, else cpu")


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Add the options about the training of the model."""
    add = parser.add_argument
    add(
        "--num_train",
        type=values.positive_int,
        default=None,
        help="training samples used; default: all of the dataset's",
    )
    add("--epochs", type=values.positive_int, default=None, help="training epochs; default: the recipe's")


def _add_sample_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--lambda_exp_min", type=values.ridge_exponent, default=-8, help="smallest ridge is 10 to this power")
    add("--lambda_exp_max", type=values.ridge_exponent, default=2, help="largest ridge is 10 to this power")
    add(
        "--lambda_steps",
        type=values.grid_steps,
        default=0,
        help="log-spaced ridges between these two; 0: powers of ten",
    )
    add(
        "--lambda_scale",
        choices=("absolute", "relative"),
        default="absolute",
        help="relative: ridges are in units of the mean eigenvalue tr F/rank",
    )
    add("--num_test_grads", type=values.positive_int, default=500, help="query gradients")
    add_training_options(parser)


def shared_options(args: argparse.Namespace, query_kind: str) -> SharedOptions:
    """Return checked options as the records that both experiments use; `query_kind` is `self` or `test`."""
    sketches = option_checks.sketch_options(args)
    grid = _grid(args, args.min_m, args.max_m or sketches.reference_m, args.ridge_correction, args.m_steps)
    return _shared(args, query_kind, sketches, grid, args.grad_dtype, args.predict_only)


def unsketched_options(args: argparse.Namespace) -> SharedOptions:
    """Return checked options of `make_workload_parser` as the same records: test queries, and no m."""
    sketches = SketchOptions("normal", explicit=False, sparsity=1, num_trials=args.num_trials, seed=args.seed)
    return _shared(args, "test", sketches, _grid(args, 1, 1, False, 0), "float32", predict_only=False)


def _shared(
    args: argparse.Namespace, query_kind: str, sketches: SketchOptions, grid: Grid, dtype: str, predict_only: bool
) -> SharedOptions:
    return SharedOptions(
        workload=workload_choice(args),
        gradients=GradientOptions(args.batch_size, args.offload, dtype, args.cache_dir, args.device),
        queries=QueryChoice(query_kind, args.num_test_grads, args.seed),
        sketches=sketches,
        grid=grid,
        predict_only=predict_only,
        fresh=args.fresh,
    )


def _grid(args: argparse.Namespace, min_m: int, max_m: int | None, ridge_correction: bool, m_steps: int) -> Grid:
    return Grid(
        min_m,
        max_m,
        args.lambda_exp_min,
        args.lambda_exp_max,
        args.lambda_scale,
        ridge_correction,
        m_steps,
        args.lambda_steps,
    )


def run_request(experiment: str, args: argparse.Namespace, parser: argparse.ArgumentParser) -> RunRequest:
    """Return what the run folder of checked options is named after; `parser` knows the defaults."""
    options = tuple(Option(name, value, parser.get_default(name)) for name, value in vars(args).items())
    return RunRequest(experiment, workload_choice(args), getattr(args, "proj_type", None), args.output_dir, options)


def workload_choice(args: argparse.Namespace) -> WorkloadChoice:
    """Return which model on which data checked options name."""
    return WorkloadChoice(
        dataset=args.dataset or "",
        model=args.model or "",
        file=args.workload,
        num_train=args.num_train,
        epochs=args.epochs,
        benchmark=args.benchmark,
        data_dir=args.data_dir,
        benchmark_dir=args.benchmark_dir,
    )
