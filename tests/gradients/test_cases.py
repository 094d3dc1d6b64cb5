from __future__ import annotations

import importlib
import pkgutil
import warnings

import pytest
import torch
from torch import nn

from common.foundations.errors import UserError
from common.gradients.layer_capture import LAYERS, ONE_AT_A_TIME
from common.gradients.planning import compute_gradients, plan_gradients
from common.workloads.checks import check_workload
from common.workloads.training import fresh_model
from tests import gradients
from tests.gradient_cases import CPU
from tests.gradients import cases
from tests.reference_gradients import one_by_one_gradients

FLOAT32 = 2e-6
REFUSED = {
    "complex_fno": "parameter w is complex (complex64)",
    "sparse_inputs": "train.inputs is a sparse_coo tensor; it must be dense",
}
SLOW = {"ckpt_reentrant", "moe_mixed", "moe_ordered", "straight_through", "jit_script", "unpad"}
"""Which torch.func.vmap cannot run: checkpoints and functions with a backward of their own, boolean masks, scripts."""
NAMES = sorted(module.name for module in pkgutil.iter_modules(cases.__path__))


def load(name):
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lazy layers and scripts warn of themselves
        workload = importlib.import_module(f"{gradients.__name__}.cases.{name}").make_workload()
        model = fresh_model(workload, 0).eval()
    return workload, model


def written_out(script):
    """Return the compiled model of jit_script.py as layers, which can be copied to float64."""
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    model.load_state_dict(script.state_dict())
    return model


def exact_rows(model, workload):
    """Return the gradients in float64, also where the model makes constants of torch's default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return one_by_one_gradients(model, workload.loss, workload.train.inputs, workload.train.targets)
    finally:
        torch.set_default_dtype(before)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("offload", ["cpu", "recompute"])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in REFUSED])
def test_gradients_are_those_of_float64_backward_passes_one_sample_at_a_time(name, offload):
    workload, model = load(name)
    expected = exact_rows(written_out(model) if name == "jit_script" else model, workload)
    plan = plan_gradients(workload, model, [("training", workload.train)], 32, offload, torch.float32, CPU)
    found = compute_gradients(plan)
    rows = torch.cat([block.double() for _, block in found.unit_blocks()], dim=1) * found.norms[:, None]
    lengths = expected.norm(dim=1)
    assert lengths.any()
    assert ((rows - expected).norm(dim=1) <= FLOAT32 * lengths).all()
    assert {plan.routes.step(name) for name, _ in plan.model.named_parameters()} <= {LAYERS, ONE_AT_A_TIME}
    assert bool(plan.routes.one_at_a_time) == (name in SLOW)
    assert found.check.num_rows >= 8
    assert found.check.worst < 1e-5


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_real_dense_gradients_is_refused_in_one_line(name, tmp_path):
    with torch.random.fork_rng():
        workload = importlib.import_module(f"{gradients.__name__}.cases.{name}").make_workload()
    with pytest.raises(UserError) as caught:
        check_workload(workload, tmp_path / "file.py")
    assert str(caught.value).startswith(REFUSED[name])
