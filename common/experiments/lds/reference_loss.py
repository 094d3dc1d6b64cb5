"""What a reference sketch has lost of the LDS of exact scores, in whose place it stands."""

from __future__ import annotations

import math

import pandas as pd
import torch

from common.experiments.lds.sweep import LdsTask
from common.theory.lds import predict_lds


def reference_loss(task: LdsTask, exact: pd.DataFrame) -> pd.DataFrame:
    """Return one row a λ: what the noise of a reference sketch has taken from its LDS; `exact` are its summarised rows.

    The closed form gives the LDS of a ridge-corrected sketch of half the size, and LDS is nearly linear in the variance
    1/ν, ν = m − d_2, of small noise: what 1/ν_(M/2) − 1/ν_M takes, times ν_M⁻¹ over that. NaN where d_λ >= M/2.
    """
    spectrum = task.cells.spectrum
    if spectrum.size is None:
        raise ValueError("exact scores have lost nothing")
    half, ridges = spectrum.size // 2, torch.tensor(task.cells.ridges, dtype=torch.float64)
    parts = (task.geometry.subset_sums, task.geometry.queries, task.losses, [half], ridges)
    mean = predict_lds(spectrum, *parts, groups=list(task.groups.values()), corrected=True).mean[:, 0]
    own = spectrum.own_inverse_dof(ridges)
    halved = 1 / (1 / own - spectrum.size + half)
    share = (own / (halved - own)).numpy()
    table = pd.DataFrame({"m": math.inf, "lambda": task.cells.ridges})
    for name, lds in zip(task.groups, mean.numpy(), strict=True):
        table[f"{name}_lds_reference_loss"] = share * (exact[f"{name}_lds"].to_numpy() - lds)
    return table
