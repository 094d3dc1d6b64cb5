from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from common.foundations import distributed
from common.foundations.distributed import Ranks, connected, speaks
from common.foundations.errors import SaidElsewhereError, UserError

ROOT = Path(__file__).resolve().parents[2]


def fail():
    raise UserError("no")


def test_one_process_alone_needs_no_launcher_and_no_group():
    with connected(timeout=1) as ranks:
        assert (ranks.rank, ranks.size) == (0, 1)
        assert ranks.gather(3) == ranks.together(lambda: 3) == [3]
        assert ranks.first(lambda: 4) == ranks.first_alone(lambda: 4) == 4
        tensor = torch.ones(2)
        ranks.add_up(tensor)
        assert torch.equal(tensor, torch.ones(2))
        with pytest.raises(UserError, match="no"):
            ranks.together(fail)
    assert not dist.is_initialized()


def test_no_other_file_knows_torch_distributed():
    sources = [path for pattern in ("*.py", "common/**/*.py", "bench/*.py") for path in ROOT.glob(pattern)]
    assert [path for path in sources if "torch.distributed" in path.read_text()] == [Path(distributed.__file__)]


def test_only_the_first_rank_says_what_all_of_them_find(monkeypatch):
    assert speaks(UserError("x"))
    monkeypatch.setenv("RANK", "1")
    assert not speaks(UserError("x"))
    assert not speaks(SaidElsewhereError("x"))


def work(rank: int, size: int, port: int, folder: str) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    with connected(timeout=60) as ranks:
        assert isinstance(ranks, Ranks)
        assert (ranks.rank, ranks.size) == (rank, size)
        assert ranks.gather(rank) == list(range(size))
        assert ranks.together(lambda: rank**2) == [r**2 for r in range(size)]
        assert ranks.first(lambda: rank + 7) == 7
        path = Path(folder) / "made"
        ranks.first_alone(lambda: path.write_text("x") if rank == 0 else path.read_text())
        tensors = torch.full((3,), float(rank)), torch.tensor([rank])
        ranks.add_up(*tensors)
        total = sum(range(size))
        assert torch.equal(tensors[0], torch.full((3,), float(total)))
        assert tensors[1].item() == total
        print("only rank 0 is heard")
        assert "pt_gloo_runloop" in threads()
        with pytest.raises(UserError, match="the last rank fails") as raised:
            ranks.together(lambda: fail_with("the last rank fails") if rank == size - 1 else 0)
        assert isinstance(raised.value, SaidElsewhereError) == (rank > 0)
    assert "pt_gloo_runloop" not in threads()  # one still at work when the process ends would abort it
    Path(folder, f"done {rank}").touch()


def threads() -> set[str]:
    return {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}


def fail_with(message: str):
    raise UserError(message)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_exchange_values_sums_and_errors(tmp_path, size):
    mp.spawn(work, (size, 29500 + os.getpid() % 1000 + size, str(tmp_path)), nprocs=size)
    assert {path.name for path in tmp_path.glob("done *")} == {f"done {rank}" for rank in range(size)}
