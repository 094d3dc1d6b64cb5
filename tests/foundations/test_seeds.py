from __future__ import annotations

import itertools

import torch

from common.foundations.seeds import derive_seed, isolated_rng, make_generator


def test_derived_seeds_differ_between_purposes():
    seeds = {derive_seed(a, b) for a in range(20) for b in range(1, 20)} | {derive_seed(a) for a in range(1, 20)}
    assert len(seeds) == 20 * 19 + 19
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeds_trials_and_purposes_have_streams_of_their_own():
    entropies = list(itertools.product([0, 1, 42], [0, 1, 2], [0, 1], [0, 1, 5]))
    seen = {make_generator("cpu", *entropy).initial_seed(): entropy for entropy in entropies}
    assert len(seen) == len(entropies)


def test_the_global_generator_comes_back_as_it_was():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with isolated_rng():
        torch.manual_seed(99)
        torch.rand(7)
    assert torch.equal(torch.rand(3), expected)
