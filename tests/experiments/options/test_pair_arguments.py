from __future__ import annotations

import pytest

from common.experiments.options import arguments
from common.experiments.options.pair_arguments import add_num_train_grads, cross_choice, pair_choice
from common.experiments.options.records import CrossChoice
from common.foundations.errors import UserError


def parse(*options):
    parser = arguments.make_parser("", min_m=1)
    parser.add_argument("--scores", default="cross")
    parser.add_argument("--test_mode", default="test")
    add_num_train_grads(parser)
    return parser.parse_args(options)


def test_a_thousand_training_gradients_are_scored_unless_others_are_asked_for():
    assert pair_choice(parse(), kernel_parts=False) == CrossChoice(1000, False)
    assert pair_choice(parse("--num_train_grads", "7"), kernel_parts=True) == CrossChoice(7, True)


def test_errors_of_pairs_need_exact_scores():
    with pytest.raises(UserError, match=r"^--reference sketch: errors of cross scores need exact scores, drop it$"):
        pair_choice(parse("--reference", "sketch"), kernel_parts=False)


@pytest.mark.parametrize(("mode", "kernel_parts"), [("test", True), ("self", False)])
def test_only_queries_from_outside_the_training_set_have_a_part_in_the_kernel(mode, kernel_parts):
    assert cross_choice(parse("--test_mode", mode)) == CrossChoice(1000, kernel_parts)


def test_self_influence_has_no_pairs_and_their_number_is_refused():
    assert cross_choice(parse("--scores", "self")) is None
    assert cross_choice(parse("--scores", "self", "--reference", "sketch")) is None
    with pytest.raises(UserError, match=r"^--num_train_grads 7 is for --scores cross, got self$"):
        cross_choice(parse("--scores", "self", "--num_train_grads", "7"))
