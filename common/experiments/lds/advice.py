"""What the closed form recommends: the cheapest (m, λ) that is predicted to be useful, and what was measured there."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from common.experiments.lds.selection import REACHED_SHARE

MS_PER_OCTAVE = 2


def fine_dimensions(ms: Sequence[int], only_powers_of_two: bool) -> list[int]:
    """Return the projection dimensions of the predicted map: those given and two an octave, or those given alone."""
    if only_powers_of_two:
        return list(ms)
    steps = round(math.log2(ms[-1] / ms[0]) * MS_PER_OCTAVE)
    between = {round(ms[0] * 2 ** (i / MS_PER_OCTAVE)) for i in range(steps + 1)}
    return sorted({*ms, *(m for m in between if m <= ms[-1])})


def cheapest(predicted: pd.DataFrame, exact: pd.DataFrame) -> dict | None:
    """Return the smallest m, with its best λ, whose predicted validation LDS reaches 95 % of the best exact one.

    None where the best exact validation LDS is not positive, or no m of the map reaches 95 % of it.
    """
    best = exact["val_lds"].max()
    reached = predicted[predicted["predicted_val_lds"] >= REACHED_SHARE * best]
    if not best > 0 or reached.empty:
        return None
    smallest = reached[reached["m"] == reached["m"].min()]
    chosen = smallest.loc[smallest["predicted_val_lds"].idxmax()]
    return {
        "m": int(chosen["m"]),
        "lambda": chosen["lambda"],
        "d_lambda": chosen["d_lambda"],
        "best_exact_val_lds": best,
        "predicted_val_lds": chosen["predicted_val_lds"],
        "predicted_test_lds": chosen["predicted_test_lds"],
    }


def measured_at(advice: dict | None, summary: pd.DataFrame) -> dict | None:
    """Return the recommendation with what was measured at it beside what was predicted."""
    if advice is None:
        return None
    cell = summary[(summary["m"] == advice["m"]) & (summary["lambda"] == advice["lambda"])].iloc[0]
    measured = {f"measured_{name}": cell[name] for name in ("val_lds", "val_lds_std", "test_lds", "test_lds_std")}
    return advice | {name: None if math.isnan(value) else float(value) for name, value in measured.items()}


def advice_sentence(advice: dict | None, has_law: bool) -> str:
    """Return the recommendation of the closed form, if the projection has one, as one sentence."""
    if not has_law:
        return "No recommendation: no closed form of this projection is known."
    if advice is None:
        return "No recommendation: no (m, λ) is predicted to reach 95 % of a positive best exact validation LDS."
    measured = advice.get("measured_test_lds")
    return (
        f"Recommendation: m = {advice['m']}, λ = {advice['lambda']:g} is the cheapest predicted to reach 95 % of the "
        f"best exact validation LDS ({advice['best_exact_val_lds']:.3f}): test LDS {advice['predicted_test_lds']:.3f} "
        f"predicted, {'not measured' if measured is None else f'{measured:.3f} measured'}."
    )
