"""How an entry script ends: its exit status, and one line where something is wrong."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from common.foundations.distributed import is_first, speaks
from common.foundations.errors import UserError
from common.foundations.quiet import only_the_users_warnings

# of sweeps over sketches, which most scripts are
LESS_MEMORY = "--offload disk or recompute, or a smaller --batch_size, --max_m, --num_train or --num_test_grads"
RESUMES = "continues after the last finished sketch"

# the interpreter that ends would look through all that torch and matplotlib have made, several times: 0.7 s
atexit.register(gc.freeze)


def run_script(main: Callable[[], None], less_memory: str = LESS_MEMORY, resumes: str = RESUMES) -> NoReturn:
    """Run a script's main; user errors and lack of memory become one line and status 2, Ctrl-C status 130.

    Where nobody reads the output any more (`| head -1`) the status is 1.

    Args:
        main: the script.
        less_memory: options of the script with which it needs less memory.
        resumes: what the same command does after Ctrl-C.
    """
    signal.signal(signal.SIGINT, _interrupt_once)
    status = 1
    try:
        with only_the_users_warnings():
            status = _run(main, less_memory, resumes)
        print(end="", flush=True)
    except BrokenPipeError:
        status = status or 1
        # the interpreter writes what is left when it ends
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())
    sys.exit(status)


def _run(main: Callable[[], None], less_memory: str, resumes: str) -> int:
    """Run `main` and return the exit status, after one line where it is not 0."""
    script = Path(sys.argv[0]).name
    try:
        main()
    except SystemExit as stop:  # the parser's, which has said why
        return stop.code if isinstance(stop.code, int) else 1
    except UserError as error:
        if speaks(error):
            print(f"{script}: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        print("stopped: nobody reads the output any more; the same command completes what is missing", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError, OSError) as error:
        if not _is_out_of_memory(error):
            raise
        print(f"{script}: error: out of memory; less is needed with {less_memory}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if is_first():
            print(f"\ninterrupted: the same command {resumes}", file=sys.stderr)
        return 130
    return 0


def _interrupt_once(*_) -> NoReturn:
    """Raise KeyboardInterrupt, once: pressed again, Ctrl-C must not cut off what ends the script in good order."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _is_out_of_memory(error: Exception) -> bool:
    """Whether numpy, torch (on any device) or the system could not give the memory asked for."""
    # torch's allocators raise RuntimeErrors, on CUDA of a kind of their own
    words = ("can't allocate memory", "not enough memory", "Cannot allocate memory", "out of memory")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)
