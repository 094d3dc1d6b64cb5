"""The precision in which gradients are computed: float32 at least, whatever the model is stored in."""

from __future__ import annotations

import torch
from torch import nn

from common.gradients.layer_calls import trainable_parameters
from common.gradients.one_at_a_time import one_gradient
from common.workloads.precision import in_dtype
from common.workloads.records import Examples, Loss, map_tensors

HALF = (torch.float16, torch.bfloat16)


def attributed(model: nn.Module, loss: Loss, examples: Examples, device: torch.device) -> tuple[nn.Module, Examples]:
    """Return the model and the samples whose gradients are computed: themselves, or both without 16-bit numbers.

    A model that holds float16 or bfloat16 numbers anywhere (a frozen base, say) is copied to float32, in which they
    are exact; one line says so, or that the model does not run in it.
    """
    halves = {t.dtype for t in [*model.parameters(), *model.buffers()] if t.dtype in HALF}
    if not halves:
        return model, examples
    kinds = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in halves))
    wide = in_dtype(model, torch.float32) if not _has_float64(model) else in_dtype(model, torch.float64)
    widened = Examples(map_tensors(_widened, examples.inputs), examples.targets)
    try:
        one = widened.subset(slice(1)).to(device)
        one_gradient(wide, loss, one, list(trainable_parameters(wide).values()))
    except Exception as error:  # a model may ask for 16 bits somewhere in its own code
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        print(
            f"gradients: computed in the model's {kinds}, because it does not run in float32 ({reason}); one rounding "
            f"there is {max(torch.finfo(dtype).eps for dtype in halves):.1g} of a number, "
            "and what all of them change in scores is not known"
        )
        return model, examples
    print(f"gradients: the {kinds} numbers of the model are used in float32 arithmetic")
    return wide, widened


def _has_float64(model: nn.Module) -> bool:
    return any(p.dtype == torch.float64 for p in trainable_parameters(model).values())


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype in HALF else tensor
