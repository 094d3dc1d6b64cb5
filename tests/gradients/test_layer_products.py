from __future__ import annotations

import pytest
import torch

from common.gradients.layer_capture import LayerCapture, Routes
from common.gradients.layer_products import select_rows, write_products
from common.gradients.layer_shares import matrix_shape
from tests.layer_cases import SAME_EVEN_KERNEL, make_case

pytestmark = SAME_EVEN_KERNEL


@pytest.mark.parametrize("name", ["few_positions", "conv", "repeated_tokens"])
def test_rows_selected_from_a_capture_give_those_rows_of_the_gradient(name):
    model, loss, examples = make_case(name)
    for parameter, captures in LayerCapture(model, loss, Routes())(examples).items():
        rows, cols = matrix_shape(model.get_parameter(parameter))
        whole = torch.empty(len(examples), rows * cols)
        part = torch.empty(len(examples), (rows - 1) * cols)
        write_products(captures, slice(0, rows), cols, whole)
        write_products([select_rows(c, slice(1, rows)) for c in captures], slice(0, rows - 1), cols, part)
        torch.testing.assert_close(part, whole[:, cols:])
