from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from common.gradients.layer_factors import ParameterFactors
from common.gradients.layer_shares import Linear
from common.sketches.factored import (
    FactoredSketch,
    balanced_buckets,
    power_of_two_above,
    random_signs,
    scaled,
    vector_places,
)
from common.sketches.kronecker import KroneckerSketch
from common.sketches.tensorsketch import TensorSketch
from tests.pretended_device import COPIES, CUDA, PretendedTensor, pretended_device
from tests.reference_factored import (
    columns_of,
    flat,
    flat_gradients,
    kronecker_matrix,
    made_up_shares,
    tensorsketch_matrix,
)

PARAMETERS = flat((5, 7), (5, 1), (3, 20), (9, 4), (4, 1))
FLOAT32 = 1e-5
SCALES = torch.tensor([1.0, 1e-3, 0.0, 1e4], dtype=torch.float64)


@dataclass(frozen=True)
class Kind:
    """A factored sketch, its matrix written down from the definition, and by how much their entries may differ."""

    make: Callable[..., FactoredSketch]
    matrix: Callable[[FactoredSketch, int], Tensor]
    rounding: float


TENSORSKETCH = Kind(TensorSketch, tensorsketch_matrix, 0)
KRONECKER = Kind(KroneckerSketch, kronecker_matrix, FLOAT32)
each_kind = pytest.mark.parametrize("kind", [TENSORSKETCH, KRONECKER], ids=["tensorsketch", "kronecker"])


@pytest.mark.parametrize(
    ("kind", "m", "max_m"),
    [(TENSORSKETCH, *sizes) for sizes in [(8, 8), (8, 64), (64, 64), (1, 2)]]
    + [(KRONECKER, *sizes) for sizes in [(8, 8), (16, 64), (64, 128), (64, 64)]],
)
def test_the_sketch_of_every_unit_vector_is_the_column_that_the_law_describes(kind, m, max_m):
    sketch = kind.make(PARAMETERS, max_m, 5, 0)
    found = columns_of(sketch, m)
    assert len(found) == sketch.size(m) <= m
    torch.testing.assert_close(found, kind.matrix(sketch, m), rtol=kind.rounding, atol=kind.rounding)


@each_kind
@pytest.mark.parametrize("positions", [1, 6])
@pytest.mark.parametrize("m", [16, 64])
def test_factors_are_sketched_as_their_products_are(kind, m, positions):
    sketch = kind.make(PARAMETERS, 64, 5, 1)
    shares = made_up_shares(PARAMETERS, 4, positions, torch.Generator().manual_seed(0))
    expected = SCALES[:, None] * flat_gradients(shares) @ kind.matrix(sketch, m).T
    found = sketch.reduce(sketch.rows(shares, SCALES), m).double()
    for row, exact in zip(found, expected, strict=True):
        assert (row - exact).norm() <= FLOAT32 * exact.norm()


@each_kind
def test_errors_too_small_for_their_products_are_scaled_first(kind):
    sketch = kind.make(flat((3, 4)), 8, 0, 0)
    pair = Linear(torch.full((1, 1, 3), 1e-30), torch.full((1, 1, 4), 1e-12))
    scales = torch.tensor([1e42], dtype=torch.float64)
    exact = kind.matrix(sketch, 8) @ torch.ones(12, dtype=torch.float64)
    rows = sketch.rows([ParameterFactors(sketch.parameters[0], (pair,), None)], scales)
    found = sketch.reduce(rows, 8)[0].double()
    assert (found - exact).norm() <= FLOAT32 * exact.norm()


@each_kind
def test_the_same_seed_and_trial_give_the_same_sketch_and_others_do_not(kind):
    shares = made_up_shares(PARAMETERS, 2, 3, torch.Generator().manual_seed(0))

    def draw(seed, trial):
        return kind.make(PARAMETERS, 64, seed, trial).rows(shares, SCALES[:2])

    first = draw(1, 0)
    assert torch.equal(first, draw(1, 0))
    assert not any(torch.equal(first, other) for other in (draw(1, 1), draw(2, 0), draw(0, 1)))


@each_kind
def test_the_global_generator_is_left_alone(kind):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    kind.make(PARAMETERS, 64, 0, 0)
    assert torch.equal(torch.rand(4), expected)


class NothingMoves(TorchDispatchMode):
    """Refuses to copy a tensor to another device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in COPIES:
            tensors = [x for x in args if isinstance(x, Tensor)]
            assert all(isinstance(x, PretendedTensor) for x in tensors)
            assert torch.device((kwargs or {}).get("device") or CUDA) == CUDA
        return func(*args, **(kwargs or {}))


@each_kind
def test_a_sketch_is_kept_where_the_factors_are_and_a_batch_moves_nothing(kind):
    # numbers of positions that make a TensorSketch take both routes
    batches = [made_up_shares(PARAMETERS, 4, positions, torch.Generator().manual_seed(0)) for positions in (1, 6)]
    sketch = kind.make(PARAMETERS, 64, 5, 1)
    expected = [sketch.reduce(sketch.rows(shares, SCALES), m) for shares in batches for m in (16, 64)]
    with pretended_device():
        sketch = kind.make(PARAMETERS, 64, 5, 1, device=CUDA)
        there = [[_moved(share) for share in shares] for shares in batches]
        scales = SCALES.to(CUDA)
        with NothingMoves():
            found = [sketch.reduce(sketch.rows(shares, scales), m) for shares in there for m in (16, 64)]
        assert all(isinstance(rows, PretendedTensor) for rows in found)
        here = [rows.cpu() for rows in found]
    assert all(map(torch.equal, here, expected))


def _moved(share: ParameterFactors) -> ParameterFactors:
    factors = tuple(pair.map(lambda tensor: tensor.to(CUDA)) for pair in share.factors)
    return ParameterFactors(share.parameter, factors, None if share.rest is None else share.rest.to(CUDA))


def test_vectors_stand_one_after_the_other_whatever_is_between_them():
    places, count = vector_places(flat((5, 7), (5, 1), (1, 6), (9, 4), (1, 1)))
    assert places == {"p1": slice(0, 5), "p2": slice(5, 11), "p4": slice(11, 12)}
    assert count == 12
    assert vector_places(flat((5, 7))) == ({}, 0)


def test_scales_go_to_the_errors_and_to_gradients_but_not_to_inputs_or_indices():
    share = made_up_shares(flat((5, 7), (3, 4), (6, 2)), 4, 3, torch.Generator().manual_seed(0))
    scales = torch.tensor([2.0, 0.5, 0.0, 4.0], dtype=torch.float64)
    for before in share:
        after = scaled(before, scales)
        for old, new in zip(before.factors, after.factors, strict=True):
            assert torch.equal(new.inputs, old.inputs)
            assert torch.equal(new.errors, old.errors * scales.float()[:, None, None])
        # powers of two leave no rounding
        torch.testing.assert_close(after.dense(), before.dense() * scales.float()[:, None, None], rtol=0, atol=0)


def test_the_power_of_two_above_is_the_smallest_that_is_not_below():
    assert [power_of_two_above(count) for count in (1, 2, 3, 4, 5, 8, 9, 1023, 1024, 1025)] == [
        1, 2, 4, 4, 8, 8, 16, 1024, 1024, 2048,
    ]  # fmt: skip


@pytest.mark.parametrize(("size", "num_buckets"), [(5, 8), (8, 8), (13, 8), (100, 8), (7, 1)])
def test_buckets_are_as_evenly_filled_as_can_be_also_modulo_smaller_powers_of_two(size, num_buckets):
    buckets = balanced_buckets(size, num_buckets, torch.Generator().manual_seed(0))
    assert len(buckets) == size
    filled = torch.bincount(buckets, minlength=num_buckets)
    assert len(filled) == num_buckets
    assert filled.max() - filled.min() <= 1
    if size >= num_buckets:
        while num_buckets > 1:
            num_buckets //= 2
            filled = torch.bincount(buckets % num_buckets, minlength=num_buckets)
            assert filled.max() - filled.min() <= 1


def test_buckets_are_uniform_and_signs_are_fair():
    generator = torch.Generator().manual_seed(0)
    count = 4000
    drawn = torch.stack([balanced_buckets(3, 4, generator) for _ in range(count)])
    # 4.9 standard deviations: a false alarm in 10⁶ of these twelve frequencies
    for entry in drawn.T:
        frequencies = torch.bincount(entry, minlength=4).double() / count
        assert (frequencies - 0.25).abs().max() < 4.9 * (0.25 * 0.75 / count) ** 0.5
    signs = random_signs(count, generator)
    assert signs.dtype == torch.float32
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert abs(signs.mean()) < 4.9 / count**0.5
