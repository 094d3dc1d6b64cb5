"""A sample that breaks a model or a loss is named, wherever it stands, in one pass over the data without gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.foundations.errors import UserError
from common.foundations.seeds import isolated_rng
from common.records import Examples, TrainingRecipe, Workload
from common.workloads.samples import check_every_sample, name_failing_sample, sample_without_gradient
from common.workloads.training import train_model, train_together

COUNT, LATE, TOKENS, CLASSES = 130, 101, 20, 5


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.out = nn.Embedding(TOKENS, 4), nn.Linear(4, CLASSES)

    def forward(self, ids, mask=None):
        hidden = self.embedding(ids)
        return self.out(hidden.mean(1) if mask is None else (hidden * mask[..., None]).sum(1))


def loss(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="none")


def make_workload(**changes):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(TOKENS, (2 * COUNT, 6), generator=generator)
    labels = torch.randint(CLASSES, (2 * COUNT,), generator=generator)
    train, test = (Examples(ids[part], labels[part]) for part in (slice(COUNT), slice(COUNT, None)))
    recipe = TrainingRecipe(epochs=3, learning_rate=0.1)
    return Workload(**dict(name="t", make_model=Tokens, train=train, test=test, loss=loss, recipe=recipe) | changes)


def model_of(workload):
    with isolated_rng():
        torch.manual_seed(0)
        return workload.make_model().eval()


def refusal(workload, device="cpu"):
    with pytest.raises(UserError) as caught:
        check_every_sample(workload, model_of(workload), device)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def with_value(value, tensor="targets", part="train"):
    workload = make_workload()
    getattr(getattr(workload, part), tensor)[LATE] = value
    return workload


def test_right_samples_run_once_without_gradients():
    seen = []

    class Counted(Tokens):
        def forward(self, ids):
            assert not torch.is_grad_enabled()
            seen.append(len(ids))
            return super().forward(ids)

    workload = make_workload(make_model=Counted)
    check_every_sample(workload, model_of(workload), "cpu")
    assert sum(seen) == 2 * COUNT


@pytest.mark.parametrize(("part", "name"), [("train", "training"), ("test", "test")])
@pytest.mark.parametrize("label", [CLASSES, 1000, -1])
def test_a_label_out_of_range_is_named_with_what_the_loss_accepts(part, name, label):
    message = refusal(with_value(label, part=part))
    assert message == f"{name} sample {LATE}: label {label}; the loss accepts 0..{CLASSES - 1}"


def test_an_ignored_label_is_no_label_out_of_range():
    workload = with_value(-100)  # what cross_entropy ignores
    check_every_sample(workload, model_of(workload), "cpu")


def test_a_label_among_ignored_ones_is_named():
    workload = make_workload(
        loss=lambda o, t: F.cross_entropy(o[:, :, None].expand(-1, -1, 3), t, reduction="none").sum(1)
    )
    for part in (workload.train, workload.test):
        object.__setattr__(part, "targets", part.targets[:, None].repeat(1, 3))
    workload.train.targets[LATE] = torch.tensor([-100, 7, 9])
    assert refusal(workload) == f"training sample {LATE}: label 7; the loss accepts 0..{CLASSES - 1}"


@pytest.mark.parametrize("index", [TOKENS, 50257, -3])
def test_an_id_out_of_range_is_named_with_what_the_model_accepts(index):
    workload = make_workload()
    workload.test.inputs[LATE, 4] = index
    assert refusal(workload) == f"test sample {LATE}: inputs hold {index}; the model accepts 0..{TOKENS - 1}"


@pytest.mark.parametrize("form", ["dict", "tuple"])
def test_an_id_in_one_of_several_inputs_is_named(form):
    workload = make_workload()
    for part in (workload.train, workload.test):
        mask = torch.ones_like(part.inputs)
        object.__setattr__(
            part, "inputs", {"ids": part.inputs, "mask": mask} if form == "dict" else (part.inputs, mask)
        )
    ids = workload.train.inputs["ids" if form == "dict" else 0]
    ids[LATE, 2] = 33
    name = "inputs['ids']" if form == "dict" else "inputs[0]"
    assert refusal(workload) == f"training sample {LATE}: {name} hold 33; the model accepts 0..{TOKENS - 1}"


def test_a_target_outside_the_unit_interval_is_named():
    workload = make_workload(
        loss=lambda o, t: F.binary_cross_entropy(o[:, 0].sigmoid(), t.float().clamp(max=1 + t), reduction="none")
    )
    workload.train.targets.clamp_(max=1)
    workload.test.targets.clamp_(max=1)
    workload.train.targets[LATE] = 2
    assert refusal(workload) == f"training sample {LATE}: label 2; the loss accepts 0..1"


def test_any_other_exception_is_told_with_its_first_line():
    def picky(outputs, targets):
        if (targets == 4).any():
            raise ValueError("no fours\nplease")
        return loss(outputs, targets)

    workload = make_workload(loss=picky)
    workload.train.targets.clamp_(max=3)
    workload.train.targets[LATE] = 4
    assert refusal(workload) == f"training sample {LATE}: label 4; the loss accepts 0..3"

    class Picky(Tokens):
        def forward(self, ids):
            if (ids[:, 0] == ids[:, 1]).logical_and(ids[:, 2] == 7).any():
                raise KeyError("seven")
            return super().forward(ids)

    workload = make_workload(make_model=Picky)
    workload.train.inputs[:, 0], workload.train.inputs[:, 1] = 1, 2
    workload.train.inputs[LATE, :3] = torch.tensor([1, 1, 7])
    assert refusal(workload) == f"training sample {LATE}: the model's forward pass fails: KeyError: 'seven'"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_named(value):
    def spoilt(outputs, targets):
        return torch.where(targets == 99, value, loss(outputs, targets.clamp(max=CLASSES - 1)))

    workload = with_value(99)
    assert (
        refusal(replace(workload, loss=spoilt)) == f"the loss of training sample {LATE} is {value}; it must be finite"
    )


def test_inputs_that_are_not_finite_are_said():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2 * COUNT, 4, generator=generator)
    inputs[COUNT + LATE, 2] = torch.nan
    targets = torch.randint(CLASSES, (2 * COUNT,), generator=generator)
    train, test = (Examples(inputs[part], targets[part]) for part in (slice(COUNT), slice(COUNT, None)))
    workload = make_workload(make_model=lambda: nn.Linear(4, CLASSES), train=train, test=test)
    assert (
        refusal(workload)
        == f"the loss of test sample {LATE} is nan; it must be finite (its inputs or its target are not)"
    )


def test_a_training_loss_that_is_not_finite_is_named():
    def objective(outputs, targets):
        return loss(outputs, targets).mean() / (targets != 3).all()

    workload = make_workload(training_loss=objective)
    workload.train.targets.clamp_(max=2)
    workload.train.targets[LATE] = 3
    assert refusal(workload) == f"the training_loss of training sample {LATE} is inf; it must be finite"


def test_what_fails_in_a_batch_alone_names_the_batch():
    def few(outputs, targets):
        if len(targets) > 1:
            raise RuntimeError("too many")
        return loss(outputs, targets)

    message = refusal(make_workload(loss=few))
    assert message == "training samples 0 to 63 together, none of them alone: the loss fails: RuntimeError: too many"


def test_a_failing_sample_is_named_only_where_others_do_not_fail():
    workload = with_value(CLASSES)
    with pytest.raises(UserError, match=f"training sample {LATE}: label {CLASSES}"):
        name_failing_sample(workload, model_of(workload), "train", range(LATE - 1, LATE + 1))
    workload.train.targets.fill_(CLASSES)
    name_failing_sample(workload, model_of(workload), "train", range(2))


class Distance(nn.Module):
    """Its gradient is 0/0 where an input is the point where it starts."""

    def __init__(self):
        super().__init__()
        self.centre = nn.Parameter(torch.zeros(3))

    def forward(self, inputs):
        return (inputs - self.centre).square().sum(1).sqrt()


def distances():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(COUNT, 3, generator=generator)
    inputs[LATE] = 0
    train = Examples(inputs, torch.zeros(COUNT))
    recipe = TrainingRecipe(epochs=5, learning_rate=0.01)
    return make_workload(make_model=Distance, train=train, test=train, loss=lambda o, t: o - t, recipe=recipe)


def test_a_sample_whose_gradient_is_not_finite_is_named_and_not_called_divergence():
    workload, everything = distances(), torch.arange(COUNT)
    named = f"the gradient of training sample {LATE} is not finite in centre"
    assert sample_without_gradient(workload, Distance(), everything) == named
    assert sample_without_gradient(workload, Distance(), everything[:LATE]) is None
    with pytest.raises(UserError, match=f"^{named} at the weights that training of t starts from; it must be finite$"):
        train_model(workload, everything, 0, "cpu", progress=False)
    with pytest.raises(UserError, match=f"^{named}"):
        train_together(workload, torch.stack([everything, everything]), [0, 1], "cpu", progress=False)


def test_training_that_diverges_is_said_after_the_epoch_in_which_it_does():
    recipe = TrainingRecipe(epochs=50, learning_rate=1e30)
    workload = make_workload(recipe=recipe)
    with pytest.raises(UserError, match=r"training of t diverged: .* after [1-4] epochs; .*learning rate is 1e\+30"):
        train_model(workload, torch.arange(COUNT), 0, "cpu", progress=False)
