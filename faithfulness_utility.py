"""Is the ridge λ and projection dimension m with the most useful scores one where sketched scores are faithful?

Measures, with the same sketches over (m, λ, trial), the error ε of scores of training gradients for queries and the
linear datamodeling score (LDS), follows the best λ of every m, predicts the whole map in closed form, and writes
tables, a verdict and a figure to results/faithfulness_utility/.
"""

from __future__ import annotations

from common.experiments import script
from common.experiments.options import arguments, ground_truth_arguments, pair_arguments
from common.experiments.options import values as option_values
from common.experiments.options.records import FaithfulnessOptions, RunRequest
from common.experiments.run import Run


def parse_arguments() -> tuple[FaithfulnessOptions, RunRequest]:
    """Return the checked options, and what the run folder is named after."""
    parser = arguments.make_parser(__doc__, min_m=32)
    ground_truth_arguments.add_ground_truth_options(parser)
    pair_arguments.add_num_train_grads(parser)
    parser.add_argument(
        "--faithfulness_threshold",
        type=option_values.open_unit_float,
        default=0.01,
        help="largest ε_95 of cross scores that counts as faithful",
    )
    args = arguments.parse(parser)
    selection = ground_truth_arguments.selection_options(args, arguments.shared_options(args, query_kind="test"))
    cross = pair_arguments.pair_choice(args, kernel_parts=False)
    options = FaithfulnessOptions(selection, cross, args.faithfulness_threshold)
    return options, arguments.run_request("faithfulness_utility", args, parser)


def main() -> None:
    """Run the experiment."""
    options, request = parse_arguments()
    with Run(request) as run:
        experiment(options, run)


def experiment(options: FaithfulnessOptions, run: Run) -> None:
    """Measure, predict, judge, and write the results."""
    # these take seconds to import: not before the options are known to be right
    from common.experiments.bounds.cross_sweep import zero_errors
    from common.experiments.faithfulness import figure as faithfulness_figure
    from common.experiments.faithfulness import steps as faithfulness_steps
    from common.experiments.faithfulness import sweep
    from common.experiments.faithfulness import verdict as verdicts
    from common.experiments.lds import advice as lds_advice
    from common.experiments.lds import ridge_path
    from common.experiments.lds import sweep as lds_sweep
    from common.experiments.preparing.preparation import prepare

    # model, gradients, eigenvalues, what attribution has to predict, and the pairs whose errors are measured
    selection, threshold = options.selection, options.threshold
    shared = selection.shared
    prepared = prepare(shared, run, selection.num_subsets, options.cross)
    tasks = faithfulness_steps.make_tasks(selection, run, prepared)

    # without a sketch: exact LDS for every λ, and the closed form of both for every (m, λ)
    exact = lds_sweep.summarise(lds_sweep.exact_rows(tasks.lds), tasks.lds)
    with run.phase("prediction"):
        own_grid = shared.sketches.needs_powers_of_two or not shared.sketches.has_law
        predicted = sweep.predict(lds_advice.fine_dimensions(prepared.ms, own_grid), tasks)
        predicted_path = ridge_path.predicted_path(ridge_path.refine(predicted, tasks.lds), prepared.ms)
    run.write_table("predicted.csv", predicted)

    # with sketches: the grid, and the best λ of every m
    table, trials, joint, path = None, None, None, ridge_path.predicted_paths(predicted_path, prepared.ms)
    summary = predicted[predicted["m"].isin(prepared.ms)]
    if not shared.predict_only:
        units = faithfulness_steps.measure(shared, run, prepared, tasks)
        trials = sweep.trial_table(units, tasks)
        run.write_table("trials.csv", trials)
        summary = table = sweep.summarise(units, tasks).merge(predicted, how="left")
        run.record(prediction_gaps=faithfulness_steps.gaps(table))
        grid = lds_sweep.selection_grid(trials, exact, tasks.lds)
        path, joint = ridge_path.paths(grid, lds_sweep.resampled_grid(units, tasks.lds), predicted_path, table)

    by_m = verdicts.along_the_path(path, table, tasks.pairs, zero_errors(tasks.exact), threshold)
    verdict = verdicts.judge(by_m, joint, predicted_path, table, trials, threshold, shared.sketches.has_law)
    run.write_table("summary.csv", lds_sweep.join(summary, exact))
    run.write_table("by_m.csv", verdicts.by_m_table(by_m))
    run.write_json("verdict.json", verdicts.verdict_record(verdict))
    with run.phase("figure"):
        title = (
            f"{prepared.workload.name}, {shared.sketches.proj_type} projection, {selection.num_subsets} subset models"
        )
        faithfulness_figure.draw_faithfulness(run.folder, predicted, path, by_m, threshold, title)
    faithfulness_steps.report(run, by_m, verdict, summary)


if __name__ == "__main__":
    script.run_script(main)
