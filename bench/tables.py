"""The tables of `bench.py`: ratios to our routes, the text it prints, and the check that all routes agree."""

from __future__ import annotations

import math

import pandas as pd
from scipy import stats

from bench.routes import NOISE_SKETCHES, RIDGES
from common.foundations.errors import UserError

FALSE_ALARM = 1e-3


def join(sweep: pd.DataFrame, preparation: pd.DataFrame) -> pd.DataFrame:
    """Return both tables and the sweep as a whole, with the ratio of every route to ours, the first one named."""
    whole = sweep.groupby("route", sort=False).agg(
        seconds=("seconds", "sum"),
        peak_memory_bytes=("peak_memory_bytes", "max"),
        added_memory_bytes=("added_memory_bytes", "max"),
    )
    whole = whole.reset_index().assign(what="whole sweep")
    table = pd.concat([sweep, whole, preparation], ignore_index=True)
    ours = table.groupby(["what", "m"], dropna=False)["seconds"].transform("first")
    return table.assign(ratio_to_ours=table["seconds"] / ours)


def readable(table: pd.DataFrame) -> str:
    """Return the comparison as text: the sweep m by m, then one line a route."""
    sweep = table[table["what"] == "sweep"].astype({"m": int})
    seconds = sweep.pivot(index="m", columns="route", values="seconds")[sweep["route"].unique()]
    others = table[table["what"] != "sweep"]
    lines = others[["what", "route", "seconds", "ratio_to_ours"]].assign(
        peak_gigabytes=others["peak_memory_bytes"] / 1e9, added_gigabytes=others["added_memory_bytes"] / 1e9
    )

    def number(value: float) -> str:
        return f"{value:.3g}"

    return (
        f"seconds of one sketch and scores for {len(RIDGES)} λ\n{seconds.to_string(float_format=number)}\n\n"
        f"{lines.to_string(index=False, float_format=number)}"
    )


def check_agreement(table: pd.DataFrame) -> None:
    """Print how far ε_95 of every route lies from that of other sketches, in standard deviations of one sketch.

    Raises:
        UserError: a route is farther off than sketches of one law are (normal errors; false alarm in one of 1,000
            benchmarks).
    """
    sweep = table[table["what"] == "sweep"]
    # one sketch against a mean and a standard deviation that are estimated themselves
    spread = sweep["noise_eps_95"] * (1 + 1 / NOISE_SKETCHES) ** 0.5
    off = ((sweep["eps_95"] - sweep["reference_eps_95"]).abs() / spread).fillna(math.inf)  # no ε_95 is no agreement
    allowed = stats.t.isf(FALSE_ALARM / 2 / len(sweep), NOISE_SKETCHES - 1)
    by_route = off.groupby(sweep["route"], sort=False).max()
    found = ", ".join(f"{route} {value:.1f}" for route, value in by_route.items())
    print(f"ε_95 off the mean of {NOISE_SKETCHES} other sketches, worst m, in standard deviations: {found}")
    if not (off <= allowed).all():
        worst = sweep.loc[off.idxmax()]
        raise UserError(
            f"routes disagree: ε_95 of {worst['route']} at m = {worst['m']:.0f} is {worst['eps_95']:.3g}, other "
            f"sketches give {worst['reference_eps_95']:.3g} with standard deviation {worst['noise_eps_95']:.2g}"
        )
