"""chorales, embedded: Bach chorales in music21's corpus as MIDI event tokens.

Not a benchmark: a stand-in with the shapes of MAESTRO for when there is no network. The scores are read from
the installed music21; its corpus/license.txt says on what terms it distributes them. Reading them takes half a
minute, so their tokens are kept in the data folder, where there is one:

    <data_dir>/chorales/tokens.pt, manifest.json    (common/workloads/datasets/parsed.py)
"""

from __future__ import annotations

import io
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.foundations import storage
from common.foundations.progress import with_progress
from common.workloads.datasets import midi_events
from common.workloads.datasets.midi_events import encode, to_examples, windows
from common.workloads.datasets.parsed import kept_or_parsed
from common.workloads.records import Dataset

NUM_PIECES = 200
"""Pieces read by default, the first in Riemenschneider's order: more would take more than 10 seconds."""

_QUARTERS_PER_MINUTE = 125  # a quarter is 480 ms, so that 32nd notes and triplets are whole 10 ms time shifts
_TICKS_PER_QUARTER = 480
_VELOCITY = 64


def load(data_dir: Path | None = None, num_pieces: int = NUM_PIECES) -> Dataset:
    """Return sequences of 256 event tokens and their next tokens; every fifth piece is for testing.

    No piece is in both parts, but Bach harmonised some melodies more than once.

    Args:
        data_dir: where the tokens are kept for the next call. None: nowhere.
        num_pieces: how many pieces are read, at least 5.

    Returns:
        inputs (N, 256) int64; targets (N, 256) int64, each the token after the input at its place.
    """
    if data_dir is None:
        rows = _parse(num_pieces)
    else:
        path = Path(data_dir) / "chorales" / "tokens.pt"
        rows = kept_or_parsed(path, _made_by(num_pieces), lambda: _parse(num_pieces))
    return Dataset(train=to_examples(rows["train"].numpy()), test=to_examples(rows["test"].numpy()))


def _made_by(num_pieces: int) -> dict:
    """Return what decides which tokens there are, and their order; no package is imported for it."""
    code = [storage.file_checksum(Path(file)) for file in (__file__, midi_events.__file__)]
    packages = {name: version(name) for name in ("music21", "pretty_midi", "dattri")}
    return packages | {"code": code, "num_pieces": num_pieces}


def _parse(num_pieces: int) -> dict[str, Tensor]:
    names = piece_names()[:num_pieces]
    bar = with_progress("chorales: reading scores", names, "piece")
    # Music that is under two names counts once; it could otherwise be in both parts.
    pieces = list(dict.fromkeys(tuple(encode(to_midi(name), name)) for name in bar))
    rows = [torch.from_numpy(windows(piece).astype(np.int16)) for piece in pieces]
    train = [part for index, part in enumerate(rows) if index % 5 != 4]
    return {"train": torch.cat(train), "test": torch.cat(rows[4::5])}


def piece_names() -> list[str]:
    """Return music21's names of the chorales in Riemenschneider's order, each once."""
    from music21 import corpus

    return list(dict.fromkeys(corpus.chorales.Iterator(returnType="filename")))


def to_midi(name: str) -> bytes:
    """Return one piece as a MIDI file: all parts in one instrument, constant tempo and velocity."""
    import pretty_midi

    seconds = 60 / _QUARTERS_PER_MINUTE
    instrument = pretty_midi.Instrument(program=0)
    instrument.notes = [
        pretty_midi.Note(_VELOCITY, pitch, start * seconds, end * seconds) for start, end, pitch in _notes(name)
    ]
    # dattri's encoder drops what follows the last press of the pedal, so press it after everything has sounded.
    end = instrument.get_end_time()
    instrument.control_changes = [
        pretty_midi.ControlChange(number=64, value=127, time=end + 1),
        pretty_midi.ControlChange(number=64, value=0, time=end + 2),
    ]
    midi = pretty_midi.PrettyMIDI(resolution=_TICKS_PER_QUARTER, initial_tempo=_QUARTERS_PER_MINUTE)
    midi.instruments.append(instrument)
    content = io.BytesIO()
    midi.write(content)
    return content.getvalue()


def _notes(name: str) -> list[tuple[float, float, int]]:
    """Return (start, end, MIDI pitch) of the notes of one piece, in quarters, tied notes joined."""
    from music21 import corpus

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # forceSource: music21 would otherwise keep pickles in the shared temporary folder, and trust them.
        score = corpus.parse(name, forceSource=True)
    notes: list[tuple[float, float, int]] = []
    for part in score.parts:
        sounding: dict[int, int] = {}  # pitch -> its place among the notes
        for chord in part.flatten().notes:
            start, end = float(chord.offset), float(chord.offset + chord.quarterLength)
            for note in chord.notes if chord.isChord else [chord]:
                pitch = note.pitch.midi
                # By hand because music21's stripTies takes as long as parsing.
                if note.tie is not None and note.tie.type != "start" and pitch in sounding:
                    first, _, _ = notes[sounding[pitch]]
                    notes[sounding[pitch]] = (first, end, pitch)
                else:
                    sounding[pitch] = len(notes)
                    notes.append((start, end, pitch))
    # Grace notes last no time.
    return [note for note in notes if note[1] > note[0]]
