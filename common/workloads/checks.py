"""Mistakes in a workload, each told in one line: the fields, the samples, the model, its losses and gradients."""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from common.foundations.errors import UserError, kind_and_line
from common.workloads import training
from common.workloads.disabled_gradients import differing_gradients, used_without_gradients
from common.workloads.field_checks import (
    check_fields,
    check_ground_truth_given,
    check_samples,
    kind_text,
    shape_text,
    type_name,
)
from common.workloads.precision import copied
from common.workloads.records import Examples, Workload
from common.workloads.running import (
    MIXED,
    NEEDS_GRAPH,
    RANDOM,
    complete,
    draws_random_numbers,
    reaches,
    run_model,
    trainable_parameters,
)
from common.workloads.samples import PARTS, check_every_sample, name_failing_sample

SEARCH_BATCH = 64
"""Samples in a batch where all are searched for one that uses a parameter."""
BATCH = 2
"""Samples that run through the model: the smallest batch in which one could see another."""
MOST_NAMES = 10
"""Parameters, or modules of which all are meant, that a message names."""


def check_workload(returned: object, path: Path) -> Workload:
    """Return what `make_workload()` of the file `path` returned; raise UserError that names the first mistake in it."""
    workload = check_fields(returned)
    check_samples(workload)
    check_ground_truth_given(workload)
    model = _make_model(workload, path)
    fresh = _copy(model)
    for part in ("train", "test"):
        few = getattr(workload, part).subset(slice(BATCH))
        with torch.set_grad_enabled(_differentiates(workload, model, few)):
            _check_losses(workload, model, part, few, path)
            _check_correct(workload, model, few, path)
    if fresh is not None:
        _check_results_kept(workload, model, fresh)
    del fresh
    _check_gradients(workload, model, path)
    check_training(workload, path)
    return workload


def check_training(workload: Workload, path: Path) -> None:
    """Raise UserError unless training works: fresh models, a scalar objective, every size of batch that may occur."""
    if workload.recipe is None:
        return
    with one_line("make_model()", path):
        model, other = (training.fresh_model(workload, seed) for seed in (0, 1))
    known = {id(p) for p in model.parameters()}
    shared = [name for name, p in other.named_parameters() if id(p) in known]
    if shared:
        raise UserError(
            f"make_model() returns the same {shared[0]} each time; with a recipe it must make a new model each time, "
            "or training one model changes the others"
        )
    n, size = len(workload.train), workload.recipe.batch_size
    last_sizes = {num_samples % size for num_samples in (n, n // 2)}
    for batch in dict.fromkeys([min(BATCH, n), *([1] if 1 in last_sizes else [])]):
        few = workload.train.subset(slice(batch))
        leftover = f" (the last of {n} or {n // 2} samples in batches of {size})" if batch == 1 else ""
        what = "training_loss" if workload.training_loss is not None else "the mean loss"
        with one_line(f"{what} in training mode on a batch of {batch}{leftover}", path):
            objective = workload.objective(run_model(model, few.inputs), few.targets)
        if not isinstance(objective, Tensor) or objective.ndim != 0:
            found = f"shape {shape_text(objective)}" if isinstance(objective, Tensor) else type_name(objective)
            raise UserError(f"{what} must be a scalar, a tensor of shape (); got {found}")
        if not objective.requires_grad or not objective.isfinite():
            raise UserError(f"{what} must be finite and have a gradient, got {objective}")
        with one_line(f"the backward pass in training mode on a batch of {batch}", path):
            reaches(objective, [p for p in model.parameters() if p.requires_grad])


@contextmanager
def one_line(what: str, path: Path) -> Iterator[None]:
    """Turn any exception inside into one line: what failed, the exception, and where in `path` it came from."""
    try:
        yield
    except UserError:
        raise
    # the user's code may raise anything; SystemExit is what a script ends with
    except (Exception, SystemExit) as error:
        message = kind_and_line(error, 300)
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        if isinstance(error, SyntaxError) and error.filename == str(path):
            message, lines = f"{type(error).__name__}: {error.msg}", [error.lineno]
        where = f", line {lines[-1]}" if lines else ""
        raise UserError(f"{what} fails{where}: {message}") from error


def _make_model(workload: Workload, path: Path) -> nn.Module:
    with one_line("make_model()", path), torch.enable_grad():  # which it may disable for all that follows
        model = workload.make_model()
    if not isinstance(model, nn.Module):
        raise UserError(f"make_model() returns {type_name(model)}; it must return a torch.nn.Module")
    with one_line("the model's first forward pass", path):
        complete(model, workload.train.subset(slice(BATCH)).inputs)
    parameters = dict(model.named_parameters())
    if not any(p.requires_grad for p in parameters.values()):
        frozen = f"all {len(parameters)} parameters of the model are frozen (requires_grad is False)"
        raise UserError(f"{frozen if parameters else 'the model has no parameters'}; influence needs trainable ones")
    for name, value in parameters.items():
        if value.requires_grad and value.is_complex():
            raise UserError(
                f"parameter {name} is complex ({str(value.dtype).removeprefix('torch.')}); influence is computed for "
                "real parameters: train torch.view_as_real of it, or freeze it with requires_grad_(False)"
            )
    for name, tensor in itertools.chain(parameters.items(), model.named_buffers()):
        if tensor.device.type != "cpu":
            raise UserError(f"make_model() must return a model on the CPU; {name} is on {tensor.device}")
    return model.eval()


def _outputs_and_losses(workload: Workload, model: nn.Module, few: Examples, path: Path) -> tuple[object, Tensor]:
    size, arguments = len(few), ""
    if isinstance(few.inputs, dict):
        arguments = f" (arguments {', '.join(few.inputs)})"
    elif isinstance(few.inputs, tuple):
        arguments = f" ({len(few.inputs)} arguments)"
    with one_line(f"the model's forward pass on a batch of {size}{arguments}", path):
        outputs = run_model(model, few.inputs)
    with one_line(f"loss on a batch of {size}", path):
        losses = workload.loss(outputs, few.targets)
    if not isinstance(losses, Tensor):
        raise UserError(f"loss returns {type_name(losses)}; it must return a tensor with one loss a sample")
    if tuple(losses.shape) != (size,):
        hint = "; a mean or sum over the batch? use reduction='none'" if losses.ndim == 0 else ""
        found = f"loss returns shape {shape_text(losses)} for a batch of {size}"
        raise UserError(f"{found}; it must be ({size},), one loss a sample{hint}")
    if not losses.is_floating_point():
        raise UserError(f"loss returns {losses.dtype}; it must be floating point")
    return outputs, losses


def _differentiates(workload: Workload, model: nn.Module, few: Examples) -> bool:
    """Whether the model or the loss differentiate something themselves, which torch.no_grad() forbids."""
    try:
        with torch.no_grad():
            workload.loss(run_model(model, few.inputs), few.targets)
    except Exception as error:  # whatever the user's code raises is said where it is checked
        return NEEDS_GRAPH in str(error)
    return False


def _check_losses(workload: Workload, model: nn.Module, part: str, few: Examples, path: Path) -> None:
    try:
        _, together = _outputs_and_losses(workload, model, few, path)
    except UserError:
        name_failing_sample(workload, model, part, range(len(few)))
        raise
    bad = torch.nonzero(~together.isfinite()).flatten().tolist()
    if bad:
        raise UserError(f"the loss of {PARTS[part]} sample {bad[0]} is {together[bad[0]].item()}; it must be finite")

    def is_random() -> bool:
        return draws_random_numbers(lambda: _outputs_and_losses(workload, model, few, path), "cpu")

    _, again = _outputs_and_losses(workload, model, few, path)
    if not _same(together, again):
        if is_random():
            raise UserError(RANDOM)
        raise UserError(
            "the loss differs from one forward pass to the next in eval mode, without random numbers of torch; what "
            "the model remembers of samples must follow model.training"
        )
    ones = [few.subset(slice(i, i + 1)) for i in range(len(few))]
    alone = torch.cat([_outputs_and_losses(workload, model, one, path)[1] for one in ones])
    if not _same(together, alone):
        if is_random():
            raise UserError(RANDOM)
        i = int((together - alone).abs().argmax())
        raise UserError(
            f"the loss of {PARTS[part]} sample {i} depends on its batch mates: {together[i]:.6g} in a batch of "
            f"{len(few)}, {alone[i]:.6g} alone; {MIXED}"
        )


def _check_correct(workload: Workload, model: nn.Module, few: Examples, path: Path) -> None:
    if workload.correct is None:
        return
    outputs, _ = _outputs_and_losses(workload, model, few, path)
    with one_line(f"correct on a batch of {len(few)}", path):
        correct = workload.correct(outputs, few.targets)
    if not isinstance(correct, Tensor) or (tuple(correct.shape), correct.dtype) != ((len(few),), torch.bool):
        found = kind_text(correct, first="") if isinstance(correct, Tensor) else type_name(correct)
        raise UserError(f"correct must return ({len(few)},) torch.bool for a batch of {len(few)}, got {found}")


def _copy(model: nn.Module) -> nn.Module | None:
    try:
        return copied(model)
    except Exception:  # a user's model may be one that Python cannot copy
        return None


def _check_results_kept(workload: Workload, model: nn.Module, fresh: nn.Module) -> None:
    """Raise UserError where `model`, which ran without gradients, has other ones since than its `fresh` copy."""
    few = workload.train.subset(slice(BATCH))
    try:
        changed = differing_gradients(model, fresh, workload.loss, few)
        # a loss that knows the model itself differs for every copy
        is_copied = not changed or not differing_gradients(model, copied(model), workload.loss, few)
    except Exception:  # what fails in a backward pass is said where gradients are checked
        return
    if changed and is_copied:
        more = f" and {len(changed) - 1} more parameters" if len(changed) > 1 else ""
        raise UserError(
            f"the gradient of {changed[0]}{more} is another once the model has run without gradients: in eval mode it "
            "keeps what it computed then; let it keep nothing that depends on parameters, or freeze them with "
            "requires_grad_(False)"
        )


def _check_gradients(workload: Workload, model: nn.Module, path: Path) -> None:
    """Raise UserError where no training sample's loss depends on some trained parameter."""
    parameters = trainable_parameters(model)
    missing = list(parameters)
    # a parameter may serve few samples, as an expert does, so all are asked until one uses it
    for rows in torch.arange(len(workload.train)).split(SEARCH_BATCH):
        few = workload.train.subset(rows)
        try:
            _, losses = _outputs_and_losses(workload, model, few, path)
        except UserError:
            check_every_sample(workload, model, "cpu")
            raise
        if losses.requires_grad:
            with one_line(f"the backward pass of a batch of {len(few)}", path):
                reached = reaches(losses.sum(), [parameters[name] for name in missing])
            missing = [name for name, is_reached in zip(missing, reached, strict=True) if not is_reached]
        if not missing:
            return
    names = by_module(missing, parameters)
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    why = "unused, or detached on the way (.detach(), .item(), argmax, torch.no_grad()); use them"
    few = workload.train.subset(slice(BATCH))
    used = used_without_gradients(lambda: _outputs_and_losses(workload, model, few, path))
    if used and (len(missing) == len(parameters) or {id(parameters[name]) for name in missing} & set(map(id, used))):
        why = "gradients are disabled on the way (torch.no_grad(), torch.set_grad_enabled(False)); enable them"
    raise UserError(
        f"no gradient of the loss reaches {', '.join(names[:MOST_NAMES])}{more}: {why}, or freeze them with "
        "requires_grad_(False)"
    )


def by_module(names: Collection[str], everyone: Collection[str]) -> list[str]:
    """Return names of parameters, with `module.*` in the place of all those of a largest module that they fill."""
    others = set(everyone) - set(names)
    found = []
    for name in names:
        modules = (name[: i + 1] for i, letter in enumerate(name) if letter == ".")
        filled = next((module for module in modules if not any(other.startswith(module) for other in others)), None)
        several = filled and sum(other.startswith(filled) for other in names) > 1
        found.append(f"{filled}*" if several else name)
    return list(dict.fromkeys(found))


def _same(losses: Tensor, others: Tensor) -> bool:
    """Whether losses agree up to rounding: batches of other sizes are multiplied out in another order."""
    scale = losses.abs().max().item()
    return torch.allclose(losses, others, rtol=1e-4, atol=1e-4 * scale + 1e-6)
