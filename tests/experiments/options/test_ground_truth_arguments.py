from __future__ import annotations

import pytest

from common.experiments.options import arguments
from common.experiments.options.ground_truth_arguments import add_ground_truth_options, selection_options
from common.foundations.errors import UserError


def parse(*options):
    parser = arguments.make_workload_parser("")
    add_ground_truth_options(parser)
    args = parser.parse_args(list(options))
    return selection_options(args, arguments.unsketched_options(args))


def test_the_defaults_are_a_tenth_of_the_queries_and_fifty_models():
    found = parse()
    assert (found.val_ratio, found.num_subsets) == (0.1, 50)


def test_fewer_than_three_models_have_no_rank_correlation_worth_the_name():
    assert parse("--num_subsets", "3").num_subsets == 3
    with pytest.raises(UserError, match="--num_subsets 2: a rank correlation needs at least 3 subset models"):
        parse("--num_subsets", "2")
