"""Small trained models, their gradients kept every way, and the same gradients one backward pass a sample."""

from __future__ import annotations

import torch
from torch import nn

from common.gradients.planning import compute_gradients, plan_gradients
from common.sketches.cache import open_gradients, write_gradients
from common.workloads.losses import cross_entropy
from tests.reference_gradients import one_by_one_gradients
from tests.reference_training import batch_norm_perceptron, dropout_perceptron, tiny_workload

CPU = torch.device("cpu")
STORED = ["none", "cpu", "disk"]
FLOAT32 = 1e-5  # a few dozen roundings of 6e-8


class Scaled(nn.Module):
    """A parameter of the model itself, outside any layer."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([0.5, 2.0, 1.0, -1.0, 0.3]))
        self.out = nn.Linear(5, 3)
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return self.dropout(self.out(torch.tanh(x * self.scale))) * self.frozen


class Selected(Scaled):
    """Picks values by their sign, which torch.func.vmap cannot run: layers are followed on single samples."""

    def forward(self, x):
        x = x.clone()
        x[x > 0] += 1
        return super().forward(x)


class Concealed(Scaled):
    """Uses a parameter where nobody can see it: one sample at a time."""

    def forward(self, x):
        with torch._C.DisableTorchFunction():
            scale = self.scale.clone()
        return self.dropout(self.out(torch.tanh(x * scale))) * self.frozen


class SelectedAndConcealed(Concealed):
    """Both: a single pass a sample follows layers and differentiates the parameter that is not seen."""

    def forward(self, x):
        x = x.clone()
        x[x > 0] += 1
        return super().forward(x)


MODELS = {
    "layers": dropout_perceptron,
    "batch_norm": batch_norm_perceptron,
    "scaled": Scaled,
    "single_samples": Selected,
    "one_at_a_time": Concealed,
    "single_samples_and_one_at_a_time": SelectedAndConcealed,
}


def trained(make_model):
    torch.manual_seed(0)
    model = make_model()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def extract(model, tmp_path, offload, parts=None, batch_size=7, dtype=torch.float32, loss=cross_entropy):
    workload = tiny_workload(loss=loss)
    parts = parts or [("training", workload.train), ("test", workload.test)]
    plan = plan_gradients(workload, model, parts, batch_size, offload, dtype, CPU)
    if plan.offload != "disk":
        return compute_gradients(plan)
    path = tmp_path / "rows.bin"
    return open_gradients(plan, path, write_gradients(plan, path))


def rows_of(gradients):
    return torch.cat([block.double() for _, block in gradients.unit_blocks()], dim=1) * gradients.norms[:, None]


def reference_rows(model, parts=None, loss=cross_entropy):
    workload = tiny_workload()
    parts = parts or [("training", workload.train), ("test", workload.test)]
    inputs, targets = (torch.cat([getattr(p, name) for _, p in parts]) for name in ("inputs", "targets"))
    return one_by_one_gradients(model, loss, inputs, targets)
