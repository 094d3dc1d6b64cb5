"""Checkpoint and LDS ground truth of a workload: made here once and kept.

Everything of one workload lies in dattri's benchmark layout, so that dattri's own loader reads it:

    <benchmark_dir>/<name>_<key>/                   dattri's `download_path`
        benchmark/<name>/models_full/0/model_weights_0.pt
        benchmark/<name>/models_half/<s>/model_weights_0.pt
        benchmark/<name>/lds/indices_lds.pt, target_values_lds.pt

`key` is a hash of data, recipe and seed: other data or another recipe has its own folder. Beside the files lie
manifests (see common/storage.py) that also cover what may change under one key: the model, the loss, versions.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from common.foundations import storage, tensor_files
from common.foundations.errors import UserError
from common.foundations.seeds import derive_seed, isolated_rng
from common.workloads import training
from common.workloads.records import GroundTruth, Workload
from common.workloads.running import run_model

SEED = 0
"""The benchmark's own seed, independent of the experiments' --seed: one ground truth serves all of them."""
GROUP_SIZE = 10
"""Models trained together. Fixed, because rounding and dropout depend on it: a group is made whole or not at all."""
_SUBSET, _SUBSET_MODEL = 1, 2


@dataclass(frozen=True)
class TrainedModel:
    """The checkpoint whose gradients are studied."""

    model: nn.Module
    """In eval mode, on the device asked for."""
    train_accuracy: float | None
    """Share of the training samples, 0..1; None where accuracy means nothing."""
    test_accuracy: float | None
    """Share of the test samples, 0..1; None where accuracy means nothing."""
    fingerprint: str
    """sha256 (hex) of names, shapes and values of the weights."""


def load_trained_model(
    workload: Workload, benchmark_dir: Path, device: torch.device | str, *, progress: bool = True
) -> TrainedModel:
    """Return the workload's checkpoint; it is trained and stored on the first use.

    A stored checkpoint that was made by anything else, or is damaged, is made again, with one line that says why.
    Without a recipe the model that `make_model` returns is the checkpoint, and nothing is stored.

    Raises:
        UserError: a training sample has no finite gradient, training diverges, or `benchmark_dir` cannot be written.
    """
    if workload.recipe is None:
        return _evaluate(workload, training.fresh_model(workload, SEED), device)
    made_by = describe(workload)
    folder = workload_folder(workload, benchmark_dir)
    path = folder / "models_full" / "0" / "model_weights_0.pt"
    manifest = path.parent / "manifest.json"
    # no lock to read: a finished benchmark may lie in a folder that only others can write
    if not storage.reusable(manifest, made_by):
        with storage.exclusive_lock(_root(folder)):
            if storage.mismatch(manifest, made_by) is not None:
                storage.unseal(manifest)
                everything = torch.arange(len(workload.train))
                training.require_finite_gradients(workload, everything, SEED, device)
                model = training.train_model(workload, everything, SEED, device, progress=progress)
                tensor_files.write_tensors(path, {name: value.cpu() for name, value in model.state_dict().items()})
                storage.seal(manifest, made_by, [path], notes={"trained_on": str(device)})
    model, state = training.fresh_model(workload, SEED), tensor_files.read_tensors(path)
    with tensor_files.naming_unreadable(path):
        model.load_state_dict(state)
    return _evaluate(workload, model, device)


def load_ground_truth(
    workload: Workload,
    benchmark_dir: Path,
    num_subsets: int,
    device: torch.device | str,
    *,
    progress: bool = True,
) -> GroundTruth:
    """Return the test losses of models trained on random halves of the training set; made and kept on the first use.

    Subset s and its model depend on nothing but the workload and s, so 50 subsets are the first 50 of 100. Small
    models are trained in groups of GROUP_SIZE, larger ones one by one; interrupted at any moment and called again, the
    work goes on after the last finished group, with the numbers of an uninterrupted run. A ground truth that the
    workload brings along is returned as it is, cut to its first subsets.

    Raises:
        UserError: fewer than two training samples, no subset, diverging training, a folder that cannot be written, or
            see `check_ground_truth`.
    """
    check_ground_truth(workload, num_subsets)
    if workload.ground_truth is not None:
        given = workload.ground_truth
        return GroundTruth(given.subset_indices[:num_subsets], given.losses[:num_subsets])
    if num_subsets < 1 or len(workload.train) < 2:
        raise UserError(
            f"ground truth needs at least one subset and two training samples, "
            f"got {num_subsets} subsets and {len(workload.train)} samples"
        )
    group_size = GROUP_SIZE if training.can_train_together(workload) else 1
    made_by = {**describe(workload), "group_size": group_size}
    folder = workload_folder(workload, benchmark_dir)
    groups = [range(start, start + group_size) for start in range(0, num_subsets, group_size)]
    if not _is_complete(folder, made_by, groups):
        with storage.exclusive_lock(_root(folder)):
            _discard_if_stale(folder, made_by)
            _make_groups(workload, folder, groups, device, progress)
            _write_lds(workload, folder, made_by)
    values = tensor_files.read_tensors(folder / "lds" / "target_values_lds.pt")
    indices = tensor_files.read_tensors(folder / "lds" / "indices_lds.pt")
    return GroundTruth(indices[:num_subsets], workload.target_sign * values[:num_subsets])


def check_ground_truth(workload: Workload, num_subsets: int) -> None:
    """Raise UserError where the workload has too small a ground truth, or none and no recipe to make one with."""
    if workload.ground_truth is None and workload.recipe is None:
        raise UserError(
            f"{workload.name} has neither ground_truth nor a recipe to retrain its model on subsets with: "
            "hyperparam_selection needs one of them, spectrum_bounds does not"
        )
    if workload.ground_truth is not None and num_subsets > len(workload.ground_truth.losses):
        raise UserError(
            f"--num_subsets {num_subsets} exceeds the {len(workload.ground_truth.losses)} subset models in the "
            f"ground_truth of {workload.name}"
        )


def subset_indices(workload: Workload, num_subsets: int) -> Tensor:
    """Return the (S, h) int64 training samples of each subset behind the ground truth, before any model is trained."""
    if workload.ground_truth is not None:
        return workload.ground_truth.subset_indices[:num_subsets]
    return torch.stack([random_half(len(workload.train), s) for s in range(num_subsets)])


def random_half(num_train: int, s: int) -> Tensor:
    """Return the (num_train // 2,) int64 training samples of subset s, ascending, drawn without replacement."""
    generator = torch.Generator().manual_seed(derive_seed(SEED, s, _SUBSET))
    return torch.randperm(num_train, generator=generator)[: num_train // 2].sort().values


def workload_folder(workload: Workload, benchmark_dir: Path) -> Path:
    """Return the folder of a workload's models and ground truth; `download_path` for dattri is two levels up."""
    made_by = describe_inputs(workload)
    key = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:12]
    return Path(benchmark_dir) / f"{workload.name}_{key}" / "benchmark" / workload.name


def describe_inputs(workload: Workload) -> dict:
    """Return what a user chooses about a checkpoint: data, recipe, seed. It names the folder."""
    return {
        "train_data": tensor_files.fingerprint(*workload.train.tensors()),
        "test_data": tensor_files.fingerprint(*workload.test.tensors()),
        "recipe": asdict(workload.required_recipe()),
        "target_sign": workload.target_sign,
        "seed": SEED,
    }


def describe(workload: Workload) -> dict:
    """Return everything that makes a checkpoint: the manifest entry `made_by`.

    The functions of the workload are covered by what they return: the model by its initial weights, loss and
    objective by their values on the first test samples under those weights (four digits).
    """
    model = training.fresh_model(workload, SEED).eval()
    few = workload.test.subset(slice(4))
    with torch.no_grad(), isolated_rng():
        outputs = run_model(model, few.inputs)
        probe = [*workload.loss(outputs, few.targets).tolist(), float(workload.objective(outputs, few.targets))]
    return {
        **storage.versions(),
        **describe_inputs(workload),
        "parameters": {name: list(value.shape) for name, value in model.named_parameters()},
        "initial_weights": tensor_files.state_fingerprint(model.state_dict()),
        "initial_losses": [f"{value:.4g}" for value in probe],
    }


def _evaluate(workload: Workload, model: nn.Module, device: torch.device | str) -> TrainedModel:
    model = model.to(device).eval()
    return TrainedModel(
        model=model,
        train_accuracy=training.evaluate_accuracy(workload.correct, model, workload.train, device),
        test_accuracy=training.evaluate_accuracy(workload.correct, model, workload.test, device),
        fingerprint=tensor_files.state_fingerprint(model.state_dict()),
    )


def _is_complete(folder: Path, made_by: dict, groups: list[range]) -> bool:
    return (
        storage.mismatch(folder / "models_half" / "manifest.json", made_by) is None
        and all(storage.mismatch(_group_manifest(folder, group), _group_record(group)) is None for group in groups)
        and storage.mismatch(folder / "lds" / "manifest.json", made_by) is None
        and len(tensor_files.read_tensors(folder / "lds" / "indices_lds.pt")) > groups[-1][-1]
    )


def _discard_if_stale(folder: Path, made_by: dict) -> None:
    """Remove what another model, loss or version has made, so that its subset models never mix with these."""
    manifest = folder / "models_half" / "manifest.json"
    if storage.reusable(manifest, made_by):
        return
    with storage.writing_to(folder):
        for name in ("models_half", "lds"):
            if (folder / name).exists():
                shutil.rmtree(folder / name)
    storage.seal(manifest, made_by, [])


def _make_groups(
    workload: Workload, folder: Path, groups: list[range], device: torch.device | str, progress: bool
) -> None:
    missing = [group for group in groups if not storage.reusable(_group_manifest(folder, group), _group_record(group))]
    total = sum(len(group) for group in missing)
    bar = tqdm(
        total=total,
        desc=f"ground truth of {workload.name}",
        unit="model",
        file=sys.stderr,
        disable=None if progress else True,
    )
    with bar:
        for number, group in enumerate(missing):
            start = time.monotonic()
            _make_group(workload, folder, group, device, progress)
            bar.update(len(group))
            if number == 0 and len(group) == 1 and progress:
                seconds = time.monotonic() - start
                expected = f"{total * seconds / 60:.1f} min expected for all {total}"
                tqdm.write(f"ground truth: one model took {seconds:.1f} s, {expected}", file=sys.stderr)


def _make_group(workload: Workload, folder: Path, group: range, device: torch.device | str, progress: bool) -> None:
    """Train the subset models of one group and store weights and test losses; its manifest comes last."""
    subsets = torch.stack([random_half(len(workload.train), s) for s in group])
    seeds = [derive_seed(SEED, s, _SUBSET_MODEL) for s in group]
    if len(group) == 1:
        trained = training.train_model(workload, subsets[0], seeds[0], device, progress=progress)
        states = [{name: value.cpu() for name, value in trained.state_dict().items()}]
    else:
        states = training.train_together(workload, subsets, seeds, device, progress=progress)
    manifest = _group_manifest(folder, group)
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
    storage.seal(manifest, _group_record(group), files, notes={"trained_on": str(device)})


def _write_lds(workload: Workload, folder: Path, made_by: dict) -> None:
    """Write dattri's two LDS files for all subset models from 0 up to the first one that is missing or damaged."""
    losses = []
    group = range(made_by["group_size"])
    while storage.mismatch(_group_manifest(folder, group), _group_record(group)) is None:
        losses += [tensor_files.read_tensors(folder / "models_half" / str(s) / "test_losses.pt") for s in group]
        group = range(group.stop, group.stop + len(group))
    indices = torch.stack([random_half(len(workload.train), s) for s in range(len(losses))])
    paths = [folder / "lds" / "indices_lds.pt", folder / "lds" / "target_values_lds.pt"]
    manifest = folder / "lds" / "manifest.json"
    storage.unseal(manifest)
    tensor_files.write_tensors(paths[0], indices)
    tensor_files.write_tensors(paths[1], workload.target_sign * torch.stack(losses))
    storage.seal(manifest, made_by, paths)


def _group_manifest(folder: Path, group: range) -> Path:
    return folder / "models_half" / f"group_{group.start}.json"


def _group_record(group: range) -> dict:
    return {"first_model": group.start, "num_models": len(group)}


def _root(folder: Path) -> Path:
    return folder.parent.parent
