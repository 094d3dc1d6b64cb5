"""The (dataset, model) pairs that the experiments know."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from common.foundations.errors import UserError
from common.workloads import models
from common.workloads.datasets import chorales, cifar2, maestro, mnist, mnist60k, photos2
from common.workloads.losses import all_token_loss, argmax_correct, cross_entropy, last_token_correct, last_token_loss
from common.workloads.names import check_pair
from common.workloads.records import Dataset, TrainingRecipe, Workload

# these come with packages, and may be without a data folder
EMBEDDED: dict[str, Callable[[Path | None], Dataset]] = {
    "mnist": mnist.load,
    "mnist60k": mnist60k.load,
    "photos2": photos2.load,
    "chorales": chorales.load,
}
DOWNLOADED: dict[str, Callable[[Path], Dataset]] = {"cifar2": cifar2.load, "maestro": maestro.load}

# training samples by default, and test samples: those of dattri's published benchmarks; None stands for all
SIZES = {
    "cifar2": (cifar2.TRAIN_SAMPLES, cifar2.TEST_SAMPLES),
    "maestro": (maestro.TRAIN_SAMPLES, maestro.TEST_SAMPLES),
}

IMAGES = partial(Workload, loss=cross_entropy, correct=argmax_correct)
RESNET9 = partial(
    IMAGES, make_model=models.make_resnet9, recipe=TrainingRecipe(epochs=10, learning_rate=0.01, momentum=0.9)
)
MUSIC = partial(
    Workload,
    make_model=models.make_musictransformer,
    recipe=TrainingRecipe(epochs=20, learning_rate=1e-4, optimizer="adam"),
    loss=last_token_loss,
    training_loss=all_token_loss,
    correct=last_token_correct,
)
# few epochs in small steps: no published numbers to match here, and training must not take all the time on a CPU
CHORALES_RECIPE = TrainingRecipe(epochs=4, learning_rate=3e-4, batch_size=8, optimizer="adam")

# name, training and test samples are still open
PAIRS: dict[tuple[str, str], partial[Workload]] = {
    ("mnist", "lr"): partial(IMAGES, make_model=models.make_lr, recipe=TrainingRecipe(epochs=20, learning_rate=0.01)),
    ("mnist", "mlp"): partial(
        IMAGES, make_model=models.make_mlp, recipe=TrainingRecipe(epochs=50, learning_rate=0.01, momentum=0.9)
    ),
    ("mnist60k", "lr"): partial(IMAGES, make_model=models.make_lr, recipe=TrainingRecipe(epochs=5, learning_rate=0.01)),
    ("mnist60k", "mlp"): partial(
        IMAGES, make_model=models.make_mlp, recipe=TrainingRecipe(epochs=10, learning_rate=0.01, momentum=0.9)
    ),
    ("cifar2", "resnet9"): RESNET9,
    ("photos2", "resnet9"): RESNET9,
    ("maestro", "musictransformer"): partial(MUSIC, target_sign=-1),
    ("chorales", "musictransformer"): partial(MUSIC, recipe=CHORALES_RECIPE),
}


def load_workload(
    dataset: str, model: str, num_train: int | None = None, data_dir: Path | None = None, data: Dataset | None = None
) -> Workload:
    """Return the record of one built-in pair, its training set cut to the first `num_train` samples.

    Args:
        dataset: one of names.DATASET_NAMES.
        model: one of names.MODEL_NAMES.
        num_train: training samples to keep; None for all.
        data_dir: folder of datasets that are not embedded, and of parsed ones; None: neither.
        data: samples to use in place of the dataset's own.

    Raises:
        UserError: the pair does not exist, or `num_train` exceeds the training set.
        ValueError: the dataset is downloaded, and there is no folder for it.
    """
    check_pair(dataset, model)
    data = _load_dataset(dataset, data_dir) if data is None else data
    if num_train is not None and num_train > len(data.train):
        raise UserError(f"--num_train {num_train} exceeds the {len(data.train)} training samples of {dataset}")
    default_train, num_test = SIZES.get(dataset, (None, None))
    train = data.train.subset(slice(default_train if num_train is None else num_train))
    return PAIRS[dataset, model](name=f"{dataset}_{model}", train=train, test=data.test.subset(slice(num_test)))


def _load_dataset(name: str, data_dir: Path | None) -> Dataset:
    if name in EMBEDDED:
        return EMBEDDED[name](data_dir)
    if data_dir is None:
        raise ValueError(f"{name} is downloaded: it needs a data_dir")
    return DOWNLOADED[name](data_dir)
