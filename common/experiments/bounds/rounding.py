"""What storing gradients in 16 bits does to the exact scores that sketches are compared with."""

from __future__ import annotations

import math
from collections.abc import Sequence

from common.experiments.metrics import error_statistics
from common.gradients.kept_rows import RecomputedGradients
from common.gradients.layer_gradients import LayerwiseGradients
from common.gradients.planning import GradientPlan
from common.sketches.basis import build_basis
from common.sketches.geometry import Geometry
from common.sketches.influence import exact_self_influence

NOTICEABLE = 0.01


def rounding_effect(plan: GradientPlan, geometry: Geometry, ridges: Sequence[float]) -> list[dict] | None:
    """Return one row a λ: quantiles over the queries of |φ_λ(stored gradients) / φ_λ(unrounded gradients) − 1|.

    The unrounded Gram matrix is computed layer by layer; nothing of size d is stored. None where some parameter
    is differentiated one sample at a time.

    Args:
        plan: which gradients are stored.
        geometry: of the stored gradients.
        ridges: λ.

    Returns:
        Rows with `lambda`, `median`, `quantile_95`, `max` (None where no ratio is finite) and `num_bad`, the number
        of queries without a finite ratio.
    """
    if plan.routes.one_at_a_time:
        return None
    unrounded = RecomputedGradients(
        LayerwiseGradients(plan.model, plan.workload.loss, plan.examples, plan.batch_size, routes=plan.routes)
    )
    basis = build_basis(unrounded, geometry.num_train)
    reference = basis.geometry(geometry.scored, lambda: unrounded)
    return [_row(geometry, reference, ridge) for ridge in ridges]


def describe(dtype: str, effect: list[dict] | None) -> str:
    """Return the effect in one line: for which λ the 95 % quantile exceeds 1 %."""
    if effect is None:
        return f"{dtype} gradients: effect on exact scores not known, a parameter goes one sample at a time"
    noticed = [row["lambda"] for row in effect if row["quantile_95"] is None or row["quantile_95"] > NOTICEABLE]
    if not noticed:
        return f"{dtype} gradients change exact scores by at most {NOTICEABLE:.0%} (95 % of the queries) at every λ"
    return (
        f"{dtype} gradients change exact scores by more than {NOTICEABLE:.0%} (95 % quantile over the queries) for "
        f"λ = {min(noticed):g} to {max(noticed):g}"
    )


def _row(stored: Geometry, unrounded: Geometry, ridge: float) -> dict:
    rounded, exact = (exact_self_influence(g.eigenvalues, g.queries, ridge) for g in (stored, unrounded))
    change = error_statistics(rounded / exact)
    numbers = {"median": change.eps_50, "quantile_95": change.eps_95, "max": change.eps_max}
    row = {name: None if math.isnan(value) else value for name, value in numbers.items()}
    return {"lambda": ridge, **row, "num_bad": change.num_bad}
