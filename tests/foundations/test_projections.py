from __future__ import annotations

import pytest
import torch

from common.foundations.projections import PROJECTIONS, WITH_LAW
from common.sketches import matrices
from common.sketches.kronecker import KroneckerSketch
from common.sketches.projectors import make_projector
from common.sketches.tensorsketch import TensorSketch
from tests.reference import normal, projection_matrix
from tests.reference_factored import columns_of, flat

FACTORED = {"tensorsketch": TensorSketch, "kronecker": KroneckerSketch}
M, TRIALS, PARAMETERS = 16, 200, flat((6, 8))


def drawn(name, trial):
    """Return the (M, d) matrix of a named law."""
    if name in FACTORED:
        return columns_of(FACTORED[name](PARAMETERS, M, 5, trial), M)
    return projection_matrix(make_projector(name, 5), 48, M, M, trial)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", PROJECTIONS)
def test_every_name_is_drawn_and_keeps_squared_lengths_in_the_mean(monkeypatch, name):
    monkeypatch.setattr(matrices, "TILE_NUMBERS", 2**10)
    vector = normal(1, 48)
    vector /= vector.norm()
    lengths = torch.stack([(drawn(name, trial).double() @ vector).square().sum() for trial in range(TRIALS)])
    # five standard errors: one false alarm in 10^6
    assert abs(lengths.mean() - 1) < 5 * lengths.std() / TRIALS**0.5
    assert 0.01 < lengths.std() < 1


def test_laws_in_closed_form_are_those_of_projections_that_are_drawn():
    assert set(WITH_LAW) < set(PROJECTIONS)
    assert len(set(PROJECTIONS)) == len(PROJECTIONS)
