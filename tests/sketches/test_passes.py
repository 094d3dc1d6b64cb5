from __future__ import annotations

import pytest

from common.sketches import passes as sketch_passes
from common.sketches.passes import trials_of_a_pass


@pytest.mark.parametrize(
    ("first", "trial_bytes", "expected"),
    [
        (0, 100, [0, 1, 2, 3, 4]),
        (0, 201, [0, 1, 2, 3]),
        (0, 400, [0, 1]),
        (2, 400, [2, 3]),
        (4, 400, [4]),
        (3, 1001, [3]),
    ],
)
def test_a_pass_makes_the_next_trials_that_fit_together_but_one_at_least(monkeypatch, first, trial_bytes, expected):
    monkeypatch.setattr(sketch_passes, "PASS_BYTES", 1000)
    assert list(trials_of_a_pass(first, 5, trial_bytes)) == expected
