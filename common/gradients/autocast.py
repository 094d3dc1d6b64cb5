"""Models and losses that switch to 16-bit arithmetic themselves, with torch.autocast in their own code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from common.workloads.precision import copied
from common.workloads.records import Examples, Loss
from common.workloads.running import run_model, without_graph


def autocast_dtypes(model: nn.Module, loss: Loss, one: Examples) -> set[torch.dtype]:
    """Return the 16-bit dtypes to which a forward pass on one sample, or its loss, switches."""
    found: set[torch.dtype] = set()
    really_enter = torch.autocast.__enter__

    def enter(region: torch.autocast) -> object:
        if region._enabled:
            found.add(region.fast_dtype)
        return really_enter(region)

    with _regions(enter, torch.autocast.__exit__):
        without_graph(lambda: loss(run_model(model, one.inputs), one.targets))
    return found


def without_autocast(model: nn.Module, loss: Loss) -> tuple[nn.Module, Loss]:
    """Return a copy of a model, and a loss, that compute in the precision of what they are given."""
    copy = copied(model)
    copy.forward = _Plain(copy.forward)
    return copy, _Plain(loss)


class _Plain:
    def __init__(self, forward: Callable):
        self._forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _regions(lambda region: region, lambda *_: None):
            return self._forward(*args, **kwargs)


@contextmanager
def _regions(enter: Callable, leave: Callable) -> Iterator[None]:
    """Let regions of torch.autocast be entered and left by other functions."""
    before = torch.autocast.__enter__, torch.autocast.__exit__
    torch.autocast.__enter__, torch.autocast.__exit__ = enter, leave  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.autocast.__enter__, torch.autocast.__exit__ = before  # type: ignore[method-assign]
