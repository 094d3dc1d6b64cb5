"""One file a dataset, each with a function `load`, and what they share: downloads, MIDI events."""
