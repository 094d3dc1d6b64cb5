"""The processes that work on one run: alone, or as many as torchrun has started.

Everything that passes between them goes through torch.distributed, which a process that works alone never imports.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from common.foundations.errors import SaidElsewhereError, UserError

if TYPE_CHECKING:
    from torch import Tensor

Result = TypeVar("Result")
# a process that dies closes its connections at once, so that waiting for one at work needs no limit
PATIENCE = timedelta(days=30)
SAID = "a death has been said"
SECONDS_TO_SAY = timedelta(seconds=10)


class Ranks:
    """One process alone: rank 0 of 1."""

    rank = 0
    size = 1

    def gather(self, value: Any) -> list[Any]:
        """Return the value of every rank, in their order; small values only."""
        return [value]

    def add_up(self, *tensors: Tensor) -> None:
        """Replace tensors on the CPU by their sums over all ranks."""

    def together(self, work: Callable[[], Result]) -> list[Result]:
        """Return what `work` returns on every rank, in their order.

        Raises:
            UserError: of the first rank that raises one; only rank 0 says it.
        """
        return [work()]

    def first(self, work: Callable[[], Result]) -> Result:
        """Return what `work` returns on rank 0, to all ranks; errors as in `together`."""
        return work()

    def first_alone(self, work: Callable[[], Result]) -> Result:
        """Return what `work` returns on each rank, which begin when rank 0 is done: it leaves files for the others."""
        return work()


ALONE = Ranks()


class _Group(Ranks):
    """What torchrun has started."""

    def __init__(self, timeout: float):
        import torch.distributed as dist

        self._dist, self._timeout = dist, timedelta(seconds=timeout)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE)
        self._ending = False
        here: list[Any] = [None] * self.size
        dist.all_gather_object(here, (os.uname().nodename, os.getpid()), self._group)
        self._processes: list[tuple[str, int]] = here

    def gather(self, value):
        return self._exchange(lambda: value, self._timeout)

    def add_up(self, *tensors):
        self._exchange(lambda: None, self._timeout)  # another rank may have an error to tell in place of a sum
        for tensor in tensors:
            self._call(lambda tensor=tensor: self._dist.all_reduce(tensor, group=self._group), self._timeout)

    def together(self, work):
        return self._exchange(work, self._timeout)

    def first(self, work):
        return self._exchange(work if self.rank == 0 else lambda: None, PATIENCE)[0]

    def first_alone(self, work):
        result = self._exchange(work if self.rank == 0 else lambda: None, PATIENCE, keep=True)[0]
        results = self._exchange(work if self.rank else lambda: result, PATIENCE, keep=True)
        return results[0]

    def tell(self, error: UserError) -> None:
        """Let the others end too, wherever they wait for this rank, because of an error that this rank will say."""
        if not self._ending:
            self._swap((None, str(error), True), PATIENCE)
            self._ending = True

    def leave(self) -> None:
        """End what connects this rank to the others."""
        # threads of a group that is held abort a process which ends while they still let go of a tensor
        group, self._group = self._group, None
        self._dist.destroy_process_group(group)

    def stopped(self, number: int, frame: FrameType | None) -> NoReturn:
        """End this process because torchrun asks for it: another rank has died, or a person has stopped the run."""
        if not self._ending:
            self._name(self._dead())
        sys.exit(128 + number)

    def _exchange(self, work, timeout: timedelta, keep: bool = False) -> list:
        """Return the results of all ranks, or with `keep` this rank's own; errors of one are raised by all."""
        result, message = None, None
        try:
            result = work()
        except UserError as error:
            message = str(error)
        found = self._swap((None if keep else result, message, False), timeout)
        wrong = [(text, said) for _, text, said in found if text is not None]
        if wrong:
            self._ending = True
            text, said = wrong[0]
            raise (UserError if self.rank == 0 and not said else SaidElsewhereError)(text)
        return [result] if keep else [value for value, _, _ in found]

    def _swap(self, mine: tuple[Any, str | None, bool], timeout: timedelta) -> list[tuple[Any, str | None, bool]]:
        """Return what every rank has: a value, or its error and whether it says that itself."""
        found: list[Any] = [None] * self.size
        self._call(lambda: self._dist.all_gather_object(found, mine, self._group), timeout)
        return found

    def _call(self, communicate: Callable[[], object], timeout: timedelta) -> None:
        """Communicate once all ranks have come here; a rank that has not come in time, or has died, is named."""
        try:
            # rank 0 waits for all others, and must be the first to lose patience, because it knows for whom
            self._dist.monitored_barrier(self._group, timeout if self.rank == 0 else 2 * timeout)
            communicate()
        except RuntimeError as error:
            found = re.search(r"Rank (\d+) failed to pass monitoredBarrier", str(error))
            dead = self._dead() or [int(found[1]) for found in [found] if found]
            if dead or not self._has_been_said():
                self._name(dead or [0])
            self._ending = True
            os._exit(1)  # what is left of the connections would wait for the dead rank

    def _dead(self) -> list[int]:
        """Return the ranks on this machine whose processes are gone."""
        machine, _ = self._processes[self.rank]
        return [r for r, (where, pid) in enumerate(self._processes) if where == machine and not _is_alive(pid)]

    def _has_been_said(self) -> bool:
        """Whether rank 0, which alone knows who is missing, says so in the next seconds."""
        with contextlib.suppress(RuntimeError):
            self._dist.distributed_c10d._get_default_store().wait([SAID], SECONDS_TO_SAY)
            return True
        return False

    def _name(self, dead: list[int]) -> None:
        """Say once, whichever rank is the first to know, who has died."""
        if not dead:
            return
        with contextlib.suppress(RuntimeError):
            # kept by torchrun itself, which outlives its ranks
            if self._dist.distributed_c10d._get_default_store().add(SAID, 1) != 1:
                return
        names = " and ".join(f"rank {r} (process {self._processes[r][1]} on {self._processes[r][0]})" for r in dead)
        print(f"{names} died or stopped answering: this run ends; the same command continues", file=sys.stderr)
        sys.stderr.flush()


@contextlib.contextmanager
def connected(timeout: float, uses_cuda: bool = False) -> Iterator[Ranks]:
    """Yield the ranks that torchrun has started, or one that is alone; ranks other than 0 print nothing.

    Args:
        timeout: seconds after which a rank that does not answer counts as dead.
        uses_cuda: whether GPUs are used where there are any: one a process, and nccl between them.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    import torch
    import torch.distributed as dist

    uses_cuda = uses_cuda and torch.cuda.is_available()
    if uses_cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if uses_cuda else "gloo", timeout=timedelta(seconds=timeout))
    ranks = _Group(timeout)
    before = signal.signal(signal.SIGTERM, ranks.stopped)
    with contextlib.ExitStack() as stack:
        if ranks.rank:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        try:
            yield ranks
        except UserError as error:
            ranks.tell(error)
            raise
        else:
            ranks.first(lambda: None)
        finally:
            ranks.leave()
    signal.signal(signal.SIGTERM, before)
    dist.destroy_process_group()


def is_first() -> bool:
    """Whether this process is alone, or rank 0 of those that torchrun has started: the one that speaks."""
    return os.environ.get("RANK", "0") == "0"


def speaks(error: UserError) -> bool:
    """Whether this process says what is wrong: rank 0 does, and another one what happened to it alone.

    Before ranks have met all of them find the same mistake in the same options.
    """
    if isinstance(error, SaidElsewhereError):
        return False
    torch = sys.modules.get("torch")
    return is_first() or (torch is not None and torch.distributed.is_initialized())


def _is_alive(pid: int) -> bool:
    try:
        # a process that nobody has waited for is there, and dead
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False
