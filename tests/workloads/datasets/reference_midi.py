"""Writes small MIDI files, and archives in the format of maestro-v2.0.0-midi.zip; reads them as dattri does."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pretty_midi
from torch import Tensor

from common.workloads.datasets.download import Archive
from tests.workloads.datasets.reference_archive import archive_of


def piano_midi(seed: int, notes: int) -> bytes:
    """A MIDI file of random notes under random presses of the pedal, a tenth of a second apart on average."""
    rng = np.random.default_rng(seed)
    instrument = pretty_midi.Instrument(program=0)
    for start in np.sort(rng.uniform(0, notes / 10, notes)):
        pitch, velocity = int(rng.integers(21, 109)), int(rng.integers(1, 128))
        instrument.notes.append(pretty_midi.Note(velocity, pitch, start, start + rng.uniform(0.05, 3)))
    for time in np.arange(0, notes / 10 + 5, 0.7):
        instrument.control_changes.append(pretty_midi.ControlChange(64, int(rng.integers(0, 128)), time))
    instrument.control_changes.append(pretty_midi.ControlChange(64, 0, notes / 10 + 9))
    midi = pretty_midi.PrettyMIDI()
    midi.instruments.append(instrument)
    file = io.BytesIO()
    midi.write(file)
    return file.getvalue()


def metadata(pieces: list[tuple[str, str]]) -> bytes:
    """maestro-v2.0.0.json for (split, file name) pairs."""
    return json.dumps([{"split": split, "midi_filename": name, "year": 2004} for split, name in pieces]).encode()


def write_archive(folder: Path, members: dict[str, bytes]) -> Archive:
    """Write the members to maestro-v2.0.0-midi.zip and return its record."""
    path = folder / "maestro-v2.0.0-midi.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"maestro-v2.0.0/{name}", content)
    return archive_of(path, embedded="chorales")


def dattri_datasets(archive: Path, folder: Path) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """(input, target) pairs by dattri's own preprocessing, with its random first offset turned off."""
    # dattri warns of a missing GPU, counts aloud, and leaves a file open
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        from dattri.benchmark.models.MusicTransformer.dataset.e_piano import EPianoDataset
        from dattri.benchmark.models.MusicTransformer.dataset.preprocess_midi import prep_maestro_midi

        with zipfile.ZipFile(archive) as file:
            file.extractall(folder)
        prep_maestro_midi(str(folder / "maestro-v2.0.0"), str(folder / "processed"))
        parts = {
            split: EPianoDataset(folder / "processed" / split, 256, random_seq=False, full_version=True)
            for split in ("train", "test")
        }
        return {split: [part[index] for index in range(len(part))] for split, part in parts.items()}
