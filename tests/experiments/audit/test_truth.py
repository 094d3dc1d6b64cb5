from __future__ import annotations

import numpy as np
import pytest
import torch

from common.experiments.audit.truth import read_truth
from common.foundations.errors import UserError

MASKS = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1], [1, 0, 1, 0]])
INDICES = torch.tensor([[0, 1], [1, 3], [0, 2]])
LOSSES = torch.arange(6.0).reshape(3, 2)


@pytest.mark.parametrize("subsets", [MASKS, MASKS.bool(), MASKS.float(), INDICES])
@pytest.mark.parametrize("suffix", ["npy", "pt"])
def test_masks_and_indices_mean_the_same(tmp_path, subsets, suffix):
    paths = (tmp_path / f"subsets.{suffix}", tmp_path / f"losses.{suffix}")
    for path, value in zip(paths, (subsets, LOSSES), strict=True):
        np.save(path, value.numpy()) if suffix == "npy" else torch.save(value, path)
    truth = read_truth(paths, 4, 2)
    assert torch.equal(truth.masks, MASKS.double())
    assert torch.equal(truth.losses, LOSSES.double())


@pytest.mark.parametrize("names", [("indices_lds.pt", "target_values_lds.pt"), ("masks.pt", "losses.pt")])
def test_folders_of_dattri_and_kronfluence_are_known(tmp_path, names):
    torch.save(INDICES if "indices" in names[0] else MASKS.bool(), tmp_path / names[0])
    torch.save(LOSSES, tmp_path / names[1])
    assert torch.equal(read_truth((tmp_path,), 4, 2).masks, MASKS.double())


@pytest.mark.parametrize(
    ("subsets", "losses", "message"),
    [
        (INDICES, LOSSES.T, r"losses\.pt has shape \(2, 3\); 2 queries need \(subsets, 2\)"),
        (INDICES[:2], LOSSES, r"subsets\.pt has shape \(2, 2\); 3 losses a query need"),
        (INDICES + 2, LOSSES, "row numbers from 0 to 3; found 2 to 5"),
        (MASKS[:, :3].bool(), LOSSES, "masks of 3 rows, and the store has 4"),
        (MASKS / 2, LOSSES, "masks of 4 rows"),
        (INDICES[:, :0], LOSSES, r"subsets\.pt has shape \(3, 0\)"),
        (INDICES[:2], LOSSES[:2], "at least 3"),
        ([1, 2], LOSSES, "holds a list"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(tmp_path, subsets, losses, message):
    torch.save(subsets, tmp_path / "subsets.pt")
    torch.save(losses, tmp_path / "losses.pt")
    with pytest.raises(UserError, match=message):
        read_truth((tmp_path / "subsets.pt", tmp_path / "losses.pt"), 4, 2)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"looked for indices_lds\.pt and target_values_lds\.pt or masks\.pt"):
        read_truth((tmp_path,), 4, 2)
    with pytest.raises(UserError, match=r"a\.npy: there is no such file"):
        read_truth((tmp_path / "a.npy", tmp_path / "b.npy"), 4, 2)
