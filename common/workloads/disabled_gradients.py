"""What a model or a loss computes where gradients are disabled, by torch.no_grad() or torch.set_grad_enabled(False)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves


def used_without_gradients(run: Callable[[], object]) -> list[Tensor]:
    """Return the tensors that require gradients and are used where these are disabled, while a function runs."""
    uses = _DisabledUses()
    with torch.enable_grad(), uses:
        run()
    return uses.tensors


class _DisabledUses(TorchFunctionMode):
    def __init__(self):
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
