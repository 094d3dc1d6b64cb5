"""How fast is all this? One run, ratios against the obvious routes, and growth with n, d and m.

Sweep (mnist + mlp, n = 1,000, m = 16 .. 4,096, λ = 1e-8 .. 1e-3, Gaussian sketches), each route in its own process:
  coordinates       this repository: coordinates of the gradients, exact in law
  dattri            dattri's BasicProjector on the d-dimensional gradients, then our solver
  stored matrix     a stored dense m x d matrix, and a fresh solve for every λ
Preparation: per-sample gradients, Gram matrix, and ground-truth models, against one at a time.
Growth: of a sketch and of the geometry, on synthetic gradients.
Writes bench.csv, growth.csv, slopes.csv and figure.png/pdf to results/bench/; exit status 2 if the routes' errors
differ by more than sketches of one law do.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench import figure as bench_figures
from bench import growth as bench_growth
from bench import routes as bench_routes
from bench import tables as bench_tables
from common.experiments import arguments, script
from common.foundations.errors import UserError
from common.foundations.storage import make_folder, write_atomically
from common.workloads.benchmark import load_trained_model
from common.workloads.pairs import load_workload


def main() -> None:
    """Run every comparison and print the table."""
    parser = arguments.OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("results"), help="folder of results")
    parser.add_argument("--benchmark_dir", type=Path, default=Path("benchmarks"), help="folder of the checkpoint")
    parser.add_argument("--num_train", type=arguments.positive_int, default=1000, help="n")
    parser.add_argument("--max_m", type=arguments.power_of_two, default=4096, help="largest projection dimension")
    args = parser.parse_args()
    if args.num_train < 8:
        raise UserError(f"--num_train {args.num_train}: growth is measured down to a quarter of it, at least 8 needed")
    if args.max_m < bench_routes.MIN_M:
        raise UserError(f"--max_m {args.max_m}: the sweep starts at m = {bench_routes.MIN_M}")
    folder = make_folder(args.output_dir / "bench")

    # the checkpoint is trained once, outside all timings
    load_trained_model(load_workload("mnist", "mlp"), args.benchmark_dir, "cpu")

    sweep = bench_routes.compare_sweeps(args.benchmark_dir, args.num_train, args.max_m)
    table = bench_tables.join(sweep, bench_routes.compare_preparation(args.benchmark_dir, args.num_train))
    write_atomically(folder / "bench.csv", table.to_csv(index=False))
    print(bench_tables.readable(table))

    growth = bench_growth.measure_growth(args.num_train)
    slopes = bench_growth.slopes(growth)
    write_atomically(folder / "growth.csv", growth.to_csv(index=False))
    write_atomically(folder / "slopes.csv", slopes.to_csv(index=False))
    print(slopes.to_string(index=False, float_format=lambda value: f"{value:.2f}"))

    bench_figures.draw_bench(folder, table, growth)
    bench_tables.check_agreement(table)


if __name__ == "__main__":
    script.run_script(main)
