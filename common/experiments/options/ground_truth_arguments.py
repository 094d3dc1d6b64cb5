"""Options about the ground truth of the LDS, and the record made of them: for every script that measures an LDS."""

from __future__ import annotations

import argparse

from common.experiments.options import values as option_values
from common.experiments.options.records import SelectionOptions, SharedOptions
from common.foundations.errors import UserError


def add_ground_truth_options(parser: argparse.ArgumentParser) -> None:
    """Add --val_ratio and --num_subsets."""
    add = parser.add_argument
    add("--val_ratio", type=option_values.open_unit_float, default=0.1, help="share of the queries that select λ and m")
    add("--num_subsets", type=option_values.positive_int, default=50, help="subset models behind the ground truth")


def selection_options(args: argparse.Namespace, shared: SharedOptions) -> SelectionOptions:
    """Return the record of both beside the options that are there already.

    Raises:
        UserError: too few subset models for a rank correlation.
    """
    if args.num_subsets < 3:
        raise UserError(f"--num_subsets {args.num_subsets}: a rank correlation needs at least 3 subset models")
    return SelectionOptions(shared, args.val_ratio, args.num_subsets)
