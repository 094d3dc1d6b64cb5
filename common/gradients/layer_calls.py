"""Recognise, while a model runs on one sample (as a rule under torch.func.vmap), every call that uses its parameters.

Calls are intercepted where they use a parameter (`torch.nn.functional.linear` and the like), not at modules, so that
parameters which a module hands to a function, shares or reuses are seen too. The derivative of the loss by each call's
output is the error of that output. vmap gives inputs and errors a dimension that runs over samples, whatever the model
does to its own dimensions.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from common.gradients.all_at_once import ALL_AT_ONCE
from common.gradients.layer_readers import READERS, Reading, with_dense_gradient
from common.gradients.recurrent import STEP_BY_STEP, is_packed
from common.gradients.sample_level import Output, SampleLevel, is_differentiable, node_of

_NUMBERS = {
    torch.Tensor.__bool__,
    torch.Tensor.__int__,
    torch.Tensor.__float__,
    torch.Tensor.__index__,
    torch.Tensor.item,
}
"""What makes a Python number of a tensor."""
_SINGLE = {Tensor, nn.Parameter, int, float, bool, str, type(None), slice, torch.dtype, torch.device}
"""Kinds of arguments that hold no others."""
_IS_DIFFERENTIABLE = vars(torch._C.TensorBase)["requires_grad"].__get__
"""What asks whether a tensor has a gradient: vmap answers no, and hooks would not be set."""
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

    @property
    def is_parameter(self) -> bool:
        """Whether it is a whole parameter as it is."""
        return self.edge is None and not self.transposed and not self.first_row


@dataclass(frozen=True)
class LayerCall:
    """One use of parameters in a forward pass over a batch, sample by sample."""

    function: Callable
    """What was called."""
    leaves: list[Any]
    """Its arguments, flattened; tensors among them as the function saw them."""
    spec: TreeSpec
    """How they are put together: (args, kwargs)."""
    sources: dict[int, Source]
    """Position in `leaves` -> parameter, or tensor computed from parameters."""
    data: dict[int, Tensor]
    """Position in `leaves` -> (B, ...) values of what depends on the sample."""
    reading: Reading | None
    """What the call means, where a reader describes it."""
    places: list[int]
    """Positions of the differentiable outputs among all, flattened."""
    outputs: list[Output]
    """Where the error of each differentiable output is read off."""
    inputs: list[Node]
    """Where the graph goes on behind its arguments other than `sources`."""


class SamplesDisagreeError(Exception):
    """The model decides something by the values of a sample, and the samples of the batch decide differently."""

    def __init__(self, decisions: Tensor):
        super().__init__("the samples of a batch take different ways through the model")
        self.decisions = decisions

    def groups(self) -> list[Tensor]:
        """Return the indices of the samples that decide alike, group by group."""
        _, which = torch.unique(self.decisions, return_inverse=True)
        return [torch.nonzero(which == group).flatten() for group in range(int(which.max()) + 1)]


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters with entries that are differentiated, by name, in the order of the flat gradient."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad and p.numel()}


class CallRecorder(TorchFunctionMode):
    """Lists the calls that use trainable parameters, and the parameters used in a way that is not understood.

    Where the model makes a Python number of a sample's values, to decide what to do, all samples must give the same
    number: SamplesDisagreeError says which do not.

    Args:
        parameters: those to look for.
        substitutes: parameter name -> tensor of one sample to use in its place; these parameters are not looked for.
        wanted: names of the parameters whose calls are listed.
        level: the samples that are run, B of them.
    """

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        substitutes: dict[str, Tensor],
        wanted: Collection[str],
        level: SampleLevel,
    ):
        super().__init__()
        self.calls: list[LayerCall] = []
        self.unknown: dict[str, str] = {}
        self._wanted, self._level = wanted, level
        self._substitutes = {id(parameters[name]): tensor for name, tensor in substitutes.items()}
        self._known = {
            id(p): Source(name, p, frozenset([name])) for name, p in parameters.items() if name not in substitutes
        }

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _NUMBERS and self._level.depends(args[0]) and self._level.is_current():
            return func(self._agreed(args[0]), *args[1:], **kwargs)
        if func == _IS_DIFFERENTIABLE:
            return is_differentiable(args[0])
        if not torch.is_grad_enabled():
            return func(*args, **kwargs)
        if self._substitutes and _mentions(self._substitutes, (args, kwargs)):
            args, kwargs = self._substituted(args, kwargs)
        if func in STEP_BY_STEP and not is_packed(func, args):
            with self:
                return STEP_BY_STEP[func](*args, **kwargs)
        if not _mentions(self._known, (args, kwargs)):
            together = None
            if func in ALL_AT_ONCE and self._level.is_current():
                together = ALL_AT_ONCE[func](self._level, *args, **kwargs)
            return func(*args, **kwargs) if together is None else together
        if _is_composite(func):
            with self:
                return _opened(func)(*args, **kwargs)
        args, kwargs = with_dense_gradient(func, args, kwargs)
        output = func(*args, **kwargs)
        return self._recorded(func, args, kwargs, output)

    def _agreed(self, tensor: Tensor) -> Tensor:
        values = self._level.of_all(tensor).detach().reshape(self._level.batch, -1)
        if values.shape[1] == 1 and not torch.allclose(values, values[0], rtol=0, atol=0, equal_nan=True):
            raise SamplesDisagreeError(values[:, 0])
        return values[0]

    def _substituted(self, args, kwargs):
        leaves, spec = tree_flatten((args, kwargs))
        return tree_unflatten([self._substitutes.get(id(leaf), leaf) for leaf in leaves], spec)

    def _recorded(self, func, args, kwargs, output):
        leaves, spec = tree_flatten((args, kwargs))
        sources = {i: self._known[id(leaf)] for i, leaf in enumerate(leaves) if id(leaf) in self._known}
        data = [i for i, leaf in enumerate(leaves) if i not in sources and self._level.depends(leaf)]
        changes_first = _works_in_place(func, kwargs)
        results = [args[0]] if changes_first else [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        results = [result for result in results if is_differentiable(result)]
        if not results:
            return output
        if not self._level.is_current():
            return self._not_understood(func, sources, output)
        reading = self._read(func, args, kwargs, leaves, sources)
        if not data and reading is None:
            self._follow(func, args, leaves, sources, results)
            return output
        if changes_first:
            return self._not_understood(func, sources, output)
        return self._listed(func, leaves, spec, sources, data, reading, output)

    def _not_understood(self, func, sources: dict[int, Source], output):
        names = frozenset().union(*(source.parameters for source in sources.values()))
        self.unknown |= dict.fromkeys(names, f"used by {_name(func)} in a way that is not followed")
        return output

    def _listed(self, func, leaves, spec, sources, data, reading, output):
        if all(source.parameters.isdisjoint(self._wanted) for source in sources.values()):
            return output
        results, output_spec = tree_flatten(output)
        places = [i for i, result in enumerate(results) if isinstance(result, Tensor) and is_differentiable(result)]
        outputs = []
        for i in places:
            results[i], place = self._level.followed(results[i], is_unsaved=reading is not None)
            outputs.append(place)
        values = {position: self._level.of_all(leaves[position]).detach() for position in data}
        others = (leaf for i, leaf in enumerate(leaves) if i not in sources and isinstance(leaf, Tensor))
        inputs = [node for leaf in others if (node := node_of(leaf)) is not None]
        self.calls.append(LayerCall(func, leaves, spec, sources, values, reading, places, outputs, inputs))
        return tree_unflatten(results, output_spec)

    def _read(self, func, args, kwargs, leaves, sources: dict[int, Source]) -> Reading | None:
        """Return what a reader says, unless a parameter has another role than the reader describes."""
        reading = READERS[func](*args, **kwargs) if func in READERS else None
        if reading is None or not isinstance(reading.input, Tensor):
            return None
        roles = {id(tensor) for tensor in (reading.weight, reading.bias) if tensor is not None}
        if not all(id(leaves[position]) in roles for position in sources) or id(reading.input) in roles:
            return None
        # a table may be looked up in the same place by every sample, and a first state be the same for all
        if reading.kind != "linear" and any(source.transposed or source.first_row for source in sources.values()):
            return None
        return reading if reading.kind in ("lookup", "linear") or self._level.depends(reading.input) else None

    def _follow(self, func, args, leaves, sources: dict[int, Source], results: list[Tensor]) -> None:
        """Remember what is computed from parameters alone."""
        (first, *others) = sources.values()
        view = None if others or len(results) != 1 else _view(func, args, first, results[0])
        parameters = frozenset().union(first.parameters, *(source.parameters for source in others))
        for result in results:
            if view is not None:
                self._known[id(result)] = view
                continue
            name = f"{', '.join(sorted(parameters))}, computed {len(self._known)}"
            self._known[id(result)] = Source(name, result, parameters, get_gradient_edge(result))


def _view(func: Callable, args: tuple, source: Source, result: Tensor) -> Source | None:
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


def _mentions(known: Mapping[int, object], values: Iterable[Any]) -> bool:
    """Return whether one of the values, or of those in lists and dicts among them, has its id in `known`."""
    for value in values:
        if id(value) in known:
            return True
        if type(value) in _SINGLE:  # most are: every call of a forward pass comes here
            continue
        if isinstance(value, list | tuple | dict) and _mentions(
            known, value.values() if isinstance(value, dict) else value
        ):
            return True
    return False


def _is_composite(func: Callable) -> bool:
    """Whether a function of torch.nn.functional that no reader knows is made of others, written in Python."""
    return isinstance(func, types.FunctionType) and func.__module__ == "torch.nn.functional" and func not in READERS


def _opened(func: types.FunctionType) -> types.FunctionType:
    """Return the function without its own interception, so that what it calls is intercepted instead."""
    names = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    visible = {**func.__globals__, **dict.fromkeys(names, lambda *args: False)}
    opened = types.FunctionType(func.__code__, visible, func.__name__, func.__defaults__, func.__closure__)
    opened.__kwdefaults__ = func.__kwdefaults__
    return opened


def _works_in_place(func: Callable, kwargs: dict) -> bool:
    name = _name(func)
    return (
        kwargs.get("out") is not None
        or name == "__setitem__"
        or (name.endswith("_") and not name.startswith("__"))
        or (name.startswith("__i") and name not in ("__invert__", "__index__", "__int__"))
    )


def _name(func: Callable) -> str:
    return getattr(func, "__name__", str(func))
