"""How large a Gaussian sketch is as noisy as a measured one: the common currency of projections."""

from __future__ import annotations

import numpy as np
import torch

from common.theory.self_influence import predict_self_influence
from common.theory.spectrum import Spectrum

STEPS_PER_OCTAVE = 4


def gaussian_equivalent_dimensions(
    spectrum: Spectrum, queries, ms: list[int], ridges: list[float], eps_95: np.ndarray
) -> np.ndarray:
    """Return the m' at which a Gaussian sketch has these ε_95 of self-influence, by its closed form.

    The law is evaluated four times an octave, from 1 to 8 times the largest m, and interpolated in log m' and log ε:
    right to 1 % where the law is. Where ε_95 is not monotone in m', the largest m' counts.

    Args:
        spectrum: F.
        queries: (k, r) coordinates of the queries.
        ms: (cells,) projection dimensions measured; they decide how far the law is evaluated.
        ridges: (cells,) λ > 0.
        eps_95: (cells,) measured ε_95.

    Returns:
        (cells,) float64; NaN where ε_95 is not finite, or none of these Gaussian sketches has it.
    """
    octaves = int(np.ceil(np.log2(max(ms)))) + 3
    sizes = 2.0 ** (np.arange(octaves * STEPS_PER_OCTAVE + 1) / STEPS_PER_OCTAVE)
    distinct = sorted(set(ridges))
    law = predict_self_influence(spectrum, queries, torch.from_numpy(sizes), distinct).eps_95.numpy()
    found = np.full(len(ridges), np.nan)
    for cell, (ridge, measured) in enumerate(zip(ridges, eps_95, strict=True)):
        # from the largest m' down, so that the error only grows
        predicted = np.maximum.accumulate(law[::-1, distinct.index(ridge)])
        if predicted[0] <= measured <= predicted[-1]:
            found[cell] = np.exp(np.interp(np.log(measured), np.log(predicted), np.log(sizes[::-1])))
    return found
