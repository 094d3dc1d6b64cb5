"""Recognise, while a model runs on one sample (as a rule under torch.func.vmap), every call that uses its parameters.

Calls are intercepted where they use a parameter (`torch.nn.functional.linear` and the like), not at modules, so that
parameters which a module hands to a function, shares or reuses are seen too. The derivative of the loss by each call's
output is the error of that output. vmap gives inputs and errors a dimension that runs over samples, whatever the model
does to its own dimensions.
"""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from common.gradients.all_at_once import ALL_AT_ONCE
from common.gradients.layer_readers import READERS, Reading, with_dense_gradient
from common.gradients.parameter_sources import Source, parameters_behind, view_of
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
        self._names = {id(p): name for name, p in parameters.items() if name not in substitutes}
        self._numbers = itertools.count()
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
        leaves, spec = tree_flatten((args, kwargs))
        sources = {i: self._source(leaf) for i, leaf in enumerate(leaves) if id(leaf) in self._known}
        output = func(*args, **kwargs)
        return self._recorded(func, args, kwargs, leaves, spec, sources, output)

    def _agreed(self, tensor: Tensor) -> Tensor:
        values = self._level.of_all(tensor).detach().reshape(self._level.batch, -1)
        if values.shape[1] == 1 and not torch.allclose(values, values[0], rtol=0, atol=0, equal_nan=True):
            raise SamplesDisagreeError(values[:, 0])
        return values[0]

    def _substituted(self, args, kwargs):
        leaves, spec = tree_flatten((args, kwargs))
        return tree_unflatten([self._substitutes.get(id(leaf), leaf) for leaf in leaves], spec)

    def _recorded(self, func, args, kwargs, leaves, spec, sources: dict[int, Source], output):
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

    def _source(self, tensor: Tensor) -> Source:
        """Return what a tensor is computed from, also where it was changed in place since, through a view of it."""
        source = self._known[id(tensor)]
        if source.edge is None or not self._level.is_current():
            return source
        node = node_of(tensor)
        if source.edge.node is node:
            return source
        return self._computed(tensor, frozenset(parameters_behind(node, self._names)))

    def _computed(self, tensor: Tensor, parameters: frozenset[str]) -> Source:
        """Remember that a tensor is computed from parameters alone."""
        name = f"{', '.join(sorted(parameters))}, computed {next(self._numbers)}"
        self._known[id(tensor)] = Source(name, tensor, parameters, get_gradient_edge(tensor))
        return self._known[id(tensor)]

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
        if reading is None or not isinstance(reading.input, Tensor) or reading.input.is_complex():
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
        view = None if others or len(results) != 1 else view_of(func, args, first, results[0])
        parameters = frozenset().union(first.parameters, *(source.parameters for source in others))
        for result in results:
            if view is not None:
                self._known[id(result)] = view
            else:
                self._computed(result, parameters)


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
