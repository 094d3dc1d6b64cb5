"""How much memory a piece of work takes."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
from pathlib import Path


class AddedMemory:
    """Resident memory of this process from now on."""

    def __init__(self):
        gc.collect()  # garbage that goes later would hide what is allocated meanwhile
        with contextlib.suppress(AttributeError, OSError):
            # glibc: what was freed but not given back would hide what is allocated next
            ctypes.CDLL(None).malloc_trim(0)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew
        self._before = _resident("VmRSS")

    def bytes(self) -> dict[str, int]:
        """Return the peak since the start, and what of it came on top of what was held then."""
        peak = _resident("VmHWM")
        return {"peak_memory_bytes": peak, "added_memory_bytes": max(0, peak - self._before)}


def _resident(field: str) -> int:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        # elsewhere only the peak of the whole process is known
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if field == "VmHWM" else 0
    return int(status.split(f"{field}:")[1].split()[0]) * 1024
