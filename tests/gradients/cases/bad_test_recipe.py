from __future__ import annotations

from tests.gradients.cases.bad_train_recipe import with_masked


def make_workload():
    return with_masked(117)
