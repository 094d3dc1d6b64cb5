from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from common.experiments.lds import ridge_path
from common.experiments.lds.selection import LdsGrid

MS, RIDGES = [32, 64, 128], [0.01, 0.1, 1.0]
# with fewer dimensions a larger λ is best
VAL = np.array([[0.10, 0.20, 0.25], [0.20, 0.40, 0.30], [0.41, 0.40, 0.20]])


def make_grid(val=VAL, trials=2):
    shift = np.linspace(-0.01, 0.01, trials)[:, None, None]
    return LdsGrid(
        ms=np.array(MS),
        ridges=np.array(RIDGES),
        effective_dimensions=np.array([40.0, 20.0, 5.0]),
        val_lds=val + shift,
        test_lds=val - 0.05 + shift,
        exact_val_lds=np.array([0.5, 0.45, 0.4]),
        exact_test_lds=np.array([0.45, 0.40, 0.35]),
        num_val_queries=50,
    )


def resampled(val=VAL, noise=0.0, num=200):
    """Return resamples whose cells vary independently."""
    return val[..., None] + noise * np.random.default_rng(0).standard_normal((*val.shape, num))


def path_of(val=VAL):
    ridges = [RIDGES[j] * 1.2 for j in val.argmax(1)]
    return pd.DataFrame({"m": MS, "lambda": ridges, "predicted_val_lds": val.max(1), "predicted_test_lds": 0.3})


MEASURED = path_of()[["m", "lambda"]].assign(val_lds=[0.24, 0.41, 0.42], test_lds=[0.2, 0.36, 0.37])


def test_every_m_has_its_own_best_ridge_beside_the_predicted_one_and_what_that_gives():
    path, _ = ridge_path.paths(make_grid(), resampled(), path_of(), MEASURED)
    assert [one.m for one in path] == MS
    assert [(one.lambda_star, one.d_lambda) for one in path] == [(1.0, 5.0), (0.1, 20.0), (0.01, 40.0)]
    assert [one.val_lds for one in path] == pytest.approx([0.25, 0.40, 0.41])
    assert [one.test_lds for one in path] == pytest.approx([0.20, 0.35, 0.36])
    assert [one.predicted_lambda_star for one in path] == pytest.approx([1.2, 0.12, 0.012])
    assert [one.measured_test_lds_at_predicted for one in path] == [0.2, 0.36, 0.37]


def test_the_joint_choice_follows_the_best_ridge_of_every_m():
    """At the λ* of the largest m, 0.01, no smaller m reaches 95 %; along the path m = 64 does."""
    _, joint = ridge_path.paths(make_grid(), resampled(), path_of(), MEASURED)
    assert (joint.m_95, joint.lambda_m_95, joint.c_95) == (64, 0.1, 64 / 20)
    assert (joint.val_lds, joint.test_lds, joint.exact_test_lds) == pytest.approx((0.40, 0.35, 0.40))
    assert joint.predicted_m_95 == 64
    assert (joint.best.m, joint.best.ridge, joint.num_cells) == (128, 0.01, 9)


def test_test_lds_takes_no_part_in_any_choice():
    grid = make_grid()
    turned = dataclasses.replace(grid, test_lds=-grid.test_lds, exact_test_lds=-grid.exact_test_lds)
    (path, joint), (other_path, other) = (
        ridge_path.paths(g, resampled(noise=0.02), path_of(), MEASURED) for g in (grid, turned)
    )
    ridges, others = (
        [(one.lambda_star, one.lambda_low, one.lambda_high) for one in records] for records in (path, other_path)
    )
    assert ridges == others
    unseen = dict(test_lds=None, exact_test_lds=None, best=None, not_distinguishable=())
    assert dataclasses.replace(joint, **unseen) == dataclasses.replace(other, **unseen)
    cells, others = ([(c.m, c.ridge) for c in j.not_distinguishable] for j in (joint, other))
    assert cells == others


def test_without_noise_the_choice_is_sure_and_with_noise_its_neighbours_are_as_good():
    sure = ridge_path.paths(make_grid(), resampled(), path_of(), MEASURED)
    assert [(one.lambda_low, one.lambda_high) for one in sure[0]] == [(1.0, 1.0), (0.1, 0.1), (0.01, 0.01)]
    assert [(c.m, c.ridge) for c in sure[1].not_distinguishable] == [(128, 0.01)]
    assert (sure[1].m_95_low, sure[1].m_95_high) == (64, 64)
    path, joint = ridge_path.paths(make_grid(), resampled(noise=0.02), path_of(), MEASURED)
    assert (path[2].lambda_low, path[2].lambda_high) == (0.01, 0.1)
    assert {(c.m, c.ridge) for c in joint.not_distinguishable} == {(64, 0.1), (128, 0.01), (128, 0.1)}
    assert (joint.m_95_low, joint.m_95_high) == (64, 128)


def test_no_positive_lds_is_no_recommendation_and_nothing_is_invented():
    path, joint = ridge_path.paths(make_grid(-VAL), resampled(-VAL), path_of(-VAL), MEASURED)
    assert (joint.m_95, joint.m_95_low, joint.lambda_m_95, joint.predicted_m_95) == (None,) * 4
    assert ridge_path.joint_sentence(joint, path).startswith("No recommendation")
    nothing = np.full_like(VAL, np.nan)
    path, joint = ridge_path.paths(make_grid(nothing), resampled(nothing), path_of()[:0], MEASURED)
    assert [one.lambda_star for one in path] == [None] * 3
    assert (joint.best, joint.not_distinguishable, joint.num_cells) == (None, (), 0)
    assert "NaN" not in json.dumps(ridge_path.joint_record(joint))


def test_the_sentence_says_how_sure_the_choice_is():
    path, joint = ridge_path.paths(make_grid(), resampled(noise=0.02), path_of(), MEASURED)
    sentence = ridge_path.joint_sentence(joint, path)
    assert sentence.startswith("Use λ = 0.1 with m = 64 (3.2 times d_λ = 20): test LDS 0.350, against 0.360 at m = 128")
    assert "m from 64 to 128" in sentence
    assert "3 of 9 cells are not distinguishable from the best" in sentence


def test_predicted_paths_alone_have_no_measured_number():
    first, *_, last = ridge_path.predicted_paths(path_of()[:2], MS)
    assert (first.m, first.lambda_star, first.measured_val_lds_at_predicted) == (32, None, None)
    assert first.predicted_lambda_star == pytest.approx(1.2)
    assert (last.m, last.predicted_lambda_star) == (128, None)


def test_the_finer_grid_has_nine_more_between_neighbours():
    fine = ridge_path.fine_ridges([0.01, 0.1, 1.0])
    assert len(fine) == 21
    assert fine[::10] == [0.01, 0.1, 1.0]
    assert np.diff(np.log(fine)) == pytest.approx(np.log(10) / 10)
