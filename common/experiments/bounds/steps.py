"""The steps of experiment 1 around its numbers: which cells, what is recorded, the sweep, and what is printed."""

from __future__ import annotations

import pandas as pd

from common.experiments.bounds import reference_share, rounding
from common.experiments.bounds import sweep as error_sweep
from common.experiments.cells import Cells
from common.experiments.options.records import BoundsOptions, GradientOptions, SharedOptions
from common.experiments.preparing.preparation import Prepared, make_sketcher
from common.experiments.preparing.ridges import describe_miss, fitting
from common.experiments.printed_table import printed
from common.experiments.run import Run, bad_values
from common.experiments.units import Measure, UnitLog, measure_missing
from common.foundations.errors import UserError
from common.sketches.geometry import RESOLUTION


def choose_cells(options: BoundsOptions, run: Run, prepared: Prepared) -> Cells:
    """Leave out λ with a small d_λ, say so, and keep a record of every choice in effective_dimension.csv."""
    limit = f"--min_d_lambda {options.min_d_lambda:g}"
    rows: list[dict[str, object]] = []
    kept: list[tuple[float, float]] = []
    for ridge, d_lambda in zip(prepared.ridges, prepared.effective_dimensions, strict=True):
        skipped = "" if d_lambda >= options.min_d_lambda else f"d_lambda below {limit}"
        rows.append({"lambda": ridge, "d_lambda": d_lambda, "m": None, "skipped": skipped})
        kept += [] if skipped else [(ridge, d_lambda)]
    unresolved = f"below {RESOLUTION:g} tr F" if prepared.streamed is None else "not resolved by the reference sketch"
    rows[:0] = [{"lambda": ridge, "skipped": unresolved} for ridge in prepared.ridges_left_out]
    dimensions = prepared.dimensions
    rows += [{"m": m, "skipped": f"m >= d = {prepared.num_parameters}"} for m in dimensions.too_large]
    rows += [{"m": m, "skipped": f"m < {dimensions.smallest} blocks"} for m in dimensions.too_small]
    names = ["lambda", "d_lambda", "m", "skipped"]
    run.write_table("effective_dimension.csv", pd.DataFrame(rows, columns=names).astype({"m": "Int64"}))
    if len(kept) < len(prepared.ridges):
        left_out = ", ".join(f"{ridge:g}" for ridge in prepared.ridges if ridge not in dict(kept))
        print(f"left out, d_λ below {limit}: λ = {left_out}")
    if dimensions.too_large:
        print(f"left out, not below d = {prepared.num_parameters}: m = {', '.join(map(str, dimensions.too_large))}")
    if dimensions.too_small:
        left_out = ", ".join(map(str, dimensions.too_small))
        print(f"left out, below one number for each of {dimensions.smallest} blocks: m = {left_out}")
    grid, spectrum = options.shared.grid, prepared.spectrum
    if not kept:
        raise UserError(
            f"{limit} leaves no λ: the largest d_λ is {max(prepared.effective_dimensions):.3g}; "
            f"{fitting(grid, spectrum, options.min_d_lambda)}"
        )
    if line := describe_miss(grid, spectrum, [d_lambda for _, d_lambda in kept]):
        print(line)
    run.record(ridges=[ridge for ridge, _ in kept])
    ridges, d_lambdas = [ridge for ridge, _ in kept], [d_lambda for _, d_lambda in kept]
    correction = grid.ridge_correction
    has_law = options.shared.sketches.has_law
    return Cells(spectrum, prepared.ms, ridges, d_lambdas, correction, prepared.sjlt_columns, has_law)


def write_spectrum(run: Run, prepared: Prepared, query_kind: str) -> None:
    """Write the eigenvalues, and how much of the queries lies outside range(F)."""
    eigenvalues = prepared.geometry.eigenvalues[: prepared.geometry.rank].tolist()
    run.write_table("spectrum.csv", pd.DataFrame({"index": range(1, len(eigenvalues) + 1), "eigenvalue": eigenvalues}))
    if prepared.streamed is not None:  # a sketch does not show what lies outside
        return
    outside = prepared.geometry.outside_energy
    median, largest = outside.median().item(), outside.max().item()
    run.record(outside_energy_median=median, outside_energy_max=largest)
    if query_kind == "test":
        print(f"query energy outside range(F): median {median:.1%}, largest {largest:.1%}")


def record_rounding(options: GradientOptions, run: Run, prepared: Prepared, cells: Cells) -> None:
    """Where gradients are stored in 16 bits, record and say what that does to the exact scores."""
    if options.dtype == "float32":
        return
    with run.phase("rounding of gradients"):
        effect = rounding.rounding_effect(prepared.plan, prepared.geometry, cells.ridges)
    run.record(grad_dtype_effect=effect)
    print(rounding.describe(options.dtype, effect))


def sweep(options: SharedOptions, run: Run, prepared: Prepared, cells: Cells, measure: Measure) -> pd.DataFrame:
    """Return one row a (trial, m, λ), those of an interrupted run included; `measure` gives those of one sketch."""
    sketches = options.sketches
    sketcher = make_sketcher(sketches, prepared, cells.smallest_ridge())
    log = UnitLog(run.folder, run.identity(), options.fresh)
    with run.phase("sketches"):
        units = measure_missing(log, sketcher, cells.ms, sketches.num_trials, measure)
    return units


def remove_reference(
    options: SharedOptions, prepared: Prepared, cells: Cells, units: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Return the rows of a sweep without the share of a reference sketch, and that share; say where none is left."""
    if prepared.streamed is None:
        return units, None
    queries = prepared.geometry.queries.cpu()
    units, shares = reference_share.remove_share(units, cells, queries, options.sketches.seed)
    drowned = int((shares["reference_share"] >= 1).sum())
    largest = shares["reference_share"][shares["reference_share"] < 1].max()
    print(f"share of the reference in the variance of measured ratios: {largest:.1%} at most, removed")
    if drowned:
        print(f"in {drowned} of {len(shares)} cells the reference is noisier than what is measured: no error is given")
    return units, shares


def report(target_eps: float, run: Run, advice: pd.DataFrame, table: pd.DataFrame, counted: str) -> None:
    """Print what a person needs to choose m; `counted` says what values that are not finite are."""
    print(f"\nsmallest m with ε_95 <= {target_eps:g}")
    lines = advice.rename(
        columns={
            "m": "m (predicted)",
            "m_ridge_corrected": "m, ridge corrected (predicted)",
            "d_lambda_over_eps_squared": "d_λ/ε²",
            "zero_eps_95": "ε_95 of scores 0",
        }
    )
    if "eps_95" in table:
        reached = table[table["eps_95"] <= target_eps]
        if "zero_eps_95" in advice:  # of pairs: see recommend_for_pairs
            reached = reached[reached["m"] >= reached["d_lambda"]]
        reached = reached.groupby("lambda")["m"].min()
        lines.insert(2, "m (measured, of the grid)", lines["lambda"].map(reached).astype("Int64"))
    if "zero_eps_95" in advice:
        lines.loc[advice["zero_eps_95"] <= target_eps, lines.columns.str.startswith("m (measured")] = pd.NA
    print(printed(lines))
    if line := error_sweep.describe_gaps(run.config.get("prediction_gaps", {})):
        print(line)
    if warning := bad_values(table, counted):
        print(warning)
