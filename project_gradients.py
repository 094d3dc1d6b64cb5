"""Write a store of projected gradients: one row Pg a sample, for any number of samples, on any number of processes.

    python project_gradients.py --dataset mnist --model mlp --proj_type sjlt --m 4096 --store stores/mlp
    torchrun --nproc-per-node 8 project_gradients.py --workload my_llm.py --proj_type rademacher --store stores/llm

numpy.load(..., mmap_mode="r") and audit_projections.py read it. Killed at any moment, the same command goes on.
"""

from __future__ import annotations

from common.experiments import script
from common.experiments.projecting.options import ProjectOptions, parse
from common.foundations.distributed import Ranks, connected


def main() -> None:
    """Project the gradients of all samples, or say what that would take."""
    options = parse(__doc__)
    with connected(options.timeout, uses_cuda=options.device != "cpu") as ranks:
        project(options, ranks)


def project(options: ProjectOptions, ranks: Ranks) -> None:
    """Fill both parts of the store."""
    # these take seconds to import: not before the options are known to be right
    from common.experiments.projecting import filling, subject, trial

    # model and projection
    prepared = subject.prepare(options, ranks)
    if options.store is None or options.limit is not None:
        print(trial.describe(trial.forecast(prepared, options.limit or 1), prepared))
        return

    # training and test samples
    writers = filling.make_writers(options.store, prepared)
    with filling.held(options.store, ranks):
        ranks.first(lambda: filling.check(writers))
        for writer in writers:
            filling.fill(writer, prepared, ranks)
    filling.report(options.store, writers)


if __name__ == "__main__":
    script.run_script(
        main,
        less_memory="a smaller --batch_size or --m",
        resumes="continues after the last finished range of rows",
    )
