"""Recurrent layers step by step, because torch.func.vmap cannot run the kernels that torch has for them.

Reference: the equations in the documentation of torch.nn.RNN, torch.nn.GRU and torch.nn.LSTM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class StateWeights:
    """What acts on the state of a cell."""

    weight: Tensor
    """(gates * H, H or P)."""
    bias: Tensor | None
    """(gates * H,); None where the layer has none."""
    projection: Tensor | None = None
    """(P, H), of an LSTM that projects its output; else None."""

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return the (B, gates * H) part of the gates that the state adds."""
        return F.linear(hidden, self.weight, self.bias)


Step = Callable[[Tensor, tuple[Tensor, ...], StateWeights], tuple[Tensor, ...]]
"""(projected input, state, what acts on the state) -> next state, whose first tensor is the output."""


def _plain_step(activation: Callable[[Tensor], Tensor]) -> Step:
    def step(projected: Tensor, state: tuple[Tensor, ...], weights: StateWeights) -> tuple[Tensor, ...]:
        return (activation(projected + weights(state[0])),)

    return step


def _gru_step(projected: Tensor, state: tuple[Tensor, ...], weights: StateWeights) -> tuple[Tensor, ...]:
    (hidden,) = state
    reset, update, new = projected.chunk(3, -1)
    hidden_reset, hidden_update, hidden_new = weights(hidden).chunk(3, -1)
    reset, update = torch.sigmoid(reset + hidden_reset), torch.sigmoid(update + hidden_update)
    new = torch.tanh(new + reset * hidden_new)
    return (new + update * (hidden - new),)


def _lstm_step(projected: Tensor, state: tuple[Tensor, ...], weights: StateWeights) -> tuple[Tensor, ...]:
    hidden, cell = state
    into, forget, new, out = (projected + weights(hidden)).chunk(4, -1)
    cell = torch.sigmoid(forget) * cell + torch.sigmoid(into) * torch.tanh(new)
    hidden = torch.sigmoid(out) * torch.tanh(cell)
    if weights.projection is not None:
        hidden = F.linear(hidden, weights.projection)
    return hidden, cell


def _layers(
    step: Step,
    inputs: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    """Return the outputs of the last layer, then the (layers * directions, B, ...) last states."""
    directions = 2 if bidirectional else 1
    per_cell = len(weights) // (num_layers * directions)
    sequence = inputs.transpose(0, 1) if batch_first else inputs
    last: list[tuple[Tensor, ...]] = []
    for layer in range(num_layers):
        outputs = []
        for direction in range(directions):
            cell = layer * directions + direction
            own = weights[cell * per_cell : (cell + 1) * per_cell]
            biases = own[2:4] if has_biases else (None, None)
            projection = own[4:] if has_biases else own[2:]
            projected = F.linear(sequence, own[0], biases[0])
            state = tuple(values[cell] for values in states)
            steps = []
            for position in range(len(sequence))[:: -1 if direction else 1]:
                state = step(projected[position], state, StateWeights(own[1], biases[1], *projection))
                steps.append(state[0])
            outputs.append(torch.stack(steps[::-1] if direction else steps))
            last.append(state)
        sequence = torch.cat(outputs, -1)
    result = sequence.transpose(0, 1) if batch_first else sequence
    return result, *(torch.stack(values) for values in zip(*last, strict=True))


def _run(step: Step) -> Callable:
    def run(inputs, states, weights, has_biases, num_layers, dropout, train, bidirectional, batch_first):
        states = [states] if isinstance(states, Tensor) else list(states)
        return _layers(step, inputs, states, list(weights), has_biases, num_layers, bidirectional, batch_first)

    return run


def _cell(step: Step) -> Callable:
    def run(inputs, state, w_ih, w_hh, b_ih=None, b_hh=None):
        single = isinstance(state, Tensor)
        found = step(F.linear(inputs, w_ih, b_ih), (state,) if single else tuple(state), StateWeights(w_hh, b_hh))
        return found[0] if single else found

    return run


_TANH, _RELU = _plain_step(torch.tanh), _plain_step(torch.relu)
STEP_BY_STEP: dict[Callable, Callable] = {
    torch.rnn_tanh: _run(_TANH),
    torch.rnn_relu: _run(_RELU),
    torch.gru: _run(_gru_step),
    torch.lstm: _run(_lstm_step),
    torch.rnn_tanh_cell: _cell(_TANH),
    torch.rnn_relu_cell: _cell(_RELU),
    torch.gru_cell: _cell(_gru_step),
    torch.lstm_cell: _cell(_lstm_step),
}
"""Kernel -> the same function made of operations that vmap can run; in eval mode, and not for packed sequences."""


def is_packed(func: Callable, args: tuple) -> bool:
    """Return whether a kernel is given a packed sequence: (data, batch sizes, ...) instead of (data, state, ...)."""
    return func in (torch.rnn_tanh, torch.rnn_relu, torch.gru, torch.lstm) and not isinstance(args[3], bool)
