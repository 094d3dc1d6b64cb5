"""Whether the most useful λ and m are ones at which scores are faithful: at every m, and in words."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd
import torch
from scipy import stats

from common.experiments.bounds import cross_sweep
from common.experiments.bounds.cross_sweep import CrossTask
from common.experiments.lds.ridge_path import JointChoice, RidgeOfDimension, predicted_m_95
from common.experiments.lds.selection import finite_or_none
from common.theory.spectrum import effective_dimension

MIN_POINTS = 3


@dataclass(frozen=True)
class FaithfulnessOfDimension:
    """The most useful λ at one m, and how far scores are from exact ones there; None where not known."""

    m: int
    """Projection dimension."""
    lambda_star: float | None
    """λ*(m), with the best validation LDS measured at this m."""
    lambda_low: float | None
    """Lower end of its 95 % interval over queries and subset models."""
    lambda_high: float | None
    """Upper end."""
    d_lambda: float | None
    """d_λ there."""
    val_lds: float | None
    """Validation LDS there."""
    test_lds: float | None
    """Test LDS there."""
    eps_95: float | None
    """ε_95 of cross scores there."""
    zero_eps_95: float | None
    """ε_95 that scores of 0 have there."""
    faithful: bool | None
    """Whether ε_95 is at most the threshold."""
    predicted_lambda_star: float | None
    """λ*(m) of the closed form, on a grid ten times finer."""
    predicted_test_lds: float | None
    """Predicted test LDS there."""
    predicted_eps_95: float | None
    """Predicted ε_95 there."""
    predicted_faithful: bool | None
    """Whether that is at most the threshold."""


def along_the_path(
    path: list[RidgeOfDimension],
    summary: pd.DataFrame | None,
    pairs: CrossTask,
    zero_errors: list[float],
    threshold: float,
) -> list[FaithfulnessOfDimension]:
    """Return for every m whether scores are faithful at its best λ.

    Args:
        path: the best λ of every m.
        summary: what was measured, one row an (m, λ); None where nothing was.
        pairs: those whose errors are predicted at the predicted best λ.
        zero_errors: ε_95 of scores of 0, for every λ of the grid.
        threshold: largest ε_95 that counts as faithful.
    """
    zero: dict[float | None, float] = dict(zip(pairs.cells.ridges, zero_errors, strict=True))
    found = []
    for one in path:
        own = None if summary is None else summary[(summary["m"] == one.m) & (summary["lambda"] == one.lambda_star)]
        eps = finite_or_none(own["eps_95"].iloc[0]) if own is not None and len(own) else None
        predicted = None
        if one.predicted_lambda_star is not None:
            predicted = _predicted_error(one.m, one.predicted_lambda_star, pairs)
        found.append(
            FaithfulnessOfDimension(
                m=one.m,
                lambda_star=one.lambda_star,
                lambda_low=one.lambda_low,
                lambda_high=one.lambda_high,
                d_lambda=one.d_lambda,
                val_lds=one.val_lds,
                test_lds=one.test_lds,
                eps_95=eps,
                zero_eps_95=zero.get(one.lambda_star),
                faithful=None if eps is None else eps <= threshold,
                predicted_lambda_star=one.predicted_lambda_star,
                predicted_test_lds=one.predicted_test_lds,
                predicted_eps_95=predicted,
                predicted_faithful=None if predicted is None else predicted <= threshold,
            )
        )
    return found


@dataclass(frozen=True)
class Verdict:
    """Whether usefulness and faithfulness point to the same m and λ; None where not known."""

    threshold: float
    """Largest ε_95 of cross scores that counts as faithful."""
    best_m: int | None
    """m of the cell with the best validation LDS."""
    best_lambda: float | None
    """Its λ."""
    best_test_lds: float | None
    """Its test LDS."""
    best_eps_95: float | None
    """ε_95 of cross scores there."""
    best_is_faithful: bool | None
    """Whether that is at most the threshold."""
    best_zero_eps_95: float | None
    """ε_95 that scores of 0 have at that λ."""
    useful_m: int | None
    """Smallest m whose validation LDS at its own best λ reaches 95 % of that at the largest m."""
    useful_eps_95: float | None
    """ε_95 there."""
    faithful_m: int | None
    """Smallest m from which on scores are faithful at the best λ; None where the grid ends below it."""
    growth: float | None
    """Spearman correlation of m with the test LDS at the best λ of m, mean over trials."""
    growth_low: float | None
    """Lower end of its 95 % interval over trials, Student's t cut to [−1, 1]; None for one trial."""
    growth_high: float | None
    """Upper end."""
    predicted_useful_m: int | None
    """`useful_m` by the closed form."""
    predicted_faithful_m: int | None
    """`faithful_m` by the closed form."""
    predicted_growth: float | None
    """`growth` by the closed form."""
    words: str
    """The verdict as sentences."""


def judge(
    by_m: list[FaithfulnessOfDimension],
    joint: JointChoice | None,
    predicted_path: pd.DataFrame,
    summary: pd.DataFrame | None,
    trials: pd.DataFrame | None,
    threshold: float,
    has_law: bool,
) -> Verdict:
    """Return the verdict; `joint`, `summary` and `trials` are None where nothing was measured.

    `has_law` says whether a closed form of the projection is known.
    """
    best = joint.best if joint is not None else None
    best_eps = best_zero = useful_eps = None
    if summary is not None and best is not None:
        cell = summary[(summary["m"] == best.m) & (summary["lambda"] == best.ridge)]
        best_eps = finite_or_none(cell["eps_95"].iloc[0])
        best_zero = next((one.zero_eps_95 for one in by_m if one.m == best.m), None)
    useful_m = None if joint is None else joint.m_95
    for one in by_m:
        if useful_m is not None and one.m == useful_m:
            useful_eps = one.eps_95
    growth = low = high = None
    if trials is not None:
        growth, low, high = _growth(by_m, trials)
    verdict = Verdict(
        threshold=threshold,
        best_m=None if best is None else best.m,
        best_lambda=None if best is None else best.ridge,
        best_test_lds=None if best is None else best.test_lds,
        best_eps_95=best_eps,
        best_is_faithful=None if best_eps is None else best_eps <= threshold,
        best_zero_eps_95=best_zero,
        useful_m=useful_m,
        useful_eps_95=useful_eps,
        faithful_m=_faithful_from([(one.m, one.faithful) for one in by_m]),
        growth=growth,
        growth_low=low,
        growth_high=high,
        predicted_useful_m=predicted_m_95(predicted_path),
        predicted_faithful_m=_faithful_from([(one.m, one.predicted_faithful) for one in by_m]),
        predicted_growth=_rank_correlation([one.m for one in by_m], [one.predicted_test_lds for one in by_m]),
        words="",
    )
    return replace(verdict, words=_words(verdict, by_m[-1].m, predicted_path, has_law, joint is not None))


def verdict_record(verdict: Verdict) -> dict:
    """Return verdict.json."""
    return asdict(verdict)


def _predicted_error(m: int, ridge: float, pairs: CrossTask) -> float | None:
    d_lambda = effective_dimension(pairs.cells.spectrum, torch.tensor([ridge], dtype=torch.float64)).tolist()
    cell = replace(pairs.cells, ms=[m], ridges=[ridge], effective_dimensions=d_lambda, ridge_correction=False)
    return finite_or_none(cross_sweep.predict(replace(pairs, cells=cell))["predicted_eps_95"].iloc[0])


def by_m_table(by_m: list[FaithfulnessOfDimension]) -> pd.DataFrame:
    """Return by_m.csv."""
    return pd.DataFrame([asdict(one) for one in by_m])


def _growth(by_m: list[FaithfulnessOfDimension], trials: pd.DataFrame) -> tuple[float | None, ...]:
    star = pd.DataFrame([(one.m, one.lambda_star) for one in by_m], columns=["m", "lambda"]).dropna()
    along = trials.merge(star, on=["m", "lambda"])
    found = [_rank_correlation(rows["m"], rows["test_lds"]) for _, rows in along.groupby("trial")]
    values = [value for value in found if value is not None]
    if not values or len(values) < len(found):
        return None, None, None
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return mean, None, None
    half = float(stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / count**0.5)
    return mean, max(-1.0, mean - half), min(1.0, mean + half)


def _rank_correlation(ms, lds) -> float | None:
    """Return Spearman's correlation; None for fewer than three m, missing values or constant LDS."""
    values = np.array(list(lds), dtype=np.float64)
    if len(values) < MIN_POINTS or not np.isfinite(values).all() or np.ptp(values) == 0:
        return None
    return float(stats.spearmanr(list(ms), values).statistic)


def _faithful_from(cells: list[tuple[int, bool | None]]) -> int | None:
    """Return the smallest m from which on all are faithful; None where the last is not, or one is not known."""
    smallest = None
    for m, faithful in reversed(cells):
        if not faithful:
            break
        smallest = m
    return smallest


def _words(verdict: Verdict, largest_m: int, predicted_path: pd.DataFrame, has_law: bool, measured: bool) -> str:
    """Return the verdict in sentences."""

    def from_on(m: int | None) -> str:
        return f"at no m up to {largest_m}" if m is None else f"from m = {m} on"

    if not has_law:
        by_theory = "No prediction: no closed form of this projection is known."
    elif predicted_path.empty:
        by_theory = "No prediction: the closed form has no finite validation LDS at any (m, λ)."
    else:
        by_theory = (
            f"The closed form, without a sketch: useful {from_on(verdict.predicted_useful_m)}, faithful at the best λ "
            f"{from_on(verdict.predicted_faithful_m)}."
        )
    if verdict.best_m is None:
        nothing = "No verdict: no (m, λ) has a finite validation LDS. " if measured else ""
        return nothing + by_theory
    answer = "unknown" if verdict.best_is_faithful is None else ("no", "yes")[verdict.best_is_faithful]
    sentences = [
        f"The best validation LDS is at m = {verdict.best_m}, λ = {verdict.best_lambda:g}, where ε_95 of cross scores "
        f"is {_number(verdict.best_eps_95)} (that of scores of 0: {_number(verdict.best_zero_eps_95)}). "
        f"Faithful at {verdict.threshold:g}: {answer}."
    ]
    if verdict.useful_m is None:
        sentences.append(f"LDS is not positive at the largest m, {largest_m}: no m is useful.")
    else:
        sentences.append(
            f"95 % of the LDS at the largest m is reached at m = {verdict.useful_m}, where ε_95 is "
            f"{_number(verdict.useful_eps_95)}; scores are faithful at the best λ {from_on(verdict.faithful_m)}."
        )
    if verdict.growth is not None:
        interval = "" if verdict.growth_low is None else f" ({verdict.growth_low:.2f} to {verdict.growth_high:.2f})"
        sentences.append(f"Rank correlation of m with the test LDS at its best λ: {verdict.growth:.2f}{interval}.")
    return " ".join([*sentences, by_theory])


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"
