"""Both command lines where a model has fewer parameters than samples: F itself is decomposed, no Gram matrix made."""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest

import hyperparam_selection
import spectrum_bounds
from common.experiments import script
from common.experiments.preparing import fisher_views
from common.gradients.kept_rows import RecomputedGradients, StoredGradients
from common.sketches.basis import basis_of_samples
from tests.tiny import write_tiny

pytestmark = pytest.mark.usefixtures("one_thread", "undrawn")
MORE = """
inputs = torch.randn(230, 9, generator=generator)
targets = inputs[:, :4].argmax(1)
train, test = Examples(inputs[:200], targets[:200]), Examples(inputs[200:], targets[200:])
""".strip()
TOY = "--max_m 16 --num_trials 2 --num_test_grads 15 --lambda_exp_min -5 --lambda_exp_max 0 --device cpu"


@pytest.fixture
def tables(tmp_path):
    """Return (script, name of its folder for results, options) -> its tables, for 200 samples of 40 parameters."""
    workload = write_tiny(tmp_path, MORE)

    def run(experiment, name, *options):
        folders = [f"--{kind}_dir={tmp_path / name / kind}" for kind in ("output", "cache")]
        command = ["script.py", "--workload", str(workload), *TOY.split(), *folders, *options]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [*command, f"--benchmark_dir={tmp_path / 'benchmarks'}"])
            with pytest.raises(SystemExit) as stop:
                script.run_script(experiment.main)
        assert stop.value.code == 0
        (config,) = (tmp_path / name / "output").rglob("config.json")
        return {path.stem: pd.read_csv(path) for path in config.parent.glob("*.csv")}

    return run


def by_inner_products(patch):
    def build(gradients, num_train):
        return basis_of_samples(gradients.unit_gram(), gradients.norms, num_train)

    patch.setattr(fisher_views, "build_basis", build)


def refuse_gram_matrices(patch):
    def refuse(self):
        raise AssertionError("a matrix of samples by samples is made")

    for kind in (RecomputedGradients, StoredGradients):
        patch.setattr(kind, "unit_gram", refuse)


def assert_close(found, expected, columns, rtol):
    for column in columns:
        np.testing.assert_allclose(found[column], expected[column], rtol=rtol, err_msg=column)


@pytest.mark.parametrize("options", [["--offload", "recompute"], ["--offload", "cpu"], ["--test_mode", "test"]])
def test_dimensions_and_predictions_are_those_of_the_other_route(tables, options, monkeypatch):
    options = [*options, "--min_d_lambda", "0.1"]
    with monkeypatch.context() as patch:
        refuse_gram_matrices(patch)
        found = tables(spectrum_bounds, "few", *options)
    with monkeypatch.context() as patch:
        by_inner_products(patch)
        expected = tables(spectrum_bounds, "many", *options)
    assert_close(found["effective_dimension"], expected["effective_dimension"], ["lambda", "d_lambda"], 1e-6)
    predicted = [name for name in expected["summary"] if name.startswith("predicted_")]
    assert len(predicted) == 5
    assert_close(found["summary"], expected["summary"], predicted, 1e-4)


def test_an_explicit_projection_gives_the_same_scores_by_either_route(tables, monkeypatch):
    options = ["--proj_type", "sjlt", "--offload", "cpu", "--min_d_lambda", "0.1"]
    found = tables(spectrum_bounds, "few", *options)
    by_inner_products(monkeypatch)
    expected = tables(spectrum_bounds, "many", *options)
    assert_close(found["trials"], expected["trials"], ["mean_ratio", "eps_50", "eps_95"], 1e-4)


def test_lds_is_that_of_the_other_route(tables, monkeypatch):
    options = ["--min_m", "8", "--num_subsets", "10", "--val_ratio", "0.4"]
    found = tables(hyperparam_selection, "few", *options)
    by_inner_products(monkeypatch)
    expected = tables(hyperparam_selection, "many", *options)
    exact = [table["summary"][table["summary"]["m"].astype(float) == np.inf] for table in (found, expected)]
    assert_close(*exact, ["d_lambda", "val_lds", "test_lds"], 1e-6)
    predicted = ["predicted_val_lds", "predicted_test_lds"]
    for column in predicted:
        np.testing.assert_allclose(found["predicted"][column], expected["predicted"][column], atol=1e-4)
