"""MIDI as event tokens, and their cutting into sequences: the form that dattri's MusicTransformer takes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence

import numpy as np
import torch

from common.foundations.errors import UserError
from common.workloads.records import Examples

SEQUENCE_LENGTH = 256
"""Tokens in one sequence."""
VOCABULARY = 390
"""128 note-on, 128 note-off, 100 time shifts (10 ms to 1 s), 32 velocities, end, padding."""


def encode(midi: bytes, source: str) -> list[int]:
    """Return the event tokens (0 to 387) of a MIDI file, by dattri's `encode_midi`.

    Only notes that begin before or under a press of the sustain pedal are encoded: that is what
    `encode_midi` does, and its tokens are kept as they are.

    Args:
        midi: content of the file.
        source: what errors call this file.

    Raises:
        UserError: the file is not MIDI.
    """
    from dattri.benchmark.models.MusicTransformer.midi_processor.processor import encode_midi

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return encode_midi(io.BytesIO(midi))
    except Exception as error:  # a damaged file can raise nearly anything
        raise UserError(f"{source} is not a readable MIDI file: {error}") from error


def windows(tokens: Sequence[int]) -> np.ndarray:
    """Return the consecutive (N, 257) uint16 windows of one piece, each with the token that follows it.

    Window i holds tokens[256 i : 256 i + 257]; tokens after the last whole window are dropped. These are
    the sequences of dattri's `EPianoDataset` with `full_version=True`, in its order.
    """
    starts = range(0, len(tokens) - SEQUENCE_LENGTH, SEQUENCE_LENGTH)
    rows = [tokens[start : start + SEQUENCE_LENGTH + 1] for start in starts]
    return np.array(rows, dtype=np.uint16).reshape(-1, SEQUENCE_LENGTH + 1)


def to_examples(rows: np.ndarray) -> Examples:
    """Return (N, 257) windows as inputs (N, 256) and next tokens (N, 256), both int64."""
    tokens = torch.from_numpy(rows.astype(np.int64))
    return Examples(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
