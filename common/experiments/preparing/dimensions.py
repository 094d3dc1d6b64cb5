"""The projection dimensions m of a sweep: those of the grid that a model's parameters and the projection allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from common.experiments.options.records import Grid, SketchOptions
from common.experiments.options.values import named_ranks
from common.foundations.errors import UserError
from common.gradients.layer_factors import FlatParameter, flat_parameters
from common.sketches.kronecker_sizes import sizes_rule, smallest_m


@dataclass(frozen=True)
class Dimensions:
    """m of a sweep, and what was asked for besides."""

    used: list[int]
    """Ascending."""
    too_large: list[int]
    """m >= d."""
    too_small: list[int]
    """m below one number a layer, for a projection that needs that."""
    smallest: int
    """Smallest m that the projection can have."""


def sweep_dimensions(grid: Grid, sketches: SketchOptions, model: nn.Module) -> Dimensions:
    """Return the m of the grid, or the only one that `kronecker_ranks` leave.

    Raises:
        UserError: none is left.
    """
    parameters = flat_parameters(model)
    if sketches.kronecker_ranks is not None:
        return Dimensions([dimension_of_ranks(sketches.kronecker_ranks, parameters)], [], [], 1)
    used, too_large = grid.dimensions(parameters[-1].columns.stop)
    smallest = 1
    if sketches.proj_type == "kronecker":
        smallest = smallest_m(parameters)
        require_number_a_block("--max_m", used[-1], parameters)
    return Dimensions([m for m in used if m >= smallest], too_large, [m for m in used if m < smallest], smallest)


def dimension_of_ranks(ranks: tuple[int, int], parameters: Sequence[FlatParameter]) -> int:
    """Return how many numbers a Kronecker-factored projection of (cols, rows) ranks makes of a gradient.

    Raises:
        UserError: as many as there are parameters.
    """
    total, num_parameters = sizes_rule(ranks)(parameters, 0).total, parameters[-1].columns.stop
    if total >= num_parameters:
        option = named_ranks(ranks)
        raise UserError(f"{option} makes {total} numbers of {num_parameters} parameters; it must make fewer")
    return total


def require_number_a_block(option: str, m: int, parameters: Sequence[FlatParameter]) -> None:
    """Raise UserError where a Kronecker-factored projection to m, the value of an option, leaves a block without."""
    fewest = smallest_m(parameters)
    if m < fewest:
        raise UserError(
            f"{option} {m}: kronecker needs at least one number for each of {fewest} blocks (every matrix, and all "
            f"vectors together)"
        )
