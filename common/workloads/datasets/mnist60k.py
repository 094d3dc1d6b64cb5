"""mnist60k, embedded: 60,000 turned and shifted variants of the 4,500 training digits of `mnist`.

Not a benchmark: a training set of the size of MNIST's own, for when there is no network. The test digits are those of
`mnist`, as they are: no variant of a test digit is trained on.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from common.foundations.seeds import make_generator
from common.workloads.datasets import mnist
from common.workloads.records import Dataset

TRAIN_SAMPLES = 60_000
"""Training samples: every digit has 13 variants, the first 1,500 digits have 14."""
LARGEST_TURN = 15.0
"""Degrees."""
LARGEST_SHIFT = 2.0
"""Pixels, along each axis."""

_SEED = 60_000
_SIZE = 28


def load(data_dir: Path | None = None) -> Dataset:
    """Return 60,000 training and 500 test digits; row i is variant i // 4,500 of training digit i % 4,500 of `mnist`.

    Each variant is turned by an angle uniform in ±15 degrees and shifted by up to ±2 pixels along each axis, uniform
    too, all drawn with a fixed seed; bilinear, black outside, rounded to whole grey levels. Any 4,500 training samples
    in a row come from different digits.

    Args:
        data_dir: see `mnist.load`.

    Returns:
        inputs (N, 1, 28, 28) float32, normalised as those of `mnist`; targets (N,) int64.
    """
    digits = mnist.load_pixels(data_dir)
    pixels, labels = digits["train_pixels"], digits["train_labels"]
    generator = make_generator("cpu", _SEED)
    drawn = torch.rand(TRAIN_SAMPLES, 3, generator=generator, dtype=torch.float64) * 2 - 1
    parts = [
        vary(pixels[: len(some)], some[:, 0] * LARGEST_TURN, some[:, 1:] * LARGEST_SHIFT)
        for some in drawn.split(len(pixels))
    ]
    order = torch.arange(TRAIN_SAMPLES) % len(pixels)
    train = mnist.examples(torch.cat(parts), labels[order])
    return Dataset(train, mnist.examples(digits["test_pixels"], digits["test_labels"]))


def vary(pixels: Tensor, degrees: Tensor, shifts: Tensor) -> Tensor:
    """Return (N, 784) uint8 digits, each turned counterclockwise about its middle and then shifted.

    Args:
        pixels: (N, 784) uint8.
        degrees: (N,) float64.
        shifts: (N, 2) float64 pixels to the right and downwards.
    """
    # the grid says where each pixel comes from: the inverse, with coordinates that run from -1 to 1 over the image
    radians = degrees * (math.pi / 180)
    cos, sin = radians.cos(), radians.sin()
    x, y = (shifts * (2 / _SIZE)).unbind(1)
    inverse = torch.stack([cos, -sin, -(cos * x - sin * y), sin, cos, -(sin * x + cos * y)], dim=1)
    shape = [len(pixels), 1, _SIZE, _SIZE]
    grid = affine_grid(inverse.reshape(-1, 2, 3), shape, align_corners=False)
    varied = grid_sample(pixels.reshape(shape).double(), grid, align_corners=False)
    return varied.round().to(torch.uint8).reshape(len(pixels), -1)
