"""The (n, d) matrix of per-sample gradients, made in three ways."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from common.gradients.layer_capture import Routes
from common.gradients.layer_gradients import RowGradients
from common.workloads.records import Examples, Workload

BATCH = 32
"""Samples a batch."""
Rows = Callable[[], Tensor]


def rows_by_layers(workload: Workload, model: nn.Module) -> Rows:
    """Return what makes the rows layer by layer."""
    return lambda: _in_batches(workload, model, RowGradients(model, workload.loss, Routes()))


def rows_by_vmap(workload: Workload, model: nn.Module) -> Rows:
    """Return what makes the rows by vmap of grad over whole models."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def sample_loss(values, inputs, target):
        outputs = torch.func.functional_call(model, values, (inputs[None],))
        return workload.loss(outputs, target[None]).squeeze(0)

    per_sample = torch.func.vmap(torch.func.grad(sample_loss), in_dims=(None, 0, 0))

    def compute(batch: Examples, out: Tensor) -> None:
        gradients = per_sample(parameters, batch.inputs, batch.targets)
        torch.cat([g.flatten(1) for g in gradients.values()], dim=1, out=out)

    return lambda: _in_batches(workload, model, compute)


def rows_one_by_one(workload: Workload, model: nn.Module) -> Rows:
    """Return what makes the rows by a backward pass a sample."""
    parameters = list(model.parameters())

    def compute(one: Examples, out: Tensor) -> None:
        found = torch.autograd.grad(workload.loss(model(one.inputs), one.targets).sum(), parameters)
        torch.cat([g.flatten() for g in found], out=out[0])

    return lambda: _in_batches(workload, model, compute, 1)


def _in_batches(workload: Workload, model: nn.Module, compute: Callable, size: int = BATCH) -> Tensor:
    rows = torch.empty(len(workload.train), sum(p.numel() for p in model.parameters()))
    for part, start in zip(rows.split(size), range(0, len(rows), size), strict=True):
        compute(workload.train.subset(slice(start, start + size)), out=part)
    return rows
