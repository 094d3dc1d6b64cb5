"""What lies behind the tensors of one sample while a model runs: under torch.func.vmap the same of a whole batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

_Functorch = torch._C._functorch


@dataclass(frozen=True)
class Output:
    """One differentiable output of a call, where the derivative of the loss by it, its error, can be read off."""

    at: GradientEdge
    """Names what to differentiate by: the output itself of all samples, or zeros added to it."""
    zeros: Tensor
    """(B, ...): the error where the loss does not depend on the output."""
    node: Node
    """Where the graph of whatever uses the output meets that of the call."""

    def error(self, derivative: Tensor | None) -> Tensor:
        """Return the (B, ...) error from the derivative of the summed loss by `at`; None stands for no dependence."""
        return torch.zeros_like(self.zeros) if derivative is None else derivative.reshape(self.zeros.shape)


class SampleLevel:
    """The innermost torch.func.vmap that is running, over a batch of B samples."""

    def __init__(self, batch: int):
        self.batch = batch
        self._level = _Functorch.current_level()

    def is_current(self) -> bool:
        """Return whether no other transformation runs inside."""
        return _Functorch.maybe_current_level() == self._level

    def depends(self, leaf: Any) -> bool:
        """Return whether a tensor has another value for each sample."""
        return isinstance(leaf, Tensor) and _Functorch.is_batchedtensor(leaf)

    def of_all(self, tensor: Tensor) -> Tensor:
        """Return (B, ...) values of a tensor of one sample."""
        return _Functorch._remove_batch_dim(tensor, self._level, self.batch, 0)

    def of_one(self, tensor: Tensor) -> Tensor:
        """Return the tensor of one sample whose values are (B, ...)."""
        return _Functorch._add_batch_dim(tensor, 0, self._level)

    def followed(self, result: Tensor, is_unsaved: bool) -> tuple[Tensor, Output]:
        """Return an output of a call as it is to be used from now on, and where its error can be read off.

        `is_unsaved` says that the call has computed the output into memory of its own and that its backward pass does
        not need it: then nothing is added to it, and what is done in place to it later stays right.
        """
        by_edge = is_unsaved and self.depends(result)
        zero = torch.zeros((), dtype=result.dtype, device=result.device, requires_grad=not by_edge)
        zeros = zero.expand(self.batch, *result.shape)
        if not by_edge:
            result = result + self.of_one(zeros)
            return result, Output(get_gradient_edge(zeros), zeros, get_gradient_edge(_behind(result)).node)
        # vmap makes views of what it computes; changed in place, a view would leave the graph, this alias does not
        values = self.of_all(result)
        alias = torch.ops.aten._unsafe_view(values, values.shape)
        edge = get_gradient_edge(alias)
        return self.of_one(alias), Output(edge, zeros, edge.node)


class SingleSample(SampleLevel):
    """A forward pass on one sample without vmap, a batch of B = 1; all but parameters may depend on the sample."""

    def __init__(self):
        self.batch = 1

    def is_current(self) -> bool:
        """Return whether no transformation runs."""
        return _Functorch.maybe_current_level() is None

    def depends(self, leaf: Any) -> bool:
        """Return whether something is a tensor."""
        return isinstance(leaf, Tensor)

    def of_all(self, tensor: Tensor) -> Tensor:
        """Return (1, ...) values."""
        return tensor[None]

    def of_one(self, tensor: Tensor) -> Tensor:
        """Return the only one of (1, ...) values."""
        return tensor[0]


def is_differentiable(tensor: Tensor) -> bool:
    """Return whether the loss can be differentiated by a tensor."""
    return _behind(tensor).requires_grad


def node_of(tensor: Tensor) -> Node | None:
    """Return where a tensor leaves the graph that it was computed by; None where it is not differentiable."""
    tensor = _behind(tensor)
    return get_gradient_edge(tensor).node if tensor.requires_grad else None


def _behind(tensor: Tensor) -> Tensor:
    """Return the tensor of all samples, which autograd sees, behind one that vmap shows to the model."""
    while _Functorch.is_functorch_wrapped_tensor(tensor):
        tensor = _Functorch.get_unwrapped(tensor)
    return tensor
