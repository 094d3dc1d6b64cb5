"""Run a model on samples, whatever form its inputs have."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from common.workloads.records import Inputs, map_tensors

Result = TypeVar("Result")
NEEDS_GRAPH = "does not require grad and does not have a grad_fn"
"""What torch says where a model or a loss differentiates by its inputs, as for an equation, under torch.no_grad()."""
RANDOM = "the loss is random in eval mode; dropout and noise must follow model.training"
"""What is said of a model whose losses differ because it draws random numbers."""
MIXED = "in eval mode samples must not mix; where a loss compares samples, make each pair or group of them one sample"
"""What is said of a sample whose loss depends on those beside it."""


def run_model(model: Callable[..., Any], inputs: Inputs) -> Any:
    """Return the model's outputs for (B, ...) inputs: a tensor is its argument, a dict or tuple its arguments.

    The model gets copies, so that one that changes its inputs in place changes no sample. The fused layers that
    nn.TransformerEncoder takes only where nothing is differentiated are off: they would compute other outputs at padded
    places than the differentiated model does.
    """
    inputs = map_tensors(torch.clone, inputs)
    with _without_fused_transformers(), warnings.catch_warnings():
        if not torch.is_grad_enabled():
            # a checkpoint says so where nothing is to be differentiated, as here
            warnings.filterwarnings("ignore", message="None of the inputs have requires_grad")
        if isinstance(inputs, dict):
            return model(**inputs)
        return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters with entries that are differentiated, by name, in the order of the flat gradient."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad and p.numel()}


def without_graph(run: Callable[[], Result]) -> Result:
    """Return what a function gives under torch.no_grad(), or without it where the function itself differentiates."""
    try:
        with torch.no_grad():
            return run()
    except RuntimeError as error:
        if NEEDS_GRAPH not in str(error):
            raise
    with torch.enable_grad():
        return run()


def draws_random_numbers(run: Callable[[], object], device: torch.device | str) -> bool:
    """Return whether a function draws from torch's generators of the CPU and of a device."""

    def states() -> list[Tensor]:
        found = [torch.get_rng_state()]
        return [*found, torch.cuda.get_rng_state(device)] if torch.device(device).type == "cuda" else found

    before = states()
    run()
    return not all(map(torch.equal, before, states()))


@contextmanager
def _without_fused_transformers() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def reaches(total: Tensor, parameters: Sequence[Tensor]) -> list[bool]:
    """Return whether a scalar depends on each of the parameters, by a way that can be differentiated."""
    return [found is not None for found in backward_pass(total, parameters)]


def backward_pass(total: Tensor, parameters: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Return the gradient of a scalar by each parameter, None where it does not depend on one."""
    try:
        found = torch.autograd.grad(total, parameters, allow_unused=True, retain_graph=True)
        if all(gradient is not None for gradient in found) or not _has_reentrant_checkpoint(total):
            return found
    except RuntimeError as error:
        # reentrant checkpoints allow nothing but what training does
        if "use_reentrant" not in str(error):
            raise
    before = [parameter.grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.grad = None
        total.backward()
        return [parameter.grad for parameter in parameters]
    finally:
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient


def _has_reentrant_checkpoint(total: Tensor) -> bool:
    """Whether parameters may be used inside a checkpoint, where torch.autograd.grad does not see them."""
    waiting, seen = [total.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node.name() == "CheckpointFunctionBackward":
            return True
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
    return False


def complete(model: nn.Module, inputs: Inputs) -> nn.Module:
    """Return the model, whose lazy layers have learnt the sizes of their parameters from (B, ...) inputs."""
    if any(is_lazy(p) for p in [*model.parameters(), *model.buffers()]):
        training = model.training
        without_graph(lambda: run_model(model.eval(), inputs))
        model.train(training)
    return model
