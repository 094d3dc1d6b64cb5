"""The subset models behind the LDS ground truth: which samples each is trained on, and groups of them on disk."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from common.foundations import storage, tensor_files
from common.foundations.distributed import Ranks
from common.foundations.seeds import derive_seed
from common.workloads import training
from common.workloads.records import Workload

SEED = 0
"""The benchmark's own seed, independent of the experiments' --seed: one ground truth serves all of them."""
GROUP_SIZE = 10
"""Models trained together. Fixed, because rounding and dropout depend on it: a group is made whole or not at all."""
SUBSET, SUBSET_MODEL = 1, 2


def random_half(num_train: int, s: int) -> Tensor:
    """Return the (num_train // 2,) int64 training samples of subset s, ascending, drawn without replacement."""
    generator = torch.Generator().manual_seed(derive_seed(SEED, s, SUBSET))
    return torch.randperm(num_train, generator=generator)[: num_train // 2].sort().values


def make_groups(
    workload: Workload, folder: Path, groups: list[range], device: torch.device | str, progress: bool, ranks: Ranks
) -> None:
    """Train the groups of subset models that are not there yet; several ranks make one each in turn.

    Args:
        workload: data, model and recipe.
        folder: see `workload_folder`.
        groups: subset models that are trained together.
        device: where.
        progress: whether bars are shown.
        ranks: who shares the work.
    """

    def find_missing() -> list[range]:
        return [g for g in groups if not storage.reusable(group_manifest(folder, g), group_record(g))]

    missing = ranks.first(find_missing)
    total = sum(len(group) for group in missing)
    bar = tqdm(
        total=total,
        desc=f"ground truth of {workload.name}",
        unit="model",
        file=sys.stderr,
        disable=None if progress and ranks.rank == 0 else True,
    )
    with bar:
        for first in range(0, len(missing), ranks.size):
            deal = missing[first : first + ranks.size]
            start = time.monotonic()
            ranks.together(partial(_make_own, workload, folder, deal[ranks.rank :][:1], device, progress))
            bar.update(sum(len(group) for group in deal))
            if first == 0 and len(deal[0]) == 1 and progress and ranks.rank == 0:
                seconds = time.monotonic() - start
                expected = f"{total / len(deal) * seconds / 60:.1f} min expected for all {total}"
                tqdm.write(f"ground truth: one model took {seconds:.1f} s, {expected}", file=sys.stderr)


def _make_own(workload: Workload, folder: Path, own: list[range], device: torch.device | str, progress: bool) -> None:
    for group in own:
        _make_group(workload, folder, group, device, progress)


def _make_group(workload: Workload, folder: Path, group: range, device: torch.device | str, progress: bool) -> None:
    """Train the subset models of one group and store weights and test losses; its manifest comes last."""
    subsets = torch.stack([random_half(len(workload.train), s) for s in group])
    seeds = [derive_seed(SEED, s, SUBSET_MODEL) for s in group]
    if len(group) == 1:
        trained = training.train_model(workload, subsets[0], seeds[0], device, progress=progress)
        states = [tensor_files.on_cpu(trained.state_dict())]
    else:
        states = training.train_together(workload, subsets, seeds, device, progress=progress)
    manifest = group_manifest(folder, group)
    storage.unseal(manifest)
    model = training.fresh_model(workload, SEED)
    files = []
    for s, state in zip(group, states, strict=True):
        model.load_state_dict(state)
        losses = training.evaluate_losses(workload, model, workload.test, device)
        weights_path = folder / "models_half" / str(s) / "model_weights_0.pt"
        losses_path = weights_path.with_name("test_losses.pt")
        tensor_files.write_tensors(weights_path, state)
        tensor_files.write_tensors(losses_path, losses)
        files += [weights_path, losses_path]
    storage.seal(manifest, group_record(group), files, notes={"trained_on": str(device)})


def group_manifest(folder: Path, group: range) -> Path:
    """Return the manifest of a group, which is written when the whole group is there."""
    return folder / "models_half" / f"group_{group.start}.json"


def group_record(group: range) -> dict:
    """Return what the manifest says."""
    return {"first_model": group.start, "num_models": len(group)}
