"""Train one model, or many subset models of one architecture at once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from tqdm import tqdm

from common.foundations.errors import UserError
from common.foundations.seeds import derive_seed, isolated_rng
from common.foundations.tensor_files import dense_parts, on_cpu
from common.workloads.precision import LossInFloat64
from common.workloads.records import Examples, Inputs, TrainingRecipe, Workload
from common.workloads.running import complete, run_model, without_graph
from common.workloads.samples import sample_without_gradient

SMALL_MODEL = 1_000_000
"""Parameters. Larger models fill the cores one at a time, and ten of them no longer fit in the processor's caches."""
ADAM_BETAS, ADAM_EPS = (0.9, 0.98), 1e-8


def fresh_model(workload: Workload, seed: int) -> nn.Module:
    """Return the untrained model that belongs to `seed`, in train mode, on the CPU."""
    with isolated_rng(), torch.enable_grad():  # which a make_model may disable for all that follows
        torch.manual_seed(seed)
        return complete(workload.make_model(), workload.train.subset(slice(2)).inputs).train()


def require_finite_gradients(workload: Workload, indices: Tensor, seed: int, device: torch.device | str) -> None:
    """Raise UserError that names a training sample whose gradient is not finite where training with `seed` starts.

    Args:
        workload: model, data, objective and recipe.
        indices: (h,) int64, the training samples used.
        seed: decides the initial weights.
        device: where to compute.
    """
    sample = sample_without_gradient(workload, fresh_model(workload, seed).to(device), indices)
    if sample is not None:
        raise UserError(f"{sample} at the weights that training of {workload.name} starts from; it must be finite")


def train_model(
    workload: Workload, indices: Tensor, seed: int, device: torch.device | str, *, progress: bool = True
) -> nn.Module:
    """Train one model on some training samples and return it in eval mode on `device`.

    Args:
        workload: model, data, objective and recipe.
        indices: (h,) int64, the training samples used.
        seed: decides the initial weights, the minibatch order (a fresh permutation each epoch) and dropout.
        device: where to train.
        progress: show a bar of epochs.

    Raises:
        UserError: weights are not finite after an epoch: training diverges, or a sample has no finite gradient.
        ValueError: the workload has no recipe.
    """
    device, recipe = torch.device(device), workload.required_recipe()
    model = fresh_model(workload, seed).to(device)
    optimizer = _make_optimizer(recipe, list(model.parameters()))
    examples = workload.train.subset(indices).to(device)
    order = torch.Generator().manual_seed(derive_seed(seed, 1))
    with isolated_rng(device), _threads_for(model):
        torch.manual_seed(derive_seed(seed, 2))
        for epoch in _epochs(recipe, workload.name, progress):
            for batch in torch.randperm(len(indices), generator=order).split(recipe.batch_size):
                batch = batch.to(device)
                optimizer.zero_grad()
                few = examples.subset(batch)
                workload.objective(run_model(model, few.inputs), few.targets).backward()
                _make_dense(model.parameters())
                optimizer.step()
            _check_finite(workload, model.state_dict(), epoch + 1, seed, indices)
    return model.eval()


def train_together(
    workload: Workload,
    subset_indices: Tensor,
    seeds: Sequence[int],
    device: torch.device | str,
    *,
    progress: bool = True,
) -> list[dict[str, Tensor]]:
    """Train S models of one architecture in the same steps, each on its own subset; return their state dicts (CPU).

    Model s starts from the weights and follows the minibatch order that `train_model` gives it with seeds[s], so the
    two agree up to rounding wherever the model has no dropout. Dropout masks belong to the whole tuple of seeds.

    Args:
        workload: a pair for which `can_train_together` holds.
        subset_indices: (S, h) int64, the training samples of each model.
        seeds: S seeds.
        device: where to train.
        progress: show a bar of epochs.

    Raises:
        UserError: the trained weights of a model are not finite.
        ValueError: the workload has no recipe.
    """
    device, recipe = torch.device(device), workload.required_recipe()
    models = [fresh_model(workload, seed).to(device) for seed in seeds]
    parameters, _ = stack_module_state(models)
    optimizer = _make_optimizer(recipe, list(parameters.values()))
    objectives = vmap(_stateless_objective(workload, models[0]), randomness="different")
    train = workload.train.to(device)
    subset_indices = subset_indices.to(device)
    orders = [torch.Generator().manual_seed(derive_seed(seed, 1)) for seed in seeds]
    size = subset_indices.shape[1]
    with isolated_rng(device), _threads_for(models[0]):
        torch.manual_seed(derive_seed(*seeds, 2))
        for _ in _epochs(recipe, workload.name, progress):
            order = torch.stack([torch.randperm(size, generator=generator) for generator in orders]).to(device)
            for batch in subset_indices.gather(1, order).split(recipe.batch_size, dim=1):
                optimizer.zero_grad()
                # The models share no parameter, so the gradient of the sum holds every model's own gradient.
                few = train.subset(batch)
                objectives(parameters, few.inputs, few.targets).sum().backward()
                _make_dense(parameters.values())
                optimizer.step()
    states = []
    for s, (model, seed, indices) in enumerate(zip(models, seeds, subset_indices.cpu(), strict=True)):
        # Through the module, so that a state dict has all its names, tied parameters included.
        model.load_state_dict({name: value[s].detach() for name, value in parameters.items()}, strict=False)
        states.append(on_cpu(model.state_dict()))
        _check_finite(workload, states[-1], recipe.epochs, seed, indices)
    return states


def can_train_together(workload: Workload) -> bool:
    """Whether `train_together` serves this pair: small, no state but parameters, and within reach of vmap.

    Buffers (batch norm) and what a module keeps beside tensors would be those of the first model. Two models must have
    the gradients that each has alone: tensors that are no parameters, drawn anew for each model, and hooks on
    parameters are those of the first model, or lost.
    """
    models = [fresh_model(workload, seed) for seed in (0, 1)]
    has_more = any(not isinstance(value, Tensor) for value in models[0].state_dict().values())
    if not _is_small(models[0]) or has_more or any(True for _ in models[0].buffers()):
        return False
    # each model its own samples, as in training: a model may look at their values, which vmap allows of none
    pairs = workload.train.subset(torch.arange(min(2, len(workload.train))).repeat(2, 1))
    with isolated_rng():
        try:
            parameters, _ = stack_module_state(models)
            objectives = vmap(_stateless_objective(workload, models[0]), randomness="different")
            objectives(parameters, pairs.inputs, pairs.targets).sum().backward()
            for value in parameters.values():
                value.grad = None
            for model in models:
                model.eval()  # in training mode dropout draws other masks for a model alone
            objectives(parameters, pairs.inputs, pairs.targets).sum().backward()
            _make_dense(parameters.values())
            return all(_are_its_gradients(workload, model, s, parameters) for s, model in enumerate(models))
        except Exception:  # what vmap does to a user's model may raise anything
            return False


def evaluate_losses(
    workload: Workload, model: nn.Module, examples: Examples, device: torch.device | str, batch_size: int = 512
) -> Tensor:
    """Return the (N,) float32 losses of `examples` under `model` (left in eval mode on `device`), on the CPU.

    Computed in float64 where the loss runs in it: in float32 those of samples that are fit are 0, and have no ranks.
    """
    try:
        return _evaluate(LossInFloat64(workload.loss), model, examples, device, batch_size).float()
    except Exception:  # a loss may have float32 numbers of its own; what fails in float32 too is raised there
        return _evaluate(workload.loss, model, examples, device, batch_size).float()


def evaluate_accuracy(
    correct: Callable[[Any, Tensor], Tensor] | None,
    model: nn.Module,
    examples: Examples,
    device: torch.device | str,
    batch_size: int = 512,
) -> float | None:
    """Return the share of `examples` for which `correct(outputs, targets)`; None where there is no such notion."""
    if correct is None:
        return None
    return _evaluate(correct, model, examples, device, batch_size).double().mean().item()


def _evaluate(
    measure: Callable[[Any, Tensor], Tensor],
    model: nn.Module,
    examples: Examples,
    device: torch.device | str,
    batch_size: int,
) -> Tensor:
    model.eval().to(device)

    def measured(batch: Examples) -> Tensor:
        return measure(run_model(model, batch.inputs), batch.targets)

    found = []
    for start in range(0, len(examples), batch_size):
        batch = examples.subset(slice(start, start + batch_size)).to(device)
        found.append(without_graph(partial(measured, batch)).detach().cpu())
    return torch.cat(found)


def _stateless_objective(workload: Workload, model: nn.Module) -> Callable[[dict, Inputs, Tensor], Tensor]:
    def objective(parameters: dict[str, Tensor], inputs: Inputs, targets: Tensor) -> Tensor:
        def with_parameters(*args, **kwargs):
            return functional_call(model, parameters, args, kwargs)

        return workload.objective(run_model(with_parameters, inputs), targets)

    return objective


def _are_its_gradients(workload: Workload, model: nn.Module, place: int, parameters: dict[str, Tensor]) -> bool:
    """Return whether a model alone has the gradients found at a place of stacked parameters, on the first two samples.

    `model` is left with gradients.
    """
    few = workload.train.subset(slice(2))
    workload.objective(run_model(model, few.inputs), few.targets).backward()
    _make_dense(model.parameters())
    alone = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    found = {name: p.grad[place] for name, p in parameters.items() if p.grad is not None}
    longest = max((gradient.norm() for gradient in alone.values()), default=torch.zeros(()))
    return alone.keys() == found.keys() and all(
        (found[name] - gradient).norm() <= 1e-3 * longest for name, gradient in alone.items()
    )


def _is_small(model: nn.Module) -> bool:
    return sum(parameter.numel() for parameter in model.parameters()) <= SMALL_MODEL


@contextmanager
def _threads_for(model: nn.Module) -> Iterator[None]:
    """Train small models on one core.

    Their steps last microseconds to milliseconds: more cores gain a third on an idle machine, but threads that wait for
    each other cost five to twenty times the time on a busy one. The numbers then do not depend on the cores either.
    """
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if _is_small(model) else threads)
        yield
    finally:
        torch.set_num_threads(threads)


def _make_optimizer(recipe: TrainingRecipe, parameters: list[Tensor]) -> torch.optim.Optimizer:
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=recipe.learning_rate, momentum=recipe.momentum, fused=True)
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=recipe.learning_rate, betas=ADAM_BETAS, eps=ADAM_EPS, fused=True)
    raise UserError(f"unknown optimizer {recipe.optimizer!r} in the training recipe: choose sgd or adam")


def _make_dense(parameters: Iterable[Tensor]) -> None:
    """Make sparse gradients dense, which those of an embedding may be: fused optimizers take no others."""
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.to_dense()


def _epochs(recipe: TrainingRecipe, name: str, progress: bool) -> tqdm:
    return tqdm(
        range(recipe.epochs),
        desc=f"training {name}",
        unit="epoch",
        leave=False,
        file=sys.stderr,
        disable=None if progress else True,
    )


def _check_finite(workload: Workload, state: dict[str, Any], epochs: int, seed: int, indices: Tensor) -> None:
    """Raise UserError where trained weights are not finite: because of a sample, or because the steps were too long."""
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    bad = [name for name, value in tensors.items() if not all(part.isfinite().all() for part in dense_parts(value))]
    if not bad:
        return
    require_finite_gradients(workload, indices, seed, "cpu")
    raise UserError(
        f"training of {workload.name} diverged: {bad[0]} is not finite after {epochs} epochs; "
        f"the recipe's learning rate is {workload.required_recipe().learning_rate}, try a smaller one"
    )
