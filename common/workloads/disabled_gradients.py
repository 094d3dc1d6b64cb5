"""What a model or a loss computes where gradients are disabled, by torch.no_grad() or torch.set_grad_enabled(False)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from common.workloads.records import Examples, Loss
from common.workloads.running import backward_pass, run_model, trainable_parameters


def used_without_gradients(run: Callable[[], object]) -> list[Tensor]:
    """Return the tensors that require gradients and are used where these are disabled, while a function runs."""
    uses = _DisabledUses()
    with torch.enable_grad(), uses:
        run()
    return uses.tensors


def differing_gradients(model: nn.Module, other: nn.Module, loss: Loss, few: Examples) -> list[str]:
    """Return the parameters in which the gradients of some samples' summed loss differ between two models."""
    found = []
    for each in (model, other):
        parameters = trainable_parameters(each)
        with torch.enable_grad():
            total = loss(run_model(each, few.inputs), few.targets).sum()
            gradients = (
                backward_pass(total, [*parameters.values()]) if total.requires_grad else [None] * len(parameters)
            )
            found.append(dict(zip(parameters, gradients, strict=True)))
    return [name for name, gradient in found[0].items() if not _agree(gradient, found[1][name])]


def _agree(gradient: Tensor | None, other: Tensor | None) -> bool:
    if gradient is None or other is None:
        return gradient is other
    gradient, other = gradient.to_dense(), other.to_dense()
    return torch.allclose(gradient, other, rtol=0, atol=1e-3 * float(other.norm()), equal_nan=True)


class _DisabledUses(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        # what asks for a property gives no tensor
        if not torch.is_grad_enabled() and any(isinstance(leaf, Tensor) for leaf in tree_leaves(found)):
            leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            self.tensors += [leaf for leaf in leaves if leaf.requires_grad]
        return found
