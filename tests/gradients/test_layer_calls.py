from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.gradients.layer_calls import CallRecorder, SamplesDisagreeError
from common.gradients.sample_level import SampleLevel, SingleSample
from common.workloads.running import trainable_parameters

ROWS, COLS = 6, 5


@pytest.fixture
def parameters():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shapes = {"weight": (ROWS, COLS), "bias": (ROWS,), "table": (9, COLS), "scale": (COLS,)}
        return {name: nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}


X = torch.linspace(-1, 1, 2 * COLS).view(1, 2, COLS)


def record(parameters, use, wanted=None, substitutes=None):
    """Return what is recorded while a function of the parameters runs on one sample, and its output."""
    wanted = set(parameters) if wanted is None else wanted
    recorder = CallRecorder(parameters, substitutes or {}, wanted, SingleSample())
    with torch.enable_grad(), recorder:
        output = use(X, *parameters.values())
    return recorder, output


def roles(call):
    return {position: source.name for position, source in call.sources.items()}


def test_trained_parameters_come_once_each_in_the_order_of_the_flat_gradient():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    model[0].bias.requires_grad_(False)
    model.register_parameter("first", nn.Parameter(torch.ones(1)))
    model.add_module("tied", model[1])
    assert list(trainable_parameters(model)) == ["first", "0.weight", "1.weight"]


@pytest.mark.parametrize(
    ("use", "kind", "sources", "data"),
    [
        (lambda x, w, b, t, s: F.linear(x, w, b), "linear", {1: "weight", 2: "bias"}, [0]),
        (lambda x, w, b, t, s: F.linear(x, weight=w), "linear", {1: "weight"}, [0]),
        (lambda x, w, b, t, s: F.layer_norm(x, (COLS,), s), "layer_norm", {2: "scale"}, [0]),
        (lambda x, w, b, t, s: F.embedding(torch.tensor([[3, 3]]), t), "lookup", {1: "table"}, [0]),
        (lambda x, w, b, t, s: F.normalize(x * s), None, {1: "scale"}, [0]),
        (lambda x, w, b, t, s: torch.cat([x[0], w]), None, {1: "weight"}, [0]),
        # in another role than the reader's
        (lambda x, w, b, t, s: F.linear(w, x[0]), None, {0: "weight"}, [1]),
    ],
)
def test_a_call_is_listed_with_what_it_means_and_which_arguments_are_parameters(parameters, use, kind, sources, data):
    recorder, output = record(parameters, use)
    assert recorder.unknown == {}
    (call,) = recorder.calls
    assert (call.reading and call.reading.kind) == kind
    assert roles(call) == sources
    assert list(call.data) == data
    assert all(len(values) == 1 for values in call.data.values())
    assert torch.equal(output, use(X, *parameters.values()))


@pytest.mark.parametrize(
    ("view", "transposed", "first_row"),
    [
        (lambda w: w.t(), True, 0),
        (lambda w: w.T, True, 0),
        (lambda w: w.mT, True, 0),
        (lambda w: w.transpose(0, 1), True, 0),
        (lambda w: torch.transpose(w, -1, -2), True, 0),
        (lambda w: w.T.T, False, 0),
        (lambda w: w[2:], False, 2),
        (lambda w: w[2:, :], False, 2),
        (lambda w: w[-2:], False, 4),
        (lambda w: w[1:][2:], False, 3),
        (lambda w: w[2:].T, True, 2),
    ],
)
def test_transposes_and_last_rows_are_the_parameter_itself_seen_another_way(parameters, view, transposed, first_row):
    def use(x, weight, *_):
        seen = view(weight)
        return x @ seen if transposed else F.linear(x, seen)

    recorder, _ = record(parameters, use)
    (call,) = recorder.calls
    (source,) = call.sources.values()
    assert (source.name, source.edge, source.transposed, source.first_row) == ("weight", None, transposed, first_row)
    assert torch.equal(source.tensor, view(parameters["weight"]))


@pytest.mark.parametrize(
    ("use", "names"),
    [
        (lambda w, b: w[1:3], {"weight"}),
        (lambda w, b: w[::2], {"weight"}),
        (lambda w, b: w[:, 1:], {"weight"}),
        (lambda w, b: w.T[1:], {"weight"}),
        (lambda w, b: 2 * w, {"weight"}),
        (lambda w, b: F.normalize(w), {"weight"}),
        (lambda w, b: w * b[:, None], {"weight", "bias"}),
        (lambda w, b: torch.stack([b, 2 * b]), {"bias"}),
    ],
)
def test_whatever_else_is_computed_from_parameters_alone_is_followed_to_where_its_gradient_enters(
    parameters, use, names
):
    recorder, _ = record(parameters, lambda x, w, b, *_: x.sum() * use(w, b))
    assert recorder.unknown == {}
    (call,) = recorder.calls
    (source,) = call.sources.values()
    assert source.parameters == names
    assert source.name.startswith(", ".join(sorted(names)) + ", computed ")
    assert source.edge is not None
    # the gradient that enters at the edge is pulled back as plain autograd does it
    error = torch.randn(source.tensor.shape)
    found = torch.autograd.grad(source.edge, [parameters[name] for name in names], grad_outputs=error)
    tensors = {name: parameters[name].detach().clone().requires_grad_() for name in ("weight", "bias")}
    expected = torch.autograd.grad(use(*tensors.values()), [tensors[name] for name in names], grad_outputs=error)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("use", "name"),
    [
        (lambda x, w, b, t, s: x.clone().mul_(s), "mul_"),
        (lambda x, w, b, t, s: x.clone().__setitem__((0, 0), s), "__setitem__"),
        (lambda x, w, b, t, s: x.clone().__iadd__(s), "add_"),
    ],
)
def test_a_change_of_a_samples_values_in_place_is_not_followed_and_said(parameters, use, name):
    recorder, _ = record(parameters, use)
    assert recorder.calls == []
    assert recorder.unknown == {"scale": f"used by {name} in a way that is not followed"}


def test_only_wanted_parameters_are_listed_and_nothing_is_where_nothing_is_differentiated(parameters):
    def use(x, w, b, t, s):
        with torch.no_grad():
            x = x + s
        return F.linear(x * s, w, b)

    recorder, _ = record(parameters, use)
    assert [roles(call) for call in recorder.calls] == [{1: "scale"}, {1: "weight", 2: "bias"}]
    recorder, _ = record(parameters, use, wanted={"bias"})
    assert [roles(call) for call in recorder.calls] == [{1: "weight", 2: "bias"}]


def test_a_parameter_that_is_substituted_is_replaced_everywhere_and_not_looked_for(parameters):
    other = torch.randn(COLS)
    recorder, output = record(
        parameters, lambda x, w, b, t, s: torch.cat([x[0] * s, s[None]]), substitutes={"scale": other}
    )
    assert recorder.calls == []
    assert torch.equal(output, torch.cat([X[0] * other, other[None]]))


def run_vmapped(parameters, use, inputs):
    recorders = []

    def one(x):
        recorders.append(CallRecorder(parameters, {}, set(parameters), SampleLevel(len(inputs))))
        with recorders[0]:
            return use(x, *parameters.values())

    with torch.enable_grad():
        return torch.func.vmap(one)(inputs), recorders[0]


def test_samples_that_decide_differently_are_told_apart_and_those_that_agree_are_run(parameters):
    def use(x, w, *_):
        return F.linear(x if x.sum() > 0 else 2 * x, w)

    signs = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0])
    inputs = signs[:, None] * torch.rand(5, COLS)
    with pytest.raises(SamplesDisagreeError) as raised:
        run_vmapped(parameters, use, inputs)
    groups = raised.value.groups()
    assert [group.tolist() for group in groups] == [[1, 4], [0, 2, 3]]
    for group in groups:
        outputs, recorder = run_vmapped(parameters, use, inputs[group])
        (call,) = recorder.calls
        taken = inputs[group] * (1 if 0 in group else 2)
        assert torch.equal(call.data[0], taken)
        torch.testing.assert_close(outputs, taken @ parameters["weight"].T)


def test_numbers_of_samples_group_by_value():
    groups = SamplesDisagreeError(torch.tensor([3.0, 1.0, 3.0, 2.0])).groups()
    assert [group.tolist() for group in groups] == [[1], [3], [0, 2]]
