"""Tensors that are parameters, or computed from parameters alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

_TRANSPOSES = (torch.t, torch.Tensor.t, *(vars(torch._C.TensorBase)[name].__get__ for name in ("T", "mT")))
"""What transposes a matrix."""


@dataclass(frozen=True)
class Source:
    """A trainable parameter, or a tensor computed from trainable parameters alone."""

    name: str
    """Of the parameter; `parameter, computed i` for a tensor computed from parameters."""
    tensor: Tensor
    """Itself: holding it keeps its identity unique."""
    parameters: frozenset[str]
    """Names of the parameters that it is made of."""
    edge: GradientEdge | None = None
    """Where the gradient of a computed tensor enters the graph of its parameters; None for what `view` describes."""
    transposed: bool = False
    """Whether it is the transpose of the parameter's last rows, which begin at `first_row`."""
    first_row: int = 0
    """The row of the parameter at which the rows of the tensor begin."""


def view_of(func: Callable, args: tuple, source: Source, result: Tensor) -> Source | None:
    """Return `parameter.t()`, `parameter[start:]` and `parameter[start:, :]` as what they are; None for all else."""
    tensor = source.tensor
    if source.edge is not None or tensor.ndim != 2 or args[0] is not tensor:
        return None
    transposes = func in _TRANSPOSES or (
        func in (torch.transpose, torch.Tensor.transpose) and len(args) == 3 and {args[1] % 2, args[2] % 2} == {0, 1}
    )
    if transposes:
        return Source(source.name, result, source.parameters, None, not source.transposed, source.first_row)
    if func is not torch.Tensor.__getitem__ or source.transposed:
        return None
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    rows, rest = index[0], index[1:]
    if not isinstance(rows, slice) or rows.stop is not None or rows.step is not None:
        return None
    if any(part != slice(None) for part in rest):
        return None
    first_row = source.first_row + tensor.shape[0] - result.shape[0]
    return Source(source.name, result, source.parameters, None, False, first_row)


def parameters_behind(start: Node | None, names: Mapping[int, str]) -> set[str]:
    """Return which of some parameters a node of autograd's graph depends on; `names` are by the ids of parameters."""
    return {names[key] for node in nodes_behind([start]) if (key := leaf_of(node)) in names}


def nodes_behind(starts: Iterable[Node | None], ways: Mapping[Node, list[Node]] | None = None) -> Iterator[Node]:
    """Yield every node of autograd's graph that is reached from some; `ways` replace what follows some nodes."""
    ways = ways or {}
    waiting, seen = list(starts), set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting += ways[node] if node in ways else [before for before, _ in node.next_functions]


def leaf_of(node: Node) -> int:
    """Return the id of the tensor whose gradient is accumulated at a node; that of None for all other nodes."""
    return id(None if node.next_functions else getattr(node, "variable", None))
