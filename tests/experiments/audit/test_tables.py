from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from common.experiments.audit import tables
from common.theory.self_influence import predict_self_influence
from common.theory.spectrum import ExactSpectrum
from tests.experiments.audit import cases

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def audited(tmp_path):
    return cases.audit(cases.write_stores(tmp_path))


def exact_spectrum():
    return torch.linalg.eigh(cases.gradients().fisher)


def test_the_effective_dimension_of_the_unsketched_f_is_found_within_its_errors(audited):
    """M = 96: five standard errors, and each fold at most twice as far off."""
    table = tables.effective_dimensions(audited, [1e-6, *cases.RIDGES])
    assert table["resolved"].tolist() == [False, True, True, True]
    first = table.iloc[0]
    assert first[["d_lambda", "d_lambda_std_error", "d_lambda_half", "d_lambda_quarter"]].isna().all()
    known = table[table["resolved"]]
    eigenvalues = exact_spectrum()[0].clamp(min=0)
    exact = ExactSpectrum(eigenvalues).sums(torch.tensor(cases.RIDGES, dtype=torch.float64)).first.numpy()
    assert (np.abs(known["d_lambda"] - exact) <= 5 * known["d_lambda_std_error"]).all()
    assert (known["d_lambda_std_error"] < 0.1 * exact).all()
    folded = known.assign(exact=exact).dropna()
    assert len(folded)
    assert (np.abs(folded["d_lambda_quarter"] - folded["exact"]) <= 20 * folded["d_lambda_std_error"]).all()


def test_errors_are_predicted_for_sizes_from_16_to_64_times_the_store(audited):
    dimensions = tables.effective_dimensions(audited, [1e-6, *cases.RIDGES])
    cells = tables.make_cells(audited, dimensions)
    assert cells.ms == [16, 32, 64, 96, 128, 256, 512, 1024, 2048, 4096]
    assert cells.ridges == cases.RIDGES
    table = tables.errors(audited, cells, seed=1)
    assert set(table.loc[table["of_store"], "m"]) == {96}
    assert len(table) == 30
    eigenvalues, basis = exact_spectrum()
    exact = predict_self_influence(
        ExactSpectrum(eigenvalues.clamp(min=0)), cases.gradients().queries @ basis, cells.ms, cells.ridges
    )
    predicted = torch.tensor(table["predicted_eps_95"].to_numpy()).reshape(10, 3)
    torch.testing.assert_close(predicted, exact.eps_95, rtol=0.15, atol=0)
    assert table["predicted_corrected_cross_eps_95"].notna().sum() > 20


def test_the_chosen_ridge_is_the_smallest_that_reaches_the_target_or_else_the_best(audited):
    cells = tables.make_cells(audited, tables.effective_dimensions(audited, cases.RIDGES))
    table = tables.errors(audited, cells, seed=1)
    own = table[table["of_store"]].set_index("lambda")["predicted_corrected_eps_95"]
    ridge, reason = tables.choose_ridge(table, own[0.3], audited)
    assert (ridge, "at most" in reason) == (0.3, True)
    ridge, reason = tables.choose_ridge(table, 0.001, audited)
    assert ridge == own.idxmin()
    assert "none reaches 0.001" in reason


def test_a_ridge_with_an_effective_dimension_near_m_is_chosen_only_where_there_is_no_other(audited):
    near = audited.spectrum.smallest_ridge * 1.05
    for ridges, chosen in (([near, 3.0], 3.0), ([near], near)):
        cells = tables.make_cells(audited, tables.effective_dimensions(audited, ridges))
        assert cells.effective_dimensions[0] > 0.9 * cases.M
        table = tables.errors(audited, cells, seed=1)
        assert tables.choose_ridge(table, 0.99, audited)[0] == chosen


@pytest.mark.parametrize("law", ["kronecker", "blocks"])
def test_nothing_is_predicted_of_a_projection_whose_law_is_not_known(audited, law):
    audited = replace(audited, proj_type=law)
    ridges = [audited.spectrum.smallest_ridge * 1.05, *cases.RIDGES]
    dimensions = tables.effective_dimensions(audited, ridges)
    assert dimensions["d_lambda"].notna().all()
    assert dimensions["d_lambda_std_error"].isna().all()
    cells = tables.make_cells(audited, dimensions)
    table = tables.errors(audited, cells, seed=1)
    predicted = [name for name in table if name.startswith("predicted_")]
    assert len(predicted) == 16
    assert table[predicted].isna().all(axis=None)
    assert tables.sizes(audited, cells, 0.3)[["m", "m_ridge_corrected"]].isna().all(axis=None)
    few = [ridge for ridge, d in zip(cells.ridges, cells.effective_dimensions, strict=True) if d <= 0.1 * cases.M]
    assert 0 < len(few) < len(ridges)
    chosen = tables.choose_ridge(table, 0.3, audited)
    assert chosen == (min(few), "the smallest λ with d_λ at most 0.1 M")
    ridge, reason = tables.choose_ridge(table[table["lambda"] == ridges[0]], 0.3, audited)
    assert (ridge, reason) == (ridges[0], "the largest λ, as none has d_λ of at most 0.1 M")


def test_sizes_reach_the_target_and_smaller_ones_do_not(audited):
    cells = tables.make_cells(audited, tables.effective_dimensions(audited, cases.RIDGES))
    advice = tables.sizes(audited, cells, 0.3)
    for row in advice.itertuples():
        ridge = [row._1]
        for m, reached in ((row.m, True), (round(0.98 * row.m) - 1, False)):
            law = predict_self_influence(audited.spectrum, audited.tabled_queries, [m], ridge)
            assert (law.eps_95.item() <= 0.3) == reached
