"""The model whose gradients are projected, its samples, and the projection: the same on every rank."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.metadata import version

import torch
from torch import nn

from common.experiments.preparing.device import choose_device
from common.experiments.preparing.dimensions import dimension_of_ranks, require_number_a_block
from common.experiments.preparing.preparation import load_model, print_model
from common.experiments.projecting.options import ProjectOptions
from common.foundations.distributed import Ranks
from common.foundations.errors import UserError
from common.foundations.tensor_files import fingerprint
from common.gradients.layer_capture import Routes, row_dtype
from common.gradients.layer_factors import flat_parameters
from common.gradients.planning import plan_gradients
from common.gradients.provenance import probe_losses
from common.gradients.verification import Subject
from common.sketches.factor_projection import FactorProjection
from common.sketches.kronecker import KroneckerSketch
from common.sketches.kronecker_sizes import sizes_rule
from common.sketches.row_projection import make_row_projection
from common.sketches.sample_projection import GradientRows, SampleProjection
from common.sketches.tensorsketch import TensorSketch
from common.stores.manifest import PARTS, StoreIdentity, rows_a_range
from common.stores.store import Module
from common.workloads.records import Examples
from common.workloads.running import trainable_parameters


@dataclass(frozen=True)
class ProjectionSubject:
    """Everything that does not depend on which samples are projected."""

    subject: Subject
    """Model, loss and the samples of both parts, training samples first."""
    routes: Routes
    """How the gradient of each parameter is computed."""
    projection: SampleProjection
    """Samples to projected gradients."""
    identities: dict[str, StoreIdentity]
    """Part -> what its store is made of."""
    starts: dict[str, int]
    """Part -> its first sample among those of `subject`."""

    def examples(self, part: str, rows: range) -> Examples:
        """Return some samples of a part."""
        first = self.starts[part]
        return self.subject.examples.subset(slice(first + rows.start, first + rows.stop))


def prepare(options: ProjectOptions, ranks: Ranks) -> ProjectionSubject:
    """Return what is projected, after the checkpoint has been trained by rank 0 where there is none.

    Raises:
        UserError: see the functions called; no parameter is left by --modules, or m is not below d.
    """
    device = choose_device(options.device)
    workload, trained = ranks.first_alone(lambda: load_model(options.workload, device, _untimed))
    model = trained.model
    leave_out(model, options.modules)
    spans = parameter_spans(model)
    dim = spans[-1].stop
    if options.kronecker_ranks is None and options.m >= dim:
        raise UserError(f"--m {options.m} must be below the {dim} parameters that are projected")
    print_model(workload, trained, dim)
    samples = [("training", workload.train), ("test", workload.test)]
    plan = plan_gradients(workload, model, samples, options.batch_size, "recompute", torch.float32, device)
    routes = ranks.gather(plan.routes)[0]
    subject = Subject(plan.model, plan.workload.loss, plan.examples, row_dtype(plan.model))
    projection, modules = make_projection(options, subject, routes, device)
    losses = tuple(probe_losses(plan))
    identities = {
        part: StoreIdentity(
            part=part,
            kind=options.kind,
            m=projection.m,
            seed=options.seed,
            scale=options.scale,
            n=len(examples),
            d=dim,
            dtype=options.dtype,
            parameters=spans,
            modules=modules,
            checkpoint=trained.fingerprint,
            data=fingerprint(*examples.tensors()),
            device=device.type,
            torch=version("torch").split("+")[0],
            rows_a_range=rows_a_range(len(examples), projection.rows_at_once),
            losses=losses,
        )
        for part, (_, examples) in zip(PARTS, samples, strict=True)
    }
    return ProjectionSubject(subject, routes, projection, identities, {"train": 0, "test": len(workload.train)})


def leave_out(model: nn.Module, patterns: tuple[str, ...]) -> None:
    """Freeze the parameters of a model that the patterns leave out.

    A parameter is used where its name, or that of its module, matches any pattern (all are where every pattern begins
    with `!`) and none of those that begin with `!`.

    Raises:
        UserError: a pattern matches nothing, or no parameter is left.
    """
    parameters = trainable_parameters(model)

    def matches(name: str, pattern: str) -> bool:
        return any(fnmatchcase(candidate, pattern) for candidate in (name, name.rpartition(".")[0]))

    for pattern in patterns:
        if not any(matches(name, pattern.removeprefix("!")) for name in parameters):
            raise UserError(f"--modules {pattern} matches none of the parameters: {', '.join(list(parameters)[:20])}")
    wanted = [p for p in patterns if not p.startswith("!")] or ["*"]
    unwanted = [p.removeprefix("!") for p in patterns if p.startswith("!")]
    for name, parameter in parameters.items():
        used = any(matches(name, p) for p in wanted) and not any(matches(name, p) for p in unwanted)
        parameter.requires_grad_(used)
    if not trainable_parameters(model):
        raise UserError(f"--modules {' '.join(patterns)} leaves no parameter of the model")


def parameter_spans(model: nn.Module) -> tuple[Module, ...]:
    """Return the columns of a flat gradient that belong to each trained parameter."""
    return tuple(Module(p.name, p.columns.start, p.columns.stop) for p in flat_parameters(model))


def _untimed(name: str) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def make_projection(
    options: ProjectOptions, subject: Subject, routes: Routes, device: torch.device
) -> tuple[SampleProjection, tuple[Module, ...]]:
    """Return what projects samples, and the store's columns of each module that has a projection of its own.

    Raises:
        UserError: m is smaller than the number of blocks of a Kronecker-factored projection, or its ranks make less.
    """
    model, loss = subject.model, subject.loss
    parameters = flat_parameters(model)
    if options.kind not in ("tensorsketch", "kronecker"):
        rows = make_row_projection(options.kind, options.m, options.seed, parameters[-1].columns.stop, device)
        return GradientRows(model, loss, routes, rows, options.batch_size), ()
    if options.kind == "tensorsketch":
        sketch = TensorSketch(parameters, options.m, options.seed, 0, device)
        return FactorProjection(model, loss, routes, sketch, options.batch_size), ()
    ranks = options.kronecker_ranks
    if ranks is None:
        require_number_a_block("--m", options.m, parameters)
    else:
        dimension_of_ranks(ranks, parameters)
    kronecker = KroneckerSketch(parameters, options.m, options.seed, 0, sizes_rule(ranks), device)
    blocks, start = [], 0
    for name, size in kronecker.block_sizes(options.m):
        blocks.append(Module(name, start, start + size))
        start += size
    return FactorProjection(model, loss, routes, kronecker, options.batch_size), tuple(blocks)
