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
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from common.foundations import storage, tensor_files
from common.foundations.distributed import ALONE, Ranks
from common.foundations.errors import UserError
from common.foundations.seeds import isolated_rng
from common.workloads import training
from common.workloads.records import GroundTruth, Workload
from common.workloads.running import run_model, without_graph
from common.workloads.subset_models import GROUP_SIZE, SEED, group_manifest, group_record, make_groups, random_half


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
                tensor_files.write_tensors(path, tensor_files.on_cpu(model.state_dict()))
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
    ranks: Ranks = ALONE,
) -> GroundTruth:
    """Return the test losses of models trained on random halves of the training set; made and kept on the first use.

    Subset s and its model depend on nothing but the workload and s, so 50 subsets are the first 50 of 100. Small
    models are trained in groups of GROUP_SIZE, larger ones one by one; interrupted at any moment and called again, the
    work goes on after the last finished group, with the numbers of an uninterrupted run. A ground truth that the
    workload brings along is returned as it is, cut to its first subsets. Several ranks share the groups; all return the
    same losses.

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
    made_by = {**describe(workload), "group_size": group_size, "losses": "float64"}
    folder = workload_folder(workload, benchmark_dir)
    groups = [range(start, start + group_size) for start in range(0, num_subsets, group_size)]
    if not ranks.first(lambda: _is_complete(folder, made_by, groups)):
        with ExitStack() as stack:
            # the others write while rank 0 holds the folder for them
            ranks.first(lambda: stack.enter_context(storage.exclusive_lock(_root(folder))))
            ranks.first(lambda: _discard_if_stale(folder, made_by))
            make_groups(workload, folder, groups, device, progress, ranks)
            ranks.first(lambda: _write_lds(workload, folder, made_by))
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

    def losses() -> list[float]:
        outputs = run_model(model, few.inputs)
        return [*workload.loss(outputs, few.targets).tolist(), workload.objective(outputs, few.targets).item()]

    with isolated_rng():
        probe = without_graph(losses)
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
        and all(storage.mismatch(group_manifest(folder, group), group_record(group)) is None for group in groups)
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


def _write_lds(workload: Workload, folder: Path, made_by: dict) -> None:
    """Write dattri's two LDS files for all subset models from 0 up to the first one that is missing or damaged."""
    losses = []
    group = range(made_by["group_size"])
    while storage.mismatch(group_manifest(folder, group), group_record(group)) is None:
        losses += [tensor_files.read_tensors(folder / "models_half" / str(s) / "test_losses.pt") for s in group]
        group = range(group.stop, group.stop + len(group))
    indices = torch.stack([random_half(len(workload.train), s) for s in range(len(losses))])
    paths = [folder / "lds" / "indices_lds.pt", folder / "lds" / "target_values_lds.pt"]
    manifest = folder / "lds" / "manifest.json"
    storage.unseal(manifest)
    tensor_files.write_tensors(paths[0], indices)
    tensor_files.write_tensors(paths[1], workload.target_sign * torch.stack(losses))
    storage.seal(manifest, made_by, paths)


def _root(folder: Path) -> Path:
    return folder.parent.parent
