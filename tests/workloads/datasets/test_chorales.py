from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from music21 import corpus

from common.workloads.datasets import chorales
from common.workloads.datasets.midi_events import encode, to_examples, windows

SMALL = 10


@pytest.fixture(scope="module")
def tokens() -> list[list[int]]:
    return [encode(chorales.to_midi(name), name) for name in chorales.piece_names()[:SMALL]]


@pytest.fixture(scope="module")
def data():
    return chorales.load(num_pieces=SMALL)


def test_every_fifth_piece_is_for_testing_and_none_is_in_both(data, tokens):
    expected = {"train": [0, 1, 2, 3, 5, 6, 7, 8], "test": [4, 9]}
    for part, pieces in ((data.train, expected["train"]), (data.test, expected["test"])):
        sequences = [to_examples(windows(tokens[piece])) for piece in pieces]
        assert torch.equal(part.inputs, torch.cat([sequence.inputs for sequence in sequences]))
        assert torch.equal(part.targets, torch.cat([sequence.targets for sequence in sequences]))


def test_sequences_have_256_tokens_of_the_vocabulary(data):
    for part in (data.train, data.test):
        assert len(part) > 0
        assert part.inputs.shape == part.targets.shape == (len(part), 256)
        assert part.inputs.dtype == part.targets.dtype == torch.int64
        assert part.inputs.min() >= 0
        assert part.targets.max() < 388


def test_names_are_those_of_riemenschneiders_edition_each_once():
    names = chorales.piece_names()
    assert len(set(names)) == len(names) > chorales.NUM_PIECES
    assert names[0] == "bach/bwv269"


@pytest.mark.parametrize("name", ["bach/bwv269", "bach/bwv267", "bach/bwv299"])  # bwv299 has grace notes
def test_joined_ties_equal_music21s_own(name):
    score = corpus.parse(name, forceSource=True).stripTies()
    expected = [
        (float(note.offset), float(note.offset + note.quarterLength), pitch.midi)
        for note in score.flatten().notes
        for pitch in note.pitches
        if note.quarterLength > 0
    ]
    assert sorted(map(tuple, chorales._notes(name))) == sorted(expected)


@pytest.mark.parametrize("piece", range(3))
def test_every_note_of_a_piece_is_in_its_tokens_at_its_time(tokens, piece):
    notes = chorales._notes(chorales.piece_names()[piece])
    time, starts = 0, []
    for token in tokens[piece]:
        if 256 <= token < 356:
            time += token - 255
        elif token < 128:
            starts.append((time, token))
    # A quarter is 48 steps of 10 ms.
    assert sorted(starts) == sorted((round(start * 48), pitch) for start, _, pitch in notes)


def test_kept_tokens_are_those_of_the_scores_and_read_none(data, tmp_path, monkeypatch):
    chorales.load(tmp_path, SMALL)
    monkeypatch.setattr(chorales, "_parse", None)
    kept = chorales.load(tmp_path, SMALL)
    for part, expected in ((kept.train, data.train), (kept.test, data.test)):
        assert torch.equal(part.inputs, expected.inputs)
        assert torch.equal(part.targets, expected.targets)


def test_tokens_of_other_pieces_are_read_again(tmp_path, monkeypatch, capsys):
    chorales.load(tmp_path, 5)
    assert len(chorales.load(tmp_path, SMALL).train) > len(chorales.load(tmp_path, 5).train)
    assert "because num_pieces was 5, wanted is 10" in capsys.readouterr().err


def test_loading_prints_nothing_and_warns_of_nothing():
    code = "from common.workloads.datasets import chorales; chorales.load(num_pieces=5)"
    command = [sys.executable, "-W", "error", "-c", code]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
