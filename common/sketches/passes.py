"""How many sketches one pass over the gradients makes: where these are recomputed, passes are most of the work."""

from __future__ import annotations

PASS_BYTES = 2**31
"""What the sketches of several trials may take together."""


def trials_of_a_pass(first: int, num_trials: int, trial_bytes: int) -> range:
    """Return the trials from `first` on, of those of a run, that fit into memory together; one at least."""
    return range(first, max(first + 1, min(num_trials, first + PASS_BYTES // trial_bytes)))
