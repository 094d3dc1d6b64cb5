"""What every layer saw of each sample: its input and the error of its output, from one pass over a batch.

The model runs on single samples, under torch.func.vmap where that can run it. The gradient of one sample with respect
to a layer's parameters follows from that sample's input of the layer and from the back-propagated error of its output.
Parameters that are not followed layer by layer are given to the model once a sample instead, or differentiated one
sample at a time.

Reference: Goodfellow, "Efficient per-example gradient computations", arXiv 1510.01799.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from common.foundations.tensor_files import dense_parts
from common.gradients.aborted_runs import restored_if_aborted
from common.gradients.hidden_uses import hidden_uses
from common.gradients.layer_calls import CallRecorder, LayerCall, SamplesDisagreeError, Source
from common.gradients.layer_products import joined, merge, write_products
from common.gradients.layer_shares import Capture, direct, matrix_shape, shares
from common.gradients.one_at_a_time import sample_gradients
from common.gradients.sample_level import SampleLevel, SingleSample
from common.workloads.records import Examples, Loss, map_tensors
from common.workloads.running import run_model, trainable_parameters

LAYERS, VMAP, ONE_AT_A_TIME = "layer by layer", "by torch.func.vmap", "one sample at a time"
"""The steps of the ladder, the fastest first."""


@dataclass(frozen=True)
class Routes:
    """Which step of the ladder each trainable parameter takes; those in neither field are followed layer by layer."""

    by_vmap: dict[str, str] = field(default_factory=dict)
    """Parameter -> why its gradient comes from a copy of it for every sample, under torch.func.vmap."""
    one_at_a_time: dict[str, str] = field(default_factory=dict)
    """Parameter -> why it is differentiated one sample at a time."""
    singly: str = ""
    """Why layers are followed on single samples without torch.func.vmap, which cannot run the model; else empty."""

    def step(self, name: str) -> str:
        """Return the step that a parameter takes."""
        return ONE_AT_A_TIME if name in self.one_at_a_time else VMAP if name in self.by_vmap else LAYERS


def row_dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype of a model's per-sample gradients: float64 where a trained parameter has it, else float32."""
    exact = any(p.dtype == torch.float64 for p in trainable_parameters(model).values())
    return torch.float64 if exact else torch.float32


class LayerCapture:
    """Captures of a model in eval mode, which stays as it is.

    Rare samples on which torch.func.vmap cannot run the model are followed one by one, and rare uses of a parameter
    that cannot be followed are differentiated one by one. With `is_strict` the former raise, the latter are missing.
    """

    def __init__(self, model: nn.Module, loss: Loss, routes: Routes, is_strict: bool = False):
        self._model, self._loss, self._routes, self._is_strict = model, loss, routes, is_strict
        self._parameters = trainable_parameters(model)
        self.dtype = row_dtype(model)

    def __call__(self, batch: Examples, wanted: Collection[str] | None = None) -> dict[str, list[Capture]]:
        """Return each parameter's captures of the samples of a batch, which lie on the model's device.

        `wanted` restricts the answer, and the backward pass, to these parameters; None means all. Parameters that no
        sample uses are absent.
        """
        names = [name for name in self._parameters if wanted is None or name in wanted]
        alone = [name for name in names if self._routes.step(name) == ONE_AT_A_TIME]
        together = [name for name in names if self._routes.step(name) != ONE_AT_A_TIME]
        captures = {}
        if together and self._routes.singly:
            captures = self._one_by_one(batch, names)
        elif together:
            with _without_vmap_warnings():
                captures = self._together(batch, together)
        if not (together and self._routes.singly):
            captures |= self._alone(batch, alone)
        return {name: [capture.to(self.dtype) for capture in captures[name]] for name in names if name in captures}

    def not_followed(self, one: Examples) -> tuple[dict[str, str], dict[str, str]]:
        """Return why a use of a parameter cannot be followed, from a forward pass on one sample, by parameter.

        The first have uses that are seen, of which vmap may make something; the second have uses that nobody sees.
        """
        if self._routes.singly:
            recorder, losses = self._run_one(one, self._parameters)
        else:
            recorder, losses = self._run(one, self._copies(len(one), self._parameters), self._parameters)
        hidden = hidden_uses(losses.sum(), self._followed(), recorder.calls, self._parameters)
        return recorder.unknown, {name: why for name, why in hidden.items() if name not in recorder.unknown}

    def probe(self, one: Examples) -> tuple[dict[str, list[Capture]], int]:
        """Return the captures of a single sample, and the bytes that its backward pass holds.

        These are what the forward pass saves for it, copies of parameters, and errors. Where samples are run one at a
        time, those of a batch do not add up, so these count nothing.
        """
        steps = {name: self._routes.step(name) for name in self._parameters}
        if self._routes.singly or set(steps.values()) == {ONE_AT_A_TIME}:
            return self(one), 1
        captures, held = self._holding(one)
        for parameter in self._model.parameters():
            held.pop(parameter.data_ptr(), None)
        copied = sum(self._parameters[name].nbytes for name, step in steps.items() if step == VMAP)
        captured = sum(capture.nbytes for parts in captures.values() for capture in parts)
        return captures, sum(held.values()) + 2 * copied + captured

    def _holding(self, one: Examples) -> tuple[dict[str, list[Capture]], dict[int, int]]:
        """Return the captures of a single sample, and address -> bytes of what the forward pass saves for them."""
        held: dict[int, int] = {}

        def remember(tensor: Tensor) -> Tensor:
            for part in dense_parts(tensor):
                held[part.data_ptr()] = part.nbytes
            return tensor

        try:
            with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
                return self(one), held
        except RuntimeError as error:
            if "saved tensor hooks" not in str(error):
                raise
        # derivatives that the model takes itself with torch.func allow no such hooks: all that is computed is counted
        with _Computed(remember):
            return self(one), held

    def _together(self, batch: Examples, names: list[str]) -> dict[str, list[Capture]]:
        """Return the captures of a batch, group by group where the model does other things for other samples."""
        try:
            return self._vmapped(batch, names)
        except SamplesDisagreeError as error:
            groups = error.groups()
        except Exception:  # what vmap does to a user's model may raise anything, and samples may be rare that do so
            if self._is_strict:
                raise
            return self._one_by_one(batch, names)
        return merge([(group, self._together(batch.subset(group), names)) for group in groups], len(batch))

    def _vmapped(self, batch: Examples, names: list[str]) -> dict[str, list[Capture]]:
        copies = self._copies(len(batch), names)
        recorder, losses = self._run(batch, copies, names)
        missed = self._missed(recorder, losses.sum(), names)
        captures = self._collected(recorder.calls, losses.sum(), copies, len(batch), names)
        return captures | self._alone(batch, missed)

    def _one_by_one(self, batch: Examples, names: list[str]) -> dict[str, list[Capture]]:
        singles = [(torch.tensor([i]), self._of_one(batch.subset(slice(i, i + 1)), names)) for i in range(len(batch))]
        return merge(singles, len(batch))

    def _of_one(self, one: Examples, names: list[str]) -> dict[str, list[Capture]]:
        """Return the captures of a single sample; parameters that layers do not explain are differentiated with it."""
        recorder, loss = self._run_one(one, names)
        alone = {name: self._parameters[name] for name in names if self._routes.step(name) != LAYERS}
        missed = self._missed(recorder, loss, [name for name in names if name not in alone])
        if len(missed) + len(alone) == len(names):
            return self._alone(one, names)
        captures = self._collected(recorder.calls, loss, alone, 1, names)
        return captures | self._alone(one, missed)

    def _missed(self, recorder: CallRecorder, total: Tensor, names: Collection[str]) -> list[str]:
        """Return the parameters that these samples use in a way that is not followed or not seen, as others do not."""
        if self._is_strict:
            return []
        hidden = hidden_uses(total, self._followed(), recorder.calls, names)
        return [name for name in names if name in recorder.unknown or name in hidden]

    def _alone(self, batch: Examples, names: list[str]) -> dict[str, list[Capture]]:
        """Return the gradients of some parameters, one backward pass a sample."""
        if not names:
            return {}
        gradients = sample_gradients(self._model, self._loss, batch, [self._parameters[name] for name in names])
        return {name: [direct(found)] for name, found in zip(names, gradients, strict=True)}

    def _collected(
        self, calls: list[LayerCall], total: Tensor, others: Mapping[str, Tensor], count: int, names: list[str]
    ) -> dict[str, list[Capture]]:
        """Return the captures of recorded calls, and of `others`: parameters, or a copy of each for every sample."""
        places = [output.at for call in calls for output in call.outputs]
        found = iter(_gradients(total, places + [get_gradient_edge(tensor) for tensor in others.values()]))
        captures: dict[str, list[Capture]] = {}
        computed: dict[str, tuple[Source, GradientEdge, list[Capture]]] = {}
        for call in calls:
            reached = [next(found) for _ in call.outputs]
            if all(derivative is None for derivative in reached):
                continue
            errors = [o.error(derivative) for o, derivative in zip(call.outputs, reached, strict=True)]
            for source, capture in shares(call, errors):
                if source.edge is None:
                    captures.setdefault(source.name, []).append(capture)
                else:
                    computed.setdefault(source.name, (source, source.edge, []))[2].append(capture)
        for name, gradient in zip(others, found, strict=True):
            if gradient is not None:
                dense = gradient.to_dense() if gradient.is_sparse else gradient
                captures[name] = [direct(dense.reshape(count, *self._parameters[name].shape))]
        for name, capture in self._pulled_back(computed.values(), count):
            captures.setdefault(name, []).append(capture)
        return {name: joined(captures[name]) for name in names if name in captures}

    def _copies(self, count: int, names: Collection[str]) -> dict[str, Tensor]:
        """Return `count` copies of the parameters that take the second step, to be differentiated instead of them."""
        chosen = {name: self._parameters[name].detach() for name in names if self._routes.step(name) == VMAP}
        return {name: p.expand(count, *p.shape).clone().requires_grad_() for name, p in chosen.items()}

    def _run(self, batch: Examples, copies: dict[str, Tensor], names: Collection[str]) -> tuple[CallRecorder, Tensor]:
        """Return the recorded calls of the parameters named, and the (B,) losses."""
        followed, recorders = self._followed(), []

        def sample_loss(inputs, target, copies):
            recorder = CallRecorder(followed, copies, names, SampleLevel(len(batch)))
            recorders.append(recorder)
            with recorder:
                outputs = run_model(self._model, map_tensors(lambda x: x[None], inputs))
                return self._loss(outputs, target[None]).sum()

        with torch.enable_grad(), _without_vmap_warnings(), restored_if_aborted(self._model):
            losses = torch.func.vmap(sample_loss)(batch.inputs, batch.targets, copies)
        return recorders[0], losses

    def _run_one(self, one: Examples, names: Collection[str]) -> tuple[CallRecorder, Tensor]:
        """Return the recorded calls of the parameters named, and the loss of a single sample, without vmap."""
        followed = {name: p for name, p in self._parameters.items() if self._routes.step(name) == LAYERS}
        recorder = CallRecorder(followed, {}, names, SingleSample())
        with torch.enable_grad(), restored_if_aborted(self._model), recorder:
            loss = self._loss(run_model(self._model, one.inputs), one.targets).sum()
        return recorder, loss

    def _followed(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self._parameters.items() if self._routes.step(name) != ONE_AT_A_TIME}

    def _pulled_back(
        self, computed: Collection[tuple[Source, GradientEdge, list[Capture]]], count: int
    ) -> Iterator[tuple[str, Capture]]:
        """Yield the gradients of parameters from those of the tensors that are computed from them."""
        for source, edge, parts in computed:
            if not source.tensor.numel():  # nothing to reshape, and no gradient
                continue
            rows, cols = matrix_shape(source.tensor)
            products = torch.empty(count, rows * cols, dtype=source.tensor.dtype, device=source.tensor.device)
            write_products(parts, slice(0, rows), cols, products)
            names = sorted(source.parameters)
            gradients = torch.autograd.grad(
                edge,
                [self._parameters[name] for name in names],
                grad_outputs=products.view(count, *source.tensor.shape),
                is_grads_batched=True,
                retain_graph=True,
                allow_unused=True,
            )
            yield from ((n, direct(g)) for n, g in zip(names, gradients, strict=True) if g is not None)


class _Computed(TorchDispatchMode):
    """Shows every tensor that is computed, until all are there, so that each has an address of its own."""

    def __init__(self, show: Callable[[Tensor], object]):
        super().__init__()
        self._show = show
        self._all: list[Tensor] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                self._all.append(leaf)
                self._show(leaf)
        return found


@contextmanager
def _without_vmap_warnings() -> Iterator[None]:
    """Keep vmap from saying that it runs an operation sample by sample: the route's time is measured and told."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        yield


def _gradients(total: Tensor, places: Sequence[GradientEdge]) -> Sequence[Tensor | None]:
    if not places or not total.requires_grad:
        return [None] * len(places)
    return torch.autograd.grad(total, places, allow_unused=True)
