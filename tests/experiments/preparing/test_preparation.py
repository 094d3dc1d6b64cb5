from __future__ import annotations

import json

import pytest
import torch

from common.experiments.preparing.preparation import make_sketcher
from common.foundations.errors import UserError
from common.sketches.sketchers import CoordinateSketcher, ExplicitSketcher, FactoredSketcher
from common.workloads.benchmark import load_trained_model
from tests.reference_gradients import one_by_one_gradients

pytestmark = pytest.mark.usefixtures("mnist_once")


def unit_gradients(prepared, samples, benchmark_dir):
    """Return the unit gradients of `samples` at the checkpoint, and their lengths."""
    model = load_trained_model(prepared.workload, benchmark_dir, "cpu").model
    rows = one_by_one_gradients(model, prepared.workload.loss, samples.inputs, samples.targets)
    norms = rows.norm(dim=1)
    return rows / norms[:, None], norms


@pytest.mark.parametrize("offload", ["cpu", "recompute"])
@pytest.mark.parametrize("kind", ["self", "test"])
def test_geometry_is_that_of_the_gradients_of_the_trained_model(start, toy_benchmarks, kind, offload):
    _, _, prepared = start("--offload", offload, kind=kind)
    train, norms = unit_gradients(prepared, prepared.workload.train, toy_benchmarks)
    part = prepared.workload.train if kind == "self" else prepared.workload.test
    queries, _ = unit_gradients(prepared, part.subset(prepared.query_samples), toy_benchmarks)
    geometry = prepared.geometry
    assert geometry.num_train == 40
    torch.testing.assert_close(geometry.norms[:40], norms, rtol=1e-4, atol=0)
    torch.testing.assert_close(geometry.queries @ geometry.queries.T, queries @ queries.T, rtol=0, atol=1e-5)
    gram = train * norms[:, None] @ (train * norms[:, None]).T / 40
    spectrum = torch.linalg.eigvalsh(gram).flip(0)
    torch.testing.assert_close(geometry.eigenvalues[:10], spectrum[:10], rtol=1e-3, atol=0)
    for ridge, d_lambda in zip(prepared.ridges, prepared.effective_dimensions, strict=True):
        assert d_lambda == pytest.approx((spectrum / (spectrum + ridge)).sum().item(), rel=1e-3)


def test_queries_are_distinct_samples_drawn_by_the_seed_alone(start):
    first, again, other = (start("--seed", seed)[2].query_samples.tolist() for seed in ("1", "1", "2"))
    assert len(set(first)) == 9
    assert first == sorted(first)
    assert first == again
    assert first != other
    assert all(0 <= sample < 40 for sample in first)
    assert start("--seed", "1", "--num_trials", "2", "--max_m", "4")[2].query_samples.tolist() == first


def test_asking_for_more_queries_than_there_are_takes_all_and_says_so(start, capsys):
    _, run, prepared = start("--num_test_grads", "41")
    assert prepared.query_samples.tolist() == list(range(40))
    assert run.config["k"] == 40
    assert "--num_test_grads 41: all 40 samples there are" in capsys.readouterr().out


def test_what_was_prepared_is_recorded(start):
    _, run, prepared = start(kind="test")
    config = json.loads((run.folder / "config.json").read_text())
    assert (config["n"], config["k"], config["d"]) == (40, 9, 7850)
    assert config["rank"] == prepared.geometry.rank == 40
    assert config["ms"] == prepared.ms == [1, 2, 4, 8, 16]
    assert 0.5 < config["train_accuracy"] <= 1
    assert 0.2 < config["test_accuracy"] < 1
    assert len(config["data_fingerprint"]) == len(config["checkpoint_fingerprint"]) == 64
    assert {"data", "checkpoint", "gradients", "geometry", "total"} <= set(config["seconds"])
    assert config["offload"] == "recompute"


def test_fingerprints_follow_data_and_checkpoint(start):
    def facts(*options):
        config = start(*options)[1].config
        return config["data_fingerprint"], config["checkpoint_fingerprint"]

    plain, fewer, trained_less = facts(), facts("--num_train", "39"), facts("--epochs", "1")
    assert plain == facts("--seed", "7")
    assert plain[0] != fewer[0]
    assert plain[0] == trained_less[0]
    assert plain[1] != trained_less[1]


def test_only_a_rotation_invariant_projection_uses_coordinates(start):
    for options, kind in (
        ([], CoordinateSketcher),
        (["--explicit_projection"], ExplicitSketcher),
        (["--proj_type", "rademacher"], ExplicitSketcher),
        (["--proj_type", "sjlt"], ExplicitSketcher),
        (["--proj_type", "tensorsketch"], FactoredSketcher),
        (["--proj_type", "kronecker", "--min_m", "2"], FactoredSketcher),
    ):
        asked, run, prepared = start(*options)
        sketcher = make_sketcher(asked.sketches, prepared, prepared.ridges[0])
        assert isinstance(sketcher, kind)
        # inputs and errors of its one layer are little beside their products
        assert run.config["offload"] == "recompute"
        assert [m for m, _ in sketcher.problems(0, prepared.ms)] == [m for m in (1, 2, 4, 8, 16) if m in prepared.ms]


def test_dimensions_not_below_d_are_left_out(start):
    _, _, prepared = start("--min_m", "4096", "--max_m", "16384")
    assert (prepared.ms, prepared.dimensions.too_large) == ([4096], [8192, 16384])


def test_a_pair_that_does_not_exist_is_refused(start):
    with pytest.raises(UserError, match="there is no pair --dataset mnist --model resnet9"):
        start("--model", "resnet9")
