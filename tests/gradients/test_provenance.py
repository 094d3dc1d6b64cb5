from __future__ import annotations

import copy
import json

import torch
from torch import nn

from common.foundations.tensor_files import state_fingerprint
from common.gradients.provenance import describe, key
from common.workloads.losses import cross_entropy
from common.workloads.records import Examples
from tests.reference_cache import make_plan
from tests.reference_training import perceptron, random_examples, tiny_workload


def described(offload="cpu", **changes):
    plan = make_plan(offload, **changes)
    return describe(plan, state_fingerprint(plan.model.state_dict()))


def differing(first, second):
    return {name for name in first | second if first[name] != second[name]}


def squares(outputs, targets):
    return (outputs - nn.functional.one_hot(targets, 3)).square().sum(1)


def squares_with_less_gradient(outputs, targets):
    return squares(torch.cat([outputs[:, :1].detach(), outputs[:, 1:]], dim=1), targets)


def test_the_same_plan_is_described_alike_and_in_json():
    first, again = described(), described()
    assert first == again
    assert json.loads(json.dumps(first)) == first


def test_what_a_user_chooses_has_its_own_key_and_where_rows_are_kept_has_not():
    workload = tiny_workload()
    swapped = Examples(workload.train.inputs.flip(0), workload.train.targets.flip(0))
    plans = [
        make_plan("cpu"),
        make_plan("recompute"),
        make_plan("cpu", batch_size=8),
        make_plan("cpu", dtype=torch.float16),
        make_plan("cpu", epochs=4),
        make_plan("cpu", recipe=None),
        make_plan("cpu", train=random_examples(60, seed=9)),
        make_plan("cpu", train=swapped),
        make_plan("cpu", train=workload.train.subset(slice(59))),
        make_plan("cpu", test=workload.test.subset([1, 0, 2, 3, 4, 5, 6])),
    ]
    assert len({key(plan) for plan in plans}) == len(plans)
    assert key(make_plan("none")) == key(make_plan("cpu")) == key(make_plan("disk"))


def test_what_may_change_under_one_key_is_told_apart():
    plain = described(loss=squares)
    assert differing(plain, described(loss=squares_with_less_gradient)) == {"gradient_lengths"}
    assert differing(plain, described(loss=lambda o, t: squares(o, t) + 1)) == {"losses"}
    without_third_class = described(loss=lambda o, t: squares(o, t) * (t != 2))
    assert differing(plain, without_third_class) == {"losses", "gradient_lengths"}
    other_function = described(loss=squares, make_model=lambda: nn.Sequential(*[*perceptron()][:1], nn.Linear(8, 3)))
    assert {"losses", "checkpoint", "parameters"} <= differing(plain, other_function)


def test_the_order_and_the_shapes_of_parameters_that_have_gradients_count():
    def frozen():
        model = perceptron()
        model[0].bias.requires_grad_(False)
        return model

    assert [name for name, _ in described()["parameters"]] == ["0.weight", "0.bias", "3.weight", "3.bias"]
    assert described()["parameters"][0] == ["0.weight", [8, 5]]
    assert {"parameters"} <= differing(described(make_model=perceptron), described(make_model=frozen))


def test_the_users_own_file_counts(tmp_path):
    plan, path = make_plan("cpu"), tmp_path / "mine.py"
    entries = []
    for text in ("x = 1", "x = 2"):
        path.write_text(text)
        entries.append(describe(plan, "", path)["workload_file"])
    assert len({None, *entries}) == 3


def test_threads_count_because_sums_are_rounded_in_another_order():
    threads = torch.get_num_threads()
    one = described()
    try:
        torch.set_num_threads(threads + 1)
        assert differing(one, described()) == {"machine"}
    finally:
        torch.set_num_threads(threads)


def test_describing_changes_neither_the_model_nor_the_global_generator():
    plan = make_plan("cpu", loss=lambda o, t: cross_entropy(o, t) + 0 * torch.rand(len(t)))
    before, state = copy.deepcopy(plan.model.state_dict()), torch.get_rng_state()
    describe(plan, "")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in plan.model.state_dict().items())
    assert all(p.grad is None for p in plan.model.parameters())
