from __future__ import annotations

import numpy as np
import pytest
import torch

from common.foundations.errors import UserError
from common.workloads.datasets import maestro
from tests.workloads.datasets.reference_archive import archive_of
from tests.workloads.datasets.reference_midi import dattri_datasets, metadata, piano_midi, write_archive

# In the order of the metadata, which is not the order of the names; one piece is too short for a sequence.
PIECES = [
    ("test", "2008/d.midi"),
    ("train", "2009/b.midi"),
    ("validation", "2004/e.midi"),
    ("train", "2017/a_2.midi"),
    ("train", "2004/c.midi"),
    ("test", "2011/a.midi"),
    ("train", "2018/a.midi"),
]
LENGTHS = [300, 200, 150, 250, 20, 350, 280]
JSON = "maestro-v2.0.0.json"


@pytest.fixture(scope="module")
def members() -> dict[str, bytes]:
    pieces = {name: piano_midi(seed, LENGTHS[seed]) for seed, (_, name) in enumerate(PIECES)}
    return {JSON: metadata(PIECES), **pieces}


def test_every_sequence_equals_dattris_own_in_its_order(tmp_path, members):
    archive = write_archive(tmp_path, members)
    data = maestro.load(tmp_path, archive)
    expected = dattri_datasets(tmp_path / archive.file_name, tmp_path / "extracted")
    for part, pairs in ((data.train, expected["train"]), (data.test, expected["test"])):
        assert len(pairs) >= 4
        assert torch.equal(part.inputs, torch.stack([inputs for inputs, _ in pairs]))
        assert torch.equal(part.targets, torch.stack([targets for _, targets in pairs]))


def test_sequences_have_256_tokens_of_the_vocabulary_and_print_nothing(tmp_path, members, capfd):
    data = maestro.load(tmp_path, write_archive(tmp_path, members))
    for part in (data.train, data.test):
        assert part.inputs.shape == part.targets.shape == (len(part), 256)
        assert part.inputs.dtype == part.targets.dtype == torch.int64
        assert part.inputs.min() >= 0
        assert part.targets.max() < 390
    assert capfd.readouterr() == ("", "")


def test_encoded_tokens_are_kept_and_need_the_archive_no_more(tmp_path, members):
    archive = write_archive(tmp_path, members)
    first = maestro.load(tmp_path, archive)
    (tmp_path / archive.file_name).unlink()
    assert len(list(tmp_path.iterdir())) == 1
    again = maestro.load(tmp_path, archive)
    assert torch.equal(first.train.inputs, again.train.inputs)
    assert torch.equal(first.test.targets, again.test.targets)


def test_kept_tokens_of_another_archive_are_not_used(tmp_path, members):
    first = maestro.load(tmp_path, write_archive(tmp_path, members))
    other = dict(members, **{"2018/a.midi": piano_midi(seed=99, notes=280)})
    second = maestro.load(tmp_path, write_archive(tmp_path, other))
    assert not torch.equal(first.train.inputs[0], second.train.inputs[0])


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_damaged_tokens_are_named(tmp_path, members, keep):
    archive = write_archive(tmp_path, members)
    maestro.load(tmp_path, archive)
    (cache,) = tmp_path.glob("*.npz")
    content = cache.read_bytes()
    cache.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(UserError, match="is damaged: delete it") as raised:
        maestro.load(tmp_path, archive)
    assert str(cache) in str(raised.value)


def test_the_official_archive_is_asked_for_by_its_published_checksum(tmp_path):
    (tmp_path / "maestro-v2.0.0-midi.zip").write_bytes(b"not the archive")
    with pytest.raises(UserError, match="ec2cc9d94886c6b376db1eaa2b8ad1ce62ff9f0a28b3744782b13163295dadf3") as raised:
        maestro.load(tmp_path)
    assert str(tmp_path / "maestro-v2.0.0-midi.zip") in str(raised.value)
    assert "chorales" in str(raised.value)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_a_truncated_archive_is_named_even_if_its_checksum_is_expected(tmp_path, members, keep):
    archive = write_archive(tmp_path, members)
    path = tmp_path / archive.file_name
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(UserError, match=r"maestro-v2\.0\.0-midi\.zip is not a complete zip"):
        maestro.load(tmp_path, archive_of(path, "chorales"))
    assert list(tmp_path.iterdir()) == [path]


def test_a_corrupted_member_is_a_user_error_even_if_the_checksum_is_expected(tmp_path, members):
    archive = write_archive(tmp_path, members)
    path = tmp_path / archive.file_name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"maestro-v2\.0\.0-midi\.zip"):
        maestro.load(tmp_path, archive_of(path, "chorales"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({JSON: None}, "is incomplete: .*maestro-v2.0.0.json"),
        ({"2009/b.midi": None}, "is incomplete: .*2009/b.midi"),
        ({"2009/b.midi": b"not MIDI"}, "2009/b.midi is not a readable MIDI file"),
        ({JSON: b"{"}, "is not a list of pieces"),
        ({JSON: b"\xff"}, "is not a list of pieces"),
        ({JSON: b"3"}, "is not a list of pieces"),
        ({JSON: b'[{"split": "train"}]'}, "is not a list of pieces"),
        ({JSON: b'["train"]'}, "is not a list of pieces"),
        ({JSON: b'[{"split": "train", "midi_filename": 3}]'}, "is not a list of pieces"),
        ({JSON: metadata([("Train", "2009/b.midi")])}, "has split 'Train', allowed are train, validation, test"),
        ({JSON: metadata([("train", "2009/b.midi")])}, "has no test piece with more than 256 events"),
    ],
)
def test_what_the_format_does_not_allow_is_a_user_error(tmp_path, members, changes, message):
    content = {name: value for name, value in {**members, **changes}.items() if value is not None}
    with pytest.raises(UserError, match=message):
        maestro.load(tmp_path, write_archive(tmp_path, content))
    assert not list(tmp_path.glob("*npz*"))


def test_tokens_that_cannot_be_kept_are_a_user_error_and_leave_nothing(tmp_path, members):
    archive = write_archive(tmp_path, members)
    maestro.load(tmp_path, archive)
    (cache,) = tmp_path.glob("*.npz")
    cache.unlink()
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        maestro._write_whole(blocked, {"train": np.zeros(1), "test": np.zeros(1)})
    assert sorted(tmp_path.iterdir()) == [blocked, tmp_path / archive.file_name]
