from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from common.experiments.bounds import cross_sweep
from common.experiments.bounds import sweep as error_sweep
from common.experiments.bounds.study import CrossStudy, SelfStudy, make_study
from common.experiments.cells import Cells
from common.experiments.options.records import BoundsOptions, CrossChoice
from common.sketches.basis import basis_of_samples
from common.sketches.geometry import ScoredVectors
from common.sketches.influence import exact_self_influence
from common.theory.spectrum import ExactSpectrum, effective_dimension
from tests import reference
from tests.reference import DenseGradients, normal

pytestmark = [pytest.mark.usefixtures("mnist_once"), pytest.mark.usefixtures("one_thread")]

RIDGES = [1e-3, 1e-1, 10.0]


def cells_of(prepared):
    return Cells(prepared.spectrum, prepared.ms, prepared.ridges, prepared.effective_dimensions, False)


def test_self_influence_is_studied_unless_pairs_are_asked_for(start, capsys):
    shared, run, prepared = start("--max_m", "4")
    capsys.readouterr()
    study = make_study(BoundsOptions(shared, min_d_lambda=0, target_eps=0.1), run, prepared, cells_of(prepared))
    assert isinstance(study, SelfStudy)
    for ridge, scores in zip(prepared.ridges, study.exact, strict=True):
        expected = exact_self_influence(prepared.geometry.eigenvalues, prepared.geometry.queries, ridge)
        torch.testing.assert_close(scores, expected)
    assert (study.counted, study.seed) == ("ratios of sketched to exact scores", shared.sketches.seed)
    assert capsys.readouterr().out == ""
    assert "num_pairs" not in run.config


def test_the_pairs_that_are_studied_are_said_and_recorded(start, capsys):
    cross = CrossChoice(7, kernel_parts=True)
    shared, run, prepared = start("--max_m", "4", kind="test", cross=cross)
    capsys.readouterr()
    options = BoundsOptions(shared, min_d_lambda=0, target_eps=0.1, cross=cross)
    study = make_study(options, run, prepared, cells_of(prepared))
    assert isinstance(study, CrossStudy)
    assert len(study.exact) == len(prepared.ridges)
    assert run.config["num_pairs"] == 7 * 9
    rank = run.config["unridged_rank"]
    assert 0 < rank <= prepared.geometry.rank
    said = capsys.readouterr().out
    assert "pairs: 7 training gradients with 9 queries" in said
    assert f"φ₀ by the {rank} largest eigenvalues of F" in said


@pytest.fixture(scope="module")
def pairs():
    """Return the study of all pairs of six training gradients and eight queries."""
    train = reference.gradients_with_spectrum(torch.logspace(1, -4, 30, dtype=torch.float64), 30, 90, seed=1)
    gradients = DenseGradients(torch.cat([train, normal(3, 8, 30) @ train]))
    basis = basis_of_samples(gradients.unit_gram(), gradients.norms, 30)
    geometry = basis.geometry(ScoredVectors(torch.arange(30, 38), None, torch.arange(6)))
    spectrum = ExactSpectrum(geometry.eigenvalues)
    d_lambda = effective_dimension(spectrum, torch.tensor(RIDGES, dtype=torch.float64)).tolist()
    task = cross_sweep.make_task(geometry, Cells(spectrum, [4, 8, 16], RIDGES, d_lambda, False), seed=0)
    return CrossStudy(task, cross_sweep.exact_pairs(task))


def test_no_m_is_recommended_where_scores_of_zero_reach_the_target_too(pairs):
    zero = cross_sweep.zero_errors(pairs.exact)
    target = sorted(zero)[1] * 1.001
    table = pairs.recommend(target, 10**6)
    assert table["zero_eps_95"].tolist() == zero
    known = table[error_sweep.RECOMMENDED].notna()
    assert known.all(axis=1).tolist() == [error > target for error in zero]
    assert known.any(axis=1).tolist() == [error > target for error in zero]
    assert (table["d_lambda"] <= table[error_sweep.RECOMMENDED[0]])[known.all(axis=1)].all()


@dataclasses.dataclass
class Tables:
    """What of a run writes tables."""

    written: dict[str, pd.DataFrame] = dataclasses.field(default_factory=dict)

    def write_table(self, name, table):
        self.written[name] = table


@pytest.mark.parametrize(
    ("ms", "line"), [([4], "fewer than three m >= 4 d_λ"), ([2**e for e in range(7, 13)], "slope of log ε_95 in log m")]
)
def test_slopes_are_written_and_said_where_there_are_enough_m(pairs, capsys, ms, line):
    cells = dataclasses.replace(pairs.task.cells, ms=ms)
    study = CrossStudy(dataclasses.replace(pairs.task, cells=cells), pairs.exact)
    run = Tables()
    study.write_more(run, SimpleNamespace(query_samples=torch.arange(8)), study.predict(), None)
    assert line in capsys.readouterr().out
    assert len(run.written["queries.csv"]) == 8
    slopes = run.written["slopes.csv"]
    assert slopes["error"].unique().tolist() == ["eps", "eps0"]
    assert slopes["predicted_slope"].isna().all() == (len(ms) == 1)
    if len(ms) > 1:
        at_largest = slopes[slopes["lambda"] == max(RIDGES)]
        assert at_largest["predicted_slope"].tolist() == pytest.approx([-0.5] * 2, abs=0.05)
