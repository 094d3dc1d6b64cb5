from __future__ import annotations

import pytest
import torch

from common.workloads.datasets import mnist, mnist60k

BAR = torch.zeros(1, 28, 28, dtype=torch.uint8)
BAR[0, 4:24, 13:15] = 255  # upright, in the middle


def vary(image, degrees=0.0, right=0.0, down=0.0):
    turned = torch.tensor([degrees], dtype=torch.float64)
    return mnist60k.vary(image.reshape(1, -1), turned, torch.tensor([[right, down]], dtype=torch.float64)).view(28, 28)


def test_without_a_turn_or_a_shift_a_digit_stays_as_it_is_to_the_last_grey_level():
    image = torch.randint(0, 256, (28, 28), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert torch.equal(vary(image), image)


@pytest.mark.parametrize(("right", "down"), [(2, 0), (-1, 0), (0, 2), (0, -1), (2, -2)])
def test_a_shift_moves_a_digit_right_and_down_by_whole_pixels(right, down):
    assert torch.equal(vary(BAR, right=right, down=down), BAR[0].roll((down, right), (0, 1)))


def test_a_turn_is_counterclockwise_about_the_middle():
    assert torch.equal(vary(BAR, 90.0), BAR[0].rot90())
    leaning = vary(BAR, 15.0).double()
    columns = torch.arange(28.0, dtype=torch.float64)
    top, bottom = ((leaning[row] * columns).sum() / leaning[row].sum() for row in (6, 21))
    assert top < 13.5 < bottom


def test_a_turned_digit_is_shifted_afterwards():
    assert torch.equal(vary(BAR, 90.0, right=1, down=2), BAR[0].rot90().roll((2, 1), (0, 1)))


@pytest.mark.slow
def test_training_samples_are_variants_of_the_training_digits_alone_and_test_digits_are_as_they_are():
    data, digits = mnist60k.load(), mnist.load()
    assert len(data.train) == 60_000
    assert data.train.inputs.shape == (60_000, 1, 28, 28)
    assert torch.equal(data.test.inputs, digits.test.inputs)
    assert torch.equal(data.test.targets, digits.test.targets)
    assert torch.equal(data.train.targets, digits.train.targets[torch.arange(60_000) % 4500])
    # a variant is closer to its own digit than to those beside it, though moved by 1 pixel and turned by 7.5 degrees
    own = digits.train.inputs.flatten(1).repeat(14, 1)[:60_000]
    inputs = data.train.inputs.flatten(1)
    closer = (inputs - own).norm(dim=1) < (inputs - own.roll(1, 0)).norm(dim=1)
    assert closer.double().mean() > 0.95
    # all variants of a digit differ
    some = torch.stack([inputs[digit::4500] for digit in (0, 1, 1499)])
    assert all(len(variants.unique(dim=0)) == 14 for variants in some)
    assert len(inputs[1500::4500]) == 13


@pytest.mark.slow
def test_every_call_gives_the_same_variants():
    first, second = mnist60k.load(), mnist60k.load()
    assert torch.equal(first.train.inputs, second.train.inputs)
