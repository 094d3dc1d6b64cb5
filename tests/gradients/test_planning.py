from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.foundations.errors import UserError
from common.gradients import kept_rows, planning
from common.gradients.layer_gradients import RowGradients
from common.gradients.planning import plan_gradients
from common.workloads.losses import cross_entropy
from common.workloads.records import Examples
from tests.gradient_cases import (
    CPU,
    FLOAT32,
    MODELS,
    STORED,
    Concealed,
    Scaled,
    Selected,
    extract,
    reference_rows,
    rows_of,
    trained,
)
from tests.reference_training import dropout_perceptron, random_examples, tiny_workload


@pytest.mark.parametrize("offload", [*STORED, "recompute", None])
@pytest.mark.parametrize("name", MODELS)
def test_every_row_is_the_gradient_that_one_backward_pass_gives(name, offload, tmp_path, monkeypatch):
    model = trained(MODELS[name])
    monkeypatch.setattr(kept_rows, "BLOCK_BYTES", 67 * 4 * 9)  # nine columns a block
    found, expected = extract(model, tmp_path, offload), reference_rows(model)
    assert (found.num_rows, found.num_columns) == expected.shape
    rows = rows_of(found)
    assert ((rows - expected).norm(dim=1) / expected.norm(dim=1)).max() < FLOAT32
    torch.testing.assert_close(found.norms, expected.norm(dim=1), rtol=FLOAT32, atol=0)


def test_without_a_wish_gradients_are_recomputed_or_stored_in_ram_or_on_disk_by_their_size(monkeypatch):
    workload, model = tiny_workload(loss=cross_entropy), trained(dropout_perceptron)
    parts = [("training", workload.train)]

    def chosen(**wish):
        return plan_gradients(workload, model, parts, 7, None, torch.float32, CPU, **wish)

    assert chosen().offload == "recompute"
    plan = chosen(prefer_stored=True)
    assert plan.offload == "cpu"
    monkeypatch.setattr(planning, "LARGEST_IN_RAM", plan.num_bytes)
    assert chosen(prefer_stored=True).offload == "cpu"
    monkeypatch.setattr(planning, "LARGEST_IN_RAM", plan.num_bytes - 1)
    assert chosen(prefer_stored=True).offload == "disk"


@pytest.mark.parametrize("samples", [1, 3])
def test_batches_of_large_gradients_are_cut_to_the_memory_they_may_take(samples, tmp_path, monkeypatch):
    model, sizes, compute = trained(dropout_perceptron), [], RowGradients.__call__

    def count(self, batch):
        sizes.append(len(batch))
        return compute(self, batch)

    num_columns = sum(p.numel() for p in model.parameters())
    whole = extract(model, tmp_path, "cpu")
    monkeypatch.setattr(planning, "BATCH_BYTES", 4 * num_columns * samples)
    monkeypatch.setattr(RowGradients, "__call__", count)
    cut = extract(model, tmp_path, "cpu")
    assert set(sizes[:-1]) == {samples}
    assert sum(sizes) == whole.num_rows
    torch.testing.assert_close(cut.norms, whole.norms, rtol=1e-5, atol=0)


@pytest.mark.parametrize("batch_size", [1, 10, 1000])
@pytest.mark.parametrize("name", MODELS)
def test_the_batch_size_does_not_matter(name, batch_size, tmp_path):
    model = trained(MODELS[name])
    expected = rows_of(extract(model, tmp_path, "cpu", batch_size=7))
    found = rows_of(extract(model, tmp_path, "cpu", batch_size=batch_size))
    assert ((found - expected).norm(dim=1) / expected.norm(dim=1)).max() < FLOAT32


def test_columns_follow_the_named_parameters_each_row_by_row(tmp_path):
    # one linear layer: the gradient of sample i is the outer product of p − y with x, then p − y
    torch.manual_seed(0)
    model = nn.Linear(5, 3).eval()
    examples = random_examples(4, seed=1)
    rows = rows_of(extract(model, tmp_path, "cpu", [("training", examples)]))
    error = model(examples.inputs).softmax(1).detach() - F.one_hot(examples.targets, 3)
    outer = error[:, :, None] * examples.inputs[:, None, :]
    torch.testing.assert_close(rows.float(), torch.cat([outer.flatten(1), error], dim=1))


def test_dropout_and_batch_norm_are_in_eval_mode_and_stay_as_they_are(tmp_path):
    for name in MODELS:
        model = trained(MODELS[name])
        before = copy.deepcopy(model.state_dict())
        first, second = (rows_of(extract(model, tmp_path, "cpu")) for _ in range(2))
        assert torch.equal(first, second)
        assert not model.training
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert all(p.grad is None for p in model.parameters())


MODES = (
    (dropout_perceptron, "recompute"),
    (Scaled, "recompute"),
    (Selected, "recompute"),
    (Concealed, "cpu"),
)


def test_without_a_wish_nothing_is_stored_unless_a_parameter_goes_one_sample_at_a_time():
    workload = tiny_workload()
    for make_model, expected in MODES:
        parts = [("training", workload.train)]
        plan = plan_gradients(workload, trained(make_model), parts, 7, None, torch.float32, CPU)
        assert plan.offload == expected


# --- gradients that are not finite --------------------------------------------------------------------------


@pytest.mark.parametrize("offload", ["cpu", "disk", "recompute"])
@pytest.mark.parametrize(("part", "index"), [("training", 0), ("training", 13), ("test", 0), ("test", 4)])
def test_a_gradient_that_is_not_finite_names_its_sample_and_parameter(offload, part, index, tmp_path):
    workload = tiny_workload()
    parts = {"training": workload.train, "test": workload.test}
    inputs = parts[part].inputs.clone()
    inputs[index, 2] = torch.nan
    parts[part] = Examples(inputs, parts[part].targets)
    with pytest.raises(
        UserError, match=rf"{part} sample {index} is not finite in 0\.weight \(1 such samples\)"
    ) as info:
        extract(trained(dropout_perceptron), tmp_path, offload, list(parts.items()))
    assert "\n" not in str(info.value)


def test_the_parameter_named_is_the_one_that_is_not_finite(tmp_path):
    # a bias so large that only the last layer's own weight gradient overflows
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)).eval()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(3e38)
        model[1].weight.zero_()

    def loss(outputs, targets):
        return cross_entropy(outputs, targets) * 10

    with pytest.raises(UserError, match=r"training sample 0 is not finite in 1\.weight \(60 such samples\)"):
        extract(model, tmp_path, "cpu", [("training", tiny_workload().train)], loss=loss)


def test_a_parameter_outside_of_any_layer_is_named_as_well(tmp_path):
    train = tiny_workload().train
    inputs = train.inputs.clone()
    inputs[5] = torch.inf
    with pytest.raises(UserError, match=r"training sample 5 is not finite in scale"):
        extract(trained(Scaled), tmp_path, "cpu", [("training", Examples(inputs, train.targets))])
