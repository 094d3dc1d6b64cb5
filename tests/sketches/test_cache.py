from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from common.foundations.errors import UserError
from common.gradients.layer_gradients import LayerwiseGradients, RowGradients
from common.gradients.planning import compute_gradients
from common.sketches.basis import build_basis
from common.workloads.losses import cross_entropy
from tests.locks import no_locks_below
from tests.reference_cache import make_cache, make_plan, slow_loss

pytestmark = pytest.mark.usefixtures("one_thread")
REPOSITORY = Path(__file__).parents[2]
OFFLOADS = ["none", "cpu", "disk", "recompute"]
QUERIES = torch.arange(60, 67)


@pytest.fixture
def forbid_gradients(monkeypatch):
    """Make every pass over the samples fail from the moment this is called."""

    def forbid():
        def refuse(*args, **kwargs):
            raise AssertionError("gradients are computed again")

        monkeypatch.setattr(RowGradients, "__call__", refuse)
        monkeypatch.setattr(LayerwiseGradients, "_run_pass", refuse)

    return forbid


@contextmanager
def files_of_at_most(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def build(gradients):
    return build_basis(gradients, 60)


def keep_geometry(cache):
    with cache.geometry_lock():
        basis = build(cache.gradients()[0])
        cache.keep_basis(basis)
    return basis


def read_geometry(cache):
    with cache.geometry_lock():
        return cache.read_basis()


def assert_same_geometry(found, expected):
    assert type(found) is type(expected)
    for name, tensor in expected.tensors().items():
        assert torch.equal(found.tensors()[name], tensor)
        assert found.tensors()[name].stride() == tensor.stride()
    assert (found.rank, found.num_train) == (expected.rank, expected.num_train)


def rows_of(gradients):
    return torch.cat([block for _, block in gradients.unit_blocks()], dim=1)


def assert_same_gradients(found, expected):
    assert torch.equal(rows_of(found), rows_of(expected))
    assert torch.equal(found.norms, expected.norms)
    assert torch.equal(found.unit_gram(), expected.unit_gram())


def files_in(folder):
    return {path.name for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


# --- the numbers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offload", OFFLOADS)
def test_a_kept_geometry_is_the_one_that_was_built_bit_by_bit_and_needs_no_gradient(
    tmp_path, offload, forbid_gradients
):
    expected = keep_geometry(make_cache(tmp_path, offload))
    forbid_gradients()
    found = read_geometry(make_cache(tmp_path, offload))
    assert_same_geometry(found, expected)
    assert found.rank == expected.rank


def test_where_gradients_are_kept_does_not_matter_to_a_geometry(tmp_path):
    geometries = [build(make_cache(tmp_path, offload).gradients()[0]) for offload in ("none", "cpu", "disk")]
    for other in geometries[1:]:
        assert_same_geometry(other, geometries[0])
    keep_geometry(make_cache(tmp_path, "cpu"))
    assert_same_geometry(read_geometry(make_cache(tmp_path, "disk")), geometries[0])
    assert read_geometry(make_cache(tmp_path, "recompute")) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_on_disk_are_written_once_and_read_bit_by_bit(tmp_path, dtype, forbid_gradients, capsys):
    expected = compute_gradients(make_plan("cpu", dtype=dtype))
    capsys.readouterr()
    first, from_cache = make_cache(tmp_path, "disk", dtype=dtype).gradients()
    assert not from_cache
    assert_same_gradients(first, expected)
    assert "gradients: kept in " in capsys.readouterr().out
    forbid_gradients()
    second, from_cache = make_cache(tmp_path, "disk", dtype=dtype).gradients()
    assert from_cache
    assert_same_gradients(second, expected)
    captured = capsys.readouterr()
    assert captured.out.endswith(f"samples\ngradients: from {next(tmp_path.iterdir())}/gradients\n")
    assert captured.err == ""


def test_only_the_disk_mode_keeps_gradients(tmp_path):
    for offload in ("none", "cpu", "recompute"):
        assert not make_cache(tmp_path, offload).gradients()[1]
    assert list(tmp_path.iterdir()) == []


# --- what does not match is made again ----------------------------------------------------------------------


def changed_entries(made_by):
    """Yield (dotted path, changed copy) for every entry of a manifest."""
    for name, value in made_by.items():
        if isinstance(value, dict):
            for path, changed in changed_entries(value):
                yield f"{name}.{path}", made_by | {name: changed}
        else:
            yield name, made_by | {name: "something else"}


@pytest.mark.parametrize("kind", ["geometry", "gradients"])
def test_every_entry_of_a_manifest_that_differs_is_named_and_the_cache_not_used(tmp_path, kind, capsys):
    keep_geometry(make_cache(tmp_path, "disk"))
    (manifest,) = tmp_path.rglob(f"{kind}/manifest.json")
    record = json.loads(manifest.read_text())
    entries = dict(changed_entries(record["made_by"]))
    expected = {"samples.training.count", "samples.training.data", "samples.test.count", "samples.test.data"}
    expected |= {f"recipe.{name}" for name in ("epochs", "learning_rate", "momentum", "batch_size", "optimizer")}
    expected |= {"batch_size", "dtype", "route", "format", "torch", "dattri", "scipy", "code", "machine"}
    assert set(entries) == expected | {"workload_file", "checkpoint", "parameters", "losses", "gradient_lengths"}
    for entry, made_by in entries.items():
        manifest.write_text(json.dumps(record | {"made_by": made_by}))
        capsys.readouterr()
        cache = make_cache(tmp_path, "disk")
        assert read_geometry(cache) is None if kind == "geometry" else not cache.gradients()[1]
        err = capsys.readouterr().err
        assert err.startswith(f"{manifest.parent}: made again, because {entry} was")
        assert err.count("\n") == 1


def test_gradients_of_another_checkpoint_or_loss_are_computed_again(tmp_path, capsys):
    make_cache(tmp_path, "disk").gradients()
    for changes, named in (({"loss": lambda o, t: 2 * cross_entropy(o, t)}, "losses"), ({}, "losses")):
        expected = compute_gradients(make_plan("cpu", **changes))
        found, from_cache = make_cache(tmp_path, "disk", **changes).gradients()
        assert not from_cache
        assert_same_gradients(found, expected)
        assert f"because {named} was" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["truncated", "one bit flipped", "missing", "emptied", "manifest missing"])
@pytest.mark.parametrize("name", ["geometry.pt", "rows.bin", "norms.pt"])
def test_a_damaged_cache_is_detected_and_made_again(tmp_path, name, damage, capsys):
    geometry = keep_geometry(make_cache(tmp_path, "disk"))
    expected = compute_gradients(make_plan("cpu"))
    (path,) = tmp_path.rglob(name)
    content = path.read_bytes()
    middle = len(content) // 2
    if damage == "one bit flipped":
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 8]) + content[middle + 1 :])
    elif "missing" in damage:
        (path if damage == "missing" else path.with_name("manifest.json")).unlink()
    else:
        path.write_bytes(content[: len(content) - 1 if damage == "truncated" else 0])
    capsys.readouterr()
    cache = make_cache(tmp_path, "disk")
    if name == "geometry.pt":
        assert read_geometry(cache) is None
        assert_same_geometry(keep_geometry(cache), geometry)
        assert_same_geometry(read_geometry(cache), geometry)
    else:
        found, from_cache = cache.gradients()
        assert not from_cache
        assert_same_gradients(found, expected)
        assert cache.gradients()[1]
    said = {"missing": f"{name} is missing", "manifest missing": ""}.get(damage, f"{name} is damaged")
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == (damage != "manifest missing")
    assert path.exists()


def test_who_is_reading_gradients_keeps_them_while_another_makes_them_again(tmp_path):
    first = make_cache(tmp_path, "disk").gradients()[0]
    expected = rows_of(first)
    other = make_cache(tmp_path, "disk", loss=lambda o, t: cross_entropy(-o, t)).gradients()[0]
    assert not torch.equal(rows_of(other), expected)
    assert torch.equal(rows_of(first), expected)
    shutil.rmtree(tmp_path)
    assert torch.equal(rows_of(first), expected)


# --- faults while writing -----------------------------------------------------------------------------------


def test_gradients_that_are_not_finite_are_never_kept(tmp_path):
    def loss(outputs, targets):
        return cross_entropy(outputs, targets) * torch.where(targets == 1, torch.inf, 1)

    cache = make_cache(tmp_path, "disk", loss=loss)
    with pytest.raises(UserError, match=r"the gradient of training sample \d+ is not finite in "):
        cache.gradients()
    assert files_in(tmp_path) == set()


def test_an_interrupted_writer_leaves_nothing(tmp_path, monkeypatch):
    calls = 0

    def interrupt(*args):
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return compute(*args)

    compute = RowGradients.__call__
    cache = make_cache(tmp_path, "disk")
    monkeypatch.setattr(RowGradients, "__call__", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cache.gradients()
    assert files_in(tmp_path) == set()


def test_gradients_larger_than_the_disk_are_refused_before_anything_is_computed(
    tmp_path, monkeypatch, forbid_gradients
):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    cache = make_cache(tmp_path, "disk")
    forbid_gradients()
    with pytest.raises(UserError, match=r"--cache_dir: .*gradients has 1000 bytes free, the gradients need 20100"):
        cache.gradients()


def test_gradients_that_are_made_again_do_not_need_their_space_twice(tmp_path, monkeypatch):
    make_cache(tmp_path, "disk").gradients()

    def usage(folder):
        assert not (folder / "rows.bin").exists()
        return disk_usage(folder)

    disk_usage = shutil.disk_usage
    monkeypatch.setattr("shutil.disk_usage", usage)
    assert not make_cache(tmp_path, "disk", loss=lambda o, t: 2 * cross_entropy(o, t)).gradients()[1]


@pytest.mark.parametrize("room", [5_000, 20_000, 20_200])  # for some rows, for all but one, for all but no norms
def test_a_disk_that_fills_up_while_gradients_are_written_is_one_line_and_leaves_nothing(tmp_path, room, monkeypatch):
    cache = make_cache(tmp_path, "disk")
    if room == 20_200:  # the limit is one of each file: let the last one be the largest
        monkeypatch.setattr("torch.save", lambda value, stream: stream.write(bytes(30_000)))
    with files_of_at_most(room), pytest.raises(UserError, match=r"no space left in .*gradients: free some") as caught:
        cache.gradients()
    assert "\n" not in str(caught.value)
    assert files_in(tmp_path) == set()


def test_a_disk_that_fills_up_while_the_geometry_is_written_is_one_line_and_the_run_goes_on(tmp_path, capsys):
    cache = make_cache(tmp_path, "recompute")
    with files_of_at_most(10_000):
        keep_geometry(cache)
    err = capsys.readouterr().err
    assert err.startswith(f"geometry: not kept in {cache.folder}/geometry, going on without (no space left in ")
    assert err.count("\n") == 1
    assert files_in(tmp_path) == set()
    assert read_geometry(cache) is None
    keep_geometry(cache)
    assert read_geometry(cache) is not None


@pytest.mark.parametrize("offload", OFFLOADS)
def test_a_folder_that_cannot_be_written_stops_only_who_keeps_gradients_in_it(tmp_path, offload, capsys):
    (tmp_path / "file").write_text("")
    cache = make_cache(tmp_path / "file" / "below", offload)
    if offload == "disk":
        with pytest.raises(UserError, match=r"cannot write in .*below"), cache.geometry_lock():
            pass
        with pytest.raises(UserError, match=r"cannot write in .*below"):
            cache.gradients()
        assert capsys.readouterr().err == ""
        return
    with cache.geometry_lock() as usable:
        assert not usable
    err = capsys.readouterr().err
    assert "geometry: not kept in " in err
    assert str(tmp_path / "file") in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("kept", ["gradients", "geometry"])
def test_what_lies_in_a_folder_that_cannot_be_locked_is_used_where_it_suffices(
    tmp_path, kept, forbid_gradients, capsys
):
    expected = make_cache(tmp_path, "disk").gradients()[0]
    geometry = build(expected) if kept == "gradients" else keep_geometry(make_cache(tmp_path, "disk"))
    if kept == "geometry":
        shutil.rmtree(make_cache(tmp_path, "disk").folder / "gradients")
    forbid_gradients()
    capsys.readouterr()
    cache = make_cache(tmp_path, "disk")
    with no_locks_below(tmp_path), cache.geometry_lock() as usable:
        assert usable == (kept == "geometry")
        if usable:
            assert_same_geometry(cache.read_basis(), geometry)
    assert ("not kept in " in capsys.readouterr().err) == (kept == "gradients")
    if kept == "gradients":
        with no_locks_below(tmp_path):
            found, from_cache = cache.gradients()
        assert from_cache
        assert_same_gradients(found, expected)
    else:
        with no_locks_below(tmp_path), pytest.raises(UserError, match="cannot lock files in"):
            cache.gradients()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_one_line_and_the_run_goes_on(tmp_path, capsys):
    tmp_path.chmod(0o500)
    with make_cache(tmp_path, "cpu").geometry_lock() as usable:
        assert not usable
    assert capsys.readouterr().err.count("\n") == 1


# --- several processes --------------------------------------------------------------------------------------


def start_writing(folder):
    """Start a process that takes half a second to compute gradients, and return it when it is about to begin."""
    command = [sys.executable, "-m", "tests.reference_cache", str(folder), str(torch.get_num_threads())]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen(command, cwd=REPOSITORY, **pipes)
    assert process.stdout.readline().startswith("gradients: 4 parameters layer by layer")
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.fixture
def expected():
    return compute_gradients(make_plan("cpu"))


def test_killed_while_writing_nothing_is_trusted_and_the_leftover_goes(tmp_path, expected):
    with start_writing(tmp_path) as process:
        while process.poll() is None and not any(path.stat().st_size for path in tmp_path.rglob("*.partial")):
            time.sleep(0.001)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert list(tmp_path.rglob("*.partial")) != []
    found, from_cache = make_cache(tmp_path, "disk", loss=slow_loss).gradients()
    assert not from_cache
    assert_same_gradients(found, expected)
    assert files_in(tmp_path) == {"rows.bin", "norms.pt", "manifest.json"}


def test_who_comes_second_waits_and_uses_what_the_first_has_made(tmp_path, expected, forbid_gradients, capsys):
    cache = make_cache(tmp_path, "disk", loss=slow_loss)
    forbid_gradients()
    with start_writing(tmp_path) as process:
        while process.poll() is None and not any(path.stat().st_size for path in tmp_path.rglob(".lock")):
            time.sleep(0.001)
        found, from_cache = cache.gradients()
        out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert "gradients: kept in " in out
    assert from_cache
    assert_same_gradients(found, expected)
    assert f"waiting for process {process.pid} on " in capsys.readouterr().err
