"""Attention of all samples in one call, because torch.func.vmap runs torch's kernel for it sample by sample."""

from __future__ import annotations

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
) -> Tensor:
    """Return what torch.nn.functional.scaled_dot_product_attention gives for one sample's query, key and value.

    Shapes are those of one sample, (..., L, E), as for that function. `dropout_p` must be 0, as it is in eval mode.
    """
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
