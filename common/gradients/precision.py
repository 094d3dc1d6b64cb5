"""The precision in which gradients are computed: float32 at least, whatever the model is stored in."""

from __future__ import annotations

import torch
from torch import nn

from common.foundations.errors import first_line
from common.gradients.autocast import autocast_dtypes, without_autocast
from common.gradients.one_at_a_time import one_gradient
from common.workloads.precision import in_dtype
from common.workloads.records import Examples, Loss, map_tensors
from common.workloads.running import trainable_parameters

HALF = (torch.float16, torch.bfloat16)


def attributed(
    model: nn.Module, loss: Loss, examples: Examples, device: torch.device
) -> tuple[nn.Module, Loss, Examples]:
    """Return the model, the loss and the samples whose gradients are computed: themselves, or without 16-bit numbers.

    A model that holds float16 or bfloat16 numbers anywhere (a frozen base, say) is copied to float32, in which they
    are exact, and a model or a loss that switches to 16 bits with torch.autocast gives way to one that does not; one
    line says so, or that the model does not run so.
    """
    model, examples = _without_halves(model, loss, examples, device)
    return *_without_autocast(model, loss, examples.subset(slice(1)).to(device)), examples


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
