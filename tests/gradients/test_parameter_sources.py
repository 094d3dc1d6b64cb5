from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from common.gradients.parameter_sources import Source, leaf_of, nodes_behind, parameters_behind, view_of

COLUMN = torch.nn.Parameter(torch.arange(12.0).view(6, 2))
SQUARE = torch.nn.Parameter(torch.arange(9.0).view(3, 3))
T, MT = (vars(torch._C.TensorBase)[name].__get__ for name in ("T", "mT"))
ROWS = torch.Tensor.__getitem__


def seen_through(steps, parameter=COLUMN):
    """Return the source that steps (function, further arguments) make of a parameter; None where one is no view."""
    source = Source("weight", parameter, frozenset({"weight"}))
    for func, *more in steps:
        source = view_of(func, (source.tensor, *more), source, func(source.tensor, *more))
        if source is None:
            return None
    return source


def rebuilt(source, parameter):
    rows = parameter[source.first_row :]
    return rows.t() if source.transposed else rows


@pytest.mark.parametrize("parameter", [COLUMN, SQUARE], ids=["tall", "square"])
@pytest.mark.parametrize(
    ("steps", "transposed", "first_row"),
    [
        ([], False, 0),
        ([(torch.t,)], True, 0),
        ([(torch.Tensor.t,)], True, 0),
        ([(T,)], True, 0),
        ([(MT,)], True, 0),
        ([(torch.transpose, 0, 1)], True, 0),
        ([(torch.Tensor.transpose, -1, -2)], True, 0),
        ([(torch.Tensor.transpose, 1, -2)], True, 0),
        ([(T,), (torch.t,)], False, 0),
        ([(ROWS, slice(2, None))], False, 2),
        ([(ROWS, (slice(1, None), slice(None)))], False, 1),
        ([(ROWS, slice(1, None)), (ROWS, slice(1, None))], False, 2),
        ([(ROWS, slice(1, None)), (T,)], True, 1),
        ([(ROWS, slice(None))], False, 0),
    ],
)
def test_a_view_says_which_rows_of_the_parameter_it_is_and_whether_they_are_transposed(
    parameter, steps, transposed, first_row
):
    found = seen_through(steps, parameter)
    assert (found.name, found.parameters, found.edge) == ("weight", {"weight"}, None)
    assert (found.transposed, found.first_row) == (transposed, first_row)
    assert torch.equal(found.tensor, rebuilt(found, parameter))


def test_last_rows_counted_from_the_end_begin_where_they_do():
    assert seen_through([(ROWS, slice(-2, None))]).first_row == 4
    assert seen_through([(ROWS, slice(2, None)), (ROWS, slice(-1, None))]).first_row == 5


@pytest.mark.parametrize(
    "step",
    [
        (torch.Tensor.transpose, 0, 0),
        (torch.Tensor.transpose, 1, 1),
        (ROWS, 2),
        (ROWS, slice(0, 3)),
        (ROWS, slice(None, None, 2)),
        (ROWS, (slice(None), slice(1, None))),
        (ROWS, (slice(1, None), 0)),
        (ROWS, torch.tensor([0, 1])),
        (torch.Tensor.reshape, -1),
        (torch.Tensor.mul, 2),
        (F.normalize,),
    ],
)
def test_whatever_else_is_made_of_a_parameter_is_no_view(step):
    assert seen_through([step]) is None


def test_rows_of_a_transpose_are_columns_and_no_view():
    assert seen_through([(T,), (ROWS, slice(1, None))]) is None


def test_a_vector_a_computed_tensor_and_another_argument_are_no_views():
    bias = torch.nn.Parameter(torch.ones(3))
    assert seen_through([(ROWS, slice(1, None))], bias) is None
    doubled = 2 * COLUMN
    edge = torch.autograd.graph.get_gradient_edge(doubled)
    computed = Source("weight, computed 0", doubled, frozenset({"weight"}), edge)
    assert view_of(torch.t, (doubled,), computed, doubled.t()) is None
    source = Source("weight", COLUMN, frozenset({"weight"}))
    assert view_of(torch.t, (SQUARE,), source, SQUARE.t()) is None


# --- autograd's graph ---------------------------------------------------------------------------------------


def graph():
    """Return parameters a, b and c, x = tanh(a b), and y = x + c, where d is not used."""
    a, b, c, d = (torch.nn.Parameter(torch.tensor(value)) for value in (1.0, 2.0, 3.0, 4.0))
    x = torch.tanh(a * b)
    return {"a": a, "b": b, "c": c, "d": d}, x, x + c


def test_a_node_depends_on_the_parameters_that_its_graph_ends_in():
    parameters, x, y = graph()
    names = {id(parameter): name for name, parameter in parameters.items()}
    assert parameters_behind(x.grad_fn, names) == {"a", "b"}
    assert parameters_behind(y.grad_fn, names) == {"a", "b", "c"}
    assert parameters_behind(None, names) == set()
    del names[id(parameters["a"])]
    assert parameters_behind(y.grad_fn, names) == {"b", "c"}


def test_every_node_is_visited_once_however_many_ways_lead_to_it():
    _, x, y = graph()
    total = x * x + y * x
    found = list(nodes_behind([total.grad_fn, x.grad_fn, None]))
    assert len(found) == len(set(found))
    # x² + yx, x², yx, y, x, ab, and the leaves a, b and c
    assert len(found) == 9


def test_ways_replace_what_follows_a_node():
    parameters, x, y = graph()
    leaves = {leaf_of(node) for node in nodes_behind([y.grad_fn], {x.grad_fn: []})}
    assert id(parameters["c"]) in leaves
    assert not {id(parameters["a"]), id(parameters["b"])} & leaves


def test_only_a_node_that_accumulates_a_gradient_has_a_leaf():
    parameters, x, y = graph()
    assert leaf_of(y.grad_fn) == leaf_of(x.grad_fn) == id(None)
    accumulators = {leaf_of(node) for node in nodes_behind([y.grad_fn])} - {id(None)}
    assert accumulators == {id(parameters[name]) for name in "abc"}


class Remembering(torch.autograd.Function):
    """Keeps a tensor by the name under which autograd keeps a leaf."""

    @staticmethod
    def forward(ctx, tensor):
        ctx.variable = tensor
        return tensor.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def test_a_function_that_keeps_a_tensor_as_its_variable_is_no_leaf():
    assert leaf_of(Remembering.apply(COLUMN).grad_fn) == id(None)
