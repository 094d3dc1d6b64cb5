from __future__ import annotations

import torch

from common.gradients.lengths import gradient_length, row_lengths, scale_to_unit_length


def test_lengths_are_summed_in_float64():
    # in float32 the many small squares would vanish beside the large one
    rows = torch.full((2, 10_001), 1e-4)
    rows[:, 0] = 1.0
    exact = (1 + 10_000 * rows[0, 1].double() ** 2) ** 0.5
    torch.testing.assert_close(row_lengths(rows), exact.repeat(2), rtol=1e-14, atol=0)


def test_the_length_of_a_gradient_is_that_of_all_its_parameters_together_summed_in_float64():
    parts = {"weight": torch.full((100, 100), 1e-4), "bias": torch.tensor([1.0])}
    exact = (1 + 10_000 * parts["weight"][0, 0].double() ** 2) ** 0.5
    torch.testing.assert_close(gradient_length(parts), exact, rtol=1e-14, atol=0)


def test_rows_of_any_length_are_scaled_to_one_and_zero_rows_stay_zero():
    directions = torch.randn(4, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lengths = torch.tensor([3.0, 0.0, 1e-33, 1e15], dtype=torch.float64)
    rows = (directions / directions.norm(dim=1)[:, None] * lengths[:, None]).float()
    found = scale_to_unit_length(rows)
    torch.testing.assert_close(found, lengths, rtol=1e-5, atol=0)
    expected = torch.where(lengths > 0, 1.0, 0.0).double()
    torch.testing.assert_close(rows.double().norm(dim=1), expected, rtol=1e-5, atol=0)
