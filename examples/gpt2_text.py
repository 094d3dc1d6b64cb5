"""Your own workload: low-rank adapters on a small GPT-2 of transformers, for Python's own documentation strings.

pip install -r requirements-transformers.txt
python spectrum_bounds.py --workload examples/gpt2_text.py
python hyperparam_selection.py --workload examples/gpt2_text.py
"""

from __future__ import annotations

import functools
import importlib
import inspect
import warnings

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from common.records import Examples, TrainingRecipe, Workload

LENGTH, PADDING = 48, 0
NUM_TRAIN, NUM_TEST = 400, 100
MODULES = (
    "argparse ast collections contextlib csv datetime decimal difflib email functools heapq inspect itertools json "
)
MODULES += (
    "logging math os pathlib pickle random re shutil socket sqlite3 statistics string subprocess tarfile threading"
)


def documentation() -> list[str]:
    """Return the first lines of the documentation strings of some modules, each once, in alphabetical order."""
    texts = set()
    for module in map(importlib.import_module, MODULES.split()):
        for _, item in inspect.getmembers(module, lambda x: inspect.isfunction(x) or inspect.isclass(x)):
            for thing in (item, *vars(item).values()):
                text = inspect.getdoc(thing) if callable(thing) else None
                if text and len(text.split("\n")[0]) > 20:
                    texts.add(text.split("\n")[0])
    return sorted(texts)


def tokens(texts: list[str]) -> tuple[dict[str, Tensor], Tensor]:
    """Return the named inputs of GPT-2 and the targets: one token a character, cut or padded to LENGTH."""
    ids = torch.full((len(texts), LENGTH), PADDING)
    for row, text in zip(ids, texts, strict=True):
        codes = torch.tensor(list(text.encode("ascii", "replace")[:LENGTH]))
        row[: len(codes)] = codes
    return {"input_ids": ids, "attention_mask": (ids != PADDING).long()}, ids


def mean_loss(outputs, ids: Tensor) -> Tensor:
    """Return the mean cross-entropy of each sequence over the characters that follow its first."""
    losses = F.cross_entropy(outputs.logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    real = (ids[:, 1:] != PADDING).float()
    return (losses * real).sum(1) / real.sum(1)


@functools.cache
def base() -> dict[str, Tensor]:
    """Return the weights of a GPT-2 that has read the texts which are neither trained on nor tested here."""
    torch.manual_seed(0)
    model, (inputs, ids) = small_gpt2(), tokens(shuffled()[NUM_TRAIN + NUM_TEST :])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(3):
        for rows in torch.randperm(len(ids)).split(32):
            optimizer.zero_grad()
            mean_loss(model(**{name: tensor[rows] for name, tensor in inputs.items()}), ids[rows]).mean().backward()
            optimizer.step()
    return model.state_dict()


def small_gpt2() -> GPT2LMHeadModel:
    """Return an untrained GPT-2 of two layers."""
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=128, n_positions=LENGTH, n_embd=64, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=1)
    )


def make_adapted():
    """Return the base in bfloat16, frozen, with adapters of rank 4 on its attention, all of them trainable."""
    model = small_gpt2()
    model.load_state_dict(base())
    adapters = LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True, lora_dropout=0.05)
    with warnings.catch_warnings():
        # peft asks transformers under a name that is about to change
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        return get_peft_model(model.to(torch.bfloat16), adapters)


def shuffled() -> list[str]:
    """Return all texts in a fixed random order."""
    texts = documentation()
    return [texts[i] for i in torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))]


def make_workload() -> Workload:
    """Return training and test texts, the adapted model, and how its adapters are trained."""
    texts = shuffled()[: NUM_TRAIN + NUM_TEST]
    return Workload(
        name="gpt2_text",
        make_model=make_adapted,
        train=Examples(*tokens(texts[:NUM_TRAIN])),
        test=Examples(*tokens(texts[NUM_TRAIN:])),
        loss=mean_loss,
        recipe=TrainingRecipe(epochs=3, learning_rate=0.01, batch_size=32, optimizer="adam"),
    )
