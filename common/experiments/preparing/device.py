"""Where an experiment computes."""

from __future__ import annotations

import torch

from common.experiments.options.checks import NO_CUDA
from common.foundations.errors import UserError


def choose_device(name: str | None) -> torch.device:
    """Return the device asked for; without a wish, CUDA where there is one, else the CPU with one line saying so.

    Raises:
        UserError: CUDA was asked for and is not there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(NO_CUDA)
    if name is None and not torch.cuda.is_available():
        print("no CUDA device: running on the CPU")
    # TF32 would leave gradients and sketches three digits
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    # with its number, as tensors there say where they are
    return torch.device("cuda", torch.cuda.current_device())
