"""The projection dimensions m of a sweep: those of the grid that a model's parameters and the projection allow."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from common.experiments.options import Grid, SketchOptions
from common.foundations.errors import UserError
from common.gradients.layer_factors import flat_parameters
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
    num_parameters = parameters[-1].columns.stop
    if sketches.kronecker_ranks is not None:
        total = sizes_rule(sketches.kronecker_ranks)(parameters, 0).total
        if total >= num_parameters:
            ranks = "--kronecker_ranks {},{}".format(*sketches.kronecker_ranks)
            raise UserError(f"{ranks} makes {total} numbers of {num_parameters} parameters; it must make fewer")
        return Dimensions([total], [], [], 1)
    used, too_large = grid.dimensions(num_parameters)
    smallest = smallest_m(parameters) if sketches.proj_type == "kronecker" else 1
    possible = [m for m in used if m >= smallest]
    if not possible:
        raise UserError(
            f"--max_m {used[-1]}: kronecker needs at least one number for each of {smallest} blocks (every matrix, and "
            f"all vectors together)"
        )
    return Dimensions(possible, too_large, [m for m in used if m < smallest], smallest)
