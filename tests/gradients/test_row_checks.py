from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from common.gradients import layer_capture, row_checks
from common.gradients.layer_capture import LayerCapture, Routes
from common.gradients.layer_products import write_products
from common.gradients.layer_shares import matrix_shape
from common.gradients.row_checks import check_rows, flat_gradient, order, rounding
from tests.gradients import planted

LAYERS = Routes()
NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]


class KeptRows:
    """(N, d) rows as they were kept."""

    def __init__(self, rows):
        self.rows = rows.double()
        self.num_columns, self.norms = rows.shape[1], self.rows.norm(dim=1)

    def inner_products(self, rows):
        unit = self.rows[rows] / self.norms[rows, None].clamp(min=1e-300)
        return unit @ unit.T


def by_layers(subject):
    """Return the rows that layers give."""
    captures = LayerCapture(subject.model, subject.loss, LAYERS)(subject.examples)
    blocks = []
    for name, parameter in subject.parameters.items():
        rows, cols = matrix_shape(parameter)
        blocks.append(torch.empty(len(subject.examples), rows * cols, dtype=subject.dtype))
        write_products(captures[name], slice(0, rows), cols, blocks[-1])
    return torch.cat(blocks, dim=1)


def check(subject, rows, routes=LAYERS, stored=None, seconds=60.0):
    return check_rows(subject, routes, KeptRows(rows), stored or subject.dtype, seconds)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_right_rows_are_found_right_up_to_rounding(dtype):
    subject = planted.subject(dtype)
    found = check(subject, by_layers(subject))
    assert found.mismatches == []
    assert found.num_rows == len(order(planted.flat(planted.formula(subject)).norm(dim=1)))
    assert 0 <= found.worst < 20 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["0.weight", "2.bias"])
def test_a_layer_share_that_is_one_per_cent_off_is_found_in_the_rows_and_named(dtype, name, monkeypatch):
    subject = planted.subject(dtype)
    planted.plant_share(monkeypatch, name, 1.01)
    (mismatch,) = check(subject, by_layers(subject)).mismatches
    gradients = planted.formula(subject)
    part, whole = gradients[name].flatten(1).norm(dim=1), planted.flat(gradients).norm(dim=1)
    assert mismatch.parameter == name
    assert mismatch.row in order(whole)
    assert mismatch.difference == pytest.approx((0.01 * part / whole)[mismatch.row].item(), rel=1e-3)


@pytest.fixture
def one_wrong():
    """Return a change of one row -> (subject, right rows but that one, which is changed in place, its number)."""

    def make(change):
        subject = planted.subject(torch.float64)
        rows = planted.flat(planted.formula(subject))
        row = order(rows.norm(dim=1))[5]
        change(rows[row])
        return subject, rows, row

    return make


def test_rows_that_routes_do_not_explain_are_blamed_on_every_parameter_that_has_a_step_left(one_wrong):
    subject, rows, row = one_wrong(lambda row: row[:4].mul_(1.01))
    for one_at_a_time, blamed in (([], NAMES), (NAMES[::3], NAMES[1:3]), (NAMES, NAMES)):
        found = check(subject, rows, Routes(one_at_a_time=dict.fromkeys(one_at_a_time, "")))
        assert [(mismatch.parameter, mismatch.row) for mismatch in found.mismatches] == [(name, row) for name in blamed]


@pytest.mark.parametrize("change", [torch.Tensor.neg_, lambda row: row.copy_(row.flip(0))], ids=["sign", "order"])
def test_a_row_of_the_right_length_but_another_direction_is_found_by_inner_products(change, one_wrong):
    subject, rows, row = one_wrong(change)
    found = check(subject, rows)
    assert {mismatch.row for mismatch in found.mismatches} == {row}
    assert found.worst > 0.1


def test_a_row_that_is_not_a_number_is_found(one_wrong):
    subject, rows, row = one_wrong(lambda row: None)
    kept = KeptRows(rows)
    kept.rows[row, 2] = torch.nan  # lengths were measured before
    assert {mismatch.row for mismatch in check_rows(subject, LAYERS, kept, torch.float64, 60.0).mismatches} == {row}


def test_a_share_that_is_wrong_at_one_sample_only_is_named_with_it(one_wrong, monkeypatch):
    subject, _, row = one_wrong(lambda row: None)
    shares = layer_capture.shares

    def wrong(call, errors):
        (inputs,) = call.data.values()
        marked = (inputs[..., 0] == subject.examples.inputs[row, 0]).flatten()[:, None, None]
        for source, capture in shares(call, errors):
            if source.name == "0.weight":
                capture = replace(capture, errors=torch.where(marked, 1.01, 1.0) * capture.errors)
            yield source, capture

    monkeypatch.setattr(layer_capture, "shares", wrong)
    assert [(m.parameter, m.row) for m in check(subject, by_layers(subject)).mismatches] == [("0.weight", row)]


def test_only_the_rounding_of_what_rows_are_stored_in_is_allowed_for():
    subject = planted.subject(torch.float64)
    rows = planted.flat(planted.formula(subject)).half()
    assert check(subject, rows, stored=torch.float16).mismatches == []
    assert check(subject, rows, stored=torch.float64).mismatches != []


def test_gradients_that_float32_itself_hardly_determines_are_not_called_wrong():
    """1 − p cancels where a sample is learned well; rows are right to the last bit of p, and no better."""
    subject = planted.subject(torch.float32, spread=6.0)
    subject.examples.targets.copy_(subject.model(subject.examples.inputs).argmax(1))
    exact = planted.flat(planted.formula(subject))
    rows = by_layers(subject)
    off = (rows.double() - exact).norm(dim=1) / exact.norm(dim=1)
    chosen = order(rows.double().norm(dim=1))
    assert off[chosen].max() > 1e-3
    assert check(subject, rows).mismatches == []
    for row in chosen:
        if off[row] > 1e-5:  # what one of a few neighbouring models shows is of this size, not a bound
            assert rounding(subject, row, flat_gradient(subject, row)) > (rows[row].double() - exact[row]).norm() / 3


def test_the_flat_gradient_has_the_parameters_one_after_the_other():
    subject = planted.subject(torch.float64)
    expected = planted.flat(planted.formula(subject))[7]
    torch.testing.assert_close(flat_gradient(subject, 7), expected, rtol=1e-12, atol=1e-14)


# --- which rows -------------------------------------------------------------------------------------------------


def test_the_longest_and_the_shortest_that_is_not_zero_come_first_and_then_two_per_cent():
    norms = torch.rand(5000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1
    norms[[4, 1234]] = 0
    norms[3210], norms[77] = 9.0, 1e-12
    rows = order(norms)
    assert rows[:2] == [3210, 77]
    assert len(rows) == len(set(rows))
    assert 100 <= len(rows) <= 102
    assert order(norms) == rows
    assert sorted(order(torch.ones(5))) == [0, 1, 2, 3, 4]


def test_eight_rows_are_checked_whatever_it_takes_but_never_more_than_memory_allows(monkeypatch):
    subject = planted.subject(torch.float64, count=900)
    rows = planted.flat(planted.formula(subject))
    assert len(order(rows.norm(dim=1))) > 8
    assert check(subject, rows, seconds=-1.0).num_rows == 8
    monkeypatch.setattr(row_checks, "REFERENCE_BYTES", 8 * rows.shape[1] * 5)
    assert check(subject, rows).num_rows == 5
    monkeypatch.setattr(row_checks, "REFERENCE_BYTES", 1)
    assert check(subject, rows).num_rows == 2


def test_gradients_that_are_all_zero_are_right_where_they_should_be():
    subject = planted.subject(torch.float64)
    with torch.no_grad():
        subject.model[2].weight.zero_()
        subject.model[2].bias.copy_(torch.tensor([800.0, 0.0, 0.0]))
    subject.examples.targets.zero_()
    rows = planted.flat(planted.formula(subject))
    assert not rows.any()
    assert (check(subject, rows).mismatches, check(subject, rows).worst) == ([], 0.0)
    rows[3, 0] = 1e-3
    assert check(subject, rows).mismatches[0].row == 3
