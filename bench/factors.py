"""Projections of factors beside the sparse one of their products: of a perceptron's samples, and of one large layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from common.gradients.kept_rows import RecomputedGradients
from common.gradients.layer_capture import Routes
from common.gradients.layer_factors import FlatParameter, LayerFactors, ParameterFactors, flat_parameters
from common.gradients.layer_gradients import LayerwiseGradients
from common.gradients.layer_shares import Linear
from common.sketches.factored import FactoredSketch
from common.sketches.kronecker import KroneckerSketch
from common.sketches.kronecker_sizes import fixed_sizes
from common.sketches.projectors import make_projector
from common.sketches.tensorsketch import TensorSketch

SIZE, BATCH = 1024, 512
SIDE, POSITIONS, SAMPLES, RANK = 4096, 128, 4, 64
CPU = torch.device("cpu")
SMALL, LARGE = "projection of factors", "projection of a large layer"


def steps() -> list[tuple[str, str, Callable]]:
    """Return (what, route, step) of the three projections, for both."""
    return [
        (SMALL, "tensorsketch", samples_by_tensorsketch),
        (SMALL, "kronecker", samples_by_kronecker),
        (SMALL, "sjlt", samples_by_sjlt),
        (LARGE, "tensorsketch", layer_by_tensorsketch),
        (LARGE, "kronecker", layer_by_kronecker),
        (LARGE, "sjlt", layer_by_sjlt),
    ]


def samples_by_tensorsketch(workload, model) -> Callable[[], Tensor]:
    """Return what projects all training samples to (n, 1,024)."""
    return _projecting(workload, model, TensorSketch(flat_parameters(model), SIZE, 0, 0))


def samples_by_kronecker(workload, model) -> Callable[[], Tensor]:
    """Return what projects all training samples to at most (n, 1,024)."""
    return _projecting(workload, model, KroneckerSketch(flat_parameters(model), SIZE, 0, 0))


def samples_by_sjlt(workload, model) -> Callable[[], Tensor]:
    """Return what multiplies the gradients of all training samples out, and projects them to (1,024, n)."""
    layerwise = LayerwiseGradients(model, workload.loss, workload.train, BATCH)
    gradients = RecomputedGradients(layerwise, torch.ones(len(workload.train), dtype=torch.float64))
    next(iter(layerwise.column_blocks()))  # inputs and errors are kept from here on
    return lambda: make_projector("sjlt", 0).project(gradients, SIZE, 0)


def layer_by_tensorsketch(workload, model) -> Callable[[], Tensor]:
    """Return what projects made-up factors of one layer to (4, 4,096)."""
    parameter, share = _layer()
    return _warm(TensorSketch((parameter,), SIDE, 0, 0), share)


def layer_by_kronecker(workload, model) -> Callable[[], Tensor]:
    """Return the same by ranks of 64 and 64."""
    parameter, share = _layer()
    return _warm(KroneckerSketch((parameter,), SIDE, 0, 0, lambda p, _: fixed_sizes(p, RANK, RANK)), share)


def layer_by_sjlt(workload, model) -> Callable[[], Tensor]:
    """Return what multiplies the factors out, sample by sample, and adds the products to their buckets."""
    _, share = _layer()
    (pair,) = share.factors
    generator = torch.Generator().manual_seed(0)
    buckets = torch.randint(0, SIDE, (SIDE * SIDE,), generator=generator)
    signs = torch.randint(0, 2, (SIDE * SIDE,), generator=generator).float() * 2 - 1

    def run() -> Tensor:
        total = torch.zeros(SAMPLES, SIDE)
        for row, errors, inputs in zip(total, pair.errors, pair.inputs, strict=True):
            row.index_add_(0, buckets, (errors.T @ inputs).flatten() * signs)
        return total

    return run


def _warm(sketch: FactoredSketch, share: ParameterFactors) -> Callable[[], Tensor]:
    """Return the sketch of all samples, after a first call: plans of Fourier transforms are made once."""

    def run() -> Tensor:
        return sketch.rows([share], torch.ones(SAMPLES, dtype=torch.float64))

    run()
    return run


def _projecting(workload, model, sketch: FactoredSketch) -> Callable[[], Tensor]:
    factors = LayerFactors(model, workload.loss, Routes())
    batches = [(rows, list(shares)) for rows, shares in factors.batches(workload.train, BATCH, CPU)]

    def run() -> Tensor:
        scales = torch.ones(len(workload.train), dtype=torch.float64)
        return torch.cat([sketch.rows(shares, scales[rows]) for rows, shares in batches])

    return run


def _layer() -> tuple[FlatParameter, ParameterFactors]:
    generator = torch.Generator().manual_seed(0)
    errors, inputs = torch.randn(2, SAMPLES, POSITIONS, SIDE, generator=generator)
    parameter = FlatParameter("layer", 0, SIDE, SIDE)
    return parameter, ParameterFactors(parameter, (Linear(errors, inputs),), None)
