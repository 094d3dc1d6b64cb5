"""Both command lines with --device cuda on a pretended device: no two devices meet, and the numbers are the CPU's."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import faithfulness_utility
import hyperparam_selection
import spectrum_bounds
from common.experiments import script
from common.experiments.options import checks as option_checks
from common.experiments.projecting.filling import fill, make_writers
from common.experiments.projecting.subject import prepare
from common.foundations.distributed import ALONE
from tests.drawn import draw_nothing
from tests.experiments.projecting.cases import options as projecting_options
from tests.pretended_device import CUDA, MixedDevicesError, PretendedTensor, pretended_device
from tests.tiny import write_tiny

pytestmark = pytest.mark.usefixtures("one_thread")

MAINS = {
    "spectrum_bounds": spectrum_bounds.main,
    "hyperparam_selection": hyperparam_selection.main,
    "faithfulness_utility": faithfulness_utility.main,
}
TOY = ["--num_trials", "1", "--min_m", "4", "--max_m", "16", "--num_test_grads", "8"]
TOY += ["--lambda_exp_min", "-3", "--lambda_exp_max", "-2", "--ridge_correction"]
LDS = ["--num_subsets", "3", "--val_ratio", "0.5"]
OWN = {"spectrum_bounds": ["--min_d_lambda", "0"], "hyperparam_selection": LDS, "faithfulness_utility": LDS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pretended")


def run_script(folder: Path, experiment: str, device: str, *options: str) -> dict[str, pd.DataFrame]:
    """Run a script in this process, and return its tables."""
    write_tiny(folder)
    output = folder / device / "_".join(options).replace("-", "")
    words = [*TOY, *OWN[experiment], *options, "--device", device, "--workload", str(folder / "tiny_workload.py")]
    words += [f"--{name}_dir={output / name}" for name in ("output", "cache")]
    words += [f"--benchmark_dir={folder / 'benchmarks'}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{experiment}.py", *words])
        patch.setattr(option_checks, "version", lambda name: "of a build with CUDA")
        if device == "cpu" or experiment != "spectrum_bounds":  # whose figure alone is made of tensors
            draw_nothing(patch)
        with pytest.raises(SystemExit) as stop:
            script.run_script(MAINS[experiment])
    assert stop.value.code == 0
    (results,) = (output / "output" / experiment).iterdir()
    return {path.name: pd.read_csv(path) for path in results.glob("*.csv")}


FAST = {
    ("spectrum_bounds", "normal", "recompute"),
    ("spectrum_bounds", "rademacher", "none"),
    ("spectrum_bounds", "sjlt", "disk"),
    ("hyperparam_selection", "normal", "cpu"),
    ("hyperparam_selection", "sjlt", "cpu"),
    ("spectrum_bounds", "tensorsketch", "recompute"),
    ("hyperparam_selection", "kronecker", "recompute"),
    ("faithfulness_utility", "rademacher", "none"),
}
RUNS = [
    pytest.param(*names, marks=() if names in FAST else pytest.mark.slow)
    for names in [
        # all scripts prepare the same gradients: where they are stored matters to each of them alike
        *itertools.product(["spectrum_bounds"], ("normal", "rademacher", "sjlt"), ("none", "cpu", "disk")),
        *itertools.product(["hyperparam_selection"], ("normal", "rademacher", "sjlt"), ("cpu",)),
        *itertools.product(["faithfulness_utility"], ("normal", "rademacher", "sjlt"), ("none",)),
        *itertools.product(MAINS, ("normal", "rademacher", "sjlt", "tensorsketch", "kronecker"), ("recompute",)),
    ]
]


@pytest.mark.parametrize(("experiment", "proj_type", "offload"), RUNS)
def test_no_two_devices_meet_and_the_numbers_are_those_of_the_cpu(folder, experiment, proj_type, offload):
    options = ["--proj_type", proj_type, "--offload", offload]
    expected = run_script(folder, experiment, "cpu", *options)
    with pretended_device():
        found = run_script(folder, experiment, "cuda", *options)
    assert set(found) == set(expected)
    for name, table in found.items():
        pd.testing.assert_frame_equal(table, expected[name], rtol=1e-6)


def test_operations_that_mix_devices_are_refused():
    with pretended_device():
        there, here = torch.randn(3, 4, device=CUDA), torch.randn(3, 4)
        assert isinstance(there, PretendedTensor)
        assert there.is_cuda
        for mix in (
            lambda: there + here,
            lambda: there @ here.T,
            lambda: torch.cat([there, here]),
            lambda: here[torch.zeros(2, dtype=torch.int64, device=CUDA)],
            lambda: there.index_select(0, torch.zeros(2, dtype=torch.int64)),
            lambda: torch.randn(3, device=CUDA, generator=torch.Generator()),
            lambda: torch.randn(3, generator=torch.Generator(CUDA)),
            lambda: there.add_(here),
            lambda: torch.nn.functional.linear(there, torch.randn(2, 4)),
        ):
            with pytest.raises(MixedDevicesError):
                mix()
        with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
            there.numpy()


def test_operations_that_cuda_allows_are_allowed():
    with pretended_device():
        there, here = torch.zeros(3, 4, device=CUDA), torch.ones(3, 4)
        index = torch.tensor([0, 2])
        assert (there + torch.tensor(2.0)).device == CUDA
        assert there[index].device == CUDA
        assert there.cpu().device.type == "cpu"
        there.copy_(here)
        there[index] = here.to(CUDA)[index] * 3
        assert there.tolist() == [[3.0] * 4, [1.0] * 4, [3.0] * 4]
        assert torch.randn(3, device=CUDA, generator=torch.Generator(CUDA)).device == CUDA


def test_a_pretended_device_differentiates_as_the_cpu_does():
    weight, inputs = torch.randn(2, 4), torch.randn(3, 4)

    def gradients(weight, inputs):
        weight = weight.clone().requires_grad_()
        torch.func.vmap(lambda row: (weight @ row).tanh().sum())(inputs).square().sum().backward()
        return weight.grad

    with pretended_device():
        found = gradients(weight.to(CUDA), inputs.to(CUDA))
        assert found.device == CUDA
        assert torch.equal(found.cpu(), gradients(weight, inputs))


@pytest.mark.parametrize("proj_type", ["normal", "sjlt"])
def test_scores_of_pairs_of_test_samples_meet_no_other_device(folder, proj_type):
    options = ["--proj_type", proj_type, "--offload", "cpu", "--scores", "cross", "--test_mode", "test"]
    expected = run_script(folder, "spectrum_bounds", "cpu", *options)
    with pretended_device():
        found = run_script(folder, "spectrum_bounds", "cuda", *options)
    for name, table in found.items():
        pd.testing.assert_frame_equal(table, expected[name], rtol=1e-6)


@pytest.mark.parametrize("kind", ["normal", "rademacher", "sjlt", "tensorsketch", "kronecker"])
def test_a_store_is_filled_without_a_meeting_of_devices(folder, tmp_path, kind):
    def project(device: str) -> None:
        subject = prepare(projecting_options(folder, kind=kind, device=device), ALONE)
        for writer in make_writers(tmp_path / device, subject):
            fill(writer, subject, ALONE)

    project("cpu")
    with pretended_device():
        project("cuda")
    for array in ("train/projected.npy", "train/norms.npy", "test/projected.npy"):
        found, expected = (np.load(tmp_path / device / array) for device in ("cuda", "cpu"))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
