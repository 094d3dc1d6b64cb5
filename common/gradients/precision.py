"""The precision of gradients: float32 at least, whatever the model is stored in, and float64 in the loss."""

from __future__ import annotations

import torch
from torch import nn

from common.foundations.errors import first_line
from common.gradients.autocast import autocast_dtypes, without_autocast
from common.gradients.one_at_a_time import one_gradient
from common.workloads.precision import LossInFloat64, in_dtype
from common.workloads.records import Examples, Loss, map_tensors
from common.workloads.running import trainable_parameters

HALF = (torch.float16, torch.bfloat16)


def attributed(
    model: nn.Module, loss: Loss, examples: Examples, device: torch.device
) -> tuple[nn.Module, Loss, Examples]:
    """Return the model, the loss and the samples whose gradients are computed: without 16-bit numbers, where there are.

    A model that holds float16 or bfloat16 numbers anywhere (a frozen base, say) is copied to float32, in which they
    are exact, and a model or a loss that switches to 16 bits with torch.autocast gives way to one that does not; one
    line says so, or that the model does not run so. The loss is computed from outputs in float64, where it takes them:
    softmax − 1 in float32 is nothing but rounding where a sample is fit to 1e-7.
    """
    model, examples = _without_halves(model, loss, examples, device)
    one = examples.subset(slice(1)).to(device)
    model, loss = _without_autocast(model, loss, one)
    return model, _in_float64(model, loss, one), examples


def _in_float64(model: nn.Module, loss: Loss, one: Examples) -> Loss:
    exact = LossInFloat64(loss)
    try:
        _differentiate(model, exact, one)
        return exact
    except Exception as error:  # a loss may have float32 numbers of its own
        reason = first_line(error)
    try:
        _differentiate(model, loss, one)
    except Exception:  # what fails on a sample is said where its gradient is computed
        return loss
    print(
        f"gradients: the loss is computed in the precision of the model's outputs, because it does not run in "
        f"float64 ({reason})"
    )
    return loss


def _without_halves(
    model: nn.Module, loss: Loss, examples: Examples, device: torch.device
) -> tuple[nn.Module, Examples]:
    halves = {t.dtype for t in [*model.parameters(), *model.buffers()] if t.dtype in HALF}
    if not halves:
        return model, examples
    widened = Examples(map_tensors(_widened, examples.inputs), examples.targets)
    try:
        wide = in_dtype(model, torch.float64 if _has_float64(model) else torch.float32)
        _differentiate(wide, loss, widened.subset(slice(1)).to(device))
    except Exception as error:  # a model may ask for 16 bits somewhere in its own code
        print(
            f"gradients: computed in the model's {_named(halves)}, because it does not run in float32 "
            f"({first_line(error)}); {_cost(halves)}"
        )
        return model, examples
    print(f"gradients: the {_named(halves)} numbers of the model are used in float32 arithmetic")
    return wide, widened


def _without_autocast(model: nn.Module, loss: Loss, one: Examples) -> tuple[nn.Module, Loss]:
    try:
        halves = autocast_dtypes(model, loss, one)
    except Exception:  # what fails on a sample is said where its gradient is computed
        return model, loss
    if not halves:
        return model, loss
    try:
        plain, plain_loss = without_autocast(model, loss)
        _differentiate(plain, plain_loss, one)
    except Exception as error:  # as above
        print(
            f"gradients: computed under autocast to {_named(halves)}, because model and loss do not run without it "
            f"({first_line(error)}); {_cost(halves)}"
        )
        return model, loss
    print(
        f"gradients: autocast to {_named(halves)} in model and loss is left out; all arithmetic is that of the "
        "parameters"
    )
    return plain, plain_loss


def _differentiate(model: nn.Module, loss: Loss, one: Examples) -> None:
    one_gradient(model, loss, one, list(trainable_parameters(model).values()))


def _named(dtypes: set[torch.dtype]) -> str:
    return " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))


def _cost(dtypes: set[torch.dtype]) -> str:
    return (
        f"one rounding there is {max(torch.finfo(dtype).eps for dtype in dtypes):.1g} of a number, "
        "and what all of them change in scores is not known"
    )


def _has_float64(model: nn.Module) -> bool:
    return any(p.dtype == torch.float64 for p in trainable_parameters(model).values())


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype in HALF else tensor
