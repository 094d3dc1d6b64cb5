"""Functions called once for all samples, because torch.func.vmap has no short way for them.

It runs torch's kernel for attention sample by sample, and for cross-entropy loads a package for symbolic algebra first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from common.gradients.sample_level import SampleLevel


def attention_of_all(
    level: SampleLevel,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **settings: Any,
) -> Tensor | None:
    """Return what torch.nn.functional.scaled_dot_product_attention gives for one sample's query, key and value.

    Shapes are those of one sample, (..., L, E), as for that function. None where attention is dropped at random.
    """
    if dropout_p:
        return None
    query_of_all, key, value = (level.of_all(tensor) for tensor in (query, key, value))
    if attn_mask is not None:
        mask = level.of_all(attn_mask)
        # a mask may leave out leading dimensions, which are those after the samples here
        attn_mask = mask.reshape(len(mask), *(1,) * (query.ndim - attn_mask.ndim), *mask.shape[1:])
    lead = query_of_all.shape[:-3]
    if len(lead) > 1:  # torch's fast kernel takes four dimensions: batch, heads, positions, features
        query_of_all, key, value = (tensor.flatten(0, -4) for tensor in (query_of_all, key, value))
        if attn_mask is not None:
            attn_mask = attn_mask.expand(*lead, *attn_mask.shape[len(lead) :]).flatten(0, -4)
    found = F.scaled_dot_product_attention(query_of_all, key, value, attn_mask, dropout_p, is_causal, **settings)
    return level.of_one(found.unflatten(0, lead) if len(lead) > 1 else found)


def cross_entropy_of_all(
    level: SampleLevel,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor | None:
    """Return what torch.nn.functional.cross_entropy gives for one sample: (k, ...) losses of (k, C, ...) inputs.

    None where it gives anything else: a mean or a sum, or with weights of classes.
    """
    if input.ndim < 2 or weight is not None or (size_average, reduce, reduction) != (None, None, "none"):
        return None
    inputs, targets = (level.of_all(tensor).flatten(0, 1) for tensor in (input, target))
    losses = F.cross_entropy(
        inputs, targets, ignore_index=ignore_index, reduction="none", label_smoothing=label_smoothing
    )
    return level.of_one(losses.unflatten(0, (level.batch, -1)))


ALL_AT_ONCE: dict[Callable, Callable[..., Tensor | None]] = {
    F.scaled_dot_product_attention: attention_of_all,
    F.cross_entropy: cross_entropy_of_all,
}
"""Function -> (level, its arguments for one sample) -> what it gives; None: to be called as it is."""
