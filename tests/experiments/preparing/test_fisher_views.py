from __future__ import annotations

import pytest
import torch

from common.experiments.bounds import sweep as error_sweep
from common.experiments.cells import Cells
from common.experiments.preparing.preparation import make_sketcher
from common.foundations.errors import UserError
from common.sketches.moment_sketch import MomentSketcher
from common.theory.reference_noise import relative_covariance
from common.theory.sketched_spectrum import SketchedSpectrum

pytestmark = pytest.mark.usefixtures("mnist_once", "one_thread")

SJLT = ("--proj_type", "sjlt", "--lambda_exp_min", "-3", "--lambda_exp_max", "0", "--num_trials", "2")
REFERENCE = (*SJLT, "--reference", "sketch", "--reference_m", "512")


def scores(prepared):
    """Return (λ, k) scores that the sketches are compared with."""
    cells = Cells(prepared.spectrum, prepared.ms, prepared.ridges, prepared.effective_dimensions, False)
    return torch.stack(error_sweep.exact_scores(cells, prepared.geometry))


@pytest.mark.parametrize("kind", ["self", "test"])
def test_a_reference_sketch_shows_what_inner_products_do_within_its_error(start, kind):
    exact, (_, run, seen) = start(*SJLT, kind=kind)[2], start(*REFERENCE, kind=kind)
    assert isinstance(seen.spectrum, SketchedSpectrum)
    assert run.config["reference_m"] == seen.spectrum.size == 512
    assert torch.equal(seen.query_samples, exact.query_samples)
    torch.testing.assert_close(seen.geometry.norms, exact.geometry.norms, rtol=1e-4, atol=0)
    assert seen.ridges == exact.ridges
    # 40 training gradients, seen by a sketch of 512
    assert run.config["rank"] == seen.geometry.rank == 40
    errors = seen.spectrum.effective_dimension_std_error(torch.tensor(seen.ridges, dtype=torch.float64))
    for found, expected, error in zip(seen.effective_dimensions, exact.effective_dimensions, errors, strict=True):
        assert abs(found - expected) < 5 * error + 1e-3 * expected
    for ridge, found, expected in zip(seen.ridges, scores(seen), scores(exact), strict=True):
        variance = relative_covariance(seen.spectrum, seen.geometry.queries, ridge).diagonal()
        # nine queries of one sketch: one beyond 5 standard errors in a million
        assert ((found / expected - 1).abs() < 5 * variance.sqrt()).all()


def test_its_trials_are_the_sketches_of_a_run_with_exact_scores(start):
    (options, _, exact), (_, _, seen) = start(*SJLT, kind="test"), start(*REFERENCE, kind="test")
    moments = make_sketcher(options.sketches, seen, 1e-3)
    assert isinstance(moments, MomentSketcher)
    rows = make_sketcher(options.sketches, exact, 1e-3)
    for trial in range(2):
        for (m, found), (_, expected) in zip(
            moments.problems(trial, [4, 16]), rows.problems(trial, [4, 16]), strict=True
        ):
            whitened = found.whitened(0.1), expected.whitened(0.1)
            torch.testing.assert_close(*(w @ w.T for w in whitened), rtol=1e-3, atol=1e-3, msg=f"m = {m}")


def test_ridges_that_the_reference_cannot_see_are_left_out_and_said(start, capsys):
    # 40 training samples of rank 40, a reference of 32
    _, run, seen = start("--proj_type", "sjlt", "--reference", "sketch", "--reference_m", "32")
    assert seen.ridges_left_out
    assert run.config["ridges_left_out"] == seen.ridges_left_out
    assert min(seen.ridges) >= seen.spectrum.smallest_ridge > max(seen.ridges_left_out)
    assert "the smallest ridge that a reference sketch of M = 32 resolves" in capsys.readouterr().out


def test_a_reference_of_as_many_rows_as_the_model_has_parameters_is_refused(start):
    with pytest.raises(UserError, match="--reference_m 8192 must be below the 7850 parameters of the model"):
        start("--proj_type", "sjlt", "--reference", "sketch")


def test_a_reference_with_few_parameters_in_a_bucket_is_warned_of(start, capsys):
    start("--proj_type", "sjlt", "--reference", "sketch", "--reference_m", "1024")
    assert "warning: reference: 7850 parameters in M =" in capsys.readouterr().out
