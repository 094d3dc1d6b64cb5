"""Stores of projected gradients to audit: those of the built-in perceptron, as .npy files, beside its ground truth.

python -m examples.perceptron_stores stores/perceptron
python audit_projections.py --train stores/perceptron/normal_1024.npy \
    --queries stores/perceptron/normal_1024_queries.npy \
    --ground_truth stores/perceptron/subsets.npy stores/perceptron/losses.npy
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.gradients.kept_rows import Gradients
from common.gradients.planning import compute_gradients, plan_gradients
from common.sketches.projectors import make_projector
from common.workloads.benchmark import load_ground_truth, load_trained_model
from common.workloads.pairs import load_workload
from common.workloads.records import Workload

SIZES = (4096, 1024)
KINDS = ("normal", "sjlt")
SEED = 7
NUM_SUBSETS = 50
CPU = torch.device("cpu")


def main(folder: Path) -> None:
    """Write a store for every kind and size, of training and of test samples, then subsets and losses."""
    folder.mkdir(parents=True, exist_ok=True)
    workload, gradients = perceptron_gradients()
    for kind in KINDS:
        projector = make_projector(kind, SEED)
        projected = projector.project(gradients, max(SIZES), trial=0)
        for m in SIZES:
            rows = actual_rows(projector.reduce(projected, m), gradients)
            np.save(folder / f"{kind}_{m}.npy", rows[: len(workload.train)])
            np.save(folder / f"{kind}_{m}_queries.npy", rows[len(workload.train) :])
    truth = load_ground_truth(workload, Path("benchmarks"), NUM_SUBSETS, CPU)
    np.save(folder / "subsets.npy", truth.subset_indices.numpy())
    np.save(folder / "losses.npy", truth.losses.numpy())


def perceptron_gradients() -> tuple[Workload, Gradients]:
    """Return the workload and the gradients of its training samples and, behind them, of its test samples."""
    workload = load_workload("mnist", "mlp")
    model = load_trained_model(workload, Path("benchmarks"), CPU).model
    parts = [("training", workload.train), ("test", workload.test)]
    return workload, compute_gradients(plan_gradients(workload, model, parts, 32, "cpu", torch.float32, CPU))


def actual_rows(sketch: Tensor, gradients: Gradients) -> np.ndarray:
    """Return the (N, m) float32 projections of the gradients themselves, from the (m, N) ones of unit gradients."""
    return (sketch.double() * gradients.norms).T.float().contiguous().numpy()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write stores of the built-in perceptron, subsets and losses.")
    parser.add_argument("folder", type=Path)
    main(parser.parse_args().folder)
