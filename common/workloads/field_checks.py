"""Mistakes in what a workload's fields hold, each told in one line; no model is run."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from common.foundations.errors import UserError
from common.workloads.names import PAIR_NAMES
from common.workloads.records import Examples, GroundTruth, TrainingRecipe, Workload

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}")
OPTIMIZERS = ("sgd", "adam")


def check_fields(workload: object) -> Workload:
    """Return what is a Workload with usable names, functions and recipe; UserError that names the first mistake."""
    if not isinstance(workload, Workload):
        raise UserError(f"make_workload() returns {type_name(workload)}; it must return a common.records.Workload")
    if not isinstance(workload.name, str) or not NAME.fullmatch(workload.name):
        raise UserError(
            f"name {workload.name!r} must be up to 80 letters, digits, '_', '-' and '.', a letter or digit first: "
            "it names folders"
        )
    if workload.name in {f"{dataset}_{model}" for dataset, model in PAIR_NAMES}:
        raise UserError(f"name {workload.name!r} is that of a built-in pair; choose another")
    for name, optional in (("make_model", False), ("loss", False), ("training_loss", True), ("correct", True)):
        value = getattr(workload, name)
        if not callable(value) and not (optional and value is None):
            raise UserError(f"{name} must be a function, got {type_name(value)}")
    if type(workload.target_sign) is not int or workload.target_sign not in (1, -1):
        raise UserError(f"target_sign must be 1 or -1, got {workload.target_sign!r}")
    if workload.recipe is not None:
        _check_recipe(workload.recipe)
    return workload


def _check_recipe(recipe: object) -> None:
    if not isinstance(recipe, TrainingRecipe):
        raise UserError(
            f"recipe must be a common.records.TrainingRecipe, or None for a trained model: {type_name(recipe)}"
        )
    for name in ("epochs", "batch_size"):
        value = getattr(recipe, name)
        if type(value) is not int or value < 1:
            raise UserError(f"recipe: {name} must be an integer >= 1, got {value!r}")
    for name, fits, allowed in (
        ("learning_rate", lambda value: 0 < value < math.inf, "a number > 0"),
        ("momentum", lambda value: 0 <= value < 1, "a number >= 0 and < 1"),
    ):
        value = getattr(recipe, name)
        if not isinstance(value, int | float) or not fits(value):
            raise UserError(f"recipe: {name} must be {allowed}, got {value!r}")
    if recipe.optimizer not in OPTIMIZERS:
        raise UserError(f"recipe: optimizer must be one of {', '.join(OPTIMIZERS)}, got {recipe.optimizer!r}")


def check_samples(workload: Workload) -> None:
    """Raise UserError unless both parts hold samples of one kind, as many inputs as targets, at least one."""
    train, test = (_check_part(part, getattr(workload, part)) for part in ("train", "test"))
    if list(train) != list(test):
        raise UserError(f"inputs differ in kind: {', '.join(train)} for train, {', '.join(test)} for test")
    for name in train:
        if (train[name].shape[1:], train[name].dtype) != (test[name].shape[1:], test[name].dtype):
            raise UserError(
                f"{name} differ in kind: {kind_text(train[name])} for train, {kind_text(test[name])} for test; "
                "only their number N may"
            )


def _check_part(part: str, examples: object) -> dict[str, Tensor]:
    """Return inputs and targets by the names that messages call them."""
    if not isinstance(examples, Examples):
        raise UserError(f"{part} must be common.records.Examples, got {type_name(examples)}")
    tensors = {name: _check_tensor(f"{part}.{name}", value) for name, value in _named_values(examples).items()}
    for name, tensor in tensors.items():
        if len(tensor) != len(examples):
            raise UserError(f"{part} has {len(tensor)} {name} but {len(examples)} targets")
    if not len(examples):
        raise UserError(f"{part} is empty; it must hold at least one sample")
    return tensors


def _named_values(examples: Examples) -> dict[str, object]:
    """Return inputs and targets by name, whatever they are."""
    inputs: object = examples.inputs
    if isinstance(inputs, dict):
        if not inputs or not all(isinstance(name, str) for name in inputs):
            raise UserError("inputs must be a tensor, or a dict or tuple of tensors, the model's arguments")
        named = {f"inputs[{name!r}]": value for name, value in inputs.items()}
    elif isinstance(inputs, tuple):
        if not inputs:
            raise UserError("inputs must be a tensor, or a dict or tuple of tensors, the model's arguments")
        named = {f"inputs[{i}]": value for i, value in enumerate(inputs)}
    else:
        named = {"inputs": inputs}
    return {**named, "targets": examples.targets}


def _check_tensor(name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise UserError(f"{name} must be a torch.Tensor, got {type_name(value)}")
    if value.ndim == 0:
        raise UserError(f"{name} must have one row a sample, got a single number")
    if value.device.type != "cpu":
        raise UserError(f"{name} must be on the CPU, got {value.device}; --device says where it is used")
    if value.layout != torch.strided or value.is_nested:
        kind = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
        raise UserError(f"{name} is a {kind} tensor; it must be dense, as .to_dense() makes it")
    return value


def check_ground_truth_given(workload: Workload) -> None:
    """Raise UserError unless the ground truth that a workload brings, if any, fits its samples."""
    truth = workload.ground_truth
    if truth is None:
        return
    if not isinstance(truth, GroundTruth):
        raise UserError(f"ground_truth must be a common.records.GroundTruth or None, got {type_name(truth)}")
    indices, losses = truth.subset_indices, truth.losses
    for name, value in (("subset_indices", indices), ("losses", losses)):
        _check_tensor(f"ground_truth.{name}", value)
        if value.ndim != 2:
            raise UserError(f"ground_truth.{name} must have shape (subset models, ...), got {shape_text(value)}")
    n, num_test = len(workload.train), len(workload.test)
    if indices.dtype != torch.int64 or indices.shape[1] == 0:
        raise UserError(
            f"ground_truth.subset_indices must be (S, h) int64 with h >= 1, got {kind_text(indices, first='')}"
        )
    if tuple(losses.shape) != (len(indices), num_test):
        raise UserError(
            f"ground_truth.losses must have shape ({len(indices)}, {num_test}), one row a subset, one column a test "
            f"sample; got {shape_text(losses)}"
        )
    wrong = indices[(indices < 0) | (indices >= n)]
    if len(wrong):
        raise UserError(f"ground_truth.subset_indices must be in 0..{n - 1}, one of them is {wrong[0].item()}")
    if (indices.sort(dim=1).values.diff(dim=1) == 0).any():
        raise UserError("ground_truth.subset_indices has a row with a repeated sample; each may occur once a subset")
    if not losses.is_floating_point() or not losses.isfinite().all():
        raise UserError("ground_truth.losses must be finite floating-point numbers")


def type_name(value: object) -> str:
    """Return the name of a type, for messages."""
    return "None" if value is None else type(value).__name__


def shape_text(value: Tensor) -> str:
    """Return a shape, for messages."""
    return str(tuple(value.shape))


def kind_text(value: Tensor, first: str = "N") -> str:
    """Return shape and dtype, for messages; `first` stands for the first size, empty for the size itself."""
    sizes = [first, *map(str, value.shape[1:])] if first else [*map(str, value.shape)]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''}) {str(value.dtype).removeprefix('torch.')}"
