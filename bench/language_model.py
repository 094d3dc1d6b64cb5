"""Gradients of a small GPT-2 of the transformers package, where that is installed, in several ways.

What a run with nothing stored keeps (inputs and errors of layers, from which any column or inner product is multiplied
out) stands beside the rows themselves, which the other ways make, and beside their sum, which one plain backward pass a
batch makes: no way can be much faster than that.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.gradient_rows import BATCH, rows_by_layers, rows_by_vmap, rows_one_by_one
from common.gradients.layer_gradients import LayerwiseGradients
from common.workloads.records import Examples, Workload

VOCABULARY, LENGTH = 1000, 16
"""Tokens there are, and tokens of a sequence."""
SHARE = 8
"""Samples of the other comparisons to one sequence here."""
WARM_UP = 2
"""Sequences of a first call outside all timings, in which torch loads what vmap needs."""


def steps() -> list[tuple[str, str, Callable]]:
    """Return (what, route, step) of every route; none, after one line, without the package."""
    if importlib.util.find_spec("transformers") is None:
        print("gradients of GPT-2: left out, transformers is not installed (requirements-transformers.txt)")
        return []
    what = "gradients of GPT-2"
    return [
        (what, "layer by layer, kept", kept_by_layers),
        (what, "layer by layer, rows", gpt2_rows_by_layers),
        (what, "vmap of grad, rows", gpt2_rows_by_vmap),
        (what, "one at a time, rows", gpt2_rows_one_by_one),
        (what, "plain passes, sums", gpt2_sums),
    ]


def gpt2(num_train: int) -> tuple[Workload, nn.Module]:
    """Return random sequences and an untrained GPT-2 of 0.92 million parameters, in eval mode.

    Attention is written out (`eager`), because vmap would run torch's kernel for it sample by sample.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=LENGTH,
        n_embd=128,
        n_layer=4,
        n_head=4,
        bos_token_id=1,
        eos_token_id=1,
    )
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).eval()
    ids = torch.randint(VOCABULARY, (num_train, LENGTH))
    train = Examples(ids, ids)
    return Workload("gpt2", lambda: model, train, train, _next_token_loss, None), model


def _next_token_loss(outputs, ids: Tensor) -> Tensor:
    return F.cross_entropy(outputs.logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none").mean(1)


def kept_by_layers(workload: Workload, model: nn.Module) -> Callable[[], LayerwiseGradients]:
    """Return what computes all that a run with nothing stored keeps of the gradients of GPT-2."""
    return _warmed_up(_kept, workload)


def gpt2_rows_by_layers(workload: Workload, model: nn.Module) -> Callable[[], Tensor]:
    """Return what makes the rows of GPT-2 layer by layer."""
    return _warmed_up(rows_by_layers, workload)


def gpt2_rows_by_vmap(workload: Workload, model: nn.Module) -> Callable[[], Tensor]:
    """Return what makes them by vmap of grad."""
    return _warmed_up(rows_by_vmap, workload)


def gpt2_rows_one_by_one(workload: Workload, model: nn.Module) -> Callable[[], Tensor]:
    """Return what makes them by a backward pass a sequence."""
    return _warmed_up(rows_one_by_one, workload)


def gpt2_sums(workload: Workload, model: nn.Module) -> Callable[[], Tensor]:
    """Return what makes the (d,) sum of the rows by a backward pass a batch."""
    return _warmed_up(_sums, workload)


def _kept(workload: Workload, model: nn.Module) -> Callable[[], LayerwiseGradients]:
    def run() -> LayerwiseGradients:
        gradients = LayerwiseGradients(model, workload.loss, workload.train, BATCH)
        gradients.keep()
        return gradients

    return run


def _sums(workload: Workload, model: nn.Module) -> Callable[[], Tensor]:
    parameters = list(model.parameters())

    def run() -> Tensor:
        total = [torch.zeros_like(p) for p in parameters]
        for samples in torch.arange(len(workload.train)).split(BATCH):
            batch = workload.train.subset(samples)
            found = torch.autograd.grad(workload.loss(model(batch.inputs), batch.targets).sum(), parameters)
            for sums, gradient in zip(total, found, strict=True):
                sums += gradient
        return torch.cat([each.flatten() for each in total])

    return run


def _warmed_up(make: Callable, workload: Workload) -> Callable:
    """Return a way on GPT-2, with as many sequences as belong to a workload, after a first call on a few of them."""
    language, model = gpt2(max(WARM_UP, len(workload.train) // SHARE))
    make(replace(language, train=language.train.subset(slice(WARM_UP))), model)()
    return make(language, model)
