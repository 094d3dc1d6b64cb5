"""Losses that are attributed, what training minimises, and when an output counts as correct."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

TOKEN_PAD = 389
"""dattri's padding token: 128 note-on, 128 note-off, 100 time-shift and 32 velocity events, an end token, then this."""


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the (B,) cross entropies of (B, classes) logits."""
    return F.cross_entropy(outputs, targets, reduction="none")


def argmax_correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return (B,) bool: whether the largest of the (B, classes) logits is the target."""
    return outputs.argmax(dim=1) == targets


def last_token_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the (B,) cross entropies of the last token, from (B, T, V) logits and (B, T) tokens; 0 for padding."""
    return F.cross_entropy(outputs[:, -1], targets[:, -1], ignore_index=TOKEN_PAD, reduction="none")


def last_token_correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return (B,) bool: whether the last token is predicted, from (B, T, V) logits and (B, T) tokens."""
    return argmax_correct(outputs[:, -1], targets[:, -1])


def all_token_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross entropy over all tokens but padding, from (B, T, V) logits and (B, T) tokens."""
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=TOKEN_PAD)
