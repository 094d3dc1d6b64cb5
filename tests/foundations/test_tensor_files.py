from __future__ import annotations

import pytest
import torch

from common.foundations.tensor_files import fingerprint, state_fingerprint


def test_fingerprints_see_value_dtype_shape_and_name():
    x = torch.arange(6, dtype=torch.float32)
    others = [x + 1e-6, x.double(), x.reshape(2, 3), x.flip(0), x[:5], x.bfloat16(), x.int()]
    assert len({fingerprint(value) for value in [x, *others]}) == 1 + len(others)
    assert fingerprint(x[::2]) == fingerprint(x[::2].clone())
    assert fingerprint(torch.tensor(1.0)) != fingerprint(torch.tensor([1.0]))
    assert state_fingerprint({"a": x}) != state_fingerprint({"b": x})


def test_fingerprints_see_what_a_module_keeps_beside_tensors():
    x = torch.arange(6.0)
    states = [{"a": x, "_extra_state": extra} for extra in ({"steps": 1}, {"steps": 2}, None)]
    assert len({state_fingerprint(state) for state in [*states, {"a": x}]}) == 4
    assert state_fingerprint(states[0]) == state_fingerprint({"a": x.clone(), "_extra_state": {"steps": 1}})


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc])
def test_fingerprints_see_the_places_and_the_values_of_sparse_matrices(layout):
    x = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    found = [fingerprint(value.to_sparse(layout=layout)) for value in (x, x.clone(), 2 * x, x.flip(1))]
    assert found[0] == found[1]
    assert len(set(found)) == 3
