from __future__ import annotations

import torch

from common.workloads.losses import (
    TOKEN_PAD,
    all_token_loss,
    argmax_correct,
    cross_entropy,
    last_token_correct,
    last_token_loss,
)


def music():
    """Return float64 logits (3, 4, 390) and tokens (3, 4); the second sample ends in padding, the third has more."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(TOKEN_PAD, (3, 4), generator=generator)
    tokens[1, 3] = TOKEN_PAD
    tokens[2, :2] = TOKEN_PAD
    return torch.randn(3, 4, TOKEN_PAD + 1, generator=generator, dtype=torch.float64), tokens


def minus_log_probability(logits, targets):
    """Return −log of each target's share of the exponentials."""
    shares = logits.exp() / logits.exp().sum(-1, keepdim=True)
    return -shares.gather(-1, targets[..., None]).squeeze(-1).log()


def test_cross_entropy_is_minus_the_log_probability_of_each_target():
    logits, tokens = music()
    torch.testing.assert_close(cross_entropy(logits[:, 0], tokens[:, 0]), minus_log_probability(logits, tokens)[:, 0])


def test_only_the_last_token_is_attributed_and_padding_there_costs_nothing():
    logits, tokens = music()
    expected = minus_log_probability(logits, tokens)[:, -1]
    expected[1] = 0
    torch.testing.assert_close(last_token_loss(logits, tokens), expected)


def test_training_minimises_the_mean_over_all_tokens_but_padding():
    logits, tokens = music()
    expected = minus_log_probability(logits, tokens)[tokens != TOKEN_PAD]
    assert len(expected) == 9
    torch.testing.assert_close(all_token_loss(logits, tokens), expected.mean())


def test_correct_means_that_the_target_has_the_largest_logit():
    logits, tokens = music()
    assert argmax_correct(logits[:, 0], logits[:, 0].argmax(1)).tolist() == [True] * 3
    assert argmax_correct(logits[:, 0], logits[:, 0].argmin(1)).tolist() == [False] * 3
    tokens[0, -1] = logits[0, -1].argmax()
    tokens[1:, -1] = logits[1:, -1].argmin(1)
    assert last_token_correct(logits, tokens).tolist() == [True, False, False]
