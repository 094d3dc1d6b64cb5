"""How fast is all this? One run, ratios against the obvious routes, and growth with n, d and m.

Sweep (mnist + mlp, n = 1,000, m = 16 .. 4,096, λ = 1e-8 .. 1e-3, Gaussian sketches), each route in its own process:
  coordinates       this repository: coordinates of the gradients, exact in law
  dattri            dattri's BasicProjector on the d-dimensional gradients, then our solver
  stored matrix     a stored dense m x d matrix, and a fresh solve for every λ
Preparation: per-sample gradients, Gram matrix, and ground-truth models, against one at a time; EK-FAC scores of all
training samples with 200 queries, against kronfluence where that is installed; stores of projected gradients, against
the projectors of dattri and, where traker is installed, TRAK.
Growth: of a sketch and of the geometry, on synthetic gradients.
Writes bench.csv, growth.csv, slopes.csv and figure.png/pdf to results/bench/; exit status 2 if the routes' errors
differ by more than sketches of one law do.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench import MIN_M
from common.experiments import script
from common.experiments.options import arguments
from common.experiments.options import values as option_values
from common.foundations.errors import UserError
from common.foundations.storage import make_folder, write_atomically


def main() -> None:
    """Compare, and write the results, where the options allow it."""
    args = parse_arguments()
    folder = make_folder(args.output_dir / "bench")
    run_benchmark(folder, args.benchmark_dir, args.num_train, args.max_m)


def parse_arguments() -> argparse.Namespace:
    """Return the checked options."""
    parser = arguments.OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("results"), help="folder of results")
    parser.add_argument("--benchmark_dir", type=Path, default=Path("benchmarks"), help="folder of the checkpoint")
    parser.add_argument("--num_train", type=option_values.positive_int, default=1000, help="n")
    parser.add_argument("--max_m", type=option_values.power_of_two, default=4096, help="largest projection dimension")
    args = parser.parse_args()
    if args.num_train < 8:
        raise UserError(f"--num_train {args.num_train}: growth is measured down to a quarter of it, at least 8 needed")
    if args.max_m < MIN_M:
        raise UserError(f"--max_m {args.max_m}: the sweep starts at m = {MIN_M}")
    return args


def run_benchmark(folder: Path, benchmark_dir: Path, num_train: int, max_m: int) -> None:
    """Run every comparison, print the tables and write them to `folder`."""
    # these take seconds to import: not before the options are known to be right
    from bench import figure, growth, routes, tables
    from common.workloads.benchmark import load_trained_model
    from common.workloads.pairs import load_workload

    # the checkpoint is trained once, outside all timings
    load_trained_model(load_workload("mnist", "mlp"), benchmark_dir, "cpu")

    sweep = routes.compare_sweeps(benchmark_dir, num_train, max_m)
    table = tables.join(sweep, routes.compare_preparation(benchmark_dir, num_train))
    write_atomically(folder / "bench.csv", table.to_csv(index=False))
    print(tables.readable(table))

    measured = growth.measure_growth(num_train)
    slopes = growth.slopes(measured)
    write_atomically(folder / "growth.csv", measured.to_csv(index=False))
    write_atomically(folder / "slopes.csv", slopes.to_csv(index=False))
    print(slopes.to_string(index=False, float_format=lambda value: f"{value:.2f}"))

    figure.draw_bench(folder, table, measured)
    tables.check_agreement(table)


if __name__ == "__main__":
    script.run_script(
        main,
        less_memory="a smaller --num_train or --max_m",
        resumes="starts anew",
    )
