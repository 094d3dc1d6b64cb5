"""What projection_cost.py is asked for. Nothing here needs torch or pandas."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from common.experiments.costing.runs import ERRORS, FinishedRun, read_runs
from common.experiments.options import arguments
from common.experiments.options import checks as option_checks
from common.experiments.options import values as option_values
from common.experiments.options.records import Option, RunRequest, WorkloadChoice
from common.foundations.errors import UserError


@dataclass(frozen=True)
class CostOptions:
    """Which runs are compared, and how their projections are timed."""

    runs: tuple[FinishedRun, ...]
    """Of one model and its data."""
    min_m: int
    """Smallest m that is timed."""
    max_m: int | None
    """Largest m that is timed; None for that of the runs."""
    num_samples: int
    """Training samples projected to time a call, at most those that one call takes."""
    workload: WorkloadChoice
    """That of the runs, with its data and checkpoint where they lie here."""
    batch_size: int
    """Samples per gradient batch."""
    device: str | None
    """cuda or cpu; None for cuda where there is one."""


def parse(description: str) -> tuple[CostOptions, RunRequest]:
    """Return the checked options of the command line, and what the run folder is named after.

    Raises:
        UserError: options contradict each other, or the runs cannot be compared, see `read_runs`.
    """
    parser = arguments.OneLineParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    what = "folders of finished runs of one model: spectrum_bounds.py, and hyperparam_selection.py for the LDS"
    add("--runs", nargs="+", type=Path, default=None, help=what)
    add("--min_m", type=option_values.dimension, default=256, help="smallest projection dimension that is timed")
    add("--max_m", type=option_values.dimension, default=None, help="largest; default: that of the runs")
    add("--num_samples", type=option_values.positive_int, default=32, help="training samples projected to time a call")
    arguments.add_computing_options(parser)
    add("--output_dir", type=Path, default=Path("results"), help="folder of results")
    args = parser.parse_args()
    option_checks.check_device(args)
    if args.runs is None:
        raise UserError("--runs: name the folders of the runs that are compared")
    runs = read_runs(args.runs)
    options = CostOptions(
        runs=runs,
        min_m=args.min_m,
        max_m=args.max_m,
        num_samples=args.num_samples,
        workload=runs[0].workload(args.data_dir, args.benchmark_dir),
        batch_size=args.batch_size,
        device=args.device,
    )
    if not any(used_dimensions(options, run) for run in runs if run.experiment == ERRORS):
        limit = f"--min_m {args.min_m}" + (f" .. --max_m {args.max_m}" if args.max_m is not None else "")
        raise UserError(f"{limit} holds no m of the runs of {ERRORS}.py")
    given = tuple(Option(name, value, parser.get_default(name)) for name, value in vars(args).items())
    named = tuple(Option(name, runs[0].options.get(name), None) for name in ("num_train", "epochs"))
    return options, RunRequest("projection_cost", options.workload, None, args.output_dir, given + named)


def used_dimensions(options: CostOptions, run: FinishedRun) -> list[int]:
    """Return the m of a run that are timed, ascending."""
    return [m for m in run.config["ms"] if options.min_m <= m <= (options.max_m or m)]
