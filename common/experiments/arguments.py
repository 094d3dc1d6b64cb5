"""The command line: options that both scripts share, their validation, and the records made of them.

The only module below the entry scripts that sees the argparse namespace. Imports nothing that takes time, so that a
mistake is named at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from common.experiments.options import (
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
from common.foundations.errors import UserError
from common.workloads.names import DATASET_NAMES, MODEL_NAMES, check_file, check_pair

DEFAULT_PAIR = ("mnist", "mlp")
PROJECTIONS = ("normal", "rademacher", "sjlt", "tensorsketch", "kronecker")
REFERENCE_PROJECTIONS = ("normal", "rademacher", "sjlt")
DEFAULT_REFERENCE_M = 8192
NO_CUDA = "--device cuda: no CUDA device is available here; use --device cpu"


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print `message` as one line and exit with status 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def positive_int(text: str) -> int:
    """Parse a count: an integer from 1 to a million, beyond which no count of samples, trials or models is feasible."""
    return _parse(text, int, lambda value: 1 <= value <= 10**6, "an integer >= 1 (and at most 1000000)")


def dimension(text: str) -> int:
    """Parse an integer from 1 to 2^40, far beyond the parameters of any model that fits a computer."""
    return _parse(text, int, lambda value: 1 <= value <= 2**40, "an integer >= 1 (and at most 2^40)")


def dimensions(text: str) -> str:
    """Parse dimensions with commas between them; return them as such a text, ascending, each once."""
    return ",".join(map(str, sorted({dimension(part) for part in text.split(",")})))


def seed_int(text: str) -> int:
    """Parse an integer >= 0."""
    return _parse(text, int, lambda value: value >= 0, "an integer >= 0")


def ridge_exponent(text: str) -> int:
    """Parse an integer in [-300, 300], so that its power of ten is a float64."""
    return _parse(text, int, lambda value: abs(value) <= 300, "an integer between -300 and 300")


def grid_steps(text: str) -> int:
    """Parse the number of points of a grid: 0 for the usual one, else 2 to 1000."""
    return _parse(text, int, lambda value: value == 0 or 2 <= value <= 1000, "0, or an integer from 2 to 1000")


def non_negative_float(text: str) -> float:
    """Parse a finite number >= 0."""
    return _parse(text, float, lambda value: 0 <= value < float("inf"), "a number >= 0")


def positive_float(text: str) -> float:
    """Parse a finite number > 0."""
    return _parse(text, float, lambda value: 0 < value < float("inf"), "a number > 0")


def open_unit_float(text: str) -> float:
    """Parse a number strictly between 0 and 1, large enough for its square to divide by."""
    return _parse(text, float, lambda value: 1e-9 <= value < 1, "a number strictly between 0 and 1 (and at least 1e-9)")


def power_of_two(text: str) -> int:
    """Parse 1, 2, 4, 8, ..."""
    return _parse(text, int, lambda value: value >= 1 and int(value).bit_count() == 1, "a power of two: 1, 2, 4, ...")


def two_ranks(text: str) -> tuple[int, int]:
    """Parse A,B: two integers from 1 to a million."""
    try:
        cols, rows = (positive_int(part) for part in text.split(","))
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; must be two integers >= 1, as in 64,64") from None
    return cols, rows


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


def add_timeout(parser: argparse.ArgumentParser) -> None:
    """Add --timeout, for scripts that torchrun can start."""
    help_ = "seconds to wait for another process of torchrun"
    parser.add_argument("--timeout", type=positive_float, default=DEFAULT_TIMEOUT, help=help_)


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the options of the command line, checked by `check_shared_options`."""
    args = parser.parse_args()
    check_shared_options(args)
    return args


def parse_workload_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the options of a parser of `make_workload_parser`, checked by `check_workload_options`."""
    args = parser.parse_args()
    check_workload_options(args)
    return args


def add_shared_options(parser: argparse.ArgumentParser, min_m: int) -> None:
    """Add the options that both experiments have; `min_m` is the default of --min_m.

    Their order is that of the parts of a run folder's name.
    """
    add = parser.add_argument
    add("--proj_type", choices=PROJECTIONS, default="normal", help="law of the projection")
    add("--grad_dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="of stored gradients")
    _add_subject_options(parser)
    add("--min_m", type=dimension, default=min_m, help="smallest projection dimension")
    add("--max_m", type=dimension, default=None, help="largest; default: largest power of two < d, at most 65536")
    add("--m_steps", type=grid_steps, default=0, help="log-spaced m from smallest to largest; 0: powers of two")
    _add_sample_options(parser)
    add("--explicit_projection", action="store_true", help="normal: project the d-dimensional gradients")
    add("--sjlt_sparsity", type=power_of_two, default=1, help="non-zeros in each column of an SJLT")
    add(
        "--kronecker_ranks",
        type=two_ranks,
        default=None,
        metavar="A,B",
        help="kronecker: every layer's columns become A numbers and its rows B; default: m is shared among the layers",
    )
    add("--ridge_correction", action="store_true", help="also score with λ(1 - d_λ/m) in place of λ")
    add(
        "--reference",
        choices=("exact", "sketch"),
        default="exact",
        help="scores that sketched ones are compared with: exact, or those of one large sketch, where no matrix of all "
        "samples fits",
    )
    add("--reference_m", type=power_of_two, default=None, help=f"size of that sketch; default: {DEFAULT_REFERENCE_M}")
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
    add("--num_trials", type=positive_int, default=5, help="sketches per configuration")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options about model and data, and about the device and the batches in which gradients are computed."""
    add = parser.add_argument
    add("--dataset", choices=DATASET_NAMES, default=None, help=f"data; default: {DEFAULT_PAIR[0]}")
    add("--model", choices=MODEL_NAMES, default=None, help=f"model; default: {DEFAULT_PAIR[1]}")
    add("--workload", type=Path, default=None, help="Python file with your own model and data, in place of a pair")
    add("--batch_size", type=positive_int, default=32, help="samples per gradient batch")
    add("--data_dir", type=Path, default=Path("data"), help="folder of downloaded datasets and parsed digits")
    add(
        "--benchmark",
        choices=("local", "dattri"),
        default="local",
        help="checkpoint and ground truth: trained here, or published",
    )
    add("--benchmark_dir", type=Path, default=Path("benchmarks"), help="folder of checkpoints and ground truth")
    add("--seed", type=seed_int, default=42, help="seed of queries and sketches")
    add("--device", choices=("cuda", "cpu"), default=None, help="default: cuda where there is one, else cpu")


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Add the options about the training of the model."""
    add = parser.add_argument
    add("--num_train", type=positive_int, default=None, help="training samples used; default: all of the dataset's")
    add("--epochs", type=positive_int, default=None, help="training epochs; default: the recipe's")


def _add_sample_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--lambda_exp_min", type=ridge_exponent, default=-8, help="smallest ridge is 10 to this power")
    add("--lambda_exp_max", type=ridge_exponent, default=2, help="largest ridge is 10 to this power")
    add("--lambda_steps", type=grid_steps, default=0, help="log-spaced ridges between these two; 0: powers of ten")
    add(
        "--lambda_scale",
        choices=("absolute", "relative"),
        default="absolute",
        help="relative: ridges are in units of the mean eigenvalue tr F/rank",
    )
    add("--num_test_grads", type=positive_int, default=500, help="query gradients")
    add_training_options(parser)


def check_model_options(args: argparse.Namespace) -> None:
    """Check what no single option about model, data and training can know, and fill in the default pair.

    Raises:
        UserError: options contradict each other.
    """
    if args.workload is not None:
        for name, value in (("dataset", args.dataset), ("model", args.model)):
            if value is not None:
                raise UserError(f"--workload {args.workload} brings its own data and model; drop --{name} {value}")
        if args.benchmark != "local":
            raise UserError(f"--workload {args.workload} is nothing that --benchmark {args.benchmark} has published")
        check_file(args.workload)
    else:
        args.dataset, args.model = args.dataset or DEFAULT_PAIR[0], args.model or DEFAULT_PAIR[1]
        check_pair(args.dataset, args.model)
    if args.device == "cuda" and version("torch").endswith("+cpu"):  # a build that knows of no GPU
        raise UserError(NO_CUDA)
    if args.epochs is not None and args.benchmark != "local":
        raise UserError(f"--epochs {args.epochs} trains anew; --benchmark {args.benchmark} comes trained")
    if args.num_train is not None and args.benchmark != "local":
        raise UserError(f"--num_train {args.num_train}: --benchmark {args.benchmark} comes trained on all its samples")


def check_workload_options(args: argparse.Namespace) -> None:
    """Check what no single option of `add_workload_options` can know, and fill in the default pair.

    Raises:
        UserError: options contradict each other.
    """
    check_model_options(args)
    if args.lambda_exp_min > args.lambda_exp_max:
        raise UserError(
            f"--lambda_exp_min {args.lambda_exp_min} exceeds --lambda_exp_max {args.lambda_exp_max}; it must not"
        )


def check_shared_options(args: argparse.Namespace) -> None:
    """Check what no single option can know, and fill in the default pair.

    Raises:
        UserError: options contradict each other.
    """
    check_workload_options(args)
    if args.explicit_projection and args.proj_type != "normal":
        raise UserError(f"--explicit_projection is for --proj_type normal; {args.proj_type} always projects explicitly")
    check_reference(args)
    sketches = _sketches(args)
    recomputes = sketches.of_coordinates or sketches.of_factors
    may_recompute = args.offload == "recompute" or (args.offload is None and recomputes)
    if args.grad_dtype != "float32" and may_recompute:
        raise UserError(f"--grad_dtype {args.grad_dtype} needs stored gradients: --offload none, cpu or disk")
    if sketches.needs_powers_of_two and args.m_steps:
        raise UserError(
            f"--m_steps {args.m_steps}: {args.proj_type} of size m is a folded larger one, so its m are powers of two; "
            "normal, rademacher and kronecker can have any m"
        )
    if args.proj_type == "sjlt" and args.min_m < args.sjlt_sparsity:
        raise UserError(f"--sjlt_sparsity {args.sjlt_sparsity} needs --min_m of at least that, got {args.min_m}")
    if args.proj_type != "sjlt" and args.sjlt_sparsity != 1:
        raise UserError(f"--sjlt_sparsity {args.sjlt_sparsity} is for --proj_type sjlt, got {args.proj_type}")
    if args.kronecker_ranks is not None:
        ranks = "--kronecker_ranks {},{}".format(*args.kronecker_ranks)
        if args.proj_type != "kronecker":
            raise UserError(f"{ranks} is for --proj_type kronecker, got {args.proj_type}")
        if args.max_m is not None or args.m_steps:
            raise UserError(f"{ranks} decides m; drop --max_m and --m_steps")


def check_reference(args: argparse.Namespace) -> None:
    """Check the options of the reference.

    Raises:
        UserError: they contradict each other, or others.
    """
    if args.reference == "exact":
        if args.reference_m is not None:
            raise UserError(f"--reference_m {args.reference_m} is for --reference sketch")
        return
    if args.proj_type not in REFERENCE_PROJECTIONS:
        known = ", ".join(REFERENCE_PROJECTIONS)
        raise UserError(f"--reference sketch is for --proj_type {known}, got {args.proj_type}")
    size = args.reference_m or DEFAULT_REFERENCE_M
    if args.max_m is not None and args.max_m > size:
        raise UserError(f"--max_m {args.max_m} exceeds --reference_m {size}: the reference must be the larger sketch")
    if args.offload not in (None, "recompute"):
        raise UserError(f"--offload {args.offload}: --reference sketch keeps no gradients, drop it")
    if args.grad_dtype != "float32":
        raise UserError(f"--grad_dtype {args.grad_dtype}: --reference sketch stores no gradients, drop it")


def shared_options(args: argparse.Namespace, query_kind: str) -> SharedOptions:
    """Return checked options as the records that both experiments use; `query_kind` is `self` or `test`."""
    sketches = _sketches(args)
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


def _sketches(args: argparse.Namespace) -> SketchOptions:
    return SketchOptions(
        args.proj_type,
        args.explicit_projection,
        args.sjlt_sparsity,
        args.num_trials,
        args.seed,
        args.kronecker_ranks,
        None if args.reference == "exact" else args.reference_m or DEFAULT_REFERENCE_M,
    )


def _parse(text: str, kind: type, allowed: Callable[[float], bool], description: str):
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not allowed(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; must be {description}")
    return value
