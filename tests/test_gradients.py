from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common import gradients as gradients_module
from common.cache import open_gradients, write_gradients
from common.errors import UserError
from common.gradients import RecomputedGradients, compute_gradients, plan_gradients
from common.layer_gradients import LayerwiseGradients
from common.losses import cross_entropy
from common.records import Examples
from tests.reference_gradients import one_by_one_gradients
from tests.reference_training import batch_norm_perceptron, dropout_perceptron, random_examples, tiny_workload

CPU = torch.device("cpu")
STORED = ["none", "cpu", "disk"]
FLOAT32 = 1e-5  # a few dozen roundings of 6e-8


class Scaled(nn.Module):
    """A parameter of the model itself: no layer that the layerwise route knows."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([0.5, 2.0, 1.0, -1.0, 0.3]))
        self.out = nn.Linear(5, 3)
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return self.dropout(self.out(torch.tanh(x * self.scale))) * self.frozen


MODELS = {"layers": dropout_perceptron, "batch_norm": batch_norm_perceptron, "vmap": Scaled}


def trained(make_model):
    torch.manual_seed(0)
    model = make_model()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def extract(model, tmp_path, offload, parts=None, batch_size=7, dtype=torch.float32, loss=cross_entropy):
    workload = tiny_workload(loss=loss)
    parts = parts or [("training", workload.train), ("test", workload.test)]
    plan = plan_gradients(workload, model, parts, batch_size, offload, dtype, CPU)
    if plan.offload != "disk":
        return compute_gradients(plan)
    path = tmp_path / "rows.bin"
    return open_gradients(plan, path, write_gradients(plan, path))


def rows_of(gradients):
    return torch.cat([block.double() for _, block in gradients.unit_blocks()], dim=1) * gradients.norms[:, None]


def reference_rows(model, parts=None, loss=cross_entropy):
    workload = tiny_workload()
    parts = parts or [("training", workload.train), ("test", workload.test)]
    inputs, targets = (torch.cat([getattr(p, name) for _, p in parts]) for name in ("inputs", "targets"))
    return one_by_one_gradients(model, loss, inputs, targets)


# --- the numbers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offload", [*STORED, "recompute", None])
@pytest.mark.parametrize("name", MODELS)
def test_every_row_is_the_gradient_that_one_backward_pass_gives(name, offload, tmp_path, monkeypatch):
    if name == "vmap" and offload == "recompute":
        pytest.skip("refused, see below")
    model = trained(MODELS[name])
    monkeypatch.setattr(gradients_module, "BLOCK_BYTES", 67 * 4 * 9)  # nine columns a block
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
    monkeypatch.setattr(gradients_module, "LARGEST_IN_RAM", plan.num_bytes)
    assert chosen(prefer_stored=True).offload == "cpu"
    monkeypatch.setattr(gradients_module, "LARGEST_IN_RAM", plan.num_bytes - 1)
    assert chosen(prefer_stored=True).offload == "disk"


@pytest.mark.parametrize("samples", [1, 3])
def test_batches_of_large_gradients_are_cut_to_the_memory_they_may_take(samples, tmp_path, monkeypatch):
    model, sizes = trained(dropout_perceptron), []

    def loss(outputs, targets):
        sizes.append(len(outputs))
        return cross_entropy(outputs, targets)

    num_columns = sum(p.numel() for p in model.parameters())
    whole = extract(model, tmp_path, "cpu")
    monkeypatch.setattr(gradients_module, "BATCH_BYTES", 4 * num_columns * samples)
    cut = extract(model, tmp_path, "cpu", loss=loss)
    assert sizes.count(samples) >= whole.num_rows // 3
    assert max(sizes) <= 3
    torch.testing.assert_close(cut.norms, whole.norms, rtol=1e-5, atol=0)


@pytest.mark.parametrize("offload", [*STORED, "recompute"])
def test_the_gram_matrix_is_that_of_the_unit_rows(offload, tmp_path, monkeypatch):
    model = trained(dropout_perceptron)
    monkeypatch.setattr(gradients_module, "BLOCK_BYTES", 67 * 4 * 9)
    found, expected = extract(model, tmp_path, offload), reference_rows(model)
    unit = expected / expected.norm(dim=1, keepdim=True)
    gram = found.unit_gram()
    assert gram.dtype == torch.float64
    torch.testing.assert_close(gram, unit @ unit.T, rtol=0, atol=FLOAT32)
    torch.testing.assert_close(gram, gram.T, rtol=0, atol=1e-15)
    torch.testing.assert_close(gram.diagonal(), torch.ones(67, dtype=torch.float64), rtol=0, atol=1e-14)


def test_where_gradients_are_kept_changes_no_bit(tmp_path):
    model = trained(dropout_perceptron)
    first, *others = (extract(model, tmp_path, offload) for offload in STORED)
    for other in others:
        assert torch.equal(other.norms, first.norms)
        assert torch.equal(rows_of(other), rows_of(first))
        assert torch.equal(other.unit_gram(), first.unit_gram())


def test_unit_rows_have_unit_length_and_blocks_are_float32_in_column_order(tmp_path, monkeypatch):
    monkeypatch.setattr(gradients_module, "BLOCK_BYTES", 67 * 4 * 9)
    for offload in ("cpu", "recompute"):
        found = extract(trained(dropout_perceptron), tmp_path, offload)
        next_column, squares = 0, torch.zeros(67, dtype=torch.float64)
        for start, block in found.unit_blocks():
            assert start == next_column
            assert block.dtype == torch.float32
            next_column += block.shape[1]
            squares += block.double().square().sum(1)
        assert next_column == found.num_columns
        torch.testing.assert_close(squares, torch.ones(67, dtype=torch.float64), rtol=0, atol=1e-6)


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


@pytest.mark.parametrize("offload", ["cpu", "recompute"])
def test_gradients_of_length_1e_minus_12_are_as_accurate_as_those_of_length_1(offload, tmp_path):
    def loss(outputs, targets):
        return cross_entropy(outputs, targets) * 10.0 ** (-(targets * 6)).float()  # 1, 1e-6, 1e-12

    model = trained(dropout_perceptron)
    found, expected = extract(model, tmp_path, offload, loss=loss), reference_rows(model, loss=loss)
    assert expected.norm(dim=1).min() < 1e-11
    assert ((rows_of(found) - expected).norm(dim=1) / expected.norm(dim=1)).max() < FLOAT32
    unit = expected / expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found.unit_gram(), unit @ unit.T, rtol=0, atol=FLOAT32)


@pytest.mark.parametrize("offload", [*STORED, "recompute"])
def test_a_zero_gradient_is_a_zero_row(offload, tmp_path):
    def loss(outputs, targets):
        return cross_entropy(outputs, targets) * (targets != 1)

    model = trained(dropout_perceptron)
    zero = torch.cat([part.targets for part in (tiny_workload().train, tiny_workload().test)]) == 1
    found = extract(model, tmp_path, offload, loss=loss)
    assert torch.equal(found.norms == 0, zero)
    assert rows_of(found)[zero].abs().max() == 0
    gram = found.unit_gram()
    assert gram.isfinite().all()
    assert gram[zero].abs().max() == 0


@pytest.mark.parametrize("offload", STORED)
@pytest.mark.parametrize(("dtype", "precision"), [(torch.float16, 5e-4), (torch.bfloat16, 4e-3)])
def test_sixteen_bit_storage_rounds_every_entry_relative_to_its_row(offload, dtype, precision, tmp_path):
    def loss(outputs, targets):
        return cross_entropy(outputs, targets) * 1e-9  # far below what 16 bits can hold

    model = trained(dropout_perceptron)
    found, expected = extract(model, tmp_path, offload, dtype=dtype, loss=loss), reference_rows(model, loss=loss)
    torch.testing.assert_close(found.norms, expected.norm(dim=1), rtol=FLOAT32, atol=0)
    assert ((rows_of(found) - expected).norm(dim=1) / expected.norm(dim=1)).max() < precision
    assert (found.unit_gram().diagonal() - 1).abs().max() < 1e-14


# --- where they are kept ------------------------------------------------------------------------------------


MEMORY_SCRIPT = """
import sys, torch
from pathlib import Path
from common import gradients
from common.gradients import StoredGradients
gradients.BLOCK_BYTES = 2**22
rows, columns = 128, 1_000_000
def peak():
    # unlike ru_maxrss, this does not start with the peak of the process that started this one
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])
file = open(Path(sys.argv[2]) / "rows.bin", "w+b")
make = lambda n, d: StoredGradients(n, d, sys.argv[1], torch.float32, torch.device("cpu"), file)
chunk = torch.ones(1, columns)
small = make(2, 1000)
small.write(0, torch.ones(2, 1000))
file.flush()
small.unit_gram()
before = peak()
stored = make(rows, columns)
for i in range(rows):
    stored.write(i, chunk * (i + 1))
file.flush()
for _ in range(2):
    assert abs(stored.unit_gram().min().item() - 1) < columns * 2**-52
print((peak() - before) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory where Linux tells it")
def test_the_disk_cache_is_never_in_memory_as_a_whole(tmp_path):
    # the matrix has 488 MiB; blocks of 4 MiB are read, and one row of 4 MiB is written at a time
    def growth(offload):
        command = [sys.executable, "-c", MEMORY_SCRIPT, offload, str(tmp_path)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert growth("disk") < 150
    assert growth("cpu") > 480


def test_recomputed_gradients_whose_lengths_are_known_need_no_gram_matrix_for_the_same_blocks():
    workload, model = tiny_workload(), trained(dropout_perceptron)
    with_gram = RecomputedGradients(LayerwiseGradients(model, workload.loss, workload.train))
    layerwise = LayerwiseGradients(model, workload.loss, workload.train)
    layerwise.gram, kept = None, layerwise.gram
    without = RecomputedGradients(layerwise, with_gram.norms)
    assert torch.equal(rows_of(without), rows_of(with_gram))
    layerwise.gram = kept
    assert torch.equal(without.unit_gram(), with_gram.unit_gram())


def test_without_a_wish_nothing_is_stored_where_every_layer_allows_it():
    workload = tiny_workload()
    for make_model, expected in ((dropout_perceptron, "recompute"), (Scaled, "cpu")):
        parts = [("training", workload.train)]
        plan = plan_gradients(workload, trained(make_model), parts, 7, None, torch.float32, CPU)
        assert plan.offload == expected


def test_recompute_is_refused_for_a_model_with_parameters_it_does_not_know(tmp_path):
    with pytest.raises(UserError, match="scale"):
        extract(trained(Scaled), tmp_path, "recompute")


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


def test_the_vmap_route_names_sample_and_parameter_as_well(tmp_path):
    train = tiny_workload().train
    inputs = train.inputs.clone()
    inputs[5] = torch.inf
    with pytest.raises(UserError, match=r"training sample 5 is not finite in scale"):
        extract(trained(Scaled), tmp_path, "cpu", [("training", Examples(inputs, train.targets))])
