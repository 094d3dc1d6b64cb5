from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import spectrum_bounds
from common.experiments import script
from common.foundations.errors import UserError
from common.gradients.first_gradients import check_gradients
from common.gradients.planning import compute_gradients, plan_gradients
from common.workloads.benchmark import SEED, load_trained_model
from common.workloads.checks import check_workload
from common.workloads.samples import check_every_sample
from common.workloads.training import fresh_model
from tests import gradients
from tests.gradient_cases import CPU
from tests.gradients import cases
from tests.reference_gradients import one_by_one_gradients

FLOAT32 = 2e-6
REFUSED = {
    "complex_fno": "parameter w is complex (complex64); influence is computed for real parameters: train "
    "torch.view_as_real of it, or freeze it with requires_grad_(False)",
    "sparse_inputs": "train.inputs is a sparse_coo tensor; it must be dense, as .to_dense() makes it",
    "bad_train_recipe": "the loss of training sample 57 is nan; it must be finite",
    "bad_test_recipe": "the loss of test sample 17 is nan; it must be finite",
    "bad_gradient_recipe": "the gradient of training sample 57 is not finite in centre at the weights that training of "
    "badgrad starts from; it must be finite",
    "late_label_out_of_range": "training sample 57: label 3; the loss accepts 0..2",
}
SINGLY = {"gradient_hook", "moe_mixed", "moe_ordered", "packed_lstm", "second_derivative", "straight_through", "unpad"}
"""Which torch.func.vmap cannot run: boolean masks, packed sequences, hooks, functions with their own backward."""
ALONE = {"ckpt_reentrant", "jit_script", "second_derivative", "straight_through"}
"""With parameters used where nobody can see it: in checkpoints, scripts, derivatives by the inputs, that function."""
COPIED = {"own_transform"}
"""With parameters used inside a transform of torch.func, of which every sample gets a copy."""
CASES = Path(cases.__path__[0])
NAMES = sorted(module.name for module in pkgutil.iter_modules(cases.__path__))


def make(name):
    with torch.random.fork_rng():
        return importlib.import_module(f"{gradients.__name__}.cases.{name}").make_workload()


def load(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lazy layers and scripts warn of themselves
        workload = make(name)
        return workload, fresh_model(workload, 0).eval()


def refusal(workload, folder):
    """Return the one line that ends a run before anything is trained: the checks of a user's file, in their order."""
    with pytest.raises(UserError) as caught:
        check_workload(workload, folder / "file.py")
        check_every_sample(workload, fresh_model(workload, SEED).eval(), "cpu")
        check_gradients(workload, folder / "file.py")
        load_trained_model(workload, folder, "cpu", progress=False)
    assert "\n" not in str(caught.value)
    assert not list(folder.rglob("*.pt"))
    return str(caught.value)


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
    assert bool(plan.routes.by_vmap) == (name in COPIED)
    assert bool(plan.routes.one_at_a_time) == (name in ALONE)
    assert bool(plan.routes.singly) == (name in SINGLY)
    assert found.check.num_rows >= 8
    assert found.check.worst < 1e-5


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_real_finite_gradients_is_refused_in_one_line_before_training(name, tmp_path):
    assert refusal(make(name), tmp_path) == REFUSED[name]


def test_named_inputs_that_the_model_does_not_take_are_said_to_be_its_arguments(tmp_path):
    workload = dataclasses.replace(make("dict_inputs"), make_model=lambda: nn.Linear(6, 3))
    message = refusal(workload, tmp_path)
    assert message.startswith("the model's forward pass on a batch of 2 (arguments ids, mask) fails: TypeError: ")


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("name", NAMES)
def test_every_case_goes_through_the_command_line(name, tmp_path, monkeypatch, capsys):
    """What is right runs without a warning, what is not ends in one line, and nothing is half-written."""
    options = ["--num_trials", "1", "--max_m", "256", "--num_test_grads", "20", "--min_d_lambda", "0.01"]
    monkeypatch.setattr(sys, "argv", ["spectrum_bounds.py", "--workload", str(CASES / f"{name}.py"), *options])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        script.run_script(spectrum_bounds.main)
    said = capsys.readouterr()
    summaries = list(tmp_path.rglob("summary.csv"))
    if name in REFUSED:
        assert stop.value.code == 2
        assert REFUSED[name] in said.err
        assert said.err.strip().count("\n") == 0
        assert not summaries
    else:
        assert stop.value.code == 0, said.err
        assert "Warning" not in said.out + said.err
        assert len(summaries) == 1
