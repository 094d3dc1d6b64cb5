"""Per-sample gradients of a trained model, one row a sample: which to compute, how, and their computation.

Columns follow `model.named_parameters()`, each parameter flattened row by row (C order).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from common.foundations.errors import UserError
from common.foundations.progress import progress_bar
from common.gradients.kept_rows import Gradients, RecomputedGradients, StoredGradients
from common.gradients.layer_capture import Routes, row_dtype
from common.gradients.layer_gradients import LayerwiseGradients, RowGradients
from common.gradients.one_at_a_time import one_gradient
from common.gradients.precision import attributed
from common.gradients.routes import CheckedRoutes, check_routes, drop
from common.gradients.row_checks import check_rows
from common.gradients.streamed_rows import StreamedGradients
from common.gradients.verification import Mismatch, Subject
from common.workloads.records import Examples, Workload, concatenate
from common.workloads.running import trainable_parameters

BATCH_BYTES = 2**29
"""What the float32 gradients of one batch take at most, unless one sample takes more."""
CHECK_SHARE = 0.05
"""Share of the time of all gradients that checking them may take, choosing the routes included."""
LARGEST_IN_RAM = 2**32
"""Bytes up to which gradients are stored in RAM where nobody says otherwise."""
Result = TypeVar("Result")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class GradientPlan:
    """Which gradients to compute, and how; nothing is computed yet."""

    workload: Workload
    """Gives the loss, as it is attributed: without autocast."""
    model: nn.Module
    """In eval mode, on `device`; in float32 or float64, whatever precision the workload's has."""
    parts: list[tuple[str, Examples]]
    """(name for messages, samples), for example [("training", ...), ("test", ...)]."""
    examples: Examples
    """The samples of all parts, one a row."""
    checked: CheckedRoutes
    """How the gradient of each parameter is computed, and how that was checked."""
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
    def routes(self) -> Routes:
        """Which step of the ladder each parameter takes."""
        return self.checked.routes

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

    def sample_name(self, row: int) -> str:
        """Return how messages call the sample of a row, for example `training sample 57`."""
        return _sample_name(self.parts, self.last_samples, row)


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

    Batch norm and dropout are in eval mode, so each row is the gradient of one sample's loss alone. Each parameter
    takes the fastest step of layer by layer, torch.func.vmap, one sample at a time whose numbers are those of plain
    autograd (common/gradients/routes.py); one line says which. `offload` None stands for recompute; but for cpu, or
    disk from 4 GiB on, where a parameter goes one sample at a time, rows are to have 16 bits, or they are
    `prefer_stored` and what layers see of the samples is not much less.

    Raises:
        UserError: plain autograd cannot differentiate the loss of a sample, or samples influence one another.
    """
    model, loss, examples = attributed(model, workload.loss, concatenate([part for _, part in parts]), device)
    workload = replace(workload, loss=loss)

    def name_sample(row: int) -> str:
        return _sample_name(parts, last_samples, row)

    checked = check_routes(model, workload.loss, examples, batch_size, name_sample)
    print(f"gradients: {checked.describe(len(examples))}")
    if line := checked.describe_rounding(name_sample):
        print(f"gradients: {line}")
    plan = GradientPlan(workload, model, parts, examples, checked, batch_size, "", dtype, device, last_samples)
    if offload is None:
        stored = checked.routes.one_at_a_time or dtype != torch.float32 or (prefer_stored and not _is_compact(plan))
        offload = "recompute" if not stored else "cpu" if plan.num_bytes <= LARGEST_IN_RAM else "disk"
    return replace(plan, offload=offload)


def _is_compact(plan: GradientPlan) -> bool:
    """Whether inputs and errors of all layers fit into memory, and take a quarter of the gradients' bytes at most."""
    layerwise = LayerwiseGradients(
        plan.model, plan.workload.loss, plan.examples, plan.batch_size, routes=plan.checked.routes
    )
    return layerwise.num_passes == 1 and 4 * layerwise.kept_bytes <= plan.num_bytes


def compute_gradients(plan: GradientPlan, norms: Tensor | None = None) -> Gradients:
    """Return the gradients of a plan whose offload mode needs no file, checked against plain autograd.

    `norms` are their (N,) float64 lengths, where they are known: recomputed gradients then need no Gram matrix, and
    are not checked again.

    Raises:
        UserError: a gradient is not finite (says which sample and parameter).
    """
    if plan.offload == "recompute":
        return _recomputed(plan, norms)
    print(f"gradients: {plan.stored_size} {'on the device' if plan.offload == 'none' else 'in RAM'}")
    gradients = StoredGradients(plan.num_rows, plan.num_columns, plan.offload, plan.dtype, plan.device)
    fill(gradients, plan)
    return gradients


def _recomputed(plan: GradientPlan, norms: Tensor | None) -> RecomputedGradients:
    routes = plan.routes
    while True:
        start = time.perf_counter()
        layerwise = LayerwiseGradients(plan.model, plan.workload.loss, plan.examples, plan.batch_size, routes=routes)
        print(
            f"gradients: nothing stored; {gigabytes(layerwise.kept_bytes)} of layer inputs and errors in RAM, "
            f"{layerwise.num_passes} pass(es) over the samples a use"
        )
        gradients = RecomputedGradients(layerwise, norms)
        _check_norms(gradients.norms, plan)
        if norms is not None:
            return gradients
        wrong = _check(plan, routes, gradients, torch.float32, time.perf_counter() - start)
        if not wrong:
            return gradients
        routes = drop(routes, wrong, plan.sample_name)


def stream_gradients(
    plan: GradientPlan, use: Callable[[StreamedGradients], Result]
) -> tuple[StreamedGradients, Result]:
    """Return gradients that are recomputed batch by batch at every pass, and what `use` has made of the first one.

    `use` takes one pass over all of them. Then some are checked against plain autograd; where a parameter's are wrong,
    they take the next step of the ladder, and `use` is called again.

    Raises:
        UserError: a gradient is not finite (says which sample and parameter).
    """
    routes = plan.routes
    size = max(1, min(plan.batch_size, BATCH_BYTES // (4 * plan.num_columns)))
    while True:
        start = time.perf_counter()
        gradients = StreamedGradients(plan.model, plan.workload.loss, routes, plan.examples, size, plan.device)
        result = use(gradients)
        _check_norms(gradients.norms, plan)
        wrong = _check(plan, routes, gradients, torch.float32, time.perf_counter() - start)
        if not wrong:
            return gradients, result
        routes = drop(routes, wrong, plan.sample_name)


def fill(gradients: StoredGradients, plan: GradientPlan) -> None:
    """Compute all gradients of a plan, batch by batch, into `gradients`, and check them against plain autograd.

    Raises:
        UserError: a gradient is not finite (says which sample and parameter).
    """
    routes = plan.routes
    while True:
        start = time.perf_counter()
        compute = RowGradients(plan.model, plan.workload.loss, routes)
        size = max(1, min(plan.batch_size, BATCH_BYTES // (4 * plan.num_columns)))
        with progress_bar("gradients", plan.num_rows, "sample") as bar:
            for first in range(0, plan.num_rows, size):
                batch = plan.examples.subset(slice(first, first + size)).to(plan.device)
                gradients.write(first, compute(batch))
                bar.update(len(batch))
        _check_norms(gradients.norms, plan)
        wrong = _check(plan, routes, gradients, plan.dtype, time.perf_counter() - start)
        if not wrong:
            return
        routes = drop(routes, wrong, plan.sample_name)


def _check(
    plan: GradientPlan,
    routes: Routes,
    gradients: StoredGradients | RecomputedGradients | StreamedGradients,
    stored: torch.dtype,
    seconds: float,
) -> list[Mismatch]:
    """Check finished rows, in a twentieth of the `seconds` they took; keep what was found, return what is wrong."""
    subject = Subject(plan.model, plan.workload.loss, plan.examples, row_dtype(plan.model))
    budget = CHECK_SHARE * seconds - plan.checked.seconds
    gradients.check = check_rows(subject, routes, gradients, stored, budget)
    return gradients.check.mismatches


def _check_norms(norms: Tensor, plan: GradientPlan) -> None:
    bad = torch.nonzero(~torch.isfinite(norms)).flatten().tolist()
    if not bad:
        return
    parameters = trainable_parameters(plan.model)
    one = plan.examples.subset(slice(bad[0], bad[0] + 1)).to(plan.device)
    found = one_gradient(plan.model, plan.workload.loss, one, list(parameters.values()))
    names = [name for name, g in zip(parameters, found, strict=True) if not torch.isfinite(g).all()]
    raise UserError(
        f"the gradient of {plan.sample_name(bad[0])} is not finite in {names[0] if names else 'float32'} "
        f"({len(bad)} such samples); all gradients must be finite"
    )


def _sample_name(parts: list[tuple[str, Examples]], last_samples: Tensor | None, row: int) -> str:
    for name, samples in parts[:-1]:
        if row < len(samples):
            return f"{name} sample {row}"
        row -= len(samples)
    return f"{parts[-1][0]} sample {row if last_samples is None else int(last_samples[row])}"


def gigabytes(count: int) -> str:
    """Return a number of bytes for people and in full."""
    return f"{count / 1e9:.2f} GB ({count} bytes)"
