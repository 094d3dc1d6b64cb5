"""What does each projection cost for its error? Seconds and memory of projecting beside ε_95 and LDS of finished runs.

    python projection_cost.py --runs results/spectrum_bounds/mnist_mlp_normal results/spectrum_bounds/mnist_mlp_sjlt

Takes runs of one model that differ in --proj_type, times how long a store of all training samples takes with each
projection and m, and writes costs.csv and a figure "error against cost" to results/projection_cost/.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.experiments import script
from common.experiments.costing.options import CostOptions, parse
from common.experiments.run import Run

if TYPE_CHECKING:
    import pandas as pd


def main() -> None:
    """Run the comparison."""
    options, request = parse(__doc__)
    with Run(request) as run:
        compare(options, run)


def compare(options: CostOptions, run: Run) -> None:
    """Time the projections of the runs, and write their errors beside it."""
    # these take seconds to import: not before the options are known to be right
    from common.experiments.costing import figure, tables, timing

    # seconds and memory
    with run.phase("projections"):
        timed = timing.time_projections(options)

    # beside errors and usefulness
    table = tables.join(options.runs, timed)
    for line in tables.describe_left_out(options.runs, table):
        print(line)
    run.write_table("costs.csv", table)
    rank = tables.mean_stable_rank(options.runs)
    run.record(mean_stable_rank=rank)
    with run.phase("figure"):
        config = options.runs[0].config
        size = f"n = {config['n']}, d = {config['d']}" + (f", mean stable rank {rank:.3g}" if rank else "")
        figure.draw_cost(run.folder, table, f"{run.results.name}: {size}")
    report(table, figure.shown_ridges(table)[-1])


def report(table: pd.DataFrame, ridge: float) -> None:
    """Print one row a (projection, m), at the largest λ that every projection has."""
    from common.experiments.printed_table import printed

    largest = table[table["lambda"] == ridge]
    columns = ["proj_type", "m", "seconds", "added_memory_bytes", "eps_95", "gaussian_equivalent_m", "test_lds"]
    print(f"at λ = {largest['lambda'].iloc[0]:g}, d_λ = {largest['d_lambda'].iloc[0]:.3g}")
    print(printed(largest[columns], digits=3))
    others = [law for law in table["proj_type"].unique() if law not in set(largest["proj_type"])]
    if others:
        print(f"the projections share no λ: {', '.join(others)} at other λ in costs.csv")


if __name__ == "__main__":
    script.run_script(
        main,
        less_memory="a smaller --max_m, --num_samples or --batch_size",
        resumes="starts anew",
    )
