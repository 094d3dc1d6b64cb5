from __future__ import annotations

import torch

from common.foundations.tensor_files import fingerprint, state_fingerprint


def test_fingerprints_see_value_dtype_shape_and_name():
    x = torch.arange(6, dtype=torch.float32)
    others = [x + 1e-6, x.double(), x.reshape(2, 3), x.flip(0), x[:5], x.bfloat16(), x.int()]
    assert len({fingerprint(value) for value in [x, *others]}) == 1 + len(others)
    assert fingerprint(x[::2]) == fingerprint(x[::2].clone())
    assert fingerprint(torch.tensor(1.0)) != fingerprint(torch.tensor([1.0]))
    assert state_fingerprint({"a": x}) != state_fingerprint({"b": x})
