from __future__ import annotations

import pytest
import torch

from common.theory.binned_spectrum import binned
from common.theory.spectrum import ExactSpectrum

MUS = torch.tensor([1e-6, 1e-3, 1.0], dtype=torch.float64)


@pytest.fixture(scope="module")
def eigenvalues():
    generator = torch.Generator().manual_seed(0)
    return torch.cat([10 ** (-8 * torch.rand(5000, generator=generator, dtype=torch.float64)), torch.zeros(40)])


def test_sums_and_implicit_ridges_are_those_of_all_eigenvalues(eigenvalues):
    exact, found = ExactSpectrum(eigenvalues), binned(eigenvalues)
    assert len(found.eigenvalues) < 1900
    assert found.counts.sum() == len(eigenvalues)
    for one, other in zip(vars(found.sums(MUS)).values(), vars(exact.sums(MUS)).values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=0)
    m = torch.tensor([50.0, 500.0, 4000.0], dtype=torch.float64)
    torch.testing.assert_close(found.implicit_ridge(m, MUS), exact.implicit_ridge(m, MUS), rtol=1e-4, atol=0)


def test_forms_of_vectors_are_those_of_all_coordinates(eigenvalues):
    vectors = torch.randn(3, len(eigenvalues), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = binned(eigenvalues)
    for power in (1, 2, 3):
        expected = vectors.square() @ ExactSpectrum(eigenvalues).resolvent_weights(power, MUS)
        weights = found.resolvent_weights(power, MUS)
        torch.testing.assert_close(found.energies(vectors.square()) @ weights, expected, rtol=1e-2, atol=0)


def test_eigenvalues_that_repeat_are_exact():
    repeated = torch.tensor([4.0, 4.0, 1.0, 1.0, 1.0, 0.0])
    found = binned(repeated)
    assert found.eigenvalues.tolist() == [4.0, 1.0, 0.0]
    assert found.counts.tolist() == [2.0, 3.0, 1.0]
    m, ridge = torch.tensor(2.0), torch.tensor(0.1)
    torch.testing.assert_close(
        found.implicit_ridge(m, ridge), ExactSpectrum(repeated).implicit_ridge(m, ridge), rtol=1e-13, atol=0
    )


def test_nothing_but_zeros_is_a_spectrum_too():
    found = binned(torch.zeros(4))
    assert (found.eigenvalues.tolist(), found.counts.tolist()) == ([0.0], [4.0])
    assert found.sums(MUS).first.tolist() == [0.0] * 3
    assert found.implicit_ridge(torch.tensor(2.0), torch.tensor(0.5)).item() == 0.5


@pytest.mark.parametrize("bad", [[1.0, -1.0], [1.0, float("nan")], [[1.0]]])
def test_what_is_no_spectrum_is_refused(bad):
    with pytest.raises(ValueError, match="eigenvalues must be a vector of finite numbers >= 0"):
        binned(torch.tensor(bad))
