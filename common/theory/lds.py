"""The linear datamodeling score (LDS) of sketched influence, in closed form: no sketch is drawn here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.theory.column_sample import ColumnSample
from common.theory.ranks import unit_ranks
from common.theory.sketch_law import law_on_grid
from common.theory.spectrum import Spectrum


@dataclass(frozen=True)
class LdsPrediction:
    """Predicted LDS over a grid of projection dimensions and ridges; float64."""

    per_query: Tensor
    """(ms, ridges, k) mean over sketches of the LDS of every query; NaN for queries without a correlation."""
    mean: Tensor
    """(groups, ms, ridges) mean over sketches of the mean LDS over the queries of a group."""
    std: Tensor
    """(groups, ms, ridges) standard deviation over sketches of the mean LDS over the queries of a group."""


def predict_lds(
    spectrum: Spectrum,
    subset_sums: Tensor,
    queries: Tensor,
    losses: Tensor,
    ms,
    ridges,
    groups: Sequence[Tensor] | None = None,
    corrected: bool = False,
    sjlt_columns: ColumnSample | None = None,
) -> LdsPrediction:
    """Return the LDS that sketches of size m reach at ridge λ, for every m and λ and groups of queries.

    The prediction for subset S is x_S = −B̃(a_S, q), a_S the sum of the gradients of S. Spearman's correlation with
    fixed loss ranks t (centred, unit length) is linear in the events x_S > x_T, so its mean over Gaussian x is

        LDS(q) = √(12/(N³−N)) Σ_{S<T} (t_S − t_T) (Φ(u_ST) − 1/2) ,   u_ST = E[x_S − x_T] / sd[x_S − x_T]

    with N subsets. The standard deviation of a mean over queries is that of its linear part in the noise: with C
    the (N, k) derivatives of the mean LDS with respect to E[x], and Cov[B̃] from sketch_law.py,

        Var = μ²/ν [ tr(Ψ_aa C Ψ_qq Cᵀ) + tr((Cᵀ Ψ_aq)²) ] ,   Ψ_ab = A (F+μI)⁻² Bᵀ .

    The correlation between queries that share a sketch is in it. The linear part leaves out the curvature of ranks:
    the predicted standard deviation is 5 % to 15 % too low. The mean is exact for the Gaussian law.

    Where F is known by a sketch alone, E[x] is itself an estimate with noise of the same covariance, 1/ν' that of
    `Spectrum.own_inverse_dof`: only the rest of the noise, 1/ν − 1/ν', is added.

    Measured against Gaussian sketches of prescribed spectra (30 subsets, 250 sketches): means of groups within 0.006
    for m >= 64 (standard error up to 0.003) and within 0.011 at m = 16, too low at large λ.

    Args:
        spectrum: F.
        subset_sums: (N, r) sums of the (actual, not unit) training gradients of each subset.
        queries: (k, r) query gradients; their lengths do not matter.
        losses: (N, k) loss of each query after training on each subset.
        ms: (M,) projection dimensions.
        ridges: (L,) values of λ > 0.
        groups: index tensors into the queries; None for one group of all.
        corrected: solve the sketched problem with the corrected ridge; NaN where that is not defined.
        sjlt_columns: for an SJLT with one entry a column, whose law depends on how leverage is spread over columns.

    """
    ms, ridges = (torch.as_tensor(value, dtype=torch.float64).flatten() for value in (ms, ridges))
    subset_sums, queries, losses = (x.cpu() for x in (subset_sums, queries, losses))
    law = law_on_grid(spectrum, ms, ridges, corrected, sjlt_columns)
    groups = [torch.arange(len(queries))] if groups is None else groups
    pairs = _Pairs(losses)
    # Everything depends on differences of subset sums alone; centred, they are small enough for float32.
    centred = subset_sums - subset_sums.mean(0)
    centred = (centred / centred.abs().max()).float()
    damping = law.mu * spectrum.resolvent_weights(2, law.mu).sqrt()
    query_scale = (queries.square() @ damping.square()).sqrt().float()
    mean_weights, damping = (law.mean_weights(spectrum) * law.mu).float(), damping.float()
    noise = (1 / law.dof - spectrum.own_inverse_dof(law.mu)).clamp(min=0).sqrt().float()
    queries = queries.float()

    lds_of_cells, std = [], []
    for cell in range(len(noise)):
        damped = centred * damping[:, cell]
        both = torch.cat([centred * mean_weights[:, cell], noise[cell] * damped * damping[:, cell]]) @ queries.T
        means, psi_aq = (both / query_scale[:, cell]).split(len(losses))
        psi_aa = noise[cell] ** 2 * (damped @ damped.T)
        lds, slope = pairs.expected_lds(-means, psi_aa, psi_aq)
        lds_of_cells.append(lds)
        slope = (slope / query_scale[:, cell]).nan_to_num()
        for group in groups:
            carried = (slope[:, group] @ queries[group]) * damping[:, cell]
            overlap = (psi_aq * query_scale[:, cell]).nan_to_num()[:, group] @ slope[:, group].T
            variance = (psi_aa * (carried @ carried.T)).sum() + (overlap * overlap.T).sum()
            std.append(variance.clamp(min=0).sqrt() / lds[group].isfinite().sum())
    grid = (len(ms), len(ridges))
    per_query = torch.stack(lds_of_cells).double().reshape(*grid, -1)
    return LdsPrediction(
        per_query,
        torch.stack([per_query[..., group].nanmean(-1) for group in groups]),
        torch.stack(std).double().reshape(*grid, -1).movedim(-1, 0),
    )


class _Pairs:
    """Pairs of subsets with the difference of their loss ranks, for the closed form of `predict_lds`."""

    def __init__(self, losses: Tensor):
        size = len(losses)
        self.first, self.second = torch.triu_indices(size, size, 1)
        ranks = unit_ranks(losses) * (12 / (size**3 - size)) ** 0.5
        self.rank_gaps = (ranks[self.first] - ranks[self.second]).float()
        self.incidence = torch.zeros(size, len(self.first))
        self.incidence[self.first, torch.arange(len(self.first))] = 1
        self.incidence[self.second, torch.arange(len(self.first))] = -1

    def expected_lds(self, means: Tensor, psi_aa: Tensor, psi_aq: Tensor) -> tuple[Tensor, Tensor]:
        """Return (k,) LDS and its (N, k) derivative by `means`; noise [ψ(a,b) + ψ(a,q)ψ(b,q)], ψ(q,q) = 1."""
        first, second = self.first, self.second
        diagonal = psi_aa.diagonal()
        spread = diagonal[first] + diagonal[second] - 2 * psi_aa[first, second]
        # two equal subsets have no noise between them, and no difference to divide by it
        spread = spread.clamp(min=1e-12 * diagonal.mean().item())
        variance = (psi_aq[first] - psi_aq[second]).square_().add_(spread[:, None])
        inverse_sd = variance.rsqrt_()
        u = (means[first] - means[second]).mul_(inverse_sd)
        lds = torch.special.erf(u * 0.5**0.5).mul_(self.rank_gaps).sum(0) / 2
        density = u.square_().mul_(-0.5).exp_().mul_(inverse_sd).mul_(self.rank_gaps)
        return lds, self.incidence @ density / (2 * torch.pi) ** 0.5
