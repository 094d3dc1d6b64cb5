from __future__ import annotations

import pytest
import torch

from common.experiments.preparing.device import choose_device
from common.foundations.errors import UserError


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_that_is_missing_is_an_error_and_without_a_wish_one_line(capsys):
    with pytest.raises(UserError, match="--device cuda: no CUDA device"):
        choose_device("cuda")
    assert capsys.readouterr().out == ""
    assert choose_device(None) == torch.device("cpu")
    assert capsys.readouterr().out == "no CUDA device: running on the CPU\n"


def test_an_explicit_cpu_is_silent(capsys):
    assert choose_device("cpu") == torch.device("cpu")
    assert capsys.readouterr().out == ""
