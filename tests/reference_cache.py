"""A tiny gradient plan for the tests of caches, and a command line that slowly computes and keeps its gradients."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from common.foundations.tensor_files import state_fingerprint
from common.gradients.planning import GradientPlan, plan_gradients
from common.sketches.cache import Cache
from common.workloads.losses import cross_entropy
from common.workloads.training import fresh_model
from tests.reference_training import dropout_perceptron, tiny_workload


def make_plan(
    offload: str, make_model=dropout_perceptron, batch_size=7, dtype=torch.float32, **changes
) -> GradientPlan:
    """Return a plan over 60 training and 7 test samples."""
    workload = tiny_workload(make_model, **changes)
    model = fresh_model(workload, 0).eval()
    parts = [("training", workload.train), ("test", workload.test)]
    return plan_gradients(workload, model, parts, batch_size, offload, dtype, torch.device("cpu"))


def make_cache(folder: Path, offload: str, **changes) -> Cache:
    plan = make_plan(offload, **changes)
    return Cache(folder, plan, state_fingerprint(plan.model.state_dict()))


def slow_loss(outputs, targets):
    time.sleep(0.02)
    return cross_entropy(outputs, targets)


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    cache = make_cache(Path(sys.argv[1]), "disk", loss=slow_loss)
    print("ready", flush=True)
    cache.gradients()
