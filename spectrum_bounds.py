"""How close are sketched influence scores to exact ones, for every projection dimension m and ridge λ?

Measures the ratio of sketched to exact self-influence φ̃_λ/φ_λ over (m, λ, trial), against the claim that its error
is of order √(d_λ/m), and writes tables and a figure to results/spectrum_bounds/.
"""

from __future__ import annotations

import argparse

import pandas as pd

from common.experiments import arguments, error_sweep, rounding, script, spectrum_figure
from common.experiments.cells import Cells
from common.experiments.preparation import Prepared, make_sketcher, prepare, sjlt_columns
from common.experiments.run import Run, bad_values
from common.experiments.units import UnitLog
from common.foundations.errors import UserError
from common.foundations.progress import progress_bar
from common.sketches.geometry import RESOLUTION


def parse_arguments() -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    """Return the checked options and the parser that knows their defaults."""
    parser = arguments.OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_shared_options(parser, min_m=1)
    add = parser.add_argument
    add("--test_mode", choices=("self", "test"), default="self", help="query gradients: training or test samples")
    add("--min_d_lambda", type=arguments.non_negative_float, default=5.0, help="skip λ with d_λ below this")
    add("--target_eps", type=arguments.open_unit_float, default=0.1, help="error that the recommended m must reach")
    args = parser.parse_args()
    arguments.check_shared_options(args)
    return args, parser


def main() -> None:
    """Run the experiment."""
    args, parser = parse_arguments()
    with Run("spectrum_bounds", args, parser) as run:
        experiment(args, run)


def experiment(args: argparse.Namespace, run: Run) -> None:
    """Measure, predict, and write the results."""
    # model, gradients, eigenvalues
    prepared = prepare(args, run, query_kind=args.test_mode)
    cells = choose_cells(args, run, prepared)
    geometry = prepared.geometry
    write_spectrum(run, prepared)
    record_rounding(args, run, prepared, cells)

    # closed form: no sketch needed
    with run.phase("prediction"):
        table = error_sweep.predict(cells, geometry)
        advice = error_sweep.recommend(cells, geometry, args.target_eps, prepared.num_parameters)

    # measurement: sketches
    if not args.predict_only:
        trials = sweep(args, run, prepared, cells)
        run.write_table("trials.csv", trials)
        table = error_sweep.summarise(trials).merge(table.drop(columns=["d_lambda", "m_over_d_lambda"]))
        run.record(prediction_gaps=error_sweep.prediction_gaps(table))

    run.write_table("summary.csv", table)
    run.write_table("recommendation.csv", advice)
    with run.phase("figure"):
        spectrum_figure.draw_spectrum_bounds(run.folder, table, prepared.spectrum, args)
    report(args, run, advice, table)


def choose_cells(args: argparse.Namespace, run: Run, prepared: Prepared) -> Cells:
    """Leave out λ with a small d_λ, say so, and keep a record of every choice in effective_dimension.csv."""
    rows, kept = [], []
    for ridge, d_lambda in zip(prepared.ridges, prepared.effective_dimensions, strict=True):
        skipped = "" if d_lambda >= args.min_d_lambda else f"d_lambda below --min_d_lambda {args.min_d_lambda:g}"
        rows.append({"lambda": ridge, "d_lambda": d_lambda, "m": None, "skipped": skipped})
        kept += [] if skipped else [(ridge, d_lambda)]
    rows = [{"lambda": ridge, "skipped": f"below {RESOLUTION:g} tr F"} for ridge in prepared.ridges_left_out] + rows
    rows += [{"m": m, "skipped": f"m >= d = {prepared.num_parameters}"} for m in prepared.ms_left_out]
    names = ["lambda", "d_lambda", "m", "skipped"]
    run.write_table("effective_dimension.csv", pd.DataFrame(rows, columns=names).astype({"m": "Int64"}))
    if len(kept) < len(prepared.ridges):
        left_out = ", ".join(f"{ridge:g}" for ridge in prepared.ridges if ridge not in dict(kept))
        print(f"left out, d_λ below --min_d_lambda {args.min_d_lambda:g}: λ = {left_out}")
    if prepared.ms_left_out:
        print(f"left out, not below d = {prepared.num_parameters}: m = {', '.join(map(str, prepared.ms_left_out))}")
    if not kept:
        largest = max(prepared.effective_dimensions)
        raise UserError(f"--min_d_lambda {args.min_d_lambda:g} leaves no λ: the largest d_λ is {largest:.3g}")
    run.record(ridges=[ridge for ridge, _ in kept])
    columns = sjlt_columns(args, run, prepared)
    ridges, dimensions = map(list, zip(*kept, strict=True))
    return Cells(prepared.spectrum, prepared.ms, ridges, dimensions, args.ridge_correction, columns)


def write_spectrum(run: Run, prepared: Prepared) -> None:
    """Write the eigenvalues, and how much of the queries lies outside range(F)."""
    eigenvalues = prepared.geometry.eigenvalues[: prepared.geometry.rank].tolist()
    run.write_table("spectrum.csv", pd.DataFrame({"index": range(1, len(eigenvalues) + 1), "eigenvalue": eigenvalues}))
    outside = prepared.geometry.outside_energy
    run.record(outside_energy_median=outside.median().item(), outside_energy_max=outside.max().item())
    if run.args.test_mode == "test":
        print(f"query energy outside range(F): median {outside.median():.1%}, largest {outside.max():.1%}")


def record_rounding(args: argparse.Namespace, run: Run, prepared: Prepared, cells: Cells) -> None:
    """Where gradients are stored in 16 bits, record and say what that does to the exact scores."""
    if args.grad_dtype == "float32":
        return
    with run.phase("rounding of gradients"):
        effect = rounding.rounding_effect(prepared.plan, prepared.geometry, cells.ridges)
    run.record(grad_dtype_effect=effect)
    print(rounding.describe(args.grad_dtype, effect))


def sweep(args: argparse.Namespace, run: Run, prepared: Prepared, cells: Cells) -> pd.DataFrame:
    """Measure every (trial, m) that an interrupted run has not measured yet; return one row a (trial, m, λ)."""
    geometry = prepared.geometry
    sketcher = make_sketcher(args, prepared, geometry.query_weights(), cells.smallest_ridge())
    exact_scores = error_sweep.exact_scores(cells, geometry)
    units = UnitLog(run.folder, run.identity(), args.fresh)
    with run.phase("sketches"), progress_bar("sketches", args.num_trials * len(cells.ms)) as progress:
        for trial in range(args.num_trials):
            missing = [m for m in cells.ms if (trial, m) not in units]
            progress.update(len(cells.ms) - len(missing))
            for m, problem in sketcher.problems(trial, missing) if missing else ():
                units.append(trial, m, error_sweep.measure(problem, m, trial, cells, geometry, exact_scores))
                progress.update()
    return units.table()


def report(args: argparse.Namespace, run: Run, advice: pd.DataFrame, table: pd.DataFrame) -> None:
    """Print what a person needs to choose m."""
    print(f"\nsmallest m with ε_95 <= {args.target_eps:g}")
    lines = advice.rename(
        columns={
            "m": "m (predicted)",
            "m_ridge_corrected": "m, ridge corrected (predicted)",
            "d_lambda_over_eps_squared": "d_λ/ε²",
        }
    )
    if "eps_95" in table:
        reached = table[table["eps_95"] <= args.target_eps].groupby("lambda")["m"].min()
        lines.insert(2, "m (measured, power of 2)", lines["lambda"].map(reached).astype("Int64"))
    print(lines.to_string(index=False, float_format=lambda value: f"{value:.4g}", na_rep="-"))
    gaps = run.config.get("prediction_gaps", {})
    if gaps.get("eps_95_gap_median") is not None:
        print(
            f"predicted against measured ε_95 (m >= 64, ε_95 < 1): median gap {gaps['eps_95_gap_median']:.1%}, "
            f"worst {gaps['eps_95_gap_worst']:.1%} over {gaps['eps_95_gap_cells']} cells"
        )
    if warning := bad_values(table, "ratios of sketched to exact scores"):
        print(warning)


if __name__ == "__main__":
    script.run_script(main)
