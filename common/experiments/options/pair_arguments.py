"""Options about scores of pairs, and the record made of them: for every script that measures their errors."""

from __future__ import annotations

import argparse

from common.experiments.options.records import CrossChoice
from common.experiments.options.values import positive_int
from common.foundations.errors import UserError

NUM_TRAIN_GRADS = 1000


def add_num_train_grads(parser: argparse.ArgumentParser) -> None:
    """Add --num_train_grads, of scores of pairs."""
    text = "training gradients in cross scores"
    parser.add_argument("--num_train_grads", type=positive_int, default=NUM_TRAIN_GRADS, help=text)


def pair_choice(args: argparse.Namespace, kernel_parts: bool) -> CrossChoice:
    """Return which training gradients are scored with the queries, for errors of scores of pairs.

    Raises:
        UserError: a reference that does not know their exact scores.
    """
    if args.reference == "sketch":
        raise UserError("--reference sketch: errors of cross scores need exact scores, drop it")
    return CrossChoice(args.num_train_grads, kernel_parts)


def cross_choice(args: argparse.Namespace) -> CrossChoice | None:
    """Return which training gradients are scored with the queries; None for self-influence.

    Queries among the training samples lie in range(F): only others have a part in ker(F).

    Raises:
        UserError: a number of training gradients for scores that have none.
    """
    if args.scores == "cross":
        return pair_choice(args, kernel_parts=args.test_mode == "test")
    if args.num_train_grads != NUM_TRAIN_GRADS:
        raise UserError(f"--num_train_grads {args.num_train_grads} is for --scores cross, got {args.scores}")
    return None
