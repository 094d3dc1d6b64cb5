"""Which ridge λ and which projection dimension m give useful attribution, and does theory choose them as well?

Measures the linear datamodeling score (LDS) of sketched influence over (m, λ, trial) against models retrained on
random halves of the training set, chooses (λ, m) by validation LDS and by m = d_λ/ε², predicts the whole map in
closed form, and writes tables and a figure to results/hyperparam_selection/.
"""

from __future__ import annotations

import argparse
import dataclasses

import pandas as pd

from common.experiments import arguments, lds_figure, lds_sweep, script
from common.experiments.cells import Cells
from common.experiments.preparation import Prepared, make_sketcher, prepare, sjlt_columns
from common.experiments.run import Run, bad_values
from common.experiments.selection import Selection, recommendation, select
from common.experiments.units import UnitLog
from common.foundations.errors import UserError
from common.foundations.progress import progress_bar
from common.workloads.benchmark import GroundTruth, load_ground_truth


def parse_arguments() -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    """Return the checked options and the parser that knows their defaults."""
    parser = arguments.OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_shared_options(parser, min_m=32)
    add = parser.add_argument
    add("--val_ratio", type=arguments.open_unit_float, default=0.1, help="share of the queries that select λ and m")
    add("--num_subsets", type=arguments.positive_int, default=50, help="subset models behind the ground truth")
    args = parser.parse_args()
    arguments.check_shared_options(args)
    if args.num_subsets < 3:
        raise UserError(f"--num_subsets {args.num_subsets}: a rank correlation needs at least 3 subset models")
    return args, parser


def main() -> None:
    """Run the experiment."""
    args, parser = parse_arguments()
    with Run("hyperparam_selection", args, parser) as run:
        experiment(args, run)


def experiment(args: argparse.Namespace, run: Run) -> None:
    """Measure, predict, choose, and write the results."""
    # model, gradients, eigenvalues, and what attribution has to predict
    prepared = prepare(args, run, query_kind="test")
    with run.phase("ground truth"):
        truth = load_ground_truth(prepared.workload, args.benchmark_dir, args.num_subsets, prepared.device)
    task, vectors = make_task(args, run, prepared, truth)

    # without a sketch: exact LDS for every λ, and the closed form for every (m, λ)
    exact = lds_sweep.summarise(lds_sweep.exact_rows(task), task)
    with run.phase("prediction"):
        is_sjlt = args.proj_type == "sjlt"
        predicted = lds_sweep.predict(lds_sweep.fine_dimensions(prepared.ms, only_powers_of_two=is_sjlt), task)
        advice = lds_sweep.cheapest(predicted, exact)
    run.write_table("predicted.csv", predicted)

    # with sketches: the grid, and the recommended point
    selection = None
    table = predicted[predicted["m"].isin(prepared.ms)]
    if not args.predict_only:
        ms = sorted({*prepared.ms, *([advice["m"]] if advice else [])})
        units = sweep(args, run, prepared, task, vectors, ms)
        trials = lds_sweep.trial_table(units, task)
        run.write_table("trials.csv", trials)
        table = lds_sweep.summarise(units, task).merge(predicted, how="left")
        run.record(prediction_gaps=lds_sweep.prediction_gaps(table))
        selection = select(lds_sweep.selection_grid(trials, exact, task))
        advice = lds_sweep.measured_at(advice, table)

    table = lds_sweep.join(table, exact)
    run.write_table("summary.csv", table)
    run.write_json("selection.json", choices(selection, advice))
    with run.phase("figure"):
        lds_figure.draw_hyperparam_selection(run.folder, table, predicted, selection, args)
    report(run, selection, advice, table)


def make_task(args: argparse.Namespace, run: Run, prepared: Prepared, truth: GroundTruth):
    """Split the queries into those that select and those that only judge."""
    num_queries = len(prepared.query_samples)
    num_val = round(args.val_ratio * num_queries)
    if not 0 < num_val < num_queries:
        raise UserError(
            f"--val_ratio {args.val_ratio:g} of {num_queries} queries leaves {num_val} to select and "
            f"{num_queries - num_val} to judge; both must be at least 1"
        )
    run.record(num_val_queries=num_val, num_test_queries=num_queries - num_val, ridges=prepared.ridges)
    columns = sjlt_columns(args, run, prepared)
    d_lambda = prepared.effective_dimensions
    cells = Cells(prepared.spectrum, prepared.ms, prepared.ridges, d_lambda, args.ridge_correction, columns)
    return lds_sweep.make_task(prepared.geometry, truth, prepared.query_samples, cells, num_val, args.seed)


def sweep(args: argparse.Namespace, run: Run, prepared: Prepared, task, vectors, ms: list[int]) -> pd.DataFrame:
    """Measure every (trial, m) that an interrupted run has not measured yet; return one row a (trial, m, λ)."""
    cells = dataclasses.replace(task.cells, ms=ms)
    sketcher = make_sketcher(args, prepared, vectors, cells.smallest_ridge())
    log = UnitLog(run.folder, run.identity(), args.fresh)
    with run.phase("sketches"), progress_bar("sketches", args.num_trials * len(ms)) as progress:
        for trial in range(args.num_trials):
            missing = [m for m in ms if (trial, m) not in log]
            progress.update(len(ms) - len(missing))
            for m, problem in sketcher.problems(trial, missing) if missing else ():
                log.append(trial, m, lds_sweep.measure(problem, m, trial, task))
                progress.update()
    return log.table()


def choices(selection: Selection | None, advice: dict | None) -> dict:
    """Return selection.json: what was chosen by utility, by theory, and by the closed form."""
    chosen = dataclasses.asdict(selection) if selection else {}
    return chosen | {"predicted_choice": advice}


def report(run: Run, selection: Selection | None, advice: dict | None, table: pd.DataFrame) -> None:
    """Print the choices, what speaks against them, and a recommendation."""
    if selection is not None:
        print(f"\nutility-driven: {recommendation(selection)}")
        for choice in selection.theory_m:
            lds = "beyond the grid" if choice.grid_m is None else f"m = {choice.grid_m}: test LDS {choice.test_lds:.3f}"
            print(f"theory-driven, ε = {choice.epsilon:g}: d_λ*/ε² = {choice.m_exact:.0f}, {lds}")
        gaps = run.config["prediction_gaps"]
        if gaps["test_lds_gap_median"] is not None:
            print(
                f"predicted against measured test LDS (m >= 64): median gap {gaps['test_lds_gap_median']:.4f}, "
                f"worst {gaps['test_lds_gap_worst']:.4f} over {gaps['test_lds_gap_cells']} cells"
            )
        for warning in selection.warnings:
            print(f"warning: {warning}")
    if warning := bad_values(table, "rank correlations of queries"):
        print(warning)
    print(lds_sweep.advice_sentence(advice))


if __name__ == "__main__":
    script.run_script(main)
