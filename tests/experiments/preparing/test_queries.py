"""Queries are drawn by the seed, and among samples that have a gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from common.experiments.options.records import QueryChoice
from common.experiments.preparing.queries import choose_queries, choose_training_rows, draw_queries
from common.foundations.errors import UserError
from common.records import Examples, Workload

TRAIN, TEST = 40, 30


@pytest.fixture
def workload():
    train, test = (Examples(torch.zeros(count, 2), torch.zeros(count)) for count in (TRAIN, TEST))
    return Workload("q", lambda: nn.Linear(2, 1), train, test, lambda o, t: o[:, 0], None)


def test_where_no_gradient_is_zero_the_first_drawn_are_the_queries(workload, capsys):
    choice = QueryChoice("self", 9, 1)
    parts, drawn = draw_queries(workload, choice)
    assert [name for name, _ in parts] == ["training"]
    assert drawn.sort().values.tolist() == list(range(TRAIN))
    queries = choose_queries(torch.ones(TRAIN), TRAIN, drawn, choice)
    assert queries.samples.tolist() == queries.rows.tolist() == sorted(drawn[:9].tolist())
    assert (queries.num_zero_train, queries.num_zero_queries) == (0, 0)
    assert capsys.readouterr().out == ""


def test_training_samples_without_a_gradient_are_counted_and_passed_over(workload, capsys):
    choice = QueryChoice("self", 9, 1)
    _, drawn = draw_queries(workload, choice)
    norms = torch.ones(TRAIN)
    norms[drawn[:20]] = 0
    queries = choose_queries(norms, TRAIN, drawn, choice)
    assert queries.samples.tolist() == sorted(drawn[20:29].tolist())
    assert queries.num_zero_train == 20
    assert capsys.readouterr().out == "20 of 40 training gradients are zero; queries are drawn among the others\n"


def test_fewer_gradients_than_queries_are_all_taken(workload):
    choice = QueryChoice("self", 9, 1)
    norms = torch.zeros(TRAIN)
    norms[[3, 17]] = 1e-30
    queries = choose_queries(norms, TRAIN, draw_queries(workload, choice)[1], choice)
    assert queries.samples.tolist() == [3, 17]


@pytest.mark.parametrize("kind", ["self", "test"])
def test_a_model_without_any_training_gradient_is_refused(workload, kind):
    choice = QueryChoice(kind, 9, 1)
    norms = torch.cat([torch.zeros(TRAIN), torch.ones(9)])
    with pytest.raises(UserError, match=r"all 40 training gradients are zero: F = 0 has no spectrum to study"):
        choose_queries(norms, TRAIN, draw_queries(workload, choice)[1], choice)


def test_test_samples_without_a_gradient_stay_and_are_counted(workload, capsys):
    choice = QueryChoice("test", 9, 1)
    parts, drawn = draw_queries(workload, choice)
    assert [(name, len(part)) for name, part in parts] == [("training", TRAIN), ("test", 9)]
    norms = torch.ones(TRAIN + 9)
    norms[[2, TRAIN + 4, TRAIN + 5]] = 0
    queries = choose_queries(norms, TRAIN, drawn, choice)
    assert queries.rows.tolist() == list(range(TRAIN, TRAIN + 9))
    assert queries.samples.tolist() == drawn.tolist()
    assert (queries.num_zero_train, queries.num_zero_queries) == (1, 2)
    assert capsys.readouterr().out == (
        "1 of 40 training gradients are zero\n"
        "2 of 9 query gradients are zero: their scores are zero for every λ and m\n"
    )


def test_test_samples_that_all_lack_a_gradient_are_refused(workload):
    choice = QueryChoice("test", 9, 1)
    norms = torch.cat([torch.ones(TRAIN), torch.zeros(9)])
    with pytest.raises(UserError, match=r"the gradients of all 9 queries are zero.*--num_test_grads"):
        choose_queries(norms, TRAIN, draw_queries(workload, choice)[1], choice)


def test_more_queries_than_samples_are_said_once(workload, capsys):
    for kind, count in (("self", TRAIN), ("test", TEST)):
        draw_queries(workload, QueryChoice(kind, count + 1, 0))
        assert capsys.readouterr().out == f"--num_test_grads {count + 1}: all {count} samples there are\n"


def test_training_rows_of_pairs_are_drawn_by_the_seed_among_those_with_a_gradient(capsys):
    norms = torch.cat([torch.ones(TRAIN), torch.ones(9)])
    rows = choose_training_rows(norms, TRAIN, 15, seed=3)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert (len(rows), rows.max() < TRAIN) == (15, True)
    assert torch.equal(rows, choose_training_rows(norms, TRAIN, 15, seed=3))
    assert not torch.equal(rows, choose_training_rows(norms, TRAIN, 15, seed=4))
    norms[rows] = 0
    assert not set(choose_training_rows(norms, TRAIN, 15, seed=3).tolist()) & set(rows.tolist())
    assert capsys.readouterr().out == ""
    assert len(choose_training_rows(norms, TRAIN, 30, seed=3)) == 25
    assert capsys.readouterr().out == "--num_train_grads 30: all 25 training gradients that are not zero\n"
