"""Recurrent kernels step by step against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from common.gradients.recurrent import STEP_BY_STEP, is_packed

LENGTH, BATCH, WIDTH, HIDDEN = 5, 3, 4, 6
KERNELS = {nn.RNN: torch.rnn_tanh, nn.GRU: torch.gru, nn.LSTM: torch.lstm}


def arguments(layer, inputs):
    """Return what the layer gives its kernel: input, states, weights, and its settings."""
    directions = 2 if layer.bidirectional else 1
    size = layer.proj_size or layer.hidden_size
    states = [torch.randn(layer.num_layers * directions, BATCH, size, dtype=torch.float64)]
    if isinstance(layer, nn.LSTM):
        states.append(torch.randn(layer.num_layers * directions, BATCH, layer.hidden_size, dtype=torch.float64))
    state = states if isinstance(layer, nn.LSTM) else states[0]
    weights = [w for cell in layer.all_weights for w in cell]
    return inputs, state, weights, layer.bias, layer.num_layers, 0.0, False, layer.bidirectional, layer.batch_first


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize(
    "settings",
    [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}, {"batch_first": True, "num_layers": 2}],
)
def test_outputs_and_states_are_those_of_the_kernel(kind, settings):
    torch.manual_seed(0)
    layer = kind(WIDTH, HIDDEN, **settings).double().eval()
    shape = (BATCH, LENGTH, WIDTH) if layer.batch_first else (LENGTH, BATCH, WIDTH)
    given = arguments(layer, torch.randn(shape, dtype=torch.float64))
    kernel = KERNELS[kind]
    for found, expected in zip(STEP_BY_STEP[kernel](*given), kernel(*given), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_an_lstm_that_projects_its_output_is_that_of_the_kernel():
    torch.manual_seed(1)
    layer = nn.LSTM(WIDTH, HIDDEN, proj_size=2).double().eval()
    given = arguments(layer, torch.randn(LENGTH, BATCH, WIDTH, dtype=torch.float64))
    for found, expected in zip(STEP_BY_STEP[torch.lstm](*given), torch.lstm(*given), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "kernel"),
    [(nn.RNNCell, torch.rnn_tanh_cell), (nn.GRUCell, torch.gru_cell), (nn.LSTMCell, torch.lstm_cell)],
)
def test_a_single_cell_is_that_of_the_kernel(kind, kernel):
    torch.manual_seed(2)
    cell = kind(WIDTH, HIDDEN).double()
    state = torch.randn(BATCH, HIDDEN, dtype=torch.float64)
    states = (state, state.flip(0)) if kind is nn.LSTMCell else state
    given = (torch.randn(BATCH, WIDTH, dtype=torch.float64), states, *cell.parameters())
    torch.testing.assert_close(STEP_BY_STEP[kernel](*given), kernel(*given), rtol=1e-12, atol=1e-12)


def test_a_packed_sequence_is_told_from_a_plain_one():
    layer = nn.GRU(WIDTH, HIDDEN).double()
    plain = arguments(layer, torch.zeros(LENGTH, BATCH, WIDTH, dtype=torch.float64))
    assert not is_packed(torch.gru, plain)
    assert is_packed(torch.gru, (plain[0], torch.tensor([3]), *plain[1:]))
