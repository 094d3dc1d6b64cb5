"""What do Kronecker factors make of influence: how useful is A ⊗ E in place of F, and what does sketching it cost?

Factors the curvature of every layer as A ⊗ E (K-FAC) and corrects its eigenvalues (EK-FAC), each layer with a ridge λ;
measures the linear datamodeling score (LDS) of both and of F itself over λ, effective dimensions layer by layer, and
the error of self-influence under decoupled sketches P_A ⊗ P_E and joint ones of as many numbers, over (m_A, m_E, λ).
Writes tables and a figure to results/factorized_influence/.
"""

from __future__ import annotations

from common.experiments import script
from common.experiments.options import arguments, ground_truth_arguments
from common.experiments.options import values as option_values
from common.experiments.options.records import CurvatureOptions, RunRequest
from common.experiments.run import Run


def parse_arguments() -> tuple[CurvatureOptions, RunRequest]:
    """Return the checked options, and what the run folder is named after."""
    parser = arguments.make_workload_parser(__doc__)
    ground_truth_arguments.add_ground_truth_options(parser)
    add = parser.add_argument
    add("--m_a", type=option_values.dimensions, default="16,32,64,128,256", help="rows of the sketch of A, with commas")
    add("--m_e", type=option_values.dimensions, default="8,32,128", help="rows of the sketch of E, with commas")
    args = arguments.parse_workload_options(parser)
    selection = ground_truth_arguments.selection_options(args, arguments.unsketched_options(args))
    m_a, m_e = (tuple(map(int, text.split(","))) for text in (args.m_a, args.m_e))
    options = CurvatureOptions(selection, m_a, m_e)
    return options, arguments.run_request("factorized_influence", args, parser)


def main() -> None:
    """Run the experiment."""
    options, request = parse_arguments()
    with Run(request) as run:
        experiment(options, run)


def experiment(options: CurvatureOptions, run: Run) -> None:
    """Factor, score, sketch, and write the results."""
    # these take seconds to import: not before the options are known to be right
    from common.curvature.coordinates import KFAC
    from common.experiments.curvature import figure as curvature_figure
    from common.experiments.curvature import steps as curvature_steps
    from common.experiments.curvature import sweep as curvature_sweep
    from common.experiments.lds import steps as lds_steps
    from common.experiments.preparing.preparation import prepare

    # model, gradients, eigenvalues of F, and what attribution has to predict
    prepared = prepare(options.selection.shared, run, options.selection.num_subsets)
    task = lds_steps.make_task(options.selection, run, prepared)
    ridges = curvature_steps.make_ridges(options, prepared)

    # A and E of every layer, then scores in their eigenbases, exact and sketched
    curvature = curvature_steps.fit_curvature(run, prepared)
    measured = curvature_steps.sweep(options, run, prepared, curvature, ridges)
    dimensions = curvature_steps.dimensions(measured, prepared, ridges)

    lds = curvature_sweep.lds_table(measured.scores, task, ridges, dimensions)
    summary = curvature_sweep.summarise(measured.units, measured.scores.own[KFAC], ridges, dimensions[KFAC])
    summary = summary.merge(measured.predicted, how="left")
    run.write_table("lds.csv", lds)
    run.write_table("layers.csv", measured.layers)
    run.write_table("summary.csv", summary)
    run.write_table("layer_errors.csv", curvature_sweep.block_errors(measured.units))
    with run.phase("figure"):
        title = f"{prepared.workload.name}, Kronecker factors, {options.selection.num_subsets} subset models"
        curvature_figure.draw_factorized_influence(run.folder, lds, measured.layers, summary, title)
    curvature_steps.report(lds, summary)


if __name__ == "__main__":
    script.run_script(
        main,
        less_memory="--offload disk or recompute, or a smaller --batch_size, --num_train or --num_test_grads",
    )
