from __future__ import annotations

import pytest

from common.foundations.errors import UserError
from common.gradients.first_gradients import check_gradients
from common.workloads.user_file import load_user_workload, naming
from tests.tiny import write_tiny

ONE_WAY = """
class OneWay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x


class Doubled(nn.Linear):
    def forward(self, inputs):
        return OneWay.apply(super().forward(inputs) / 2) if len(inputs) == 1 else super().forward(inputs)
"""


def test_a_model_whose_gradients_cannot_be_computed_is_refused(tmp_path):
    path = write_tiny(tmp_path)
    path.write_text(path.read_text().replace("def make_workload", f"{ONE_WAY}\n\ndef make_workload"))
    path.write_text(path.read_text().replace("lambda: nn.Linear(9, 4)", "lambda: Doubled(9, 4)"))
    workload = load_user_workload(path)
    with pytest.raises(UserError) as refusal, naming(path):
        check_gradients(workload, path.resolve())
    message = str(refusal.value)
    assert message.startswith(
        f"--workload {path}: plain autograd cannot differentiate the loss of training sample 0: NotImplementedError: "
    )
    assert "\n" not in message
