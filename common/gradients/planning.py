"""Per-sample gradients of a trained model, one row a sample: which to compute, how, and their computation.

Columns follow `model.named_parameters()`, each parameter flattened row by row (C order).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from tqdm import tqdm

from common.foundations.errors import UserError
from common.gradients.kept_rows import Gradients, RecomputedGradients, StoredGradients
from common.gradients.layer_capture import LayerLayout
from common.gradients.layer_gradients import LayerwiseGradients, per_sample_gradients
from common.gradients.layer_layout import layer_layout
from common.workloads.records import Examples, Workload

BATCH_BYTES = 2**29
"""What the float32 gradients of one batch take at most, unless one sample takes more."""
LARGEST_IN_RAM = 2**32
"""Bytes up to which gradients are stored in RAM where nobody says otherwise."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class GradientPlan:
    """Which gradients to compute, and how; nothing is computed yet."""

    workload: Workload
    """Gives the loss."""
    model: nn.Module
    """In eval mode, on `device`."""
    parts: list[tuple[str, Examples]]
    """(name for messages, samples), for example [("training", ...), ("test", ...)]."""
    examples: Examples
    """The samples of all parts, one a row."""
    layout: LayerLayout
    """How the model's layers relate to samples."""
    batch_size: int
    """Samples per batch."""
    offload: str
    """none (device), cpu (RAM), disk (a file) or recompute (nothing is stored)."""
    dtype: torch.dtype
    """Of stored gradients."""
    device: torch.device
    """Where gradients are computed and blocks delivered."""
    last_samples: Tensor | None = None
    """Numbers by which messages name the samples of the last part; None: 0, 1, 2, ..."""

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.examples)

    @property
    def num_columns(self) -> int:
        """Number of trainable parameters, d."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    @property
    def num_bytes(self) -> int:
        """What stored gradients take."""
        return self.num_rows * self.num_columns * self.dtype.itemsize

    @property
    def stored_size(self) -> str:
        """Shape, dtype and bytes of stored gradients, for messages."""
        kind = str(self.dtype).removeprefix("torch.")
        return f"{self.num_rows} x {self.num_columns} {kind}, {gigabytes(self.num_bytes)}"


def plan_gradients(
    workload: Workload,
    model: nn.Module,
    parts: list[tuple[str, Examples]],
    batch_size: int,
    offload: str | None,
    dtype: torch.dtype,
    device: torch.device,
    last_samples: Tensor | None = None,
    prefer_stored: bool = False,
) -> GradientPlan:
    """Return how to compute the gradients of workload.loss at every sample of every part; see `GradientPlan`.

    Batch norm and dropout are in eval mode, so each row is the gradient of one sample's loss alone. Where every layer
    is supported (common/layer_layout.py) rows come from one batched backward pass, else from torch.func.vmap of grad.
    `offload` None stands for recompute where every layer is supported and not `prefer_stored`, else for cpu, or disk
    from 4 GiB on.
    """
    examples = Examples(torch.cat([part.inputs for _, part in parts]), torch.cat([part.targets for _, part in parts]))
    layout = layer_layout(model, workload.loss, examples)
    plan = GradientPlan(workload, model, parts, examples, layout, batch_size, offload, dtype, device, last_samples)
    if offload is not None:
        return plan
    if not layout.unsupported and not prefer_stored:
        return replace(plan, offload="recompute")
    return replace(plan, offload="cpu" if plan.num_bytes <= LARGEST_IN_RAM else "disk")


def compute_gradients(plan: GradientPlan, norms: Tensor | None = None) -> Gradients:
    """Return the gradients of a plan whose offload mode needs no file.

    `norms` are their (N,) float64 lengths, where they are known: recomputed gradients then need no Gram matrix.

    Raises:
        UserError: a gradient is not finite (says which sample and parameter), or a layer is not supported by
            `recompute`.
    """
    if plan.offload == "recompute":
        layerwise = LayerwiseGradients(
            plan.model, plan.workload.loss, plan.examples, plan.batch_size, layout=plan.layout
        )
        print(
            f"gradients: nothing stored; {gigabytes(layerwise.kept_bytes)} of layer inputs and errors in RAM, "
            f"{layerwise.num_passes} pass(es) over the samples a use"
        )
        gradients = RecomputedGradients(layerwise, norms)
        _check_norms(gradients.norms, plan)
        return gradients
    print(f"gradients: {plan.stored_size} {'on the device' if plan.offload == 'none' else 'in RAM'}")
    gradients = StoredGradients(plan.num_rows, plan.num_columns, plan.offload, plan.dtype, plan.device)
    fill(gradients, plan)
    return gradients


def fill(gradients: StoredGradients, plan: GradientPlan) -> None:
    """Compute all gradients of a plan, batch by batch, into `gradients`; UserError where one is not finite."""
    compute = compute_by_vmap(plan.workload, plan.model)
    if not plan.layout.unsupported:
        compute = compute_by_layers(plan.workload, plan.model, plan.layout)
    with tqdm(total=plan.num_rows, desc="gradients", unit="sample", file=sys.stderr, disable=None, leave=False) as bar:
        size = max(1, min(plan.batch_size, BATCH_BYTES // (4 * plan.num_columns)))
        for start in range(0, plan.num_rows, size):
            batch = plan.examples.subset(slice(start, start + size))
            gradients.write(start, compute(batch.inputs.to(plan.device), batch.targets.to(plan.device)))
            bar.update(len(batch))
    _check_norms(gradients.norms, plan)


def compute_by_layers(workload: Workload, model: nn.Module, layout: LayerLayout) -> Callable[[Tensor, Tensor], Tensor]:
    """Return (inputs, targets) -> (B, d) gradients, by hooks on one batched backward pass."""
    return lambda inputs, targets: per_sample_gradients(model, workload.loss, inputs, targets, layout)


def compute_by_vmap(workload: Workload, model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """Return (inputs, targets) -> (B, d) gradients, by torch.func.vmap over torch.func.grad."""
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    others = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    buffers = {name: b.detach() for name, b in model.named_buffers()} | others

    def sample_loss(values, inputs, target):
        outputs = torch.func.functional_call(model, (values, buffers), (inputs[None],))
        return workload.loss(outputs, target[None]).squeeze(0)

    per_sample = torch.func.vmap(torch.func.grad(sample_loss), in_dims=(None, 0, 0))

    def compute(inputs, targets):
        gradients = per_sample(parameters, inputs, targets)
        return torch.cat([g.flatten(1) for g in gradients.values()], dim=1)

    return compute


def _check_norms(norms: Tensor, plan: GradientPlan) -> None:
    bad = torch.nonzero(~torch.isfinite(norms)).flatten().tolist()
    if not bad:
        return
    one = plan.examples.subset(slice(bad[0], bad[0] + 1))
    parameters = {name: p for name, p in plan.model.named_parameters() if p.requires_grad}
    loss = plan.workload.loss(plan.model(one.inputs.to(plan.device)), one.targets.to(plan.device)).sum()
    found = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
    names = [name for name, g in zip(parameters, found, strict=True) if not torch.isfinite(g).all()]
    numbers = [(name, i) for name, samples in plan.parts for i in range(len(samples))]
    part, number = numbers[bad[0]]
    if plan.last_samples is not None and part == plan.parts[-1][0]:
        number = int(plan.last_samples[number])
    raise UserError(
        f"the gradient of {part} sample {number} is not finite in {names[0] if names else 'float32'} "
        f"({len(bad)} such samples); all gradients must be finite"
    )


def gigabytes(count: int) -> str:
    """Return a number of bytes for people and in full."""
    return f"{count / 1e9:.2f} GB ({count} bytes)"
