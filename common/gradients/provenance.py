"""What gradients and geometry are made of: two runs that agree in all of it get the same numbers, bit by bit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from common.foundations import storage, tensor_files
from common.foundations.seeds import isolated_rng
from common.gradients.one_at_a_time import gradients
from common.gradients.planning import GradientPlan
from common.workloads.running import run_model, without_graph

PROBES = 16


def describe_choices(plan: GradientPlan) -> dict:
    """Return what a user chooses about gradients."""
    slower = [f"{step}: {', '.join(sorted(names))}" for step, names in asdict(plan.routes).items() if names]
    return {
        "samples": {
            name: {"count": len(part), "data": tensor_files.fingerprint(*part.tensors())} for name, part in plan.parts
        },
        "recipe": None if plan.workload.recipe is None else asdict(plan.workload.recipe),
        # all three decide how sums are rounded
        "batch_size": plan.batch_size,
        "dtype": str(plan.dtype).removeprefix("torch."),
        "route": "; ".join(["recompute" if plan.offload == "recompute" else "stored", *slower]),
    }


def key(plan: GradientPlan) -> str:
    """Return 12 hex digits that stand for what a user chooses about gradients: other choices, other folder."""
    return hashlib.sha256(json.dumps(describe_choices(plan), sort_keys=True).encode()).hexdigest()[:12]


def describe(plan: GradientPlan, checkpoint: str, workload_file: Path | None = None) -> dict:
    """Return everything that gradients and geometry depend on, down to their last bit: the manifest entry `made_by`.

    The model's function and the loss are covered by what they return: losses of a few samples, and the lengths of
    their summed gradient in every parameter (four digits).

    Args:
        plan: which gradients, and how.
        checkpoint: fingerprint of the model's weights.
        workload_file: the user's own, if any.
    """
    losses, lengths = _probe(plan)
    gpu = f"{torch.cuda.get_device_name(plan.device)}, " if plan.device.type == "cuda" else ""
    return {
        **describe_choices(plan),
        **storage.versions(),
        "scipy": version("scipy"),
        "code": _code_fingerprint(),
        "machine": f"{gpu}{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads",
        "workload_file": None if workload_file is None else storage.file_checksum(workload_file),
        "checkpoint": checkpoint,
        "parameters": [[name, list(p.shape)] for name, p in plan.model.named_parameters() if p.requires_grad],
        "losses": losses,
        "gradient_lengths": lengths,
    }


def probe_losses(plan: GradientPlan) -> list[float]:
    """Return the losses of a few samples spread over all: another loss, or model function, gives others."""
    return without_graph(lambda: [value for losses in _losses(plan) for value in losses.tolist()])


def _losses(plan: GradientPlan) -> Iterator[Tensor]:
    chosen = torch.linspace(0, plan.num_rows - 1, min(PROBES, plan.num_rows)).long()
    with isolated_rng(plan.device):
        for rows in chosen.split(plan.batch_size):
            few = plan.examples.subset(rows).to(plan.device)
            yield plan.workload.loss(run_model(plan.model, few.inputs), few.targets)


def _probe(plan: GradientPlan) -> tuple[list[str], list[str]]:
    """Return losses of samples spread over all, and lengths of their summed gradient."""
    parameters = [p for p in plan.model.parameters() if p.requires_grad]
    total, values = [torch.zeros_like(p) for p in parameters], []
    for losses in _losses(plan):
        values += losses.tolist()
        total = [before + g for before, g in zip(total, gradients(losses.sum(), parameters), strict=True)]
    return [f"{value:.4g}" for value in values], [f"{gradient.norm().item():.4g}" for gradient in total]


def _code_fingerprint() -> str:
    """Return the sha256 (hex) of the source files that compute and keep gradients and geometry."""
    here = Path(__file__).parent
    sketches, losses = here.parent / "sketches", here.parent / "workloads" / "precision.py"
    sources = [*sorted(here.glob("*.py")), losses]
    sources += [sketches / "basis.py", sketches / "geometry.py", sketches / "cache.py"]
    return hashlib.sha256(" ".join(storage.file_checksum(path) for path in sources).encode()).hexdigest()
