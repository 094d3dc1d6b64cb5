from __future__ import annotations

import pytest
import torch
from torch import nn

from common.foundations.errors import UserError
from common.gradients import layer_capture
from common.gradients.layer_capture import LAYERS, ONE_AT_A_TIME, VMAP, Routes
from common.gradients.planning import compute_gradients, plan_gradients
from common.gradients.routes import check_routes, drop
from common.gradients.verification import Mismatch
from common.workloads.losses import cross_entropy
from common.workloads.precision import match_inputs
from common.workloads.records import Examples
from tests.gradient_cases import CPU, SelectedAndConcealed
from tests.layer_kinds import LAYER_BY_LAYER, LOOKUPS, make_kind
from tests.reference_gradients import one_by_one_gradients
from tests.reference_training import tiny_workload


class Hidden(nn.Module):
    """Hides the use of a parameter from whoever intercepts calls, for samples whose first input is as given."""

    def __init__(self, low, high):
        super().__init__()
        self.low, self.high = low, high
        self.first, self.out = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        weight = self.first.weight
        if self.low < x[0, 0] < self.high:
            with torch._C.DisableTorchFunction():
                weight = weight.clone()
        return self.out(torch.tanh(nn.functional.linear(x, weight, self.first.bias)))


class MixesSamples(nn.Module):
    def __init__(self, share):
        super().__init__()
        self.first, self.out, self.share = nn.Linear(5, 4), nn.Linear(4, 3), share

    def forward(self, x):
        hidden = self.first(x)
        return self.out(hidden - self.share * hidden.mean(0))


def samples(count=60):
    generator = torch.Generator().manual_seed(1)
    return Examples(torch.randn(count, 5, generator=generator), torch.randint(0, 3, (count,), generator=generator))


def seeded(make_model):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make_model().eval()


def test_a_use_that_is_hidden_goes_one_sample_at_a_time_and_all_else_layer_by_layer(capsys):
    model, examples = seeded(lambda: Hidden(-torch.inf, torch.inf)), samples()
    checked = check_routes(model, cross_entropy, examples)
    assert checked.routes == Routes(one_at_a_time={"first.weight": "no call that uses it is seen"})
    assert capsys.readouterr().out == ""
    line = checked.describe(1000)
    assert line.startswith(
        "3 parameters layer by layer, 1 one sample at a time (first.weight: no call that uses it is seen)"
    )
    assert " s a pass over 1000 samples" in line


@pytest.mark.parametrize("offload", ["cpu", "recompute"])
def test_what_no_sample_chosen_beforehand_shows_is_found_in_the_finished_rows(offload, capsys, monkeypatch):
    monkeypatch.setattr(layer_capture, "hidden_uses", lambda *_: {})
    examples = samples()
    rows = torch.tensor(check_routes(seeded(lambda: Hidden(0, 0)), cross_entropy, examples).rows)
    hidden = next(row for row in range(60) if row not in rows)
    examples.inputs[hidden, 0] = 1.0
    examples.targets[hidden] += 3

    def loss(outputs, targets):
        return cross_entropy(outputs, targets % 3) * (1 + 99 * (targets > 2))

    model = seeded(lambda: Hidden(0.9999, 1.0001))
    expected = one_by_one_gradients(model, loss, examples.inputs, examples.targets, torch.float32).double()
    plan = plan_gradients(tiny_workload(loss=loss), model, [("training", examples)], 7, offload, torch.float32, CPU)
    assert plan.routes == Routes()
    found = compute_gradients(plan)
    out = torch.cat([block.double() for _, block in found.unit_blocks()], dim=1) * found.norms[:, None]
    assert ((out - expected).norm(dim=1) <= 1e-5 * expected.norm(dim=1)).all()
    said = [line for line in capsys.readouterr().out.splitlines() if " not as by plain autograd: " in line]
    assert len(said) == 2
    assert all(line.startswith("gradients: first.weight ") for line in said)
    assert all(f"at training sample {hidden}; the next step is taken" in line for line in said)
    assert found.check.mismatches == []


@pytest.mark.parametrize("share", [1.0, 0.01])
def test_samples_that_influence_one_another_are_refused(share):
    with pytest.raises(UserError, match=r"the loss of sample \d+ depends on its batch mates: .* alone; in eval mode"):
        check_routes(seeded(lambda: MixesSamples(share)), cross_entropy, samples())


class Full(nn.Module):
    """Serves the first 20 samples of a batch, as an expert of limited capacity does."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(5, 3)

    def forward(self, x):
        return self.out(x) * (torch.arange(len(x)) < 20)[:, None]


def test_samples_that_influence_one_another_in_large_batches_alone_are_refused():
    with pytest.raises(UserError, match=r"the loss of sample \d+ depends on its batch mates: .* in a batch of 60, "):
        check_routes(seeded(Full), cross_entropy, samples())


def test_random_numbers_that_the_first_samples_do_not_show_are_not_taken_for_an_influence():
    class Noisy(nn.Linear):
        def forward(self, x):
            return super().forward(x) * (1 + torch.rand(3))

    with pytest.raises(UserError, match="the loss is random in eval mode"):
        check_routes(seeded(lambda: Noisy(5, 3)), cross_entropy, samples())


def test_a_parameter_whose_gradient_is_zero_at_most_samples_is_compared_where_it_is_not():
    def loss(outputs, targets):
        return cross_entropy(outputs, targets % 3) * (targets == 41)

    examples = Examples(samples().inputs, torch.arange(60))
    checked = check_routes(seeded(lambda: nn.Linear(5, 3)), loss, examples)
    assert 41 in checked.rows
    assert checked.unseen == []


def test_a_parameter_without_any_gradient_is_named():
    checked = check_routes(seeded(lambda: nn.Linear(5, 3)), lambda outputs, _: 0 * outputs.sum(1), samples())
    assert checked.unseen == ["weight", "bias"]


def test_what_plain_autograd_cannot_differentiate_names_the_sample():
    def loss(outputs, targets):
        return torch.stack([outputs[i, target] for i, target in enumerate(targets.tolist())])

    examples = samples()
    examples.targets[-1] = 7
    with pytest.raises(
        UserError, match="plain autograd cannot differentiate the loss of sample 59: IndexError: index 7"
    ):
        check_routes(seeded(lambda: nn.Linear(5, 3)), loss, examples)


def test_a_parameter_used_in_an_unknown_way_goes_by_vmap_with_its_reason():
    model, examples = make_kind("in_place_use")
    checked = check_routes(model, cross_entropy, examples)
    assert checked.routes == Routes(by_vmap={"weights.0": "used by mul_ in a way that is not followed"})
    assert checked.describe(6).startswith("1 parameters by torch.func.vmap (weights.0: used by mul_")


def test_where_vmap_cannot_run_the_model_layers_are_followed_on_single_samples_and_what_is_hidden_goes_alone():
    checked = check_routes(seeded(SelectedAndConcealed), cross_entropy, samples())
    assert checked.routes.one_at_a_time == {"scale": "no call that uses it is seen"}
    assert checked.routes.step("out.weight") == LAYERS
    assert checked.describe(60).startswith(
        "2 parameters layer by layer, followed on single samples (torch.func.vmap cannot run the model (vmap: "
    )
    assert "), 1 one sample at a time (scale: no call that uses it is seen); about " in checked.describe(60)


class Cancelling(nn.Module):
    """Adds a large number and subtracts it again: float32 keeps three digits of what a sample adds, or none."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x):
        outputs = self.layer(x)
        large = torch.where(x[:, :1] > 2, 1e9, 1e4).to(outputs.dtype)
        return (outputs + large) - large


def test_gradients_that_float32_rounds_away_are_counted_and_the_worst_is_named():
    examples = samples()
    examples.inputs[:, 0] = 0
    assert check_routes(seeded(Cancelling), cross_entropy, examples).describe_rounding("sample {}".format) is None
    examples.inputs[0, 0] = 3
    checked = check_routes(seeded(Cancelling), cross_entropy, examples)
    assert checked.rounding.keys() == set(checked.rows)
    said = checked.describe_rounding("sample {}".format)
    error = checked.rounding[0]
    assert error > 0.05
    assert said == (
        f"float32 arithmetic moves 1 of {len(checked.rows)} compared by more than 1% of their length, that of sample 0 "
        f"by {error:.2g} lengths: give a float64 model"
    )
    assert (
        check_routes(seeded(Cancelling).double(), cross_entropy, match_inputs(examples, torch.float64)).rounding == {}
    )


def test_a_mismatch_on_single_samples_has_no_step_in_between():
    dropped = drop(Routes(singly="why"), [Mismatch("w", 5, 0.25)], "sample {}".format)
    assert list(dropped.one_at_a_time) == ["w"]
    assert (dropped.by_vmap, dropped.singly) == ({}, "why")


def test_each_mismatch_costs_one_step_and_the_last_one_is_refused(capsys):
    routes, name = Routes(), [Mismatch("w", 5, 0.25)]
    for step in (LAYERS, VMAP, ONE_AT_A_TIME):
        assert routes.step("w") == step
        if step == ONE_AT_A_TIME:
            with pytest.raises(UserError, match=r"sample 5 in w differs from one computation to the next, by 0\.25"):
                drop(routes, name, "sample {}".format)
            return
        routes = drop(routes, name, "sample {}".format)
        assert capsys.readouterr().out.count("\n") == 1


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
@pytest.mark.parametrize("name", [*LAYER_BY_LAYER, *LOOKUPS])
def test_every_kind_of_layer_is_taken_layer_by_layer(name):
    model, examples = make_kind(name)
    assert check_routes(model, cross_entropy, examples).routes == Routes()


class Exact(nn.Module):
    """A layer in float32 under one in float64; sums of many terms depend on how many samples are added at once."""

    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Linear(5, 400), nn.Linear(400, 3).double()

    def forward(self, x):
        hidden = self.first(x.float())
        return self.out((hidden @ hidden.mT.new_ones(400, 400)).double() / 400)


def test_rounding_of_float32_inside_a_float64_model_is_no_influence_of_other_samples():
    assert check_routes(seeded(Exact), cross_entropy, samples()).routes == Routes()
