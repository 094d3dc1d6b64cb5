from __future__ import annotations

import pandas as pd
import pytest
import torch

from common.experiments.bounds import cross_sweep
from common.experiments.cells import Cells
from common.experiments.faithfulness import sweep as faithfulness_sweep
from common.experiments.faithfulness.sweep import BothTasks
from common.experiments.lds import sweep as lds_sweep
from common.sketches.basis import basis_of_samples
from common.sketches.geometry import ScoredVectors
from common.sketches.sketchers import CoordinateSketcher
from common.theory.spectrum import ExactSpectrum, effective_dimension
from common.workloads.records import GroundTruth
from tests import reference
from tests.reference import DenseGradients, generator, normal

pytestmark = pytest.mark.usefixtures("one_thread")

N_TRAIN, N_QUERIES, D, MS, RIDGES = 30, 12, 90, [16, 64], [1e-2, 1.0]


@pytest.fixture(scope="module")
def tasks():
    spectrum = torch.logspace(1, -4, N_TRAIN, dtype=torch.float64)
    train = reference.gradients_with_spectrum(spectrum, N_TRAIN, D, seed=1)
    gradients = DenseGradients(torch.cat([train, normal(3, N_QUERIES, N_TRAIN) @ train]))
    subsets = torch.stack([torch.randperm(N_TRAIN, generator=generator(s))[:15].sort().values for s in range(8)])
    truth = GroundTruth(subsets, normal(5, 8, N_QUERIES).float())
    basis = basis_of_samples(gradients.unit_gram(), gradients.norms, N_TRAIN)
    rows = torch.arange(N_TRAIN, N_TRAIN + N_QUERIES)
    geometry = basis.geometry(ScoredVectors(rows, subsets, torch.arange(10)))
    exact_spectrum = ExactSpectrum(geometry.eigenvalues)
    d_lambda = effective_dimension(exact_spectrum, torch.tensor(RIDGES, dtype=torch.float64)).tolist()
    cells = Cells(exact_spectrum, MS, RIDGES, d_lambda, ridge_correction=True)
    pairs = cross_sweep.make_task(geometry, cells, seed=0)
    lds = lds_sweep.make_task(geometry, truth, torch.arange(N_QUERIES), cells, num_val=5, seed=0)
    return BothTasks(pairs, cross_sweep.exact_pairs(pairs), lds)


@pytest.fixture(scope="module")
def measured(tasks):
    """Return the units of both questions by one sketch, and of each question alone."""
    sketcher = CoordinateSketcher(tasks.pairs.geometry, tasks.pairs.cells.smallest_ridge(), seed=0)
    both, errors, lds = [], [], []
    for trial in range(2):
        for m, problem in sketcher.problems(trial, MS):
            both += faithfulness_sweep.measure(problem, m, trial, tasks)
            errors += cross_sweep.measure(problem, m, trial, tasks.pairs, tasks.exact)
            lds += lds_sweep.measure(problem, m, trial, tasks.lds)
    return tuple(pd.DataFrame(rows) for rows in (both, errors, lds))


def test_one_sketch_answers_both_questions_as_it_answers_each_alone(tasks, measured):
    both, errors, lds = measured
    tables = {
        "trials": (
            faithfulness_sweep.trial_table(both, tasks),
            cross_sweep.trial_table(errors, tasks.pairs),
            lds_sweep.trial_table(lds, tasks.lds),
        ),
        "summary": (
            faithfulness_sweep.summarise(both, tasks),
            cross_sweep.summarise(errors, tasks.pairs),
            lds_sweep.summarise(lds, tasks.lds),
        ),
    }
    for found, *alone in tables.values():
        for table in alone:
            pd.testing.assert_frame_equal(found[list(table)], table, check_exact=True)
        assert set(found) == set(alone[0]) | set(alone[1])


def test_predictions_are_those_of_both_laws_for_any_m(tasks):
    found = faithfulness_sweep.predict([16, 23, 64], tasks)
    assert found["m"].unique().tolist() == [16, 23, 64]
    grid = found[found["m"].isin(MS)].reset_index(drop=True)
    for table in (cross_sweep.predict(tasks.pairs), lds_sweep.predict(MS, tasks.lds)):
        pd.testing.assert_frame_equal(grid[list(table)], table, rtol=1e-6)
