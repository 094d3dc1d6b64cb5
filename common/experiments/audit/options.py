"""What audit_projections.py is asked for. Nothing here needs torch or pandas."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from common.experiments.options import arguments
from common.experiments.options import values as option_values
from common.experiments.options.records import DEFAULT_TIMEOUT, Option, RunRequest
from common.foundations.distributed import is_first
from common.foundations.errors import UserError
from common.foundations.projections import PROJECTIONS
from common.foundations.storage import make_folder

FORMAT_NAMES = ("sketchlab", "npy", "safetensors", "torch", "trak", "bergson", "dattri", "logix")
# λ over the mean eigenvalue of S, where no exponents are given
RELATIVE_EXPONENTS = (-5, 3)
# error bars have fourth powers of it
LARGEST_RIDGE = 1e75


@dataclass(frozen=True)
class AuditOptions:
    """The store, what is wanted of it, and where the rest goes."""

    train: Path
    """Store of the training rows."""
    queries: Path | None
    """Store of the queries; None: training rows are the queries."""
    format: str | None
    """One of FORMAT_NAMES; None to find it out."""
    rows: slice | None
    """Training rows that are used; None for all."""
    module: str | None
    """Columns of one module; None for all."""
    norms: Path | None
    """Lengths of the training rows, where the store has unit rows."""
    proj_type: str | None
    """Law of P; None for what the store says, else normal."""
    lambda_exp_min: int | None
    """Smallest λ is 10 to this power; None, like the largest: relative to the mean eigenvalue."""
    lambda_exp_max: int | None
    """Largest λ is 10 to this power."""
    ridge: float | None
    """λ of the scores; None to choose one."""
    target_eps: float
    """Error that a recommended m, and the λ of the scores, must reach."""
    top_k: int
    """Training rows listed for each query and sign."""
    ground_truth: tuple[Path, ...]
    """A folder, or a file of subsets and one of losses; empty for none."""
    val_ratio: float
    """Share of the queries that select λ by LDS."""
    write_scores: Path | None
    """Folder of the whole matrix of scores; None not to write it."""
    num_test_grads: int
    """Queries behind the tables of errors."""
    seed: int
    """Of the samples of rows and pairs."""
    timeout: float = DEFAULT_TIMEOUT
    """Seconds after which a process of torchrun that does not answer counts as dead."""

    def ridges(self, mean_eigenvalue: float) -> list[float]:
        """Return λ, ascending: powers of ten, absolute or times the mean eigenvalue."""
        if self.lambda_exp_min is None and self.lambda_exp_max is None:
            low, high = RELATIVE_EXPONENTS
            return [mean_eigenvalue * 10.0**e for e in range(low, high + 1)]
        low = -8 if self.lambda_exp_min is None else self.lambda_exp_min
        high = 2 if self.lambda_exp_max is None else self.lambda_exp_max
        if low > high:
            raise UserError(f"--lambda_exp_min {low} exceeds --lambda_exp_max {high}; it must not")
        return [float(f"1e{e}") for e in range(low, high + 1)]


def parse(description: str) -> tuple[AuditOptions, RunRequest]:
    """Return the checked options of the command line, and what the run folder is named after."""
    parser = arguments.OneLineParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--train", type=Path, default=None, help="store of the projected training gradients: file or folder")
    add("--queries", type=Path, default=None, help="store of the projected query gradients; default: training rows")
    add("--format", choices=FORMAT_NAMES, default=None, help="of the stores; default: found out")
    add("--rows", type=_rows, default=None, help="training rows used, START:STOP or START:STOP:STEP as in Python")
    add("--module", default=None, help="audit the columns of one module; default: the whole store")
    add("--norms", type=Path, default=None, help=".npy or .pt of the lengths of all training rows, if those are units")
    add(
        "--proj_type",
        choices=PROJECTIONS,
        default=None,
        help="law of P; default: as stored, else normal",
    )
    add("--lambda_exp_min", type=option_values.ridge_exponent, default=None, help="smallest ridge is 10 to this power")
    add("--lambda_exp_max", type=option_values.ridge_exponent, default=None, help="largest ridge is 10 to this power")
    add("--ridge", type=option_values.positive_float, default=None, help="ridge λ of the scores; default: chosen")
    add("--target_eps", type=option_values.open_unit_float, default=0.1, help="error that m and λ must reach")
    add("--top_k", type=option_values.positive_int, default=20, help="training rows listed for each query and sign")
    add("--ground_truth", type=Path, nargs="+", default=None, help="folder, or file of subsets and file of losses")
    add(
        "--val_ratio", type=option_values.open_unit_float, default=0.1, help="share of the queries that select λ by LDS"
    )
    add("--write_scores", type=Path, default=None, help="folder for all scores and their standard errors")
    add("--num_test_grads", type=option_values.positive_int, default=500, help="queries behind the tables of errors")
    add("--output_dir", type=Path, default=Path("results"), help="folder of results")
    add("--seed", type=option_values.seed_int, default=42, help="seed of the samples of rows and pairs")
    arguments.add_timeout(parser)
    args = parser.parse_args()
    if args.train is None:
        raise UserError("--train: name the store of projected training gradients, a file or a folder")
    args.ground_truth = args.ground_truth or []
    if len(args.ground_truth) > 2:
        raise UserError(f"--ground_truth takes a folder or two files, got {len(args.ground_truth)} paths")
    if args.ridge is not None and args.ridge > LARGEST_RIDGE:
        raise UserError(f"--ridge {args.ridge:g} must be at most {LARGEST_RIDGE:g}: powers of it leave float64")
    if args.ground_truth and args.rows is not None:
        raise UserError("--ground_truth speaks of all training rows; drop --rows")
    if args.ground_truth and args.queries is None:
        raise UserError("--ground_truth has losses of queries; name their store with --queries")
    values = {name: value for name, value in vars(args).items() if name != "output_dir"}
    options = AuditOptions(**values | {"ground_truth": tuple(args.ground_truth)})
    options.ridges(1.0)  # exponents that contradict each other are refused before a store is read
    given = tuple(Option(name, _plain(value), _plain(parser.get_default(name))) for name, value in vars(args).items())
    return options, RunRequest("audit_projections", args.train, args.proj_type, args.output_dir, given)


def check_paths(options: AuditOptions) -> None:
    """Raise UserError where a store does not exist, or no folder of scores can: sooner than what reads is imported."""
    for name, path in (("train", options.train), ("queries", options.queries)):
        if path is not None and not path.exists():
            raise UserError(f"--{name} {path}: there is no such file or folder")
    if options.write_scores is not None and is_first():
        missing = [path for path in (options.write_scores, *options.write_scores.parents) if not path.exists()]
        make_folder(options.write_scores)
        for path in missing:  # an audit that is refused leaves nothing
            path.rmdir()


def _rows(text: str) -> slice:
    parts = text.split(":")
    try:
        numbers = [int(part) if part else None for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) not in (2, 3) or (len(numbers) == 3 and numbers[2] is not None and numbers[2] < 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; must be START:STOP or START:STOP:STEP, STEP >= 1")
    return slice(*numbers)


def _plain(value: object) -> object:
    """Return what JSON can hold."""
    if isinstance(value, slice):
        return ":".join("" if part is None else str(part) for part in (value.start, value.stop, value.step)).rstrip(":")
    return [str(path) for path in value] or None if isinstance(value, list) else value
