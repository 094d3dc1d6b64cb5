from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from common.gradients.layer_capture import LayerCapture, Routes
from common.gradients.layer_shares import direct
from common.gradients.routes import check_routes
from common.gradients.verification import (
    Subject,
    allowed_difference,
    default_dtype,
    in_float64,
    mixing_in_a_crowd,
    mixing_samples,
    relative_difference,
    representative,
    with_every_gradient,
    wrong_parameters,
)
from common.workloads.losses import cross_entropy
from common.workloads.records import Examples
from tests.gradients import planted

ROUNDING = {torch.float32: 2e-6, torch.float64: 1e-14}
BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
ROWS = torch.tensor([3, 17, 40, 59])


@BOTH
def test_one_backward_pass_a_sample_gives_the_gradients_of_the_formula(dtype):
    subject = planted.subject(dtype)
    expected = planted.formula(subject)
    for row, found in zip(ROWS, subject.one_by_one(ROWS), strict=True):
        assert list(found) == list(expected)
        for name, gradient in found.items():
            assert gradient.dtype == dtype
            torch.testing.assert_close(gradient.double(), expected[name][row], rtol=0, atol=ROUNDING[dtype] * 10)


def test_losses_are_those_of_the_samples_asked_for():
    subject = planted.subject(torch.float64)
    outputs = subject.model(subject.examples.inputs).detach()
    expected = outputs.logsumexp(1) - outputs[torch.arange(60), subject.examples.targets]
    found = subject.losses(ROWS)
    assert not found.requires_grad
    torch.testing.assert_close(found, expected[ROWS], rtol=1e-14, atol=1e-14)


# --- wrong shares ---------------------------------------------------------------------------------------------


def compare(subject: Subject, rows=ROWS, change=None):
    """Return the wrong parameters of a batch, after `change` of what was captured."""
    captures = LayerCapture(subject.model, subject.loss, Routes())(subject.batch(rows))
    if change is not None:
        change(captures)
    return wrong_parameters(captures, subject.one_by_one(rows), rows, list(subject.parameters), subject)


@BOTH
def test_right_shares_are_found_right(dtype):
    assert compare(planted.subject(dtype)) == {}


@BOTH
@pytest.mark.parametrize("name", ["0.weight", "2.bias"])
def test_a_share_that_is_one_per_cent_off_is_named_with_the_sample_at_which_it_matters_most(dtype, name, monkeypatch):
    subject = planted.subject(dtype)
    gradients = planted.formula(subject)
    lengths = planted.flat(gradients).norm(dim=1)
    relative = 0.01 * gradients[name].flatten(1).norm(dim=1)[ROWS] / lengths[ROWS]
    planted.plant_share(monkeypatch, name, 1.01)
    (mismatch,) = compare(subject).values()
    assert (mismatch.parameter, mismatch.row) == (name, int(ROWS[relative.argmax()]))
    assert mismatch.difference == pytest.approx(relative.max().item(), rel=1e-3)


def test_a_share_that_is_one_per_cent_off_costs_the_parameter_its_route_and_no_other(monkeypatch, capsys):
    subject = planted.subject(torch.float32)
    planted.plant_share(monkeypatch, "0.weight", 1.01)
    checked = check_routes(subject.model, subject.loss, subject.examples)
    assert list(checked.routes.by_vmap) == ["0.weight"]
    assert checked.routes.one_at_a_time == {}
    assert capsys.readouterr().out.startswith(
        "gradients: 0.weight layer by layer not as by plain autograd: off by 0.00"
    )


@pytest.mark.parametrize(("error", "found"), [(3e-8, False), (3e-6, True)])
def test_in_float64_a_millionth_of_a_gradient_is_an_error_and_rounding_of_a_few_numbers_is_not(error, found):
    def change(captures):
        (capture,) = captures["2.weight"]
        capture.errors[2] *= 1 + error  # of sample 40 alone

    wrong = compare(planted.subject(torch.float64), change=change)
    assert {name: mismatch.row for name, mismatch in wrong.items()} == ({"2.weight": 40} if found else {})


def test_a_share_that_is_missing_or_not_a_number_is_wrong():
    def change(captures):
        captures.pop("0.bias")
        captures["2.bias"] = [direct(torch.full((4, 3), torch.nan, dtype=torch.float64))]

    subject = planted.subject(torch.float64)
    wrong = compare(subject, change=change)
    assert set(wrong) == {"0.bias", "2.bias"}
    gradients = planted.formula(subject)
    relative = (gradients["0.bias"].norm(dim=1) / planted.flat(gradients).norm(dim=1))[ROWS]
    assert wrong["0.bias"].difference == pytest.approx(relative.max().item())
    assert math.isnan(wrong["2.bias"].difference)


def test_what_may_differ_grows_with_a_gradient_and_has_a_floor_from_the_longest_finite_one():
    lengths = torch.tensor([2.0, 1e-12, math.inf, math.nan], dtype=torch.float64)
    for dtype, relative in ((torch.float64, 1e-7), (torch.float32, 1e-3)):
        floor = 32 * torch.finfo(dtype).eps * 2.0
        found = allowed_difference(lengths, dtype)
        assert found[:2].tolist() == pytest.approx([2 * relative + floor, 1e-12 * relative + floor])
        assert found[2:].isfinite().tolist() == [False, False]
    assert allowed_difference(torch.full((2,), math.nan), torch.float32).isnan().all()


# --- samples that influence one another -----------------------------------------------------------------------


class Mixing(nn.Module):
    """Gives each sample a share of what the last of the batch has, or where `sizes` says so only."""

    def __init__(self, share: float, sizes=None):
        super().__init__()
        self.layer, self.share, self.sizes = nn.Linear(5, 3), share, sizes

    def forward(self, x):
        if len(x) > 1 and (self.sizes is None or len(x) in self.sizes):
            x = x + self.share * x[-1]
        return self.layer(x)


def mixed(share, sizes=None, dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Mixing(share, sizes).to(dtype).eval()
    return Subject(model, cross_entropy, planted.subject(dtype).examples, dtype)


def test_the_sample_that_its_mates_influence_most_is_named_with_both_losses():
    subject, rows = mixed(1e-3), torch.tensor([3, 17, 40, 59, 8])
    x, y = subject.examples.inputs[rows], subject.examples.targets[rows]
    weight, bias = (parameter.detach() for parameter in subject.model.parameters())

    def losses(inputs):
        outputs = inputs @ weight.T + bias
        return outputs.logsumexp(1) - outputs[torch.arange(5), y]

    alone, together = losses(x), losses(x + 1e-3 * x[-1])
    worst = int((together - alone).abs().argmax())
    row, beside, by_itself, size = mixing_samples(subject, rows)
    assert (row, size) == (int(rows[worst]), 5)
    assert (beside, by_itself) == pytest.approx((together[worst].item(), alone[worst].item()), rel=1e-12)


@BOTH
def test_an_influence_in_a_crowd_alone_is_found_there_and_nobody_is_a_crowd_without_others(dtype):
    subject = mixed(1e-2, sizes={60}, dtype=dtype)
    assert mixing_samples(subject, ROWS) is None
    row, beside, by_itself, size = mixing_in_a_crowd(subject, ROWS)
    assert row in ROWS.tolist()
    assert size == 60
    assert by_itself == subject.losses(torch.tensor([row])).item() != beside
    assert mixing_in_a_crowd(mixed(1e-2, sizes={3}, dtype=dtype), ROWS) is None
    assert mixing_in_a_crowd(subject, torch.arange(60)) is None


@pytest.mark.parametrize("size", [2, 3])
def test_an_influence_in_batches_of_one_size_only_is_found_in_pairs_and_halves(size):
    found = mixing_samples(mixed(1e-3, sizes={size}), torch.tensor([3, 17, 40, 59, 8]))
    assert found is not None
    assert found[3] == size


@pytest.mark.parametrize(
    ("share", "dtype", "found"),
    [
        (1e-4, torch.float64, True),
        (1e-8, torch.float64, False),  # so little may be float32 arithmetic inside
        (1e-2, torch.float32, True),
        (0.0, torch.float32, False),
    ],
    ids=str,
)
def test_an_influence_beyond_rounding_is_found_and_rounding_is_none(share, dtype, found):
    assert (mixing_samples(mixed(share, dtype=dtype), ROWS) is not None) == found


def test_a_single_sample_and_one_without_a_finite_loss_of_its_own_influence_nobody():
    subject = mixed(1.0)
    assert mixing_samples(subject, ROWS[:1]) is None
    with torch.no_grad():
        subject.model.layer.weight.fill_(torch.inf)
    assert mixing_samples(subject, ROWS) is None


# --- samples that stand for all -------------------------------------------------------------------------------


def test_samples_from_every_part_and_the_extremes_of_length_and_norm_stand_for_all():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(1, 9, (400, 12), generator=generator).float()
    inputs[101, 3:] = 0  # the shortest
    inputs[:, 11] = 0
    inputs[202, 11] = 0.5  # the only one of full length
    inputs[303] *= 100
    inputs[33, :11] = 0.01  # the smallest norm, as long as most
    before = torch.get_rng_state()
    chosen = representative(Examples(inputs, torch.zeros(400)))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(chosen, representative(Examples(inputs, torch.zeros(400))))
    assert torch.equal(chosen, chosen.unique())
    assert {0, 399, 101, 202, 303, 33} <= set(chosen.tolist())
    assert all(((chosen >= 50 * part) & (chosen < 50 * (part + 1))).any() for part in range(8))
    assert len(chosen) <= 8 + 2 + 4


def test_named_inputs_have_extremes_each_and_few_samples_are_all_chosen():
    inputs = {"a": torch.ones(90, 2), "b": torch.ones(90, 3)}
    inputs["a"][71] = 5
    inputs["b"][44] = 5
    assert {71, 44} <= set(representative(Examples(inputs, torch.zeros(90))).tolist())
    assert representative(Examples(torch.ones(3, 2), torch.zeros(3))).tolist() == [0, 1, 2]


# --- gradients that are zero nearly everywhere ------------------------------------------------------------------


class Gated(nn.Module):
    """Uses its second layer where the first input says so, and its third never."""

    def __init__(self):
        super().__init__()
        self.first, self.rare, self.never = nn.Linear(5, 3), nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x):
        gate = (x[:, :1] > 9).to(x.dtype)
        return self.first(x) + gate * self.rare(x) + 0 * self.never(x)


def test_samples_are_searched_until_every_parameter_has_a_gradient_or_none_has():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Gated().double().eval()
    examples = planted.subject(torch.float64).examples
    examples.inputs[23, 0] = 10.0
    subject = Subject(model, cross_entropy, examples, torch.float64)
    known = dict(zip([3, 17], subject.one_by_one(torch.tensor([3, 17])), strict=True))
    found, left = with_every_gradient(subject, known, batch_size=7)
    assert left == ["never.weight", "never.bias"]
    assert list(found) == [3, 17, 23]
    x, outputs = examples.inputs[23], model(examples.inputs[23:24])[0].detach()
    error = outputs.softmax(0) - nn.functional.one_hot(examples.targets[23], 3)
    torch.testing.assert_close(found[23]["rare.weight"], error[:, None] * x, rtol=1e-12, atol=1e-14)
    assert with_every_gradient(subject, found, batch_size=7) == (found, left)


# --- float64 ----------------------------------------------------------------------------------------------------


def test_a_model_and_its_samples_in_float64_are_the_same_numbers_and_the_model_stays_as_it_is():
    subject = planted.subject(torch.float32)
    exact = in_float64(subject, 0)
    assert exact.dtype == torch.float64
    assert all(p.dtype == torch.float32 for p in subject.model.parameters())
    for name, parameter in exact.parameters.items():
        assert torch.equal(parameter, subject.parameters[name].double())
    assert torch.equal(exact.examples.inputs, subject.examples.inputs.double())
    assert exact.examples.targets.dtype == torch.int64
    (found,) = exact.one_by_one(torch.tensor([5]))
    torch.testing.assert_close(found["0.weight"], planted.formula(subject)["0.weight"][5], rtol=1e-12, atol=1e-14)


class Insists(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x.float(), self.weight, self.bias)


def test_a_model_that_insists_on_float32_has_no_twin_in_float64():
    examples = planted.subject(torch.float32).examples
    assert in_float64(Subject(Insists(5, 3).eval(), cross_entropy, examples, torch.float32), 0) is None


def test_the_difference_of_gradients_is_relative_to_the_length_of_the_whole_exact_one():
    exact = {"a": torch.tensor([3.0, 0.0]).double(), "b": torch.tensor([[4.0]]).double()}
    off = {"a": torch.tensor([3.0, 0.3]), "b": torch.tensor([[4.4]])}
    assert relative_difference(off, exact) == pytest.approx(0.1, rel=1e-6)
    assert relative_difference(off, {name: torch.zeros_like(part) for name, part in exact.items()}) == 0


def test_constants_have_the_dtype_of_the_model_inside_the_block_alone():
    before = torch.get_default_dtype()
    with pytest.raises(ZeroDivisionError), default_dtype(torch.float64):
        assert torch.zeros(2).dtype == torch.float64
        raise ZeroDivisionError
    assert torch.get_default_dtype() == before == torch.zeros(2).dtype
