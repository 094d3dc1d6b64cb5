"""Which samples are queries: drawn by the seed, among those with a gradient where they are training samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.experiments.options.records import QueryChoice
from common.foundations.errors import UserError
from common.foundations.seeds import make_generator
from common.workloads.records import Examples, Workload

QUERY_STREAM = 1_000_003
TRAIN_STREAM = 1_000_037


@dataclass(frozen=True)
class Queries:
    """The queries, and how many gradients are zero."""

    rows: Tensor
    """(k,) int64, the rows of the gradients that are queries."""
    samples: Tensor
    """(k,) int64 indices in the training or test set."""
    num_zero_train: int
    """Training gradients that are zero."""
    num_zero_queries: int
    """Gradients of queries that are zero: test samples only."""


def draw_queries(workload: Workload, choice: QueryChoice) -> tuple[list[tuple[str, Examples]], Tensor]:
    """Return the parts whose gradients are needed, and the samples of the queries' own part in the order of drawing.

    All training samples, since which of them have a gradient is not known yet; as many test samples as are asked for.
    """
    available, count = workload.train if choice.kind == "self" else workload.test, choice.count
    if count > len(available):
        print(f"--num_test_grads {count}: all {len(available)} samples there are")
    order = torch.randperm(len(available), generator=make_generator("cpu", choice.seed, QUERY_STREAM))
    parts = [("training", workload.train)]
    if choice.kind == "self":
        return parts, order
    drawn = order[:count].sort().values
    return [*parts, ("test", workload.test.subset(drawn))], drawn


def choose_queries(norms: Tensor, num_train: int, drawn: Tensor, choice: QueryChoice) -> Queries:
    """Return the queries among the samples drawn, from the (N,) lengths of all gradients; say how many are zero.

    Training samples without a gradient are no queries: others are drawn. A test sample without one stays, since its
    scores are known to be zero; there must be others.

    Raises:
        UserError: every training gradient, or every gradient of the queries, is zero.
    """
    lengths = norms.cpu()
    train, test = lengths[:num_train], lengths[num_train:]
    zero = int((train == 0).sum())
    if zero == num_train:
        raise UserError(f"all {num_train} training gradients are zero: F = 0 has no spectrum to study")
    if choice.kind == "self":
        others = "; queries are drawn among the others"
        samples = drawn[train[drawn] > 0][: choice.count].sort().values
        rows = samples
    else:
        others = ""
        samples, rows = drawn, torch.arange(num_train, num_train + len(drawn))
    if zero:
        print(f"{zero} of {num_train} training gradients are zero{others}")
    without = int((test == 0).sum())
    if without and without == len(test):
        raise UserError(
            f"the gradients of all {without} queries are zero, drawn from the test samples: there is nothing to score; "
            "a larger --num_test_grads or another --seed may draw others"
        )
    if without:
        print(f"{without} of {len(test)} query gradients are zero: their scores are zero for every λ and m")
    return Queries(rows, samples, zero, without)


def choose_training_rows(norms: Tensor, num_train: int, count: int, seed: int) -> Tensor:
    """Return (p,) ascending training rows that are scored with every query, drawn among those with a gradient.

    `norms` are the (N,) lengths of all gradients, training rows first; fewer rows where there are not as many.
    """
    order = torch.randperm(num_train, generator=make_generator("cpu", seed, TRAIN_STREAM))
    order = order[norms.cpu()[order] > 0]
    if count > len(order):
        print(f"--num_train_grads {count}: all {len(order)} training gradients that are not zero")
    return order[:count].sort().values
