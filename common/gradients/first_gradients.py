"""Whether the gradients of the first samples of a user's own workload can be computed, before any longer work."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import torch

from common.gradients.planning import compute_gradients, plan_gradients
from common.workloads.checks import BATCH, one_line
from common.workloads.records import Workload
from common.workloads.running import complete


def check_gradients(workload: Workload, path: Path) -> None:
    """Raise UserError that names what fails in computing the gradients of the first samples; `path` is the file."""
    few = workload.train.subset(slice(BATCH))
    cpu = torch.device("cpu")
    with one_line("computing the gradient of each sample", path), contextlib.redirect_stdout(io.StringIO()):
        model = complete(workload.make_model(), few.inputs).eval()
        compute_gradients(plan_gradients(workload, model, [("training", few)], BATCH, "cpu", torch.float32, cpu))
