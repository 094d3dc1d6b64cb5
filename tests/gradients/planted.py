"""Wrong gradients made to order, of a model whose right ones are known by their formula."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from common.gradients import layer_capture
from common.gradients.verification import Subject
from common.workloads.losses import cross_entropy
from common.workloads.records import Examples

FEATURES, HIDDEN, CLASSES = 5, 6, 3


def subject(dtype: torch.dtype, count: int = 60, spread: float = 1.0, seed: int = 0) -> Subject:
    """Return a perceptron and random samples; the logits grow with `spread`."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, CLASSES)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
    inputs = torch.randn(count, FEATURES, generator=generator).to(dtype)
    return Subject(model.to(dtype), cross_entropy, Examples(inputs, torch.arange(count) % CLASSES), dtype)


def formula(subject: Subject) -> dict[str, Tensor]:
    """Return the (N, ...) float64 gradients of every parameter: δ₂ = p − y, δ₁ = (W₂ᵀ δ₂) ∘ (1 − h²)."""
    w1, b1, w2, b2 = (parameter.detach().double() for parameter in subject.model.parameters())
    x = subject.examples.inputs.double()
    h = torch.tanh(x @ w1.T + b1)
    out = (h @ w2.T + b2).softmax(1) - nn.functional.one_hot(subject.examples.targets, CLASSES)
    back = (out @ w2) * (1 - h**2)
    return {
        "0.weight": back[:, :, None] * x[:, None, :],
        "0.bias": back,
        "2.weight": out[:, :, None] * h[:, None, :],
        "2.bias": out,
    }


def flat(gradients: dict[str, Tensor]) -> Tensor:
    """Return the (N, d) gradients by all parameters together."""
    return torch.cat([gradient.flatten(1) for gradient in gradients.values()], dim=1)


def plant_share(patch: pytest.MonkeyPatch, parameter: str, factor: float) -> None:
    """Make every layer's share of the gradient of one parameter wrong by a factor."""
    shares = layer_capture.shares

    def wrong(call, errors):
        for source, capture in shares(call, errors):
            if source.name == parameter:
                capture = replace(capture, errors=factor * capture.errors)
            yield source, capture

    patch.setattr(layer_capture, "shares", wrong)
