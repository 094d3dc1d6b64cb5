"""Models whose layers are used in every way that layer-by-layer gradients must get right, and a batch for each."""

from __future__ import annotations

import contextlib
import io

import pytest
import torch
import torch.nn.functional as F
from dattri.benchmark.models.logistic_regression import LogisticRegressionMnist
from dattri.benchmark.models.mlp import MLPMnist
from dattri.benchmark.models.resnet9.resnet9 import ResNet9
from torch import nn

from common.workloads.losses import cross_entropy
from common.workloads.records import Examples

with contextlib.redirect_stdout(io.StringIO()):  # the import prints a warning where there is no GPU
    from dattri.benchmark.models.MusicTransformer.music_transformer import MusicTransformer

# An even kernel is what makes the border of padding="same" uneven; torch says that it costs a copy.
SAME_EVEN_KERNEL = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")


def last_token_loss(outputs, targets):
    return cross_entropy(outputs[:, -1], targets)


def every_token_loss(outputs, targets):
    return F.cross_entropy(outputs.transpose(1, 2), targets, reduction="none").sum(1)


class ChangesItsInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        x = x.clone()
        y = self.first(x)
        x.mul_(2)
        return self.out(y + x)


class TokenModel(nn.Module):
    """Looks tokens up, mixes them, and predicts with the embedding itself (one parameter in two roles)."""

    def __init__(self, tied: bool):
        super().__init__()
        self.tokens = nn.Embedding(11, 6, padding_idx=0)
        self.unused = nn.Linear(3, 2)
        self.norm = nn.LayerNorm(6)
        self.out = nn.Linear(6, 11)
        if tied:
            self.out.weight = self.tokens.weight

    def forward(self, tokens):
        return self.out(self.norm(self.tokens(tokens).cumsum(1)).mean(1))


class RepeatedLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.out = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.layer(torch.tanh(self.layer(x)))))


class RepeatedConv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(2, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.conv(torch.tanh(self.conv(x)))).mean((2, 3)))


class FoldedSequence(nn.Module):
    """Hands all tokens of all samples to a layer as if each were a sample."""

    def __init__(self, sample_first: bool):
        super().__init__()
        self.sample_first = sample_first
        self.hidden, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)

    def forward(self, x):
        folded = x if self.sample_first else x.transpose(0, 1)
        hidden = self.norm(self.hidden(folded.reshape(-1, 4))).reshape(*folded.shape[:2], 6)
        return hidden.sum(1 if self.sample_first else 0)


def small_conv_net():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 5, (2, 3), padding="same", dilation=(1, 2)),
        nn.Dropout(0.5),
        nn.ReLU(inplace=True),
        nn.Conv2d(5, 3, 3, padding=1, padding_mode="circular"),
        nn.Flatten(),
        nn.Linear(3 * 4 * 4, 3),
    )


def music_transformer(**options):
    with contextlib.redirect_stdout(io.StringIO()):
        return MusicTransformer(
            **dict(n_layers=1, d_model=32, num_heads=2, max_sequence=16, rpr=True, device="cpu", dim_feedforward=24)
            | options
        )


def classes(count, num_classes):
    return torch.randint(0, num_classes, (count,))


CASES = {
    "lr": lambda: (LogisticRegressionMnist(), cross_entropy, torch.randn(7, 28, 28), classes(7, 10)),
    "mlp": lambda: (MLPMnist(), cross_entropy, torch.randn(7, 784), classes(7, 10)),
    "conv": lambda: (small_conv_net(), cross_entropy, torch.randn(7, 2, 8, 8), classes(7, 3)),
    "large_patches": lambda: (
        nn.Sequential(nn.Conv2d(3, 2, 7, padding=3), nn.Flatten(), nn.Linear(2 * 64 * 64, 2)),
        cross_entropy,
        torch.randn(3, 3, 64, 64),
        classes(3, 2),
    ),
    "resnet9": lambda: (ResNet9(), cross_entropy, torch.randn(2, 3, 32, 32), classes(2, 2)),
    "transformer": lambda: (
        music_transformer(),
        last_token_loss,
        torch.randint(0, 300, (5, 16)),
        classes(5, 390),
    ),
    "transformer_every_token": lambda: (
        music_transformer(n_layers=2),
        every_token_loss,
        torch.randint(0, 300, (3, 16)),
        torch.randint(0, 390, (3, 16)),
    ),
    "transformer_short_sequence_as_long_as_the_batch": lambda: (
        music_transformer(),
        last_token_loss,
        torch.randint(0, 300, (3, 3)),
        classes(3, 390),
    ),
    "repeated_tokens": lambda: (TokenModel(False), cross_entropy, torch.randint(0, 4, (7, 9)), classes(7, 11)),
    "tied_weights": lambda: (TokenModel(True), cross_entropy, torch.randint(0, 4, (7, 9)), classes(7, 11)),
    "repeated_layer": lambda: (RepeatedLayer(), cross_entropy, torch.randn(7, 5), classes(7, 3)),
    "few_positions": lambda: (
        nn.Sequential(nn.Linear(40, 30), nn.Tanh(), nn.Flatten(), nn.Linear(60, 3)),
        cross_entropy,
        torch.randn(7, 2, 40),
        classes(7, 3),
    ),
    "repeated_conv": lambda: (RepeatedConv(), cross_entropy, torch.randn(7, 2, 5, 5), classes(7, 3)),
    "folded_sequence": lambda: (FoldedSequence(True), cross_entropy, torch.randn(7, 5, 4), classes(7, 6)),
}


def make_case(name):
    """Return (model in eval mode, loss, examples); batch norm has statistics and affine parameters worth the name."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model, loss, inputs, targets = CASES[name]()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_mean.uniform_(-0.3, 0.3)
                module.running_var.uniform_(0.5, 2.0)
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.eval(), loss, Examples(inputs, targets)
