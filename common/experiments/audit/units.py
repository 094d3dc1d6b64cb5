"""The chosen λ as other libraries write it.

A score of the audit solves S = ZᵀZ/n with κ, which acts like λ on F. Libraries that solve the same problem on the same
rows differ in what they call the number: whether ZᵀZ is divided by n, and whether the mean eigenvalue is its unit.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import pandas as pd

RUN = "a test runs the library"
READ = "from its source, not run"


@dataclass(frozen=True)
class LibraryRidge:
    """One library's name for the chosen λ."""

    library: str
    """Package and class."""
    parameter: str
    """Name of its argument."""
    value: float
    """What to pass."""
    formula: str
    """In κ, λ, n and the mean eigenvalue t̄ = tr S/M of the audited columns."""
    verified: str
    """How it is known."""


def library_ridges(ridge: float, solve: float, num_rows: int, mean_eigenvalue: float) -> pd.DataFrame:
    """Return one row a library.

    Args:
        ridge: λ, which acts on F.
        solve: κ, with which S is solved.
        num_rows: n.
        mean_eigenvalue: t̄ = tr S/M.
    """
    total, relative = num_rows * solve, solve / mean_eigenvalue
    rows = [
        LibraryRidge("traker 0.3: TRAKer", "lambda_reg", total, "n κ", RUN),
        LibraryRidge("dattri 0.3: TRAKAttributor", "regularization", total, "n κ", RUN),
        LibraryRidge("dattri 0.3: LoGraAttributor, FactGraSSAttributor", "damping", relative, "κ/t̄, by layer", RUN),
        LibraryRidge("bergson 2.5: InversionConfig", "damping_factor", relative, "κ/t̄, by module", RUN),
        LibraryRidge("logix-ai 0.1: compute_influence", "damping", solve, "κ; its default is 0.1 t̄, by module", READ),
        LibraryRidge(
            "kronfluence 1.0: ScoreArguments", "damping_factor", ridge, "λ: no sketch, EK-FAC in place of F", RUN
        ),
    ]
    return pd.DataFrame([asdict(row) for row in rows])


def describe(table: pd.DataFrame) -> str:
    """Return the table of `library_ridges` as one line."""
    parts = []
    for library, parameter, value in table[["library", "parameter", "value"]].itertuples(index=False):
        package, _, classes = library.partition(": ")
        parts.append(f"{package.split()[0]} {classes}({parameter}={value:.4g})")
    return ", ".join(parts)
