from __future__ import annotations

import pytest
import torch
from torch import nn

from common.experiments.projecting.subject import leave_out, parameter_spans, prepare
from common.foundations.distributed import Ranks
from common.foundations.errors import UserError
from common.workloads.losses import cross_entropy
from tests.experiments.projecting.cases import options
from tests.reference_gradients import one_by_one_gradients

pytestmark = pytest.mark.usefixtures("one_thread")


def make_model():
    return nn.ModuleDict({"embed": nn.Embedding(5, 3), "layers": nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))})


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        ((), ["embed.weight", "layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"]),
        (("!embed",), ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"]),
        (("*.weight", "!embed*"), ["layers.0.weight", "layers.1.weight"]),
        (("layers.0", "layers.1.bias"), ["layers.0.weight", "layers.0.bias", "layers.1.bias"]),
    ],
)
def test_patterns_choose_parameters_by_their_names_and_those_of_their_modules(patterns, left):
    model = make_model()
    leave_out(model, patterns)
    spans = parameter_spans(model)
    assert [span.name for span in spans] == left
    sizes = [dict(model.named_parameters())[name].numel() for name in left]
    assert [span.stop - span.start for span in spans] == sizes
    assert spans[0].start == 0


@pytest.mark.parametrize(
    ("patterns", "message"),
    [(("fc*",), r"--modules fc\* matches none"), (("!*",), r"--modules !\* leaves no parameter")],
)
def test_patterns_that_match_or_leave_nothing_are_refused(patterns, message):
    with pytest.raises(UserError, match=message):
        leave_out(make_model(), patterns)


def test_as_many_projected_numbers_as_parameters_are_refused(tmp_path):
    with pytest.raises(UserError, match="--m 40 must be below the 40 parameters"):
        prepare(options(tmp_path, m=40), Ranks())


def test_what_a_part_is_made_of_names_its_own_samples(tmp_path):
    subject = prepare(options(tmp_path), Ranks())
    train, test = subject.identities["train"], subject.identities["test"]
    assert (train.n, test.n, train.d) == (24, 20, 40)
    assert train.checkpoint == test.checkpoint
    assert train.data != test.data
    assert torch.equal(subject.examples("test", range(2, 4)).inputs, subject.subject.examples.inputs[26:28])


def test_modules_of_a_kronecker_store_are_its_parameters_and_the_vectors_together(tmp_path):
    identity = prepare(options(tmp_path, kind="kronecker", kronecker_ranks=(3, 2)), Ranks()).identities["train"]
    assert identity.m == 2 * 3 + 4
    assert [(span.name, span.stop - span.start) for span in identity.modules] == [("weight 2x3", 6), ("vectors", 4)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"m": 1}, "--m 1: kronecker needs at least one number for each of 2 blocks"),
        ({"kronecker_ranks": (9, 9)}, "--kronecker_ranks 9,9 makes 40 numbers of 40 parameters; it must make fewer"),
    ],
)
def test_kronecker_sizes_that_cannot_be_are_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        prepare(options(tmp_path, kind="kronecker", **changes), Ranks())


AUTOCAST_LOSS = """exact = loss
def loss(outputs, targets):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same = outputs @ torch.eye(4)
    return exact(same.float(), targets)"""


def test_a_loss_with_autocast_inside_is_projected_without_it(tmp_path):
    subject = prepare(options(tmp_path, AUTOCAST_LOSS), Ranks()).subject
    batch = subject.batch(torch.arange(24))
    expected = one_by_one_gradients(subject.model, cross_entropy, batch.inputs, batch.targets)
    rows = [
        torch.cat([part.flatten() for part in row.values()]).double() for row in subject.one_by_one(torch.arange(24))
    ]
    assert ((torch.stack(rows) - expected).norm(dim=1) <= 1e-5 * expected.norm(dim=1)).all()
