from __future__ import annotations

import torch

from common.theory.column_sample import LOG_WIDTH, group


def test_groups_keep_sums_and_hold_eigenvalues_within_their_width():
    eigenvalues = torch.tensor([8.0, 3.0, 3.01, 2.99, 1e-9, 0.0, 0.0], dtype=torch.float64)
    energies = torch.rand(5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    squares = torch.arange(7, dtype=torch.float64)
    sample = group(50, eigenvalues, energies, squares)
    torch.testing.assert_close(sample.energies.sum(1), energies.sum(1))
    torch.testing.assert_close(sample.query_energies.sum(1), energies @ squares)
    assert ((sample.eigenvalues[:, None] / eigenvalues[:5] - 1).abs().min(0).values < LOG_WIDTH).all()
    torch.testing.assert_close(sample.energies[:, 0], energies[:, 5:].sum(1))
    torch.testing.assert_close(sample.energies[:, -1], energies[:, 0])
