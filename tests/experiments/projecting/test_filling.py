from __future__ import annotations

import shlex

import numpy as np
import pytest
import torch

from common.experiments.projecting import filling
from common.experiments.projecting.subject import prepare
from common.foundations.distributed import Ranks
from common.foundations.errors import UserError
from common.sketches import matrices
from common.stores import manifest
from common.stores.writer import StoreWriter
from common.workloads.losses import cross_entropy
from tests.experiments.projecting.cases import contents, options
from tests.reference_gradients import one_by_one_gradients
from tests.sketches.test_row_projection import column_by_column

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = ["normal", "rademacher", "sjlt"]
FACTORED = ["tensorsketch", "kronecker"]


@pytest.fixture(autouse=True)
def small_ranges(monkeypatch):
    """Stores and matrices of test size then span several ranges and tiles."""
    monkeypatch.setattr(manifest, "FEWEST_ROWS", 5)
    monkeypatch.setattr(matrices, "TILE_NUMBERS", 2**7)
    monkeypatch.setattr(matrices, "SPARSE_TILE_WIDTH", 16)
    monkeypatch.setattr("common.sketches.row_projection.MOST_ROWS", 6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("projected")


def project(store, chosen, subject=None):
    """Fill both parts of a store in this process; return the subject."""
    subject = subject or prepare(chosen, Ranks())
    for writer in filling.make_writers(store, subject):
        filling.fill(writer, subject, Ranks())
    return subject


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_holds_gradients_by_plain_autograd_times_a_matrix_filled_column_by_column(folder, tmp_path, kind):
    subject = project(tmp_path, options(folder, kind=kind))
    examples = subject.subject.examples
    gradients = one_by_one_gradients(subject.subject.model, cross_entropy, examples.inputs, examples.targets)
    expected = gradients @ column_by_column(kind, 8, 5, 40).T
    for part, rows in (("train", slice(0, 24)), ("test", slice(24, 44))):
        found = np.load(tmp_path / part / "projected.npy", mmap_mode="r")
        np.testing.assert_allclose(found, expected[rows].numpy(), rtol=0, atol=1e-5)
        norms = np.load(tmp_path / part / "norms.npy", mmap_mode="r")
        np.testing.assert_allclose(norms, gradients[rows].norm(dim=1).numpy(), rtol=1e-5)


@pytest.mark.parametrize("kind", [*KINDS, *FACTORED])
def test_ranges_come_out_the_same_whoever_makes_them_and_in_whatever_order(folder, tmp_path, kind):
    subject = project(tmp_path / "one", options(folder, kind=kind))
    # two ranks, the second one first and with a projection of its own
    other = prepare(options(folder, kind=kind), Ranks())
    for part, identity in subject.identities.items():
        writer = StoreWriter(tmp_path / "two" / part, identity)
        writer.begin()
        assert len(identity.ranges) >= 3
        for who, spans in ((other, identity.ranges[1::2]), (subject, identity.ranges[::2])):
            for span in reversed(spans):
                filling._make_range(writer, who, [span])
        writer.finish({})
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize("batch_size", [1, 3, 32])
@pytest.mark.parametrize("kind", [*KINDS, *FACTORED])
def test_the_size_of_batches_changes_no_more_than_rounding(folder, tmp_path, kind, batch_size):
    project(tmp_path / "a", options(folder, kind=kind))
    project(tmp_path / "b", options(folder, kind=kind, batch_size=batch_size))
    a, b = (np.load(tmp_path / name / "train" / "projected.npy") for name in ("a", "b"))
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_an_interrupted_store_is_completed_with_the_same_bytes(folder, tmp_path, monkeypatch):
    subject = project(tmp_path / "whole", options(folder))
    write, written = StoreWriter.write, []

    def stop_after_three(self, span, *rows):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(span)
        write(self, span, *rows)

    monkeypatch.setattr(StoreWriter, "write", stop_after_three)
    with pytest.raises(KeyboardInterrupt):
        project(tmp_path / "parts", None, subject)
    monkeypatch.setattr(StoreWriter, "write", write)
    (writer, _) = filling.make_writers(tmp_path / "parts", subject)
    assert filling.fill(writer, subject, Ranks()) == 24 - sum(map(len, written))
    project(tmp_path / "parts", None, subject)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_a_finished_store_is_left_alone_and_a_damaged_range_made_again(folder, tmp_path, capsys):
    subject = project(tmp_path, options(folder))
    whole = contents(tmp_path)
    (writer, _) = filling.make_writers(tmp_path, subject)
    assert filling.fill(writer, subject, Ranks()) == 0
    with open(tmp_path / "train" / "projected.npy", "r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"x")
    assert 0 < filling.fill(writer, subject, Ranks()) <= 8
    assert "1 ranges are damaged" in capsys.readouterr().err
    assert contents(tmp_path) == whole


@pytest.mark.parametrize(
    ("factor", "message"),
    [(float("nan"), r"gradient of train sample 0 is not finite"), (1.01, r"train sample \d+ has length .* autograd")],
)
def test_gradients_that_are_not_finite_or_not_right_are_named_and_not_written(folder, tmp_path, factor, message):
    subject = prepare(options(folder), Ranks())
    right = subject.projection

    def wrong(examples):
        found = right(examples)
        found.norms.mul_(factor)
        return found

    wrong.rows_at_once = right.rows_at_once
    object.__setattr__(subject, "projection", wrong)
    with pytest.raises(UserError, match=message):
        project(tmp_path, None, subject)
    assert not list(tmp_path.rglob("ranges/*.json"))


def test_a_store_that_another_process_writes_is_refused(folder, tmp_path):
    with (
        filling.held(tmp_path, Ranks()),
        pytest.raises(UserError, match="another process is writing there"),
        filling.held(tmp_path, Ranks()),
    ):
        pass


def test_no_more_rows_than_the_projection_asks_for_are_projected_at_once(folder, monkeypatch):
    subject = prepare(options(folder, kind="normal"), Ranks())
    sizes = [len(p.norms) for p in filling.project_range(subject, "train", range(3, 20))]
    assert sizes == [6, 6, 5]
    assert torch.cat([p.norms for p in filling.project_range(subject, "train", range(3, 20))]).shape == (17,)


def test_the_command_of_an_audit_survives_a_shell(tmp_path, capsys):
    subject = prepare(options(tmp_path), Ranks())
    store = tmp_path / "two words"
    filling.report(store, filling.make_writers(store, subject))
    command = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("audit: "))
    assert shlex.split(command)[-3::2] == [str(store / "train"), str(store / "test")]
