from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from common.gradients import kept_rows, planning
from common.gradients.kept_rows import RecomputedGradients, StoredGradients
from common.gradients.layer_gradients import LayerwiseGradients
from common.workloads.losses import cross_entropy
from tests.gradient_cases import FLOAT32, STORED, extract, reference_rows, rows_of, trained
from tests.reference_training import dropout_perceptron, tiny_workload


@pytest.mark.parametrize("offload", [*STORED, "recompute"])
def test_the_gram_matrix_is_that_of_the_unit_rows(offload, tmp_path, monkeypatch):
    model = trained(dropout_perceptron)
    monkeypatch.setattr(kept_rows, "BLOCK_BYTES", 67 * 4 * 9)
    found, expected = extract(model, tmp_path, offload), reference_rows(model)
    unit = expected / expected.norm(dim=1, keepdim=True)
    gram = found.unit_gram()
    assert gram.dtype == torch.float64
    torch.testing.assert_close(gram, unit @ unit.T, rtol=0, atol=FLOAT32)
    torch.testing.assert_close(gram, gram.T, rtol=0, atol=1e-15)
    torch.testing.assert_close(gram.diagonal(), torch.ones(67, dtype=torch.float64), rtol=0, atol=1e-14)


def test_gradients_on_disk_need_a_file():
    with pytest.raises(ValueError, match="need a file"):
        StoredGradients(3, 4, "disk", torch.float32, torch.device("cpu"))


def test_where_gradients_are_kept_changes_no_bit(tmp_path):
    model = trained(dropout_perceptron)
    first, *others = (extract(model, tmp_path, offload) for offload in STORED)
    for other in others:
        assert torch.equal(other.norms, first.norms)
        assert torch.equal(rows_of(other), rows_of(first))
        assert torch.equal(other.unit_gram(), first.unit_gram())


def test_unit_rows_have_unit_length_and_blocks_are_float32_in_column_order(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_rows, "BLOCK_BYTES", 67 * 4 * 9)
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


@pytest.mark.parametrize("offload", [*STORED, "recompute"])
@pytest.mark.parametrize("memory_bytes", [2 << 30, 3000], ids=["kept", "another pass"])
def test_batches_are_unit_rows_of_the_samples_asked_for(offload, memory_bytes, tmp_path, monkeypatch):
    def loss(outputs, targets):
        # lengths from 1 to 1e-36, at which entries of a float32 gradient are subnormal numbers
        return cross_entropy(outputs, targets) * (10.0 ** (-(targets * 18.0)))

    model = trained(dropout_perceptron)
    make = partial(LayerwiseGradients, memory_bytes=memory_bytes)
    monkeypatch.setattr(planning, "LayerwiseGradients", make)
    monkeypatch.setattr(kept_rows, "BATCH_BYTES", 1)
    found, expected = extract(model, tmp_path, offload, loss=loss), reference_rows(model, loss=loss)
    lengths = expected.norm(dim=1, keepdim=True)
    assert lengths.min() < 1e-35
    unit, accuracy = expected / lengths, torch.where(lengths < 1e-30, 1e-2, FLOAT32)
    for samples in (None, torch.tensor([5, 66, 3, *range(20, 55)])):
        places, batches = zip(*found.unit_batches(samples), strict=True)
        chosen = torch.arange(67) if samples is None else samples
        assert [p.start for p in places] == list(range(0, len(chosen), kept_rows.LINE_ROWS))
        rows = torch.cat(batches)
        assert rows.dtype == torch.float32
        assert ((rows - unit[chosen]).norm(dim=1, keepdim=True) < accuracy[chosen]).all()


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


MEMORY_SCRIPT = """
import sys, torch
from pathlib import Path
from common.gradients import kept_rows
from common.gradients.kept_rows import StoredGradients
kept_rows.BLOCK_BYTES = 2**22
rows, columns = 64, 1_000_000
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
    # the matrix has 244 MiB; blocks of 4 MiB are read, and one row of 4 MiB is written at a time
    def growth(offload):
        command = [sys.executable, "-c", MEMORY_SCRIPT, offload, str(tmp_path)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert growth("disk") < 100
    assert growth("cpu") > 240


def test_recomputed_gradients_whose_lengths_are_known_need_no_gram_matrix_for_the_same_blocks():
    workload, model = tiny_workload(), trained(dropout_perceptron)
    with_gram = RecomputedGradients(LayerwiseGradients(model, workload.loss, workload.train))
    layerwise = LayerwiseGradients(model, workload.loss, workload.train)
    layerwise.gram, kept = None, layerwise.gram
    without = RecomputedGradients(layerwise, with_gram.norms)
    assert torch.equal(rows_of(without), rows_of(with_gram))
    layerwise.gram = kept
    assert torch.equal(without.unit_gram(), with_gram.unit_gram())
