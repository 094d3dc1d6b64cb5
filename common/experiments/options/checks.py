"""Checks of options that depend on one another, each named in one line before anything is computed."""

from __future__ import annotations

import argparse
from importlib.metadata import version

from common.experiments.options.records import SketchOptions
from common.experiments.options.values import named_ranks
from common.foundations.errors import UserError
from common.workloads.names import check_file, check_pair

DEFAULT_PAIR = ("mnist", "mlp")
REFERENCE_PROJECTIONS = ("normal", "rademacher", "sjlt")
DEFAULT_REFERENCE_M = 8192
NO_CUDA = "--device cuda: no CUDA device is available here; use --device cpu"


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
    check_device(args)
    if args.epochs is not None and args.benchmark != "local":
        raise UserError(f"--epochs {args.epochs} trains anew; --benchmark {args.benchmark} comes trained")
    if args.num_train is not None and args.benchmark != "local":
        raise UserError(f"--num_train {args.num_train}: --benchmark {args.benchmark} comes trained on all its samples")


def check_device(args: argparse.Namespace) -> None:
    """Raise UserError where CUDA is asked for and torch was built without it."""
    if args.device == "cuda" and version("torch").endswith("+cpu"):
        raise UserError(NO_CUDA)


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
    sketches = sketch_options(args)
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
    check_kronecker_ranks(args)
    if args.kronecker_ranks is not None and (args.max_m is not None or args.m_steps):
        raise UserError(f"{named_ranks(args.kronecker_ranks)} decides m; drop --max_m and --m_steps")


def check_kronecker_ranks(args: argparse.Namespace) -> None:
    """Raise UserError where sizes of a Kronecker-factored projection are given for another one."""
    if args.kronecker_ranks is not None and args.proj_type != "kronecker":
        option = named_ranks(args.kronecker_ranks)
        raise UserError(f"{option} is for --proj_type kronecker, got {args.proj_type}")


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


def sketch_options(args: argparse.Namespace) -> SketchOptions:
    """Return the law and number of the sketches that options ask for."""
    return SketchOptions(
        args.proj_type,
        args.explicit_projection,
        args.sjlt_sparsity,
        args.num_trials,
        args.seed,
        args.kronecker_ranks,
        None if args.reference == "exact" else args.reference_m or DEFAULT_REFERENCE_M,
    )
