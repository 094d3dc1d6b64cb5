from __future__ import annotations

import pytest

from common.foundations.errors import UserError
from common.gradients.checks import check_gradients
from common.workloads.user_file import load_user_workload, naming
from tests.tiny import write_tiny

BRANCH = """
class Branch(nn.Linear):
    def forward(self, inputs):
        outputs = super().forward(inputs) * self.bias
        return outputs.tanh() if inputs.sum().item() else outputs
"""


def test_a_model_whose_gradients_cannot_be_computed_is_refused_with_the_line(tmp_path):
    path = write_tiny(tmp_path)
    path.write_text(path.read_text().replace("def make_workload", f"{BRANCH}\n\ndef make_workload"))
    path.write_text(path.read_text().replace("lambda: nn.Linear(9, 4)", "lambda: Branch(9, 4)"))
    workload = load_user_workload(path)
    with pytest.raises(UserError) as refusal, naming(path):
        check_gradients(workload, path.resolve())
    message = str(refusal.value)
    assert message.startswith(f"--workload {path}: computing the gradient of each sample fails, line ")
    assert "\n" not in message
