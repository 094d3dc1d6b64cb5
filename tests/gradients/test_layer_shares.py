from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from common.gradients.layer_calls import LayerCall, Source
from common.gradients.layer_products import write_products
from common.gradients.layer_readers import READERS
from common.gradients.layer_shares import Convolution, Direct, Linear, Lookup, direct, matrix_shape, shares

COUNT = 4
ROUNDING = 1e-12


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def make_call(function, *args, data=(0,), by=(1, 2), reader=True, **kwargs) -> LayerCall:
    """Return the call of a function: (B, ...) values at the positions `data`, parameters where `by` finds tensors."""
    values = {i: args[i] for i in data}
    one = tuple(value[0] if i in values else value for i, value in enumerate(args))
    leaves, spec = tree_flatten((one, kwargs))
    places = [i for i in by if i < len(one) and isinstance(leaves[i], Tensor)]
    sources = {i: Source(f"p{i}", leaves[i], frozenset([f"p{i}"])) for i in places}
    reading = READERS[function](*one, **kwargs) if reader else None
    outputs = tree_leaves(function(*one, **kwargs))
    return LayerCall(function, leaves, spec, sources, values, reading, list(range(len(outputs))), [], [])


def run(call: LayerCall, sample: int, tensors: dict[int, Tensor]) -> list[Tensor]:
    leaves = list(call.leaves)
    for position, values in call.data.items():
        leaves[position] = values[sample]
    for position, tensor in tensors.items():
        leaves[position] = tensor
    args, kwargs = tree_unflatten(leaves, call.spec)
    return tree_leaves(call.function(*args, **kwargs))


def one_by_one(call: LayerCall, errors: list[Tensor]) -> dict[str, Tensor]:
    """Return the (B, ...) gradients of Σ error · output by every source, sample by sample with plain autograd."""
    found: dict[str, list[Tensor]] = {source.name: [] for source in call.sources.values()}
    for sample in range(COUNT):
        tensors = {i: source.tensor.detach().clone().requires_grad_() for i, source in call.sources.items()}
        total = sum((e[sample] * output).sum() for e, output in zip(errors, run(call, sample, tensors), strict=True))
        for name, gradient in zip(found, torch.autograd.grad(total, list(tensors.values())), strict=True):
            found[name].append(gradient)
    return {name: torch.stack(gradients) for name, gradients in found.items()}


def dense(capture, tensor: Tensor) -> Tensor:
    """Return the (B, ...) gradients that a share stands for, of the shape of a tensor."""
    rows, cols = matrix_shape(tensor)
    out = torch.empty(COUNT, rows * cols, dtype=torch.float64)
    write_products([capture], slice(0, rows), cols, out)
    return out.view(COUNT, *tensor.shape)


TABLE = torch.tensor([[1, 1, 0, 4], [2, 0, 0, 3], [4, 4, 4, 4], [0, 1, 2, 3]])
CALLS = {
    "linear": lambda: (make_call(F.linear, normal(COUNT, 5), normal(3, 5), normal(3)), [Linear, Direct]),
    "positions": lambda: (make_call(F.linear, normal(COUNT, 2, 6, 5), normal(3, 5), normal(3)), [Linear, Direct]),
    "bias": lambda: (make_call(F.linear, normal(COUNT, 2, 5), normal(3, 5), normal(3), by=(2,)), [Direct]),
    "same_input": lambda: (make_call(F.linear, normal(2, 5), normal(3, 5), normal(3), data=()), [Linear, Direct]),
    "matmul": lambda: (make_call(torch.matmul, normal(COUNT, 6, 5), normal(5, 3)), [Linear]),
    "addmm": lambda: (
        make_call(torch.addmm, normal(3), normal(COUNT, 6, 5), normal(5, 3), data=(1,), by=(0, 2)),
        [Linear, Direct],
    ),
    "einsum": lambda: (
        make_call(torch.einsum, "btc,rc->rbt", normal(COUNT, 2, 6, 5), normal(3, 5), data=(1,), by=(2,)),
        [Linear],
    ),
    "einsum_of_two_columns": lambda: (
        make_call(torch.einsum, "btc,rct->br", normal(COUNT, 2, 6, 5), normal(3, 5, 6), data=(1,), by=(2,)),
        [Linear],
    ),
    "convolution": lambda: (
        make_call(F.conv2d, normal(COUNT, 1, 2, 6, 5), normal(3, 2, 2, 3), normal(3), stride=(2, 1), padding=1),
        [Convolution, Direct],
    ),
    "lookup": lambda: (make_call(F.embedding, TABLE, normal(5, 3)), [Lookup]),
    "lookup_with_padding": lambda: (make_call(F.embedding, TABLE, normal(5, 3), padding_idx=-1), [Lookup]),
    "layer_norm": lambda: (
        make_call(F.layer_norm, normal(COUNT, 4, 6), (6,), normal(6), normal(6), by=(2, 3)),
        [Direct, Direct],
    ),
    "batch_norm": lambda: (
        make_call(F.batch_norm, normal(COUNT, 1, 3, 5), normal(3), normal(3).abs(), normal(3), normal(3), by=(3, 4)),
        [Direct, Direct],
    ),
    "unread": lambda: (make_call(torch.mul, normal(COUNT, 2, 5), normal(2, 5), reader=False), [Direct]),
    "unread_two_outputs": lambda: (
        make_call(lambda x, w: (x * w, (w**2).sum()), normal(COUNT, 5), normal(5), reader=False),
        [Direct],
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_shares_of_a_call_are_its_gradients_sample_by_sample(name):
    call, kinds = CALLS[name]()
    errors = [normal(COUNT, *output.shape) for output in run(call, 0, {})]
    expected = one_by_one(call, errors)
    found = list(shares(call, errors))
    assert [type(capture) for _, capture in found] == kinds
    assert {source.name for source, _ in found} == set(expected)
    for source, capture in found:
        torch.testing.assert_close(dense(capture, source.tensor), expected[source.name], rtol=ROUNDING, atol=ROUNDING)


def test_a_single_sample_is_differentiated_without_vmap_as_in_a_batch():
    call = make_call(torch.mul, normal(COUNT, 2, 5), normal(2, 5), reader=False)
    errors = [normal(COUNT, 2, 5)]
    ((_, batch),) = shares(call, errors)
    seen = []

    def refuses_vmap(x, w):
        seen.append(torch._C._functorch.maybe_current_level())
        return x * w

    for sample in range(COUNT):
        one = slice(sample, sample + 1)
        single = make_call(refuses_vmap, call.data[0][one], call.leaves[1], reader=False)
        ((_, capture),) = shares(single, [errors[0][one]])
        torch.testing.assert_close(capture.errors, batch.errors[one], rtol=ROUNDING, atol=0)
    assert set(seen) == {None}


@pytest.mark.parametrize("reader", [True, False], ids=["read", "by_autograd"])
@pytest.mark.parametrize(("transposed", "first_row"), [(False, 2), (True, 0), (True, 2)])
def test_the_share_of_a_part_or_a_transpose_is_that_of_the_whole_parameter(transposed, first_row, reader):
    parameter = normal(7, 5)
    tensor = parameter[first_row:].T if transposed else parameter[first_row:]
    rows, cols = tensor.shape
    call = make_call(F.linear, normal(COUNT, 3, cols), tensor, reader=reader)
    call.sources[1] = Source("p1", tensor, frozenset(["p1"]), None, transposed, first_row)
    errors = [normal(COUNT, 3, rows)]
    gradient = one_by_one(call, errors)["p1"]
    expected = torch.zeros(COUNT, 7, 5, dtype=torch.float64)
    expected[:, first_row:] = gradient.mT if transposed else gradient
    ((_, capture),) = shares(call, errors)
    assert isinstance(capture, Linear if reader else Direct)
    torch.testing.assert_close(dense(capture, parameter), expected, rtol=ROUNDING, atol=ROUNDING)


def test_a_change_of_dtype_leaves_indices_alone_and_bytes_are_those_of_all_tensors():
    lookup = Lookup(torch.randn(2, 4, 3), torch.randint(0, 5, (2, 4)))
    wide = lookup.to(torch.float64)
    assert (wide.errors.dtype, wide.inputs.dtype) == (torch.float64, torch.int64)
    assert (lookup.nbytes, wide.nbytes) == (2 * 4 * (3 * 4 + 8), 2 * 4 * (3 * 8 + 8))
    conv = Convolution(torch.ones(2, 3, 4, 4), torch.ones(2, 1, 5, 5), None)
    half = conv.map(lambda tensor: tensor[:1])
    assert (half.errors.shape, half.inputs.shape, half.geometry) == ((1, 3, 4, 4), (1, 1, 5, 5), None)


@pytest.mark.parametrize(
    ("shape", "matrix"), [((), (1, 1)), ((4,), (4, 1)), ((4, 3), (4, 3)), ((4, 3, 2), (4, 6)), ((0, 3), (0, 0))]
)
def test_a_parameter_is_a_matrix_of_its_first_dimension_and_all_others(shape, matrix):
    assert matrix_shape(torch.empty(shape)) == matrix
    gradients = torch.randn(2, *shape)
    if gradients.numel():
        assert direct(gradients).errors.shape == (2, *matrix)
