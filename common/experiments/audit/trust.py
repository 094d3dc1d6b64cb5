"""Reasons to believe or not to believe an audit, in words."""

from __future__ import annotations

import pandas as pd
import torch
from scipy.stats import chi2

from common.experiments.audit.reading import FEWEST_COLUMNS, NEAR_M, Audited
from common.foundations.projections import WITH_LAW
from common.stores.moments import RowReport
from common.stores.store import dtype_name
from common.theory.uneven_columns import MOST_UNEVEN

# a folded store may differ by chance, rarely by more than this many standard errors
MOST_SIGMAS = 4.0
# of what all columns have in common, in one of some ten λ
LEAST_CHANCE = 1e-6
# of a length that a projected row of unit length has beyond each bound
UNLIKELY = 1e-6


def verdicts(audited: Audited, dimensions: pd.DataFrame) -> list[str]:
    """Return one line for everything that was looked at; lines that speak against the audit begin with `warning:`."""
    lines = [_law(audited), *_columns(audited, dimensions), _fold(dimensions), _size(audited, dimensions)]
    lines += _rows("training", audited.moments.rows, audited)
    lines.append(_unit_rows(audited))
    if not audited.queries_are_rows:
        lines += _rows("query", audited.query_report, audited)
    return [line for line in lines if line]


def _law(audited: Audited) -> str:
    if audited.law_is_known:
        source = "as the store says" if audited.store.projection == audited.proj_type else "as assumed: --proj_type"
        return f"projection: {audited.proj_type} ({source}), a law that the formulas hold for"
    if audited.proj_type in WITH_LAW:
        return (
            f"warning: the store has M = {audited.spectrum.size} columns that are not zero, and the laws of a "
            f"{audited.proj_type} projection hold from {FEWEST_COLUMNS} on: scores have no error bars, no error of any "
            "m is predicted, and d_λ is unreliable"
        )
    what = {
        "kronecker": "Kronecker-factored (two-sided for each module)",
        "blocks": "one of its own for each module",
    }[audited.proj_type]
    return (
        f"warning: the projection is {what}: scores have no error bars, because no law of theirs is known (those of a "
        "normal projection were too short by a factor 1.7 to 3 on a perceptron), no error of any m is predicted, and "
        "d_λ is unreliable, which folding may not show. A law that you know better: --proj_type"
    )


def _columns(audited: Audited, dimensions: pd.DataFrame) -> list[str]:
    """Say which columns hold nothing, and where those that hold something are too uneven."""
    size, lines = audited.spectrum.size, []
    if size < audited.store.num_columns:
        without = audited.store.num_columns - size
        lines.append(f"{without} columns are zero in every training row, and left out: M = {size}")
    ridges = torch.tensor(dimensions["lambda"].tolist(), dtype=torch.float64)
    excess = audited.unevenness(ridges)
    uneven = ridges[excess > MOST_UNEVEN].tolist()
    if audited.law_is_known and uneven:
        bars = (1 + excess[excess > MOST_UNEVEN].max().item()) ** 0.5
        lines.append(
            "warning: columns differ by more than chance, as those of an sjlt do where few parameters of each bucket "
            f"matter: d_λ is off by some percent, and error bars would be too short, by a factor of up to {bars:.2f}, "
            f"and there are none: λ = {_list(uneven)}"
        )
    # sums of a tensorsketch's columns are products of two signs, of which chance has large ones
    rotates = audited.law_is_known and audited.proj_type != "tensorsketch"
    if rotates and (audited.constant_by_chance(ridges) < LEAST_CHANCE).any():
        lines.append(
            "warning: columns have more in common than by chance, as where a constant was added to all numbers: d_λ "
            "and scores are not those of projected gradients"
        )
    return lines


def _fold(dimensions: pd.DataFrame) -> str:
    both = dimensions.dropna(subset=["d_lambda", "d_lambda_half"])
    if both.empty:
        return "warning: the folded store resolves none of these λ, so that nothing was compared"
    gap = (both["d_lambda_half"] / both["d_lambda"] - 1).abs().max()
    if both["d_lambda_std_error"].isna().all():
        return f"folding to M/2 moves d_λ by at most {gap:.2%} over {len(both)} λ"
    sigmas = ((both["d_lambda_half"] - both["d_lambda"]).abs() / both["d_lambda_std_error"]).max()
    line = f"folding to M/2 moves d_λ by at most {gap:.2%} ({sigmas:.1f} standard errors) over {len(both)} λ"
    return (
        line if sigmas <= MOST_SIGMAS else f"warning: {line}: more than chance; rows or columns are not what they seem"
    )


def _size(audited: Audited, dimensions: pd.DataFrame) -> str:
    size = audited.spectrum.size
    unresolved = dimensions.loc[~dimensions["resolved"], "lambda"].tolist()
    near = dimensions[dimensions["d_lambda"] > NEAR_M * size]["lambda"].tolist()
    parts = []
    if unresolved:
        floor = audited.spectrum.smallest_ridge
        parts.append(f"not resolved, below {floor:.3g}: λ = {_list(unresolved)}")
    if near:
        end = f"near the end of what M = {size} shows, without error bars"
        parts.append(f"d_λ above {NEAR_M:g} M, {end}: λ = {_list(near)}")
    return (
        f"warning: {'; '.join(parts)}"
        if parts
        else f"every λ is resolved: d_λ at most {dimensions['d_lambda'].max():.4g}"
    )


def _rows(kind: str, report: RowReport, audited: Audited) -> list[str]:
    dtype = dtype_name(audited.store.dtype)
    lines = []
    if report.zero_rows:
        lines.append(
            f"warning: {len(report.zero_rows)} of {report.num_rows} {kind} rows are zero: {_some(report.zero_rows)}"
        )
    if report.coarse_rows:
        lines.append(
            f"warning: {len(report.coarse_rows)} of {report.num_rows} {kind} rows are so short that {dtype} rounds off "
            f"more than 1 % of them: {_some(report.coarse_rows)}; store float32, or unit rows with --norms"
        )
    if report.num_duplicates:
        lines.append(f"{report.num_duplicates} of {report.num_rows} {kind} rows repeat an earlier one, bit by bit")
    sound = report.num_rows - len(report.zero_rows) - len(report.coarse_rows)
    lengths = f"lengths {report.shortest:.3g} to {report.longest:.3g}"
    return [*lines, f"{sound} of {report.num_rows} {kind} rows are sound in {dtype} ({lengths})"]


def _unit_rows(audited: Audited) -> str:
    """Say where rows that are multiplied by norms have been no rows of unit length.

    Rows scaled to unit length after projection have length 1; those scaled before it have squared lengths that follow
    χ²_M/M, or scatter less. One P serves all rows, which may all err to one side: the bounds are those of a single one.
    """
    store, report = audited.store, audited.moments.rows
    if store.norms is None or store.columns is not None:
        return ""  # of the columns of one module nothing is known
    columns = store.num_columns if audited.proj_type in WITH_LAW else 1
    low, high = (chi2.ppf([UNLIKELY, 1 - UNLIKELY], columns) / columns) ** 0.5
    short, long = report.usual
    if not (short < low or long > high):
        return ""
    return (
        f"warning: most rows have lengths from {short:.3g} to {long:.3g}, and norms are for rows that were scaled to "
        f"length 1, which have {low:.2g} to {high:.2g}: where they were not, their lengths count twice; drop --norms"
    )


def _some(rows: tuple[int, ...]) -> str:
    return ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")


def _list(ridges: list[float]) -> str:
    return ", ".join(f"{ridge:.3g}" for ridge in ridges)
