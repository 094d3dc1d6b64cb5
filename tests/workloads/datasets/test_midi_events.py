from __future__ import annotations

import io

import pretty_midi
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.foundations.errors import UserError
from common.workloads.datasets.midi_events import SEQUENCE_LENGTH, VOCABULARY, encode, to_examples, windows
from tests.workloads.datasets.reference_midi import piano_midi


@given(st.integers(0, 2000))
def test_windows_overlap_by_one_token_and_cover_the_piece_up_to_less_than_one_window(length):
    tokens = [index % VOCABULARY for index in range(length)]
    rows = windows(tokens)
    assert rows.shape == (max(0, (length - 1) // SEQUENCE_LENGTH), SEQUENCE_LENGTH + 1)
    for index, row in enumerate(rows):
        start = index * SEQUENCE_LENGTH
        assert row.tolist() == tokens[start : start + SEQUENCE_LENGTH + 1]


def test_targets_are_the_next_tokens():
    tokens = [index % VOCABULARY for index in range(1000)]
    examples = to_examples(windows(tokens))
    assert len(examples) == 3
    assert examples.inputs.flatten().tolist() == tokens[:768]
    assert examples.targets.flatten().tolist() == tokens[1:769]
    assert examples.inputs.dtype == examples.targets.dtype == torch.int64
    assert examples.inputs.is_contiguous()
    assert examples.targets.is_contiguous()


def test_a_known_file_has_the_tokens_that_the_vocabulary_says():
    instrument = pretty_midi.Instrument(program=0)
    instrument.notes = [pretty_midi.Note(velocity=80, pitch=60, start=0.5, end=2.0)]
    instrument.control_changes = [pretty_midi.ControlChange(64, 127, 3), pretty_midi.ControlChange(64, 0, 4)]
    midi = pretty_midi.PrettyMIDI()
    midi.instruments.append(instrument)
    file = io.BytesIO()
    midi.write(file)
    shift, off, velocity = 256, 128, 356
    # 0.5 s, velocity 80/4, note 60 on; 1.5 s in two shifts, note 60 off
    assert encode(file.getvalue(), "piece") == [shift + 49, velocity + 20, 60, shift + 99, shift + 49, off + 60]


def test_tokens_stay_in_the_vocabulary():
    tokens = encode(piano_midi(seed=0, notes=500), "piece")
    assert len(tokens) > 1000
    assert min(tokens) >= 0
    assert max(tokens) < VOCABULARY - 2  # end and padding never occur inside a piece


@pytest.mark.parametrize("damage", ["empty", "text", "truncated"])
def test_what_is_no_midi_file_is_a_user_error_that_names_it(damage):
    content = piano_midi(seed=0, notes=50)
    damaged = {"empty": b"", "text": b"not MIDI", "truncated": content[: len(content) // 2]}[damage]
    with pytest.raises(UserError, match=r"piece\.midi is not a readable MIDI file"):
        encode(damaged, "piece.midi")
