from __future__ import annotations

import pytest
import torch

from common.foundations.errors import UserError
from common.gradients.planning import plan_gradients, stream_gradients
from common.gradients.streamed_rows import StreamedGradients
from common.workloads.losses import cross_entropy
from common.workloads.records import Examples
from tests.gradient_cases import CPU, FLOAT32, MODELS, reference_rows, trained
from tests.reference_training import dropout_perceptron, tiny_workload


def plan_of(model, parts=None, batch_size=7):
    workload = tiny_workload(loss=cross_entropy)
    parts = parts or [("training", workload.train), ("test", workload.test)]
    return plan_gradients(workload, model, parts, batch_size, "recompute", torch.float32, CPU)


def all_rows(gradients, size, samples=None):
    """Return the rows of one pass, copied, since they are overwritten, and the sizes of its groups."""
    groups = [(group, rows.double().clone()) for group, rows in gradients.unit_groups(size, samples)]
    return (
        torch.cat([group for group, _ in groups]),
        torch.cat([rows for _, rows in groups]),
        [len(g) for g, _ in groups],
    )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [1, 10, 1000])
def test_a_pass_gives_every_gradient_that_one_backward_pass_gives(name, size):
    model = trained(MODELS[name])
    expected = reference_rows(model)
    gradients, (samples, rows, sizes) = stream_gradients(plan_of(model), lambda streamed: all_rows(streamed, size))
    assert samples.tolist() == list(range(gradients.num_rows)) == list(range(len(expected)))
    assert rows.shape[1] == gradients.num_columns == expected.shape[1]
    assert set(sizes[:-1]) <= {size}
    torch.testing.assert_close(gradients.norms, expected.norm(dim=1), rtol=FLOAT32, atol=0)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows), dtype=torch.float64), rtol=0, atol=FLOAT32)
    found = rows * gradients.norms[:, None]
    assert ((found - expected).norm(dim=1) / expected.norm(dim=1)).max() < FLOAT32
    assert gradients.check.num_rows > 0
    assert gradients.check.worst < FLOAT32


def test_some_samples_come_in_the_order_asked_for_and_leave_the_lengths_alone():
    gradients, (_, rows, _) = stream_gradients(plan_of(trained(dropout_perceptron)), lambda g: all_rows(g, 16))
    norms, chosen = gradients.norms.clone(), torch.tensor([30, 2, 61, 7])
    samples, some, sizes = all_rows(gradients, 3, chosen)
    assert samples.tolist() == chosen.tolist()
    assert sizes == [3, 1]
    torch.testing.assert_close(some, rows[chosen], rtol=0, atol=FLOAT32)
    assert torch.equal(gradients.norms, norms)
    torch.testing.assert_close(gradients.inner_products(chosen), some @ some.T, rtol=0, atol=FLOAT32)


def test_a_gradient_that_is_not_finite_names_its_sample():
    train = tiny_workload().train
    inputs = train.inputs.clone()
    inputs[13, 2] = torch.nan
    plan = plan_of(trained(dropout_perceptron), [("training", Examples(inputs, train.targets))])
    with pytest.raises(UserError, match=r"training sample 13 is not finite in 0\.weight \(1 such samples\)"):
        stream_gradients(plan, lambda gradients: all_rows(gradients, 16))


def test_where_rows_are_wrong_the_parameter_takes_the_next_step_and_the_pass_is_made_again(monkeypatch, capsys):
    compute, passes = StreamedGradients.inner_products, []
    # the check of the first pass sees rows that are off
    monkeypatch.setattr(
        StreamedGradients, "inner_products", lambda self, rows: compute(self, rows) * (1.1 if len(passes) == 1 else 1)
    )
    model = trained(dropout_perceptron)

    def use(gradients):
        passes.append(gradients)
        return all_rows(gradients, 16)

    gradients, (_, rows, _) = stream_gradients(plan_of(model), use)
    expected = reference_rows(model)
    assert len(passes) == 2
    assert gradients is passes[1]
    assert "the next step is taken" in capsys.readouterr().out
    found = rows * gradients.norms[:, None]
    assert ((found - expected).norm(dim=1) / expected.norm(dim=1)).max() < FLOAT32
