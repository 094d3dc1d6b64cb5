"""How close are sketched influence scores to exact ones, for every projection dimension m and ridge λ?

Measures the ratio of sketched to exact self-influence φ̃_λ/φ_λ (or the error of scores of pairs, --scores cross) over
(m, λ, trial), against the claim that the error is of order √(d_λ/m), and writes tables and a figure to
results/spectrum_bounds/.
"""

from __future__ import annotations

from common.experiments import script
from common.experiments.options import arguments, pair_arguments
from common.experiments.options import values as option_values
from common.experiments.options.records import BoundsOptions, RunRequest
from common.experiments.run import Run


def parse_arguments() -> tuple[BoundsOptions, RunRequest]:
    """Return the checked options, and what the run folder is named after."""
    parser = arguments.make_parser(__doc__, min_m=1)
    add = parser.add_argument
    add("--test_mode", choices=("self", "test"), default="self", help="query gradients: training or test samples")
    add("--scores", choices=("self", "cross"), default="self", help="self-influence, or scores of training gradients")
    pair_arguments.add_num_train_grads(parser)
    add("--min_d_lambda", type=option_values.non_negative_float, default=5.0, help="skip λ with d_λ below this")
    add("--target_eps", type=option_values.open_unit_float, default=0.1, help="error that the recommended m must reach")
    args = arguments.parse(parser)
    shared = arguments.shared_options(args, query_kind=args.test_mode)
    cross = pair_arguments.cross_choice(args)
    options = BoundsOptions(shared, args.min_d_lambda, args.target_eps, cross)
    return options, arguments.run_request("spectrum_bounds", args, parser)


def main() -> None:
    """Run the experiment."""
    options, request = parse_arguments()
    with Run(request) as run:
        experiment(options, run)


def experiment(options: BoundsOptions, run: Run) -> None:
    """Measure, predict, and write the results."""
    # these take seconds to import: not before the options are known to be right
    from common.experiments.bounds import steps as error_steps
    from common.experiments.bounds import sweep as error_sweep
    from common.experiments.bounds.study import make_study
    from common.experiments.preparing.preparation import prepare

    # model, gradients, eigenvalues
    shared = options.shared
    prepared = prepare(shared, run, cross=options.cross)
    cells = error_steps.choose_cells(options, run, prepared)
    error_steps.write_spectrum(run, prepared, shared.queries.kind)
    error_steps.record_rounding(shared.gradients, run, prepared, cells)

    study = make_study(options, run, prepared, cells)

    # closed form: no sketch needed
    with run.phase("prediction"):
        table = study.predict()
        advice = study.recommend(options.target_eps, prepared.num_parameters)

    # measurement: sketches
    trials = None
    if not shared.predict_only:
        units = error_steps.sweep(shared, run, prepared, cells, study.measure)
        units, shares = error_steps.remove_reference(shared, prepared, cells, units)
        trials = study.trial_table(units)
        run.write_table("trials.csv", trials)
        measured = study.summarise(units)
        measured = measured if shares is None else measured.merge(shares, how="left")
        table = measured.merge(table.drop(columns=["d_lambda", "m_over_d_lambda"]))
        run.record(prediction_gaps=error_sweep.prediction_gaps(table))

    run.write_table("summary.csv", table)
    run.write_table("recommendation.csv", advice)
    study.write_more(run, prepared, table, trials)
    with run.phase("figure"):
        queries = "training" if shared.queries.kind == "self" else "test"
        title = f"{prepared.workload.name}, {shared.sketches.proj_type} projection, queries: {queries} samples"
        study.draw(run, prepared, table, title)
    error_steps.report(options.target_eps, run, advice, table, study.counted)


if __name__ == "__main__":
    script.run_script(main)
