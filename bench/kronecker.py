"""EK-FAC scores of all training samples with some queries: our route beside kronfluence's, where that is installed."""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from common.curvature.blocks import find_blocks
from common.curvature.coordinates import EKFAC, gather
from common.curvature.factors import fit
from common.curvature.pairs import pairwise
from common.gradients.layer_capture import Routes
from common.gradients.layer_factors import LayerFactors

NUM_QUERIES = 200
BATCH = 64
RIDGE = 1e-3
CPU = torch.device("cpu")


def steps() -> list[tuple[str, str, Callable]]:
    """Return (what, route, step) of both routes; none, after one line, where there is nothing to compare with."""
    if importlib.util.find_spec("kronfluence") is None:
        print("EK-FAC scores: left out, kronfluence is not installed (requirements-interop.txt)")
        return []
    return [("EK-FAC scores", "factors", scores_by_factors), ("EK-FAC scores", "kronfluence", scores_by_kronfluence)]


def scores_by_factors(workload, model) -> Callable[[], Tensor]:
    """Return what computes factors, eigenvalues and (n, k) scores."""
    queries = workload.test.subset(slice(NUM_QUERIES))

    def run() -> Tensor:
        layers = LayerFactors(model, workload.loss, Routes())
        num_train, num_queries = len(workload.train), len(queries)

        def train():
            return layers.batches(workload.train, BATCH, CPU)

        blocks = find_blocks(list(layers(workload.train.subset(slice(BATCH)))))
        factored = fit(blocks, train(), num_train, CPU)
        no_subsets = torch.zeros(0, num_train, dtype=torch.float64)
        asked = layers.batches(queries, BATCH, CPU)
        parts = gather(factored, train(), asked, no_subsets, torch.zeros(num_queries))
        return pairwise(parts, EKFAC, train(), num_train, [RIDGE] * len(parts))

    return run


def scores_by_kronfluence(workload, model) -> Callable[[], Tensor]:
    """Return the same by kronfluence, with its empirical Fisher and the same damping; it keeps all steps on disk."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses what torch has deprecated
        from kronfluence import Analyzer, FactorArguments, ScoreArguments, Task, prepare_model
    from torch.utils.data import TensorDataset

    class Attributed(Task):
        def compute_train_loss(self, batch, model, sample=False):
            inputs, targets = batch
            return workload.loss(model(inputs), targets).sum()

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)

    queries = workload.test.subset(slice(NUM_QUERIES))
    train_set, query_set = (TensorDataset(part.inputs, part.targets) for part in (workload.train, queries))
    task = Attributed()
    prepared = prepare_model(model, task)

    def run() -> Tensor:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            options = {"cpu": True, "disable_tqdm": True, "disable_model_save": True, "output_dir": folder}
            analyzer = Analyzer("bench", prepared, task, **options)
            factors = FactorArguments(strategy="ekfac", use_empirical_fisher=True)
            analyzer.fit_all_factors("factors", train_set, per_device_batch_size=BATCH, factor_args=factors)
            analyzer.compute_pairwise_scores(
                "scores",
                "factors",
                query_set,
                train_set,
                per_device_query_batch_size=NUM_QUERIES,
                per_device_train_batch_size=BATCH,
                score_args=ScoreArguments(damping_factor=RIDGE),
            )
            return analyzer.load_pairwise_scores("scores")["all_modules"].T

    return run
