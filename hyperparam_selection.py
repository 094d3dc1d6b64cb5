"""Which ridge λ and which projection dimension m give useful attribution, and does theory choose them as well?

Measures the linear datamodeling score (LDS) of sketched influence over (m, λ, trial) against models retrained on
random halves of the training set, chooses (λ, m) by validation LDS and by m = d_λ/ε², predicts the whole map in
closed form, and writes tables and a figure to results/hyperparam_selection/.
"""

from __future__ import annotations

from common.experiments import script
from common.experiments.options import arguments, ground_truth_arguments
from common.experiments.options.records import RunRequest, SelectionOptions
from common.experiments.run import Run
from common.foundations.distributed import Ranks, connected


def parse_arguments() -> tuple[SelectionOptions, RunRequest, float]:
    """Return the checked options, what the run folder is named after, and the patience with other processes."""
    parser = arguments.make_parser(__doc__, min_m=32)
    ground_truth_arguments.add_ground_truth_options(parser)
    arguments.add_timeout(parser)
    args = arguments.parse(parser)
    options = ground_truth_arguments.selection_options(args, arguments.shared_options(args, query_kind="test"))
    return options, arguments.run_request("hyperparam_selection", args, parser), args.timeout


def main() -> None:
    """Run the experiment."""
    options, request, timeout = parse_arguments()
    with connected(timeout, uses_cuda=options.shared.gradients.device != "cpu") as ranks:
        if ranks.size > 1:
            retrain(options, ranks)
        if ranks.rank == 0:
            with Run(request) as run:
                experiment(options, run)


def retrain(options: SelectionOptions, ranks: Ranks) -> None:
    """Make the ground truth with all ranks; the first one does the rest alone."""
    from common.experiments.lds import steps as lds_steps

    lds_steps.make_ground_truth(options, ranks)


def experiment(options: SelectionOptions, run: Run) -> None:
    """Measure, predict, choose, and write the results."""
    # these take seconds to import: not before the options are known to be right
    from common.experiments.lds import advice as lds_advice
    from common.experiments.lds import figure as lds_figure
    from common.experiments.lds import ridge_path
    from common.experiments.lds import steps as lds_steps
    from common.experiments.lds import sweep as lds_sweep
    from common.experiments.lds.selection import select
    from common.experiments.preparing.preparation import prepare

    # model, gradients, eigenvalues, and what attribution has to predict
    shared = options.shared
    prepared = prepare(shared, run, options.num_subsets)
    task = lds_steps.make_task(options, run, prepared)

    # without a sketch: exact LDS for every λ, and the closed form for every (m, λ)
    exact = lds_steps.exact_table(prepared, task)
    with run.phase("prediction"):
        own_grid = shared.sketches.needs_powers_of_two or not shared.sketches.has_law
        predicted = lds_sweep.predict(lds_advice.fine_dimensions(prepared.ms, own_grid), task)
        advice = lds_advice.cheapest(predicted, exact)
        closer = ridge_path.refine(predicted, task)
    run.write_table("predicted.csv", closer)
    predicted_path = ridge_path.predicted_path(closer, prepared.ms)

    # with sketches: the grid, the predicted best λ of every m, and the recommended point
    selection, joint, path = None, None, ridge_path.predicted_paths(predicted_path, prepared.ms)
    table = predicted[predicted["m"].isin(prepared.ms)]
    if not shared.predict_only:
        ms = sorted({*prepared.ms, *([advice["m"]] if advice else [])})
        task = ridge_path.with_path(task, predicted_path)
        units = lds_steps.sweep(shared, run, prepared, task, ms)
        trials = lds_sweep.trial_table(units, task)
        run.write_table("trials.csv", trials)
        table = lds_sweep.summarise(units, task).merge(closer, how="left")
        run.record(prediction_gaps=lds_sweep.prediction_gaps(table))
        grid = lds_sweep.selection_grid(trials, exact, task)
        selection = select(grid)
        path, joint = ridge_path.paths(grid, lds_sweep.resampled_grid(units, task), predicted_path, table)
        advice = lds_advice.measured_at(advice, table)

    table = lds_sweep.join(table, exact)
    run.write_table("summary.csv", table)
    run.write_json("selection.json", lds_steps.choices(selection, path, joint, advice))
    with run.phase("figure"):
        law, subsets = shared.sketches.proj_type, f"{options.num_subsets} subset models"
        title = f"{prepared.workload.name}, {law} projection, {subsets}"
        lds_figure.draw_hyperparam_selection(run.folder, table, predicted, selection, path, title)
    lds_steps.report(run, shared.sketches, selection, path, joint, advice, table)


if __name__ == "__main__":
    script.run_script(main)
