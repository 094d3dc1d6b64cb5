"""Scores beside those of kronfluence, where it is installed (requirements-interop.txt)."""

from __future__ import annotations

import copy
import importlib.util
import warnings

import pytest
import torch
from torch.utils.data import TensorDataset

from common.curvature.blocks import find_blocks
from common.curvature.coordinates import gather
from common.curvature.factors import fit
from common.curvature.scores import cross_influence
from common.gradients.layer_capture import Routes
from common.gradients.layer_factors import LayerFactors
from common.workloads.losses import cross_entropy
from common.workloads.pairs import load_workload
from common.workloads.training import train_model

pytestmark = pytest.mark.skipif(importlib.util.find_spec("kronfluence") is None, reason="kronfluence is not installed")

CPU = torch.device("cpu")
NUM_TRAIN, NUM_QUERIES, BATCH = 120, 15, 32
DAMPINGS = (1e-4, 1e-2)


@pytest.fixture(scope="module", params=["lr", "mlp"])
def trained(request, mnist_data):
    workload = load_workload("mnist", request.param, NUM_TRAIN, data=mnist_data)
    model = train_model(workload, torch.arange(NUM_TRAIN), 0, "cpu", progress=False).eval()
    return model, workload.train, workload.test.subset(slice(NUM_QUERIES))


def ours(trained, strategy):
    """Return damping -> (NUM_QUERIES, NUM_TRAIN) scores."""
    model, train, queries = trained
    layers = LayerFactors(model, cross_entropy, Routes())
    blocks = find_blocks(list(layers(train.subset(slice(BATCH)))))
    factored = fit(blocks, layers.batches(train, BATCH, CPU), NUM_TRAIN, CPU)
    parts = gather(
        factored,
        layers.batches(train, BATCH, CPU),
        layers.batches(queries, BATCH, CPU),
        torch.eye(NUM_TRAIN, dtype=torch.float64),
        torch.zeros(NUM_QUERIES),
    )
    ridges = torch.tensor(DAMPINGS, dtype=torch.float64)
    scores = [cross_influence(part.eigenvalues[strategy], part.subset_sums, part.queries, ridges) for part in parts]
    return dict(zip(DAMPINGS, sum(scores).transpose(1, 2), strict=True))


def theirs(trained, strategy, folder):
    """Return the same by kronfluence."""
    from kronfluence import Analyzer, FactorArguments, ScoreArguments, Task, prepare_model

    class Attributed(Task):
        def compute_train_loss(self, batch, model, sample=False):
            assert not sample
            inputs, targets = batch
            return cross_entropy(model(inputs), targets).sum()

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)

    model, *samples = trained
    train, queries = (TensorDataset(part.inputs, part.targets) for part in samples)
    task = Attributed()
    prepared = prepare_model(copy.deepcopy(model), task)
    options = {"cpu": True, "disable_tqdm": True, "disable_model_save": True}
    analyzer = Analyzer("compared", prepared, task, output_dir=str(folder), **options)
    factors = FactorArguments(strategy=strategy, use_empirical_fisher=True)
    analyzer.fit_all_factors("factors", train, per_device_batch_size=BATCH, factor_args=factors)
    found = {}
    for damping in DAMPINGS:
        name = f"scores_{damping}"
        analyzer.compute_pairwise_scores(
            name,
            "factors",
            queries,
            train,
            per_device_query_batch_size=NUM_QUERIES,
            per_device_train_batch_size=BATCH,
            score_args=ScoreArguments(damping_factor=damping),
        )
        found[damping] = analyzer.load_pairwise_scores(name)["all_modules"].double()
    return found


@pytest.mark.parametrize("strategy", ["kfac", "ekfac"])
def test_scores_are_those_of_kronfluence_with_the_same_damping(trained, strategy, tmp_path):
    """Both in float32 passes: they differ by its rounding, relative to the largest scores."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses what torch has deprecated
        expected = theirs(trained, strategy, tmp_path)
    found = ours(trained, strategy)
    for damping in DAMPINGS:
        pair = torch.stack([expected[damping].flatten(), found[damping].flatten()])
        assert torch.corrcoef(pair)[0, 1] > 0.99999
        assert (expected[damping] - found[damping]).norm() < 1e-3 * found[damping].norm()
