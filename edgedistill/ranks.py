"""Knows the processes that train one model together: those that `torchrun` started, or this one alone.

Each of them runs the same command. They compute the rows of one batch together (`share`), add up numbers over it
(`sum_in_place`), and follow the first of them in what only one should read, decide or write (`lead`). That one is the
main process. It alone prints, and after the training it goes on alone (`release`). No other module knows
torch.distributed, except for the wrapper in `training.shared_steps`. A process that was started alone is the main one.
"""

from __future__ import annotations

import os
import re
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from types import FrameType
from typing import Any, TypeVar

from edgedistill.errors import ConfigError, EdgeDistillError

T = TypeVar("T")

LAUNCHED_BY = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun tells each process
LOADED = ("torch", "torch.distributed")
PATIENCE = timedelta(days=30)  # a process waits as long as another one reads or scores; a lost one is noticed at once
OF_A_LOST_PEER = re.compile(r"gloo|nccl|tcpstore|connection|socket|peer|timed? ?out", re.IGNORECASE)
GO_ON = "run the same command again: it goes on from the last checkpoint, with any number of processes"


class ProcessLost(EdgeDistillError):
    """Reports that another process of a training ended, or that this one was asked to end."""


class Released(BaseException):
    """Ends a process whose part of the work is done. The main process goes on alone."""


@dataclass
class _Group:
    """Holds the processes that have joined. `over_batch`: whether they compute one batch together at this moment."""

    rank: int
    size: int
    store: Any  # torch.distributed.Store
    over_batch: bool = False


_group: _Group | None = None


def are_launched() -> bool:
    """Returns whether torchrun started this process beside others."""
    return all(name in os.environ for name in LAUNCHED_BY) and int(os.environ["WORLD_SIZE"]) > 1


def size() -> int:
    """Returns the number of processes that have joined."""
    return 1 if _group is None else _group.size


def is_main() -> bool:
    """Returns whether this process is the one that prints and writes."""
    return (int(os.environ["RANK"]) if are_launched() else 0) == 0 if _group is None else _group.rank == 0


@contextmanager
def joined() -> Iterator[None]:
    """Lets the processes that torchrun started train together inside the block. One process alone needs nothing.

    Raises ConfigError where a machine has fewer GPUs than processes.
    """
    global _group
    if not are_launched():
        yield
        return
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # each process would warn of steps without an unused weight
    torch, distributed = load_torch()

    backend = "gloo"
    if torch.cuda.is_available():
        processes, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
        if processes > gpus:
            raise ConfigError(
                "each process of a training needs a GPU of its own",
                got=f"{processes} processes and {gpus} GPUs on one machine",
                next_step=f"torchrun --nproc-per-node {gpus} -m edgedistill ...",
            )
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"
    store, rank, count = next(distributed.rendezvous("env://"))
    distributed.init_process_group(
        backend, store=distributed.PrefixStore("training", store), rank=rank, world_size=count, timeout=PATIENCE
    )
    _group = _Group(rank, count, store)
    signal.signal(signal.SIGTERM, _end)
    with warnings.catch_warnings():
        if rank > 0:
            warnings.simplefilter("ignore")
        yield


def _end(number: int, frame: FrameType | None) -> None:
    raise ProcessLost(
        "the training has ended before its end",
        got="SIGTERM",
        causes=("another process of it failed, as torchrun reports below", "the job was stopped, or its time was up"),
        next_step=GO_ON,
    )


def load_torch() -> tuple[Any, Any]:
    """Returns torch and torch.distributed, loaded by name.

    An import would make the version of torch part of what a stage is kept by, also where sessions are only read.
    """
    torch, distributed = map(import_module, LOADED)
    return torch, distributed


def lead(make: Callable[[], T]) -> T:
    """Returns what `make` returns in the main process. The others wait for it and do not call `make`.

    Inside `make` the main process is a single one.
    """
    global _group
    if _group is None:
        return make()
    torch, distributed = load_torch()
    made: list[Any] = [None]
    if _group.rank == 0:
        group, _group = _group, None
        try:
            made = [make()]
        finally:
            _group = group
    distributed.broadcast_object_list(made, src=0, device=torch.device("cpu"))
    found: T = made[0]
    return found


def release() -> None:
    """Ends every process but the main one, which goes on as a single process. Called where all training is done.

    Raises Released in the others.
    """
    global _group
    if _group is None:
        return
    _, distributed = load_torch()
    others = [str(rank) for rank in range(1, _group.size)]
    if _group.rank > 0:  # nobody is inside a collective operation when the connections are closed
        _group.store.set(str(_group.rank), "ready")
        _group.store.wait(["released"], PATIENCE)
        distributed.destroy_process_group()
        raise Released
    _group.store.wait(others, PATIENCE)
    _group.store.set("released", "yes")
    distributed.destroy_process_group()
    _group = None


# ---------------------------------------------------------------- one batch


def share(batch: int) -> slice:
    """Returns which rows of a batch this process computes. The shares of all processes are the whole batch."""
    if _group is None:
        return slice(0, batch)
    return slice(batch * _group.rank // _group.size, batch * (_group.rank + 1) // _group.size)


@contextmanager
def sharing_a_batch() -> Iterator[None]:
    """Says that all processes compute one batch together inside the block. Elsewhere each has something of its own."""
    if _group is None:
        yield
        return
    _group.over_batch = True
    try:
        yield
    finally:
        _group.over_batch = False


def shares() -> int:
    """Returns into how many shares the batch at hand is divided."""
    return _group.size if _group is not None and _group.over_batch else 1


def sum_in_place(value: T) -> T:
    """Adds up a tensor over all processes, in place and without a gradient, and returns it."""
    if _group is not None:
        load_torch()[1].all_reduce(value)
    return value


def mean_over(items: Sequence[T], score: Callable[[T], float]) -> float:
    """Returns the mean score of `items`. Each process scores some of them."""
    if _group is None:
        return sum(score(item) for item in items) / len(items)
    torch, _ = load_torch()
    mine = sum(score(item) for item in items[_group.rank :: _group.size])
    added: float = sum_in_place(torch.tensor(mine, dtype=torch.float64)).item()
    return added / len(items)


# ---------------------------------------------------------------- the end


def claim_message() -> bool:
    """Returns whether this process is the first that reports the end of all. From then on SIGTERM does not stop it."""
    if _group is None:
        return is_main()
    with suppress(ValueError):  # only the main thread may set it
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        return int(_group.store.add("message", 1)) == 1
    except RuntimeError:  # the store is lost with the machine that holds it
        return is_main()


def explain(error: Exception) -> EdgeDistillError | None:
    """Returns a lost connection to another process as an error with words, or None for any other error."""
    if _group is None or not isinstance(error, RuntimeError) or not OF_A_LOST_PEER.search(str(error)):
        return None
    return ProcessLost(
        "another process of this training has ended",
        got=str(error).splitlines()[0][:200],
        causes=("it was killed, for instance because memory ran out; torchrun reports below which one",),
        next_step=GO_ON,
    )
