"""What an experiment is asked for, as small records: what travels below the entry scripts in place of the options.

Nothing here needs torch or pandas: options are read and refused before those are imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from common.foundations.errors import UserError
from common.foundations.projections import WITH_LAW

LARGEST_DEFAULT_M = 65_536
DEFAULT_TIMEOUT = 3600.0
"""Seconds to wait for a process of torchrun that does not answer."""


@dataclass(frozen=True)
class WorkloadChoice:
    """Which model on which data, how it is trained, and where data and checkpoints lie."""

    dataset: str
    """Of a built-in pair; empty with `file`."""
    model: str
    """Of a built-in pair; empty with `file`."""
    file: Path | None
    """The user's own workload, in place of a pair."""
    num_train: int | None
    """Training samples used; None for all of the workload's."""
    epochs: int | None
    """Passes of training; None for the recipe's."""
    benchmark: str
    """`local`: checkpoint and ground truth are made here; `dattri`: the published ones."""
    data_dir: Path
    """Folder of datasets that are not embedded."""
    benchmark_dir: Path
    """Folder of checkpoints and ground truth."""


@dataclass(frozen=True)
class GradientOptions:
    """How gradients are computed, and where they are kept."""

    batch_size: int
    """Samples per gradient batch."""
    offload: str | None
    """none, cpu, disk or recompute, see common/gradients/planning.py; None: by what the sketches read."""
    dtype: str
    """Of stored gradients: float32, float16 or bfloat16."""
    cache_dir: Path
    """Folder of kept gradients and geometry."""
    device: str | None
    """cuda or cpu; None for cuda where there is one."""


@dataclass(frozen=True)
class QueryChoice:
    """The samples whose scores are studied."""

    kind: str
    """`self`: training samples; `test`: test samples."""
    count: int
    """How many, if there are as many."""
    seed: int
    """Draws them."""


@dataclass(frozen=True)
class CrossChoice:
    """The training gradients that are scored with every query."""

    num_train_grads: int
    """How many, if there are as many."""
    kernel_parts: bool
    """Whether the part of every query in ker(F) is also scored by itself."""


@dataclass(frozen=True)
class SketchOptions:
    """The law of the projections, and how many are drawn."""

    proj_type: str
    """normal, rademacher, sjlt, tensorsketch or kronecker."""
    explicit: bool
    """Normal: project the d-dimensional gradients instead of the coordinates."""
    sparsity: int
    """Non-zeros in each column of an SJLT."""
    num_trials: int
    """Sketches per configuration."""
    seed: int
    """Of all sketches."""
    kronecker_ranks: tuple[int, int] | None = None
    """Kronecker: (columns, rows) that every layer becomes; None: m is shared among the layers."""
    reference_m: int | None = None
    """M of the sketch whose ridge-corrected scores take the place of exact ones; None: exact ones."""

    @property
    def of_factors(self) -> bool:
        """Whether inputs and errors of layers are sketched, never their products."""
        return self.proj_type in ("tensorsketch", "kronecker")

    @property
    def one_entry_a_column(self) -> bool:
        """Whether every column of P has a single entry, ±1."""
        return self.proj_type == "tensorsketch" or (self.proj_type == "sjlt" and self.sparsity == 1)

    @property
    def needs_powers_of_two(self) -> bool:
        """Whether m must be a power of two: the sketch of size m is then a folded larger one."""
        return self.proj_type in ("sjlt", "tensorsketch")

    @property
    def has_law(self) -> bool:
        """Whether a closed form says what to expect; without it all predictions are empty."""
        return self.proj_type in WITH_LAW

    @property
    def of_coordinates(self) -> bool:
        """Whether coordinates in an orthonormal basis are sketched: the law must be rotation invariant."""
        return self.proj_type == "normal" and not self.explicit and self.reference_m is None

    @property
    def by_columns(self) -> bool:
        """Whether a pass over the gradients needs columns of all samples at once: P is dense, and drawn only once."""
        return self.proj_type in ("normal", "rademacher") and not self.of_coordinates


@dataclass(frozen=True)
class Grid:
    """The projection dimensions m and ridges λ asked for."""

    min_m: int
    """Smallest m."""
    max_m: int | None
    """Largest m; None for the largest power of two below d, at most 65,536."""
    lambda_exp_min: int
    """The smallest λ is 10 to this power, times the unit of `lambda_scale`."""
    lambda_exp_max: int
    """The largest λ is 10 to this power, times the unit of `lambda_scale`."""
    lambda_scale: str
    """`absolute`: λ is in units of F; `relative`: in units of the mean eigenvalue tr F/rank."""
    ridge_correction: bool
    """Whether every cell is also solved with λ(1 − d_λ/m)."""
    m_steps: int = 0
    """Number of m, equally spaced in log m and rounded; 0: powers of two."""
    lambda_steps: int = 0
    """Number of λ, equally spaced in log λ; 0: powers of ten."""

    def ridges(self, mean_eigenvalue: float) -> list[float]:
        """Return λ = 10^e, times tr F/rank where λ is relative, for every exponent e of the range, ascending."""
        unit = mean_eigenvalue if self.lambda_scale == "relative" else 1.0
        span = self.lambda_exp_max - self.lambda_exp_min
        last = (self.lambda_steps or span + 1) - 1
        exponents = {self.lambda_exp_min + (Fraction(span * i, last) if last else 0) for i in range(last + 1)}
        return [_power_of_ten(Fraction(e)) * unit for e in sorted(exponents)]

    def dimensions(self, num_parameters: int) -> tuple[list[int], list[int]]:
        """Return the m of the grid from min_m to max_m: those below d, and those left out because m >= d.

        Raises:
            UserError: none is left.
        """
        max_m = self.max_m if self.max_m is not None else largest_power_of_two(num_parameters - 1)
        if self.m_steps:
            grid, kind = log_spaced(self.min_m, max_m, self.m_steps), "m"
        else:
            grid = [2**j for j in range(max_m.bit_length()) if self.min_m <= 2**j <= max_m]
            kind = "power of two"
        used = [m for m in grid if m < num_parameters]
        if not used:
            limit = f"--min_m {self.min_m} .. --max_m {max_m}"
            raise UserError(f"{limit} holds no {kind} below the {num_parameters} parameters of the model")
        return used, [m for m in grid if m >= num_parameters]


def log_spaced(smallest: int, largest: int, steps: int) -> list[int]:
    """Return integers from `smallest` to `largest`, equally spaced in their logarithm but for rounding, ascending.

    Fewer than `steps` where neighbours round to the same; none where `smallest` exceeds `largest`.
    """
    if smallest > largest:
        return []
    ratio = largest / smallest
    return sorted({round(smallest * ratio ** (i / (steps - 1))) for i in range(steps)})


def largest_power_of_two(limit: int) -> int:
    """Return the largest power of two up to `limit`, at most the default largest m; 0 where there is none."""
    return 1 << (min(LARGEST_DEFAULT_M, limit).bit_length() - 1) if limit > 0 else 0


def _power_of_ten(exponent: Fraction) -> float:
    # correctly rounded where the exponent is an integer, which ** does not promise
    return float(f"1e{exponent}") if exponent.denominator == 1 else 10.0 ** float(exponent)


@dataclass(frozen=True)
class SharedOptions:
    """What both experiments are asked for."""

    workload: WorkloadChoice
    """Model, data and training."""
    gradients: GradientOptions
    """Computing and keeping gradients."""
    queries: QueryChoice
    """Whose scores."""
    sketches: SketchOptions
    """Law and number of projections."""
    grid: Grid
    """The (m, λ) asked for."""
    predict_only: bool
    """Draw no sketch."""
    fresh: bool
    """Do not continue an interrupted run."""


@dataclass(frozen=True)
class BoundsOptions:
    """What spectrum_bounds.py is asked for."""

    shared: SharedOptions
    """What both experiments are asked for."""
    min_d_lambda: float
    """λ with d_λ below this are left out."""
    target_eps: float
    """Error that the recommended m must reach."""
    cross: CrossChoice | None = None
    """Which training gradients are scored with the queries; None for self-influence."""


@dataclass(frozen=True)
class SelectionOptions:
    """What hyperparam_selection.py is asked for."""

    shared: SharedOptions
    """What both experiments are asked for."""
    val_ratio: float
    """Share of the queries that select λ and m."""
    num_subsets: int
    """Subset models behind the ground truth."""


@dataclass(frozen=True)
class CurvatureOptions:
    """What factorized_influence.py is asked for."""

    selection: SelectionOptions
    """What hyperparam_selection.py is asked for; of the sketches, number and seed alone are used."""
    m_a: tuple[int, ...]
    """Rows of the sketch of every A, ascending."""
    m_e: tuple[int, ...]
    """Rows of the sketch of every E, ascending."""

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """All (m_A, m_E)."""
        return [(m_a, m_e) for m_a in self.m_a for m_e in self.m_e]


@dataclass(frozen=True)
class FaithfulnessOptions:
    """What faithfulness_utility.py is asked for."""

    selection: SelectionOptions
    """What is shared, and what the LDS needs."""
    cross: CrossChoice
    """Which training gradients are scored with the queries."""
    threshold: float
    """Largest ε_95 of cross scores that counts as faithful."""


@dataclass(frozen=True)
class Option:
    """One option of the command line, for config.json and the folder's name."""

    name: str
    """Without dashes."""
    value: object
    """As given, or the default."""
    default: object
    """Its value where it is not given."""


@dataclass(frozen=True)
class RunRequest:
    """What a run folder is named after, and what its config.json repeats."""

    experiment: str
    """Name of the folder of all runs of one script."""
    subject: WorkloadChoice | Path
    """A workload, or the store that is audited: its name is the first part of the folder's."""
    proj_type: str | None
    """The second part; None for none."""
    output_dir: Path
    """Folder of results."""
    options: tuple[Option, ...]
    """All of them; those that change the numbers and differ from their default end the folder's name."""
