"""One file a dataset, each with a function `load`, and what they share: downloads, parsed files, MIDI events.

The same samples in the same order on every machine; their models, losses and recipes are common/workloads/pairs.py.
"""
