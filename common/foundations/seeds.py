"""Random numbers that depend on a seed and nothing else, and code that leaves torch's global generators alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def make_generator(device: torch.device | str, *entropy: int) -> torch.Generator:
    """Return a generator on `device` whose stream depends on all of `entropy` (non-negative integers)."""
    seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator(device).manual_seed(seed)


def derive_seed(*entropy: int) -> int:
    """Return a 63-bit seed; distinct tuples of non-negative integers, the last not 0, give unrelated seeds."""
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def isolated_rng(device: torch.device | str = "cpu") -> Iterator[None]:
    """Give torch's global generators back as they were found, on the CPU and on `device`."""
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
