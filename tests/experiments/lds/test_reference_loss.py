from __future__ import annotations

import dataclasses

import pytest
import torch

from common.experiments.cells import Cells
from common.experiments.lds import sweep as lds_sweep
from common.experiments.lds.reference_loss import reference_loss
from common.sketches.geometry import Geometry, ScoredVectors
from common.theory.sketched_spectrum import SketchedSpectrum
from common.theory.spectrum import ExactSpectrum, effective_dimension
from common.workloads.records import GroundTruth
from tests import reference_theory as reference

SIZE, M, SUBSETS, QUERIES, RIDGES = 100, 400, 25, 80, [0.05, 0.2, 1.0]


def task_of(spectrum, sums, queries, losses):
    """Return the task whose scores are those of vectors in the eigenbasis of F, or of a sketch."""
    scored = ScoredVectors(torch.arange(QUERIES), torch.zeros(SUBSETS, 1, dtype=torch.int64))
    t, vectors = spectrum.eigenvalues, torch.cat([sums, queries])
    geometry = Geometry(t, len(t), torch.ones(QUERIES, dtype=torch.float64), QUERIES, scored, vectors)
    d_lambda = effective_dimension(spectrum, torch.tensor(RIDGES)).tolist()
    cells = Cells(spectrum, [M], RIDGES, d_lambda, False)
    truth = GroundTruth(torch.zeros(SUBSETS, 1, dtype=torch.int64), losses.float())
    return lds_sweep.make_task(geometry, truth, torch.arange(QUERIES), cells, QUERIES // 2, seed=0)


def test_what_the_reference_has_lost_makes_up_for_it():
    generator = torch.Generator().manual_seed(8)
    eigenvalues = 10 * reference.spectrum("power", SIZE)
    queries = reference.unit_queries(eigenvalues, QUERIES, generator)
    sums = torch.randn(SUBSETS, SIZE, generator=generator, dtype=torch.float64) * eigenvalues.sqrt()
    losses = -((sums / (eigenvalues + 0.1)) @ queries.T)
    losses += losses.std(0) * torch.randn(SUBSETS, QUERIES, generator=generator, dtype=torch.float64)
    exact = lds_sweep.summarise(
        lds_sweep.exact_rows(task := task_of(ExactSpectrum(eigenvalues), sums, queries, losses)), task
    )
    found, losses_found = [], []
    for _ in range(12):
        sketch = reference.sketch_matrix("normal", M, SIZE, generator)
        t, basis = torch.linalg.eigh(sketch * eigenvalues @ sketch.T)
        a, q = ((vectors @ sketch.T @ basis).flip(1) for vectors in (sums, queries))
        task = task_of(SketchedSpectrum(t), a, q, losses)
        seen = lds_sweep.summarise(lds_sweep.exact_rows(task), task)
        found.append(torch.tensor(seen["test_lds"].to_numpy()))
        losses_found.append(torch.tensor(reference_loss(task, seen)["test_lds_reference_loss"].to_numpy()))
    lost = torch.tensor(exact["test_lds"].to_numpy()) - torch.stack(found).mean(0)
    predicted = torch.stack(losses_found).mean(0)
    assert (lost > 0.01).all()
    # to leading order in 1/M: most of it
    assert ((predicted - lost).abs() < 0.4 * lost).all(), (predicted, lost)


def test_exact_scores_are_refused():
    spectrum = ExactSpectrum(torch.ones(3, dtype=torch.float64))
    task = task_of(
        spectrum, torch.eye(SUBSETS, 3).double(), torch.ones(QUERIES, 3).double(), torch.rand(SUBSETS, QUERIES)
    )
    with pytest.raises(ValueError, match="exact"):
        reference_loss(dataclasses.replace(task), lds_sweep.summarise(lds_sweep.exact_rows(task), task))
