"""Both command lines on a real GPU give the numbers of the CPU; skipped where there is none, see `make test-cuda`."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from tests.test_pretended_device import MAINS, run_script

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.usefixtures("one_thread"),
]
# gradients are float32 and summed in another order; eigenvalues and solves are float64
ROUNDING = {"effective_dimension.csv": 1e-4, "spectrum.csv": 1e-3, "predicted.csv": 1e-3, "trials.csv": 1e-2}


@pytest.mark.parametrize("offload", ["none", "cpu", "disk", "recompute"])
@pytest.mark.parametrize("proj_type", ["normal", "rademacher", "sjlt", "tensorsketch", "kronecker"])
@pytest.mark.parametrize("experiment", MAINS)
def test_a_gpu_gives_the_numbers_of_the_cpu(tmp_path, experiment, proj_type, offload):
    """Sketches are the same too, except where their entries are drawn on the device (rademacher)."""
    options = ["--proj_type", proj_type, "--offload", offload]
    expected = run_script(tmp_path, experiment, "cpu", *options)
    found = run_script(tmp_path, experiment, "cuda", *options)
    assert set(found) == set(expected)
    for name, rtol in ROUNDING.items():
        if name not in found or (name == "trials.csv" and proj_type == "rademacher"):
            continue
        pd.testing.assert_frame_equal(found[name], expected[name], rtol=rtol, atol=1e-3)
