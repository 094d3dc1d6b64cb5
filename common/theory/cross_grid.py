"""The error of sketched influence over all pairs of some training gradients and some queries, in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.theory.column_sample import ColumnSample
from common.theory.cross_influence import CrossErrorPrediction
from common.theory.pooled_errors import pooled_error_summary
from common.theory.sketch_law import law_on_grid
from common.theory.spectrum import Spectrum


@dataclass(frozen=True)
class PairsPrediction:
    """Predicted distributions over all pairs (g, q) and sketches; float64 (ms, ridges), dimensionless."""

    whole: CrossErrorPrediction
    """|B̃(g, q) − B_λ(g, q)|/(√φ_λ(g) √φ_λ(q))."""
    unridged: CrossErrorPrediction
    """|B̃(g, q) − B_λ(g, q)|/(√φ₀(g) √φ₀(q))."""
    in_range: CrossErrorPrediction | None
    """|B̃(g, q') − B_λ(g, q')|/(√φ_λ(g) √φ_λ(q)), q' the part of q in range(F); None where not asked for."""
    in_kernel: CrossErrorPrediction | None
    """|B̃(g, q")|/(√φ_λ(g) √φ_λ(q)), q" the part of q in ker(F), whose exact score is 0: the leakage; None likewise."""


def unridged_norms(eigenvalues: Tensor, vectors: Tensor, rank: int) -> Tensor:
    """Return the (v,) values √φ₀(g) = √(gᵀF⁺g), with the first `rank` eigenvalues of F alone in F⁺.

    Args:
        eigenvalues: (r,) of F, descending.
        vectors: (v, r) in the eigenbasis of F.
        rank: at most the number of eigenvalues > 0.
    """
    return (vectors[:, :rank].square() @ (1 / eigenvalues[:rank])).sqrt()


def predict_pairs(
    spectrum: Spectrum,
    train: Tensor,
    queries: Tensor,
    rank: int,
    unridged: tuple[Tensor, Tensor],
    ms,
    ridges,
    corrected: bool = False,
    sjlt_columns: ColumnSample | None = None,
    parts: bool = True,
) -> PairsPrediction:
    """Return the predicted normalised errors of B̃(g, q) for every m and λ, pooled over all pairs of rows.

    The law is that of `predict_cross_error`. A query is the sum of its parts in range(F) and in ker(F); since g lies
    in range(F), ψ(g, q") = 0 and E[B̃(g, q")] = 0 for the latter, so that

        Var[B̃(g, q")] = ψ(g, g) ‖q"‖²/ν          with   ψ(g, g) = gᵀ(F+μI)⁻²g ,

    of order 1/m while F + μI is near F + λI: the leakage falls like m^(-1/2).

    Args:
        spectrum: F, known by all of its eigenvalues.
        train: (p, r) coordinates of g, in range(F).
        queries: (k, r) coordinates of q.
        rank: directions of range(F): the coordinates from there on span ker(F).
        unridged: (p,) √φ₀(g) and (k,) √φ₀(q).
        ms: (M,) projection dimensions.
        ridges: (L,) values of λ > 0.
        corrected: solve the sketched problem with `corrected_ridge` instead of λ.
        sjlt_columns: for an SJLT with one entry a column, whose law depends on how leverage is spread over columns.
        parts: whether the errors of both parts of the queries are wanted.

    """
    ms, ridges = (torch.as_tensor(x, dtype=torch.float64).flatten() for x in (ms, ridges))
    law = law_on_grid(spectrum, ms, ridges, corrected, sjlt_columns)
    exact = spectrum.resolvent_weights(1, law.ridge)
    # relative to the exact weights every number below is of order 1, whatever λ: float32 does for single pairs
    shift = law.mean_weights(spectrum) / exact - 1
    damping = law.mu * spectrum.resolvent_weights(2, law.mu) / exact
    has_score = queries.any(1)  # a zero query has no relative error
    train, queries = train.cpu(), queries[has_score].cpu()
    unridged_train, unridged_queries = unridged[0].cpu(), unridged[1].cpu()[has_score.cpu()]
    cells: list[list[Tensor]] = [[] for _ in law.ridge]
    for first in range(len(ridges)):
        # cells of one λ share what does not depend on m
        left, left_norms = _scaled(train, exact[:, first])
        right, right_norms = _scaled(queries, exact[:, first])
        unit = (left_norms / unridged_train)[:, None] * (right_norms / unridged_queries)
        damped = damping[:, first :: len(ridges)]
        own_left, in_range = left.square() @ damped, right[:, :rank].square() @ damped[:rank]
        in_kernel = right[:, rank:].square() @ damped[rank:]
        left, right = left.float(), right.float()
        for i, cell in enumerate(range(first, len(cells), len(ridges))):
            weights = torch.stack([shift[:, cell], damping[:, cell]]).float()
            # on the side of the queries, which are fewer
            bias, shared = (left @ (right * weights[:, None]).flatten(0, 1).T).chunk(2, 1)
            noise, shared = law.dof[cell].rsqrt(), shared.square()
            std = (own_left[:, i, None] * (in_range + in_kernel)[:, i] + shared).sqrt() * noise
            pairs = [(bias, std), (bias * unit, std * unit)]
            if parts:
                std_in_range = (own_left[:, i, None] * in_range[:, i] + shared).sqrt() * noise
                std_in_kernel = (own_left[:, i, None] * in_kernel[:, i]).sqrt() * noise
                pairs += [(bias, std_in_range), (torch.zeros_like(bias), std_in_kernel)]
            biases, stds = (torch.stack([x.double().flatten() for x in each], 1) for each in zip(*pairs, strict=True))
            cells[cell] = pooled_error_summary(biases, stds)

    def table(part: int) -> CrossErrorPrediction:
        statistics = ([one[i][part] for one in cells] for i in range(4))
        return CrossErrorPrediction(*(torch.stack(values).reshape(len(ms), len(ridges)) for values in statistics))

    return PairsPrediction(table(0), table(1), table(2) if parts else None, table(3) if parts else None)


def _scaled(vectors: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return (v, r) vectors with unit length in the inner product of `weights`, times √weights, and (v,) lengths."""
    scaled = vectors * weights.sqrt()
    lengths = scaled.norm(dim=1)
    return scaled / lengths[:, None], lengths
