"""What float32 leaves of the gradients of the built-in perceptron, which is sure of most of its training samples."""

from __future__ import annotations

import pytest
import torch

from common.gradients.precision import attributed
from common.workloads.benchmark import load_trained_model
from common.workloads.pairs import load_workload
from tests.reference_gradients import one_by_one_gradients

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread", "mnist_once")]
CPU = torch.device("cpu")
NUM_SAMPLES = 500


def test_losses_in_float64_keep_the_digits_of_gradients_that_float32_rounds_away(toy_benchmarks):
    workload = load_workload("mnist", "mlp")
    model = load_trained_model(workload, toy_benchmarks, CPU).model
    few = workload.train.subset(slice(NUM_SAMPLES))
    _, loss, _ = attributed(model, workload.loss, few, CPU)
    exact = one_by_one_gradients(model, workload.loss, few.inputs, few.targets)

    def errors(of_loss):
        found = one_by_one_gradients(model, of_loss, few.inputs, few.targets, torch.float32).double()
        return (found - exact).norm(dim=1) / exact.norm(dim=1)

    plain = errors(workload.loss)
    print(
        f"float32 loss: off by more than 1 %: {(plain > 0.01).double().mean():.1%}, than 10 %: "
        f"{(plain > 0.1).double().mean():.1%}; float64 loss: {errors(loss).max():.1e} at most"
    )
    assert (plain > 0.1).double().mean() > 0.1
    assert errors(loss).max() < 1e-4
