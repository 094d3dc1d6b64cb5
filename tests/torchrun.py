"""How tests start a script, alone or as several processes."""

from __future__ import annotations

import sys


def launcher(processes: int) -> list[str]:
    """Return the words before the script."""
    if processes == 1:
        return [sys.executable]
    # what follows -- is the script's, also where torchrun has an option that begins like --m
    options = ["--standalone", "--nproc-per-node", str(processes), "--"]
    return [sys.executable, "-m", "torch.distributed.run", *options]
