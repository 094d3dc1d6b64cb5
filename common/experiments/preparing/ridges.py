"""Where the ridges λ of a run lie on the spectrum of F, and which exponents would fit where they miss it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from common.experiments.options.records import Grid
from common.foundations.errors import UserError
from common.sketches.geometry import RESOLUTION, resolved_ridge
from common.theory.spectrum import Spectrum, effective_dimension

NOTHING, EVERYTHING = 1.0, 0.99
"""A grid misses the spectrum where no λ has d_λ of 1, or none below 99 % of the rank."""


def mean_eigenvalue(spectrum: Spectrum) -> float:
    """Return tr F / rank, the mean of the eigenvalues that are not zero; tr S / rank S of a reference sketch."""
    positive = spectrum.eigenvalues[spectrum.eigenvalues > 0]
    return positive.mean().item() if len(positive) else 0.0


def resolved_ridges(grid: Grid, spectrum: Spectrum) -> tuple[list[float], list[float]]:
    """Return the λ for which scores mean anything, and those left out, with one line that says so.

    Raises:
        UserError: none is left; says which exponents would fit.
    """
    ridges = grid.ridges(mean_eigenvalue(spectrum))
    smallest = _smallest_resolved(spectrum)
    used = [ridge for ridge in ridges if ridge >= smallest]
    limit = f"{smallest:.3g} = {RESOLUTION:g} tr F, below which scores are rounding errors"
    if spectrum.size is not None:
        limit = f"{smallest:.3g}, the smallest ridge that a reference sketch of M = {spectrum.size} resolves"
    if not used:
        raise UserError(
            f"--lambda_exp_max {grid.lambda_exp_max}: every λ is below {limit}; largest λ is {ridges[-1]:g}; "
            f"{fitting(grid, spectrum)}"
        )
    left_out = ridges[: len(ridges) - len(used)]
    if left_out:
        print(f"left out, below {limit}: λ = {', '.join(f'{ridge:g}' for ridge in left_out)}")
    return used, left_out


def describe_miss(grid: Grid, spectrum: Spectrum, dimensions: Sequence[float]) -> str | None:
    """Return one line where d_λ of every λ of the run is about zero or about the rank; None where the grid fits."""
    rank = int((spectrum.eigenvalues > 0).sum())
    if max(dimensions) < min(NOTHING, rank / 2):
        found = f"d_λ is {max(dimensions):.3g} at most"
    elif min(dimensions) > EVERYTHING * rank:
        found = f"d_λ is {min(dimensions):.4g} at least, of the rank {rank}"
    else:
        return None
    return f"the grid of λ misses the spectrum of F: {found}; {fitting(grid, spectrum)}"


def fitting(grid: Grid, spectrum: Spectrum, smallest: float = NOTHING) -> str:
    """Return the options under which d_λ runs from `smallest` to the rank, as far as scores are resolved there."""
    mean, trace = mean_eigenvalue(spectrum), spectrum.eigenvalues.sum().item()
    rank = int((spectrum.eigenvalues > 0).sum())
    unit = mean if grid.lambda_scale == "relative" else 1.0
    limit = min(NOTHING, rank / 2) if smallest <= NOTHING else smallest
    first = math.ceil(math.log10(_smallest_resolved(spectrum) / unit))
    exponents = range(first, math.ceil(math.log10(max(trace, mean) / unit)) + 1)
    ridges = torch.tensor([10.0**e * unit for e in exponents], dtype=torch.float64)
    dimensions = effective_dimension(spectrum, ridges).tolist()
    reached = [e for e, d in zip(exponents, dimensions, strict=True) if d >= limit]
    if not reached:
        return f"no λ has a d_λ above {dimensions[0]:.3g}: choose a smaller one"
    full = [e for e, d in zip(exponents, dimensions, strict=True) if d > EVERYTHING * rank]
    low = min(max(full, default=first), reached[-1])
    also = "" if grid.lambda_scale == "relative" else ", or --lambda_scale relative"
    return f"--lambda_exp_min {low} --lambda_exp_max {reached[-1]} would fit{also}"


def _smallest_resolved(spectrum: Spectrum) -> float:
    """Return the smallest λ whose scores are more than rounding, and that a reference sketch can see."""
    return max(resolved_ridge(spectrum.eigenvalues.sum().item()), spectrum.smallest_ridge)
