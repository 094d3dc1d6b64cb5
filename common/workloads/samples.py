"""Samples on which a workload's model or loss fails, found before anything is trained, wherever they are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from common.foundations.errors import UserError, kind_and_line
from common.foundations.seeds import isolated_rng
from common.workloads.precision import copied
from common.workloads.records import Examples, Inputs, Workload, map_tensors
from common.workloads.running import NEEDS_GRAPH, backward_pass, run_model

BATCH = 64
"""Samples in a batch of the pass over all."""
PARTS = {"train": "training", "test": "test"}
"""Field of a workload -> how messages call its samples."""
LARGEST = 2**31
"""Beyond it nobody numbers labels or tokens."""


def check_every_sample(workload: Workload, model: nn.Module, device: torch.device | str) -> None:
    """Run the model once, without gradients, on all training and test samples.

    Args:
        workload: samples and loss.
        model: in eval mode, on the CPU.
        device: where to run. A GPU that has failed an assertion runs nothing any more: the search is made on the CPU.

    Raises:
        UserError: the first sample is named whose loss is not finite, or on which model or loss fail, with the label
            or the number in its inputs that is out of range, where that is why.
    """
    if torch.device(device).type == "cpu":
        return _check_all(workload, model, device)
    try:
        _check_all(workload, copied(model).to(device), device)
    except (UserError, RuntimeError):
        _check_all(workload, model, "cpu")
        raise


def name_failing_sample(workload: Workload, model: nn.Module, part: str, rows: range) -> None:
    """Raise UserError that names the first of `rows` on which model or loss fail, where they do not fail on others."""
    examples = getattr(workload, part)
    tried = sorted({0, len(examples) // 2, len(examples) - 1} | set(rows))
    failures = {row: _failure(f"{PARTS[part]} sample {row}", workload, model, examples.subset([row])) for row in tried}
    if None in failures.values():
        for row in rows:
            if failures[row]:
                raise UserError(failures[row])


def sample_without_gradient(workload: Workload, model: nn.Module, indices: Tensor) -> str | None:
    """Return `the gradient of training sample 57 ...` for the first one that is not finite; None: none, taken alone.

    One pass with gradients over the samples, in batches of training's size and in training mode; single samples, which
    batch norm refuses there, in eval mode.

    Args:
        workload: samples, objective and recipe.
        model: as training starts from it, on any device; its mode and its buffers may change.
        indices: (h,) int64 training samples, on the CPU.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    device = next(model.parameters()).device

    def not_finite(rows: Tensor) -> list[str]:
        few = workload.train.subset(rows).to(device)
        found = backward_pass(workload.objective(run_model(model, few.inputs), few.targets), [*parameters.values()])
        return [name for name, g in zip(parameters, found, strict=True) if g is not None and not _all_finite(g)]

    with isolated_rng(device), torch.enable_grad():
        for batch in indices.split(workload.required_recipe().batch_size):
            model.train()
            if not not_finite(batch):
                continue
            model.eval()
            for row in batch.tolist():
                if names := not_finite(torch.tensor([row])):
                    return f"the gradient of training sample {row} is not finite in {names[0]}"
    return None


def _check_all(workload: Workload, model: nn.Module, device: torch.device | str) -> None:
    with isolated_rng(device):
        for part, name in PARTS.items():
            examples = getattr(workload, part)
            with_objective = part == "train" and workload.recipe is not None and workload.training_loss is not None
            for rows in torch.arange(len(examples)).split(BATCH):
                together = f"{name} samples {rows[0]} to {rows[-1]} together, none of them alone"
                failure = _failure(together, workload, model, examples.subset(rows).to(device), with_objective)
                if failure is None:
                    continue
                for row in rows.tolist():
                    one = examples.subset([row]).to(device)
                    if alone := _failure(f"{name} sample {row}", workload, model, one, with_objective):
                        raise UserError(alone)
                raise UserError(failure)


def _failure(
    name: str, workload: Workload, model: nn.Module, batch: Examples, with_objective: bool = False
) -> str | None:
    """Return what is wrong with the samples of a batch, which messages call `name`; None where nothing is."""
    with torch.no_grad():
        found = _what_fails(name, workload, model, batch, with_objective)
    if found is not None and NEEDS_GRAPH in found:
        with torch.enable_grad():
            found = _what_fails(name, workload, model, batch, with_objective)
    return found


def _what_fails(name: str, workload: Workload, model: nn.Module, batch: Examples, with_objective: bool) -> str | None:
    try:
        outputs = run_model(model, batch.inputs)
    except Exception as error:  # a user's model may raise anything
        reason = _id_out_of_range(model, batch) or f"the model's forward pass fails: {kind_and_line(error)}"
        return f"{name}: {reason}"
    try:
        losses = workload.loss(outputs, batch.targets)
        objective = workload.objective(outputs, batch.targets) if with_objective else losses.new_zeros(())
    except Exception as error:  # so may the loss
        reason = _label_out_of_range(workload, outputs, batch.targets) or f"the loss fails: {kind_and_line(error)}"
        return f"{name}: {reason}"
    bad = losses[~losses.isfinite()]
    if len(bad):
        held = "" if _all_finite(*batch.tensors()) else " (its inputs or its target are not)"
        return f"the loss of {name} is {bad[0].item()}; it must be finite{held}"
    if not _all_finite(objective):
        return f"the training_loss of {name} is {objective.item()}; it must be finite"
    return None


def _label_out_of_range(workload: Workload, outputs: object, targets: Tensor) -> str | None:
    def works(changed: Tensor) -> bool:
        return _runs(lambda: workload.loss(outputs, changed))

    found = _out_of_range(targets, works) if len(targets) == 1 else None
    return found and f"label {found[0]}; the loss accepts 0..{found[1]}"


def _id_out_of_range(model: nn.Module, batch: Examples) -> str | None:
    if len(batch) != 1:
        return None
    for name, tensor in _named_inputs(batch.inputs).items():
        found = _out_of_range(tensor, partial(_model_accepts, model, batch.inputs, tensor))
        if found:
            return f"{name} hold {found[0]}; the model accepts 0..{found[1]}"
    return None


def _model_accepts(model: nn.Module, inputs: Inputs, tensor: Tensor, other: Tensor) -> bool:
    """Whether the model runs with another tensor in the place of one of its inputs."""
    return _runs(lambda: run_model(model, map_tensors(lambda each: other if each is tensor else each, inputs)))


def _named_inputs(inputs: Inputs) -> dict[str, Tensor]:
    """Return the tensors of the inputs by the names that messages call them."""
    if isinstance(inputs, dict):
        return {f"inputs[{name!r}]": tensor for name, tensor in inputs.items()}
    if isinstance(inputs, tuple):
        return {f"inputs[{i}]": tensor for i, tensor in enumerate(inputs)}
    return {"inputs": inputs}


def _out_of_range(tensor: Tensor, works: Callable[[Tensor], bool]) -> tuple[int, int] | None:
    """Return a whole number in `tensor` that is refused, and the largest that is not; None where that is not why.

    Found by putting one number in the place of all: 0 works, what is out of range does not.
    """
    if tensor.dtype == torch.bool or tensor.is_complex() or not tensor.numel() or not _all_finite(tensor):
        return None
    if not tensor.eq(tensor.floor() if tensor.is_floating_point() else tensor).all():
        return None

    def accepted(value: int) -> bool:
        return works(torch.full_like(tensor, value))

    bad = next((value for value in (int(tensor.max()), int(tensor.min())) if not accepted(value)), None)
    if bad is None or bad == 0 or not accepted(0):
        return None
    # by doubling, because the refused number may be negative
    most = min(LARGEST, LARGEST if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max)
    low, high = 0, 1
    while high < most and accepted(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if accepted(middle) else (low, middle)
    if bad > low:  # the first, in the order of the sample
        bad = next(value for value in map(int, tensor.flatten().tolist()) if value > low)
    return bad, low


def _runs(function: Callable[[], object]) -> bool:
    try:
        function()
    except Exception:  # whatever a user's model or loss raises
        return False
    return True


def _all_finite(*tensors: Tensor) -> bool:
    return all(t.isfinite().all() for t in (t.coalesce().values() if t.is_sparse else t for t in tensors))
