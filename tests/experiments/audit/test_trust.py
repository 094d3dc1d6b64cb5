from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from common.experiments.audit import tables, trust
from tests import reference_theory as reference
from tests.experiments.audit import cases
from tests.stores.cases import save_npy

pytestmark = pytest.mark.usefixtures("one_thread")


def verdicts(audited, ridges=cases.RIDGES):
    return trust.verdicts(audited, tables.effective_dimensions(audited, ridges))


@pytest.mark.parametrize("kind", ["normal", "rademacher", "sjlt"])
def test_a_sound_store_has_no_warning(tmp_path, kind):
    for seed in range(5):
        lines = verdicts(cases.audit(cases.write_stores(tmp_path, seed=seed, kind=kind)), [3.0, 30.0])
        assert not [line for line in lines if line.startswith("warning")], lines


@pytest.mark.parametrize("law", ["kronecker", "blocks"])
def test_projections_whose_law_is_not_known_are_named(tmp_path, law):
    audited = replace(cases.audit(cases.write_stores(tmp_path)), proj_type=law)
    assert not audited.law_is_known
    assert any("unreliable" in line for line in verdicts(audited) if line.startswith("warning"))


def test_what_is_not_resolved_and_what_is_near_the_end_are_named(tmp_path):
    audited = cases.audit(cases.write_stores(tmp_path))
    floor = audited.spectrum.smallest_ridge
    (line,) = [line for line in verdicts(audited, [floor / 2, floor * 1.05, 3.0]) if "resolved" in line]
    assert line.startswith("warning: not resolved")
    assert "near the end of what M = 96 shows" in line


def test_a_store_whose_columns_are_not_alike_does_not_pass_the_fold(tmp_path):
    """Columns scaled from 1 to 100: no sketch with one law."""
    chosen = cases.write_stores(tmp_path)
    rows = torch.from_numpy(np.load(chosen.train)) * torch.logspace(0, 2, cases.M)
    audited = cases.audit(cases.options(save_npy(tmp_path / "scaled.npy", rows), None))
    assert any("more than chance" in line for line in verdicts(audited, [300.0, 3000.0, 30_000.0]))


def test_a_store_of_some_of_the_parameters_passes_the_fold_all_the_same(tmp_path):
    """What folding cannot see: gradients cut to the second half of their coordinates before they were projected."""
    known = cases.gradients().train
    cut = torch.where(torch.arange(cases.DIMENSION) < cases.DIMENSION // 2, 0, known)
    sketch = reference.sketch_matrix("normal", cases.M, cases.DIMENSION, torch.Generator().manual_seed(1)).T
    audited = cases.audit(cases.options(save_npy(tmp_path / "cut.npy", cut @ sketch), None))
    table = tables.effective_dimensions(audited, [0.3])
    eigenvalues = torch.linalg.eigvalsh(known.T @ known / len(known)).clamp(min=0)
    exact = (eigenvalues / (eigenvalues + 0.3)).sum().item()
    error = table["d_lambda_std_error"][0]
    assert abs(table["d_lambda"][0] - exact) > 20 * error
    assert abs(table["d_lambda_half"][0] - table["d_lambda"][0]) < trust.MOST_SIGMAS * error


def test_rows_that_rounding_has_spoilt_are_counted_and_named(tmp_path):
    rows = cases.gradients().train[:, : cases.M].clone()
    rows[7], rows[11], rows[5] = rows[7] * 1e-7, 0, rows[6]
    audited = cases.audit(cases.options(save_npy(tmp_path / "half.npy", rows.half()), None))
    lines = verdicts(audited)
    assert any("1 of 200 training rows are zero: 11" in line for line in lines)
    assert any("1 of 200 training rows are so short that float16 rounds off more than 1 %" in line for line in lines)
    assert any("1 of 200 training rows repeat" in line for line in lines)
    assert any(line.startswith("198 of 200 training rows are sound in float16") for line in lines)


def test_empty_buckets_are_left_out_and_named_and_hide_no_unresolved_ridge(tmp_path):
    """One row of P that nothing reaches: counted as a column, its eigenvalue 0 would let d_λ > M be resolved."""
    chosen = cases.write_stores(tmp_path)
    rows, queries = (torch.from_numpy(np.load(path)) for path in (chosen.train, chosen.queries))
    padded = [torch.nn.functional.pad(part, (1, 0)) for part in (rows, queries)]
    paths = [save_npy(tmp_path / f"{name}.npy", part) for name, part in zip("ab", padded, strict=True)]
    whole, with_hole = cases.audit(chosen), cases.audit(cases.options(*paths))
    found, expected = (tables.effective_dimensions(a, [1e-6, *cases.RIDGES]) for a in (with_hole, whole))
    names = ["d_lambda", "d_lambda_std_error", "resolved"]
    pd.testing.assert_frame_equal(found[names], expected[names])
    assert any("1 columns are zero in every training row, and left out: M = 96" in line for line in verdicts(with_hole))
    assert with_hole.mean_eigenvalue == pytest.approx(whole.mean_eigenvalue * 96 / 97)


def test_columns_that_differ_by_more_than_chance_are_warned_of_with_the_ridges_that_lose_their_error_bars(tmp_path):
    scale = torch.tensor([1.0, 2.0], dtype=torch.float64).repeat(cases.M // 2)
    known = cases.audit(cases.write_stores(tmp_path))
    rows = torch.from_numpy(np.load(tmp_path / "train.npy")) * scale
    uneven = cases.audit(cases.options(save_npy(tmp_path / "uneven.npy", rows), None))
    for audited, warned in ((known, False), (uneven, True)):
        lines = [line for line in verdicts(audited) if "columns differ by more than chance" in line]
        assert [line[:8] for line in lines] == ["warning:"] * warned
        missing = tables.effective_dimensions(audited, cases.RIDGES)["d_lambda_std_error"].isna()
        assert missing.any() == warned
        named = [f"{ridge:.3g}" for ridge, gone in zip(cases.RIDGES, missing, strict=True) if gone]
        assert all(line.endswith(f"λ = {', '.join(named)}") for line in lines)


def test_a_constant_added_to_all_rows_is_warned_of_where_folding_cannot_tell(tmp_path):
    """M = 32: a fold that doubles d_λ is 4 standard errors away."""
    chosen = cases.write_stores(tmp_path)
    rows = torch.from_numpy(np.load(chosen.train))[:, :32] * 3**0.5
    for constant, warned in ((0.0, False), (20.0, True)):
        audited = cases.audit(cases.options(save_npy(tmp_path / "few.npy", rows + constant), None))
        lines = [line for line in verdicts(audited, [3e3, 3e4, 3e5]) if line.startswith("warning")]
        assert [line[9:33] for line in lines] == ["columns have more in com"] * warned
    sketchy = replace(audited, proj_type="tensorsketch")
    assert not [line for line in verdicts(sketchy) if "in common" in line]


def audit_with_norms(folder, rows, norms):
    np.save(folder / "norms.npy", norms.numpy())
    return cases.audit(cases.options(save_npy(folder / "units.npy", rows), None, norms=folder / "norms.npy"))


@pytest.mark.parametrize("kind", ["normal", "rademacher", "sjlt"])
@pytest.mark.parametrize("columns", [16, 64, 512])
def test_rows_of_unit_length_before_or_after_projection_may_have_norms(tmp_path, kind, columns):
    """Lengths beyond the bounds have a probability of 2e-6 for each sketch, if all rows were one."""
    gradients = cases.gradients().train
    norms = gradients.norm(dim=1)
    for seed in range(10, 13):  # gradients have 0
        sketch = reference.sketch_matrix(kind, columns, cases.DIMENSION, torch.Generator().manual_seed(seed)).T
        before = gradients / norms[:, None] @ sketch
        after = before / before.norm(dim=1, keepdim=True)
        for rows, dtype in ((before, torch.float64), (after, torch.float64), (before, torch.float16)):
            lines = verdicts(audit_with_norms(tmp_path, rows.to(dtype), norms), [300.0, 3000.0])
            assert not [line for line in lines if "most rows have lengths" in line], lines


def test_rows_that_have_their_lengths_still_are_warned_of_where_norms_multiply_them_again(tmp_path):
    rows = torch.from_numpy(np.load(cases.write_stores(tmp_path).train))
    unit = rows / rows.norm(dim=1, keepdim=True)
    spread = torch.linspace(0.7, 3.4, cases.NUM_TRAIN, dtype=torch.float64)
    for factor in (spread, spread / 2, torch.full_like(spread, 2.0), torch.full_like(spread, 0.3)):
        (line,) = [x for x in verdicts(audit_with_norms(tmp_path, unit * factor[:, None], spread)) if "norms" in x]
        assert line.startswith("warning: most rows have lengths from ")
        assert line.endswith("their lengths count twice; drop --norms")
        # rows without norms may have any length
        plain = cases.audit(cases.options(tmp_path / "units.npy", None))
        assert not [x for x in verdicts(plain) if "most rows" in x]


def test_of_one_modules_columns_no_length_is_known(tmp_path):
    rows = cases.gradients().train[:, :96]
    rows /= rows.norm(dim=1, keepdim=True)
    torch.save({"a": rows[:, :32].contiguous(), "b": rows[:, 32:].contiguous()}, tmp_path / "units.pt")
    np.save(tmp_path / "norms.npy", np.ones(cases.NUM_TRAIN))
    chosen = cases.options(tmp_path / "units.pt", None, norms=tmp_path / "norms.npy", module="b")
    assert not [line for line in verdicts(cases.audit(chosen), [0.3]) if "most rows" in line]


def test_without_a_known_law_an_effective_dimension_has_no_standard_error(tmp_path):
    audited = replace(cases.audit(cases.write_stores(tmp_path)), proj_type="kronecker")
    assert tables.effective_dimensions(audited, cases.RIDGES)["d_lambda_std_error"].isna().all()
    assert any("folding to M/2 moves d_λ by at most" in line for line in verdicts(audited))


def test_a_store_of_too_few_columns_is_said_to_be_one(tmp_path):
    rows = cases.gradients().train[:, :2]
    lines = verdicts(cases.audit(cases.options(save_npy(tmp_path / "few.npy", rows), None)))
    assert lines[0].startswith("warning: the store has M = 2 columns that are not zero")
