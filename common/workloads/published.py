"""dattri's published checkpoint and LDS ground truth, in the records that the experiments use."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from pathlib import Path

import torch
from torch import Tensor

from common.foundations import storage, tensor_files
from common.foundations.errors import UserError, first_line
from common.workloads import training
from common.workloads.benchmark import GroundTruth, TrainedModel
from common.workloads.losses import argmax_correct, last_token_correct
from common.workloads.records import Examples

STORES_MINUS_LOSS = ("maestro",)
NEEDS_TORCHVISION = ("mnist", "cifar2")
_LOCAL_WORKS = "--benchmark local works offline"


def load_published_benchmark(
    dataset: str,
    model: str,
    benchmark_dir: Path,
    device: torch.device | str,
) -> tuple[TrainedModel, GroundTruth, Examples, Examples]:
    """Return dattri's checkpoint, ground truth, training and test samples; downloaded below `benchmark_dir` at first.

    The published numbers belong to the first 5,000 training and 500 (MAESTRO: 178 generated) test samples of dattri's
    own copy of the data, in its order.

    Args:
        dataset: mnist, cifar2 or maestro.
        model: lr, mlp, resnet9 or musictransformer.
        benchmark_dir: `<benchmark_dir>/dattri` is dattri's `download_path`.
        device: where the model goes.

    Raises:
        UserError: torchvision or the network is missing, or the files are incomplete or unreadable.
    """
    if dataset in NEEDS_TORCHVISION and importlib.util.find_spec("torchvision") is None:
        raise UserError(
            f"--benchmark dattri needs the package torchvision for {dataset} (pip install torchvision); {_LOCAL_WORKS}"
        )
    download_path = Path(benchmark_dir) / "dattri"
    storage.make_folder(download_path)
    parts, (values, indices) = _load_through_dattri(dataset, model, download_path)
    train = _collect(parts["train_dataset"], parts["train_sampler"])
    test = _collect(parts["test_dataset"], parts["test_sampler"])
    _check_shapes(values, indices, len(train), len(test), download_path)
    state = _load_weights(parts["models_full"][0])
    network = parts["model"]
    network.load_state_dict(state)
    network = network.to(device).eval()
    correct = last_token_correct if dataset == "maestro" else argmax_correct
    trained = TrainedModel(
        model=network,
        train_accuracy=training.evaluate_accuracy(correct, network, train, device),
        test_accuracy=training.evaluate_accuracy(correct, network, test, device),
        fingerprint=tensor_files.state_fingerprint(state),
    )
    sign = -1 if dataset in STORES_MINUS_LOSS else 1
    truth = GroundTruth(indices.cpu().long(), (sign * values.cpu()).float())
    return trained, truth, train, test


def _load_through_dattri(dataset: str, model: str, download_path: Path) -> tuple[dict, tuple[Tensor, Tensor]]:
    folder = download_path / "benchmark" / f"{dataset}_{model}"
    needed = ["models_full/0/model_weights_0.pt", "models_half", "lds/indices_lds.pt", "lds/target_values_lds.pt"]

    def missing() -> list[str]:
        return [name for name in needed if not (folder / name).exists()]

    try:
        # Importing dattri's MusicTransformer prints to stdout on machines without CUDA.
        with contextlib.redirect_stdout(io.StringIO()):
            from dattri.benchmark.load import load_benchmark

            return load_benchmark(model, dataset, "lds", download_path=download_path, redownload=bool(missing()))
    except ImportError as error:
        raise UserError(f"--benchmark dattri needs the package {error.name}; {_LOCAL_WORKS}") from error
    # The network, torchvision, zipfile and torch's unpickler have no exception in common for damaged or missing data.
    except Exception as error:
        what = f"cannot download {missing()[0]}" if missing() else "cannot read the data or the files"
        raise UserError(
            f"--benchmark dattri: {what} of {dataset}_{model} in {download_path} ({first_line(error, 120)}); it needs "
            f"the network, or the published files there; {_LOCAL_WORKS}"
        ) from error


def _load_weights(path: Path) -> dict[str, Tensor]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    # torch's unpickler raises whatever the damaged bytes lead it to.
    except Exception as error:
        raise UserError(
            f"--benchmark dattri: {path} is unreadable; remove it to download again; {_LOCAL_WORKS}"
        ) from error


def _collect(dataset, sampler) -> Examples:
    samples = [dataset[i] for i in sampler]
    inputs, targets = zip(*samples, strict=True)
    return Examples(torch.stack(inputs), torch.stack([torch.as_tensor(target) for target in targets]))


def _check_shapes(values: Tensor, indices: Tensor, num_train: int, num_test: int, download_path: Path) -> None:
    ok = values.ndim == indices.ndim == 2 and len(values) == len(indices) and values.shape[1] == num_test
    if not ok or indices.min() < 0 or indices.max() >= num_train:
        raise UserError(
            f"the ground truth in {download_path} does not fit its data: targets {tuple(values.shape)} and subsets "
            f"{tuple(indices.shape)} for {num_train} training and {num_test} test samples; remove it to download again"
        )
