from __future__ import annotations

import pytest
import torch

from common.curvature import fisher
from common.curvature.blocks import find_blocks
from common.gradients.kept_rows import StoredGradients
from common.gradients.layer_capture import Routes
from common.gradients.layer_factors import LayerFactors
from tests.curvature.test_coordinates import matrices
from tests.layer_cases import make_case
from tests.reference_gradients import one_by_one_gradients

NUM_TRAIN = 5


@pytest.fixture(scope="module")
def problem():
    """A model with blocks of more and of fewer parameters than samples, and its 7 gradients, of which 5 train."""
    model, loss, examples = make_case("repeated_layer")
    rows = one_by_one_gradients(model, loss, examples.inputs, examples.targets)
    blocks = find_blocks(list(LayerFactors(model, loss, Routes())(examples)))
    stored = StoredGradients(*rows.shape, "cpu", torch.float64, torch.device("cpu"))
    stored.write(0, rows)
    return rows, blocks, stored


@pytest.mark.parametrize("num_train", [NUM_TRAIN, 20])
def test_spectra_are_those_of_the_dense_fisher_of_every_block(problem, num_train):
    rows, blocks, stored = problem
    if num_train > len(rows):  # more samples than a block has parameters
        rows = torch.cat([rows, 2 * rows.flip(0), rows[:6] - rows[1:7]])
        stored = StoredGradients(*rows.shape, "cpu", torch.float64, torch.device("cpu"))
        stored.write(0, rows)
    found = fisher.spectra(stored, blocks, num_train)
    assert list(found) == [block.name for block in blocks]
    for block in blocks:
        own = matrices(block, rows[:num_train]).flatten(1)
        expected = torch.linalg.eigvalsh(own.T @ own / num_train)
        kept = len(found[block.name])
        assert kept == min(num_train, block.size)
        torch.testing.assert_close(found[block.name], expected[-kept:].clamp(min=0), rtol=1e-5, atol=1e-12)


def test_a_block_that_costs_too_much_is_left_out(problem, monkeypatch):
    _, blocks, stored = problem
    sizes = sorted(block.size for block in blocks)
    assert sizes[0] < sizes[1]
    monkeypatch.setattr(fisher, "LARGEST_COST", NUM_TRAIN * NUM_TRAIN * sizes[0])
    found = fisher.spectra(stored, blocks, NUM_TRAIN)
    assert list(found) == [block.name for block in blocks if block.size == sizes[0]]
    monkeypatch.setattr(fisher, "LARGEST_SIDE", 1)
    assert fisher.spectra(stored, blocks, NUM_TRAIN) == {}
