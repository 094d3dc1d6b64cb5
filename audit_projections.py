"""What can a store of projected gradients tell: effective dimension, errors of every other m, scores with error bars?

Reads projected gradients as TRAK, bergson, dattri, LESS, LogIX or numpy have written them, n x M, in pieces, and
writes tables and a figure to results/audit_projections/. No model and no full gradient is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.experiments import script
from common.experiments.audit.options import AuditOptions, check_paths, parse
from common.experiments.run import Run
from common.foundations.distributed import Ranks, connected

if TYPE_CHECKING:
    import pandas as pd


def main() -> None:
    """Run the audit."""
    options, request = parse(__doc__)
    check_paths(options)
    with connected(options.timeout) as ranks:
        if ranks.rank:
            assist(options, ranks)
            return
        with Run(request) as run:
            audit(options, run, ranks)


def assist(options: AuditOptions, ranks: Ranks) -> None:
    """Read and score the rows of a rank other than the first, which does everything else."""
    from common.experiments.audit import steps

    steps.assist(options, ranks)


def audit(options: AuditOptions, run: Run, ranks: Ranks) -> None:
    """Read the stores, and say what follows from them."""
    # these take seconds to import: not before the options are known to be right
    from common.experiments.audit import figure, steps, tables, trust

    # one pass over the stores
    audited, truth = steps.read_stores(options, run, ranks)

    # effective dimension, errors of every m, sizes
    with run.phase("tables"):
        dimensions = tables.effective_dimensions(audited, steps.ridges_of(options, audited))
        run.write_table("effective_dimension.csv", dimensions)
        cells = tables.make_cells(audited, dimensions)
        steps.check_resolved(audited, dimensions)
        summary = tables.errors(audited, cells, options.seed)
        run.write_table("summary.csv", summary)
        advice = tables.sizes(audited, cells, options.target_eps)
        run.write_table("recommendation.csv", advice)

    # usefulness, where there is something to judge by
    lds = None if truth is None else steps.measure_lds(options, run, audited, truth, dimensions["lambda"].tolist())

    # scores with error bars, in one more pass
    ridge, reason = steps.choose_ridge(options, audited, summary, lds)
    top, elsewhere = steps.score(options, run, audited, ridge, ranks)
    verdicts = trust.verdicts(audited, dimensions)
    run.record(ridge=ridge, ridge_reason=reason, law_known=audited.law_is_known, verdicts=verdicts)
    with run.phase("figure"):
        size = f"n = {audited.store.num_rows}, M = {audited.spectrum.size}, {audited.proj_type} projection"
        title = size if audited.law_is_known else f"{size}: no law is known, d_λ is unreliable"
        figure.draw_audit(run.folder, dimensions, summary, top, lds, ridge, f"{options.train.name}: {title}")
    report(options, run, dimensions, advice, top, elsewhere, verdicts)


def report(
    options: AuditOptions,
    run: Run,
    dimensions: pd.DataFrame,
    advice: pd.DataFrame,
    top: pd.DataFrame,
    elsewhere: pd.DataFrame,
    verdicts: list[str],
) -> None:
    """Print what a person needs: d_λ, sizes, the λ of the scores, how many are significant, and how far to trust it."""
    from common.experiments.audit.top_scores import significant_counts
    from common.experiments.audit.units import describe
    from common.experiments.printed_table import printed

    known = dimensions[dimensions["resolved"]].merge(advice.drop(columns="d_lambda"))
    lines = known[["lambda", "d_lambda", "d_lambda_std_error", "m", "m_ridge_corrected"]]
    print(f"\nd_λ of the unsketched F, and the smallest m with ε_95 <= {options.target_eps:g}")
    print(printed(lines))
    config, counts = run.config, significant_counts(top)
    print(f"\nscores at λ = {config['ridge']:.4g}, {config['ridge_reason']}: solve S with {config['solve']:.4g}")
    share = f"{counts.median():g} of {len(top) // len(counts)} listed rows (median over {len(counts)} queries)"
    known_share = f"{share} differ from 0 at 5 % after Holm's correction"
    print(known_share if config["error_bars"] else "no error bars: none would hold, see below")
    print(f"the same λ elsewhere: {describe(elsewhere)}")
    print("\nhow far to trust this")
    for verdict in verdicts:
        print(f"- {verdict}")


if __name__ == "__main__":
    script.run_script(
        main,
        less_memory="fewer --rows, one --module, fewer queries, or a smaller --top_k",
        resumes="starts anew, with --write_scores after the rows that are written",
    )
