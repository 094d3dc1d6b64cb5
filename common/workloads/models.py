"""Model factories: dattri's own model classes, untrained."""

from __future__ import annotations

import contextlib
import io

from torch import nn


def make_lr() -> nn.Module:
    """Return dattri's logistic regression for 28 x 28 images and 10 classes: 7,850 parameters."""
    from dattri.benchmark.models.logistic_regression import create_lr_model

    return create_lr_model("mnist")


def make_mlp() -> nn.Module:
    """Return dattri's 784-128-64-10 perceptron, dropout 0.1: 109,386 parameters."""
    from dattri.benchmark.models.mlp import create_mlp_model

    return create_mlp_model("mnist")


def make_resnet9() -> nn.Module:
    """Return dattri's ResNet9 for 32 x 32 colour images and 2 classes, dropout 0: 4,825,154 parameters."""
    from dattri.benchmark.models.resnet9.resnet9 import ResNet9

    return ResNet9(num_classes=2, dropout_rate=0.0)


def make_musictransformer() -> nn.Module:
    """Return dattri's MusicTransformer for 256 event tokens: 6 layers, 8 heads, width 512, dropout 0.1."""
    # importing it prints a warning where there is no CUDA, whether or not CUDA was asked for
    with contextlib.redirect_stdout(io.StringIO()):
        from dattri.benchmark.models.MusicTransformer.music_transformer import MusicTransformer

    return MusicTransformer(
        n_layers=6,
        num_heads=8,
        d_model=512,
        dim_feedforward=1024,
        dropout=0.1,
        max_sequence=256,
        rpr=True,
        device="cpu",
    )
