"""Choosing ridge λ and projection dimension m: by validation LDS, and by theory m = d_λ / ε²."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

EPSILONS = (0.1, 0.2, 0.3)
REACHED_SHARE = 0.95
MIN_VAL_QUERIES = 20


@dataclass(frozen=True, eq=False)
class LdsGrid:
    """Mean LDS over queries in every cell of the experiment; NaN where no query had a correlation."""

    ms: np.ndarray
    """(M,) int, projection dimensions, ascending."""
    ridges: np.ndarray
    """(R,) float64, λ, ascending."""
    effective_dimensions: np.ndarray
    """(R,) float64, d_λ."""
    val_lds: np.ndarray
    """(T, M, R) float64, LDS on the validation queries, one row a trial."""
    test_lds: np.ndarray
    """(T, M, R) float64, LDS on the held-out test queries."""
    exact_val_lds: np.ndarray
    """(R,) float64, unsketched LDS on the validation queries."""
    exact_test_lds: np.ndarray
    """(R,) float64, unsketched LDS on the test queries."""
    num_val_queries: int
    """Validation queries behind `val_lds`."""

    def __post_init__(self):
        """Raise ValueError where shapes contradict each other or an axis does not ascend."""
        cells, ridges = (len(self.ms), len(self.ridges)), (len(self.ridges),)
        for name in ("val_lds", "test_lds"):
            shape = getattr(self, name).shape
            if len(shape) != 3 or shape[0] == 0 or shape[1:] != cells:
                raise ValueError(f"{name} has shape {shape}; expected (num_trials, {cells[0]}, {cells[1]})")
        if self.val_lds.shape != self.test_lds.shape:
            raise ValueError(f"trials differ: val_lds {self.val_lds.shape}, test_lds {self.test_lds.shape}")
        for name in ("effective_dimensions", "exact_val_lds", "exact_test_lds"):
            if getattr(self, name).shape != ridges:
                raise ValueError(f"{name} has shape {getattr(self, name).shape}; expected {ridges}")
        for name in ("ms", "ridges"):
            axis = getattr(self, name)
            if len(axis) == 0 or np.any(np.diff(axis) <= 0):
                raise ValueError(f"{name} must be ascending and not empty: {axis}")


@dataclass(frozen=True)
class DimensionChoice:
    """A projection dimension that theory asks for, and what the grid gives there at λ*."""

    epsilon: float
    """Error ε that m = d_λ*/ε² allows; 1 stands for m = d_λ*."""
    m_exact: float
    """d_λ*/ε², not rounded."""
    m_rounded_up: int
    """`m_exact` rounded up."""
    grid_m: int | None
    """Smallest m of the grid that is at least `m_exact`; None where the grid ends below it."""
    val_lds: float | None
    """Validation LDS at (grid_m, λ*), mean over trials."""
    test_lds: float | None
    """Test LDS at (grid_m, λ*), mean over trials."""


@dataclass(frozen=True)
class Selection:
    """Utility-driven and theory-driven choice; None stands for what the data does not determine."""

    lambda_star: float | None
    """λ* with the highest validation LDS at the largest m, mean over trials; the smallest of equals."""
    d_lambda_star: float | None
    """Effective dimension at λ*."""
    largest_m: int
    """Largest m of the grid, where λ* is chosen."""
    val_lds: float | None
    """Validation LDS at (largest_m, λ*): the maximum that the 95 % rule refers to."""
    test_lds: float | None
    """Test LDS at (largest_m, λ*)."""
    exact_val_lds: float | None
    """Unsketched validation LDS at λ*."""
    exact_test_lds: float | None
    """Unsketched test LDS at λ*."""
    m_95: int | None
    """Smallest m whose validation LDS at λ* reaches 95 % of `val_lds`; None where `val_lds` <= 0."""
    c_95: float | None
    """m_95 / d_λ*."""
    val_lds_m_95: float | None
    """Validation LDS of the choice (m_95, λ*)."""
    test_lds_m_95: float | None
    """Test LDS of the choice (m_95, λ*); took no part in choosing."""
    theory_m: tuple[DimensionChoice, ...]
    """m = d_λ*/ε² for ε = 0.1, 0.2, 0.3; empty without λ*."""
    m_at_least_d_lambda: DimensionChoice | None
    """The smallest m >= d_λ* of the grid."""
    m_at_least_d_lambda_sufficient: bool | None
    """Whether that m reaches 95 % of `val_lds`; None where it has no LDS or the 95 % rule is meaningless."""
    num_val_queries: int
    """Validation queries that made the choice."""
    warnings: tuple[str, ...]
    """One line each: reasons to distrust the choice."""


def select(grid: LdsGrid) -> Selection:
    """Return the choice of λ and m; every field is plain, so `dataclasses.asdict` gives valid JSON.

    A mean over trials that misses a trial is NaN and cannot be chosen. Test LDS is looked up, never compared.
    """
    val, test = grid.val_lds.mean(axis=0), grid.test_lds.mean(axis=0)
    warnings = _data_warnings(grid)
    candidates = np.flatnonzero(np.isfinite(val[-1]))
    if len(candidates) == 0:
        warnings.append(f"no λ has a finite validation LDS in every trial at m = {grid.ms[-1]}: no λ* exists")
        return _nothing_chosen(grid, warnings)

    star = candidates[np.argmax(val[-1, candidates])]
    best, d_lambda = val[-1, star], float(grid.effective_dimensions[star])
    warnings += _edge_warnings(grid, candidates, star)
    threshold = REACHED_SHARE * best if best > 0 else math.nan
    reached = val[:, star] >= threshold  # all False when the threshold is NaN
    m_95 = int(np.argmax(reached)) if reached.any() else None
    warnings += _m_95_warnings(grid, star, best, reached)

    theory = [_dimension_choice(grid.ms, d_lambda, eps, val[:, star], test[:, star]) for eps in EPSILONS]
    at_d_lambda = _dimension_choice(grid.ms, d_lambda, 1.0, val[:, star], test[:, star])
    reached_at_d_lambda = None
    if best > 0 and at_d_lambda is not None and at_d_lambda.val_lds is not None:
        reached_at_d_lambda = bool(at_d_lambda.val_lds >= threshold)
    return Selection(
        lambda_star=float(grid.ridges[star]),
        d_lambda_star=finite_or_none(d_lambda),
        largest_m=int(grid.ms[-1]),
        val_lds=finite_or_none(best),
        test_lds=finite_or_none(test[-1, star]),
        exact_val_lds=finite_or_none(grid.exact_val_lds[star]),
        exact_test_lds=finite_or_none(grid.exact_test_lds[star]),
        m_95=None if m_95 is None else int(grid.ms[m_95]),
        c_95=None if m_95 is None else finite_or_none(grid.ms[m_95] / d_lambda),
        val_lds_m_95=None if m_95 is None else finite_or_none(val[m_95, star]),
        test_lds_m_95=None if m_95 is None else finite_or_none(test[m_95, star]),
        theory_m=tuple(choice for choice in theory if choice is not None),
        m_at_least_d_lambda=at_d_lambda,
        m_at_least_d_lambda_sufficient=reached_at_d_lambda,
        num_val_queries=grid.num_val_queries,
        warnings=tuple(warnings),
    )


def recommendation(selection: Selection) -> str:
    """Return one sentence that says which λ and m to use, or why none can be recommended."""
    if selection.lambda_star is None:
        return "No recommendation: no λ has a finite validation LDS at the largest m."
    at = f"λ = {selection.lambda_star:g}"
    if selection.m_95 is None:
        return (
            f"No recommendation: the best validation LDS at m = {selection.largest_m} is "
            f"{selection.val_lds:.3f} (at {at}), so no λ of the grid gives useful attribution."
        )
    size = "" if selection.c_95 is None else f" ({selection.c_95:.2g} times d_λ = {selection.d_lambda_star:.4g})"
    count = len(selection.warnings)
    caveat = f", but heed the {count} warning{'s' if count > 1 else ''}" if count else ""
    return (
        f"Use {at} with m = {selection.m_95}{size}: test LDS {_show(selection.test_lds_m_95)}, against "
        f"{_show(selection.test_lds)} at m = {selection.largest_m} and {_show(selection.exact_test_lds)} "
        f"without a sketch{caveat}."
    )


def _dimension_choice(ms, d_lambda, epsilon, val, test) -> DimensionChoice | None:
    if not math.isfinite(d_lambda):
        return None
    m_exact = d_lambda / epsilon**2
    index = int(np.searchsorted(ms, m_exact))
    inside = index < len(ms)
    return DimensionChoice(
        epsilon=epsilon,
        m_exact=m_exact,
        m_rounded_up=math.ceil(m_exact),
        grid_m=int(ms[index]) if inside else None,
        val_lds=finite_or_none(val[index]) if inside else None,
        test_lds=finite_or_none(test[index]) if inside else None,
    )


def _data_warnings(grid: LdsGrid) -> list[str]:
    warnings = []
    if grid.num_val_queries < MIN_VAL_QUERIES:
        warnings.append(
            f"only {grid.num_val_queries} validation queries select λ: "
            f"fewer than {MIN_VAL_QUERIES} make the choice unreliable"
        )
    for name, sketched, exact in (
        ("validation", grid.val_lds, grid.exact_val_lds),
        ("test", grid.test_lds, grid.exact_test_lds),
    ):
        bad, bad_exact = np.sum(~np.isfinite(sketched)), np.sum(~np.isfinite(exact))
        if bad or bad_exact:
            warnings.append(
                f"{name} LDS is not finite in {bad} of {sketched.size} cells (trial, m, λ) and for "
                f"{bad_exact} of {exact.size} exact λ: means over these are left out"
            )
    return warnings


def _edge_warnings(grid: LdsGrid, candidates: np.ndarray, star: int) -> list[str]:
    # Next to a λ without a finite LDS is an edge too: what lies beyond is just as unknown.
    sides = [side for side, edge in (("smallest", candidates[0]), ("largest", candidates[-1])) if star == edge]
    if not sides:
        return []
    return [
        f"λ* = {grid.ridges[star]:g} is the {' and '.join(sides)} λ with a finite LDS, at the edge of the grid: "
        "the best λ may lie beyond"
    ]


def _m_95_warnings(grid: LdsGrid, star: int, best: float, reached: np.ndarray) -> list[str]:
    if best <= 0:
        return [f"best validation LDS at m = {grid.ms[-1]} is {best:.4f}, not positive: the 95 % rule is meaningless"]
    warnings = []
    first = int(np.argmax(reached))
    missed = grid.ms[first:][~reached[first:]]
    if len(missed):
        warnings.append(
            f"at λ* = {grid.ridges[star]:g} the validation LDS does not reach 95 % at the larger "
            f"m = {', '.join(map(str, missed))}: m_95 = {grid.ms[first]} does not start a plateau"
        )
    if first == len(grid.ms) - 1:
        warnings.append(f"m_95 = {grid.ms[first]} is the largest m of the grid: LDS may still grow with m")
    return warnings


def _nothing_chosen(grid: LdsGrid, warnings: list[str]) -> Selection:
    names = set(Selection.__dataclass_fields__)
    known: dict[str, Any] = {
        "largest_m": int(grid.ms[-1]),
        "theory_m": (),
        "num_val_queries": grid.num_val_queries,
        "warnings": tuple(warnings),
    }
    nothing: dict[str, Any] = dict.fromkeys(names)
    return Selection(**(nothing | known))


def finite_or_none(value: float) -> float | None:
    """Return the value, or None in place of NaN, which JSON does not have."""
    return float(value) if math.isfinite(value) else None


def _show(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"
