"""What project_gradients.py is asked for. Nothing here needs torch or pandas."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from common.experiments.options import arguments
from common.experiments.options import checks as option_checks
from common.experiments.options import values as option_values
from common.experiments.options.records import WorkloadChoice
from common.foundations.errors import UserError
from common.foundations.projections import PROJECTIONS

DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class ProjectOptions:
    """Gradients of which samples, how they are projected, and where they go."""

    workload: WorkloadChoice
    """Model and data."""
    modules: tuple[str, ...]
    """Patterns of the names of parameters that are used, or with `!` in front that are not; empty for all."""
    kind: str
    """Law of P, one of PROJECTIONS."""
    m: int
    """Numbers a row of the store; kronecker: at most."""
    kronecker_ranks: tuple[int, int] | None
    """Kronecker: (columns, rows) that every layer becomes, in place of m; None: m is shared among the layers."""
    seed: int
    """Of P."""
    store: Path | None
    """Folder of the store; None for a trial run without one."""
    dtype: str
    """Of the store, one of DTYPES."""
    scale: str
    """`unit`: rows are stored with length about 1 and their norms beside them; `none`: as they are."""
    batch_size: int
    """Samples per gradient batch."""
    device: str | None
    """cuda or cpu; None for cuda where there is one."""
    limit: int | None
    """Training samples of a trial run; None for the whole."""
    timeout: float
    """Seconds after which a process of torchrun that does not answer counts as dead."""


def parse(description: str) -> ProjectOptions:
    """Return the checked options of the command line.

    Raises:
        UserError: options contradict each other.
    """
    parser = arguments.OneLineParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_model_options(parser)
    arguments.add_training_options(parser)
    add = parser.add_argument
    add("--modules", nargs="+", default=None, help="patterns of parameters to use, !PATTERN to leave out; default: all")
    add("--proj_type", choices=PROJECTIONS, default="sjlt", help="law of the projection")
    add("--m", type=option_values.dimension, default=4096, help="numbers a row of the store")
    arguments.add_kronecker_ranks(
        parser, "kronecker: every layer's columns become A numbers and its rows B, whatever --m"
    )
    add("--store", type=Path, default=None, help="folder of the store; needed but for a trial run")
    add("--dtype", choices=DTYPES, default="float32", help="of the numbers in the store")
    add(
        "--scale", choices=("unit", "none"), default=None, help="unit rows or not; default: unit for float16, else none"
    )
    add(
        "--limit",
        type=option_values.positive_int,
        default=None,
        help="trial run on so many samples, which writes nothing",
    )
    arguments.add_timeout(parser)
    args = parser.parse_args()
    option_checks.check_model_options(args)
    if args.store is None and args.limit is None:
        raise UserError("--store: name the folder of the store, or ask for a trial run with --limit")
    option_checks.check_kronecker_ranks(args)
    if args.proj_type == "tensorsketch" and args.m.bit_count() != 1:
        raise UserError(f"--m {args.m}: a tensorsketch needs a power of two")
    return ProjectOptions(
        workload=arguments.workload_choice(args),
        modules=tuple(args.modules or ()),
        kind=args.proj_type,
        m=args.m,
        kronecker_ranks=args.kronecker_ranks,
        seed=args.seed,
        store=args.store,
        dtype=args.dtype,
        # gradients of well-learned samples are shorter than 1e-8, below which float16 ends
        scale=args.scale or ("unit" if args.dtype == "float16" else "none"),
        batch_size=args.batch_size,
        device=args.device,
        limit=args.limit,
        timeout=args.timeout,
    )
