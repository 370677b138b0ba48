"""Opens graphs on onnxruntime that may come from a stranger, with limits on their memory and on their time.

The bytes of a graph go in, and a session comes out. A few kilobytes of ordinary operators can ask for any amount of
memory: two vectors that are multiplied with each other, or a tensor that is joined to itself thirty times. Sizes cannot
be read off a graph without computing every shape in it. Therefore all sessions of this process share one arena of
onnxruntime's, and the arena has a limit. What onnxruntime computes while it opens a graph counts too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any

from edgedistill.errors import EngineError
from edgedistill.limits import BUNDLE_GB, LARGER, most_graph_bytes
from edgedistill.runtime.onnx_content import find_graph_fault

LONGEST_S = 120.0  # to open a graph, and for its first run
AS_REQUESTED = 1  # how the arena grows: by what is asked for, and not by powers of two
USUAL = -1  # onnxruntime's own choice


def open_session(model: bytes, without: tuple[str, ...] = (), also: frozenset[str] = frozenset()) -> Any:
    """Returns an onnxruntime session on one thread, without the optimizations named in `without`.

    `also` names operators that the graph may hold beside those of step graphs.

    Raises EngineError if onnxruntime is missing, and for a graph that it cannot read, that needs too much memory or
    time, or that holds what `find_graph_fault` refuses.
    """
    onnxruntime = import_onnxruntime()
    if (fault := find_graph_fault(model, also)) is not None:
        raise EngineError("this graph is not opened", got=fault, expected="a graph that `edgedistill build` wrote")
    _share_arena(onnxruntime)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # a library does not print, and errors are raised
    options.add_session_config_entry("session.use_env_allocators", "1")
    cancel = getattr(options, "set_load_cancellation_flag", lambda _: None)  # onnxruntime 1.21 brought it
    with _limited(lambda: cancel(True), "onnxruntime cannot load this graph"):
        return onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(without)
        )


def run_first(run: Callable[[Any], object]) -> None:
    """Calls `run` with run options, for the first run of a session, in which it takes its memory.

    Raises EngineError for a graph that fails, or that needs too much memory or time.
    """
    options = import_onnxruntime().RunOptions()
    options.log_severity_level = 4
    with _limited(lambda: setattr(options, "terminate", True), "onnxruntime cannot run this graph"):
        run(options)


def running_error(error: Exception) -> EngineError:
    """Returns the error for a graph that fails while it runs."""
    return EngineError("onnxruntime cannot run this graph", got=_first_line(error))


def import_onnxruntime() -> Any:
    """Returns the package onnxruntime. Raises EngineError where it is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(
            "this engine needs onnxruntime, which is not installed here",
            got=error,
            next_step="pip install onnxruntime",
        ) from error
    return onnxruntime


@contextmanager
def _limited(stop: Callable[[], object], what: str) -> Iterator[None]:
    """Calls `stop` when the block takes too long, and raises EngineError for a block that fails."""
    late = threading.Event()

    def end() -> None:
        late.set()
        stop()

    timer = threading.Timer(LONGEST_S, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except Exception as error:  # onnxruntime's errors share no base class of their own
        gigabytes = most_graph_bytes() / 1e9
        raise EngineError(
            what,
            got=f"more than {LONGEST_S:.0f} s" if late.is_set() else _first_line(error),
            causes=(
                "the onnxruntime here is older than the graph's opset 19",
                f"the graph needs more memory than the {gigabytes:g} GB that all graphs of a process share",
                "the bundle was changed by hand, or made to do harm",
            ),
            next_step=f"pip install --upgrade onnxruntime; if you trust this bundle: {LARGER}={2 * BUNDLE_GB} ...",
        ) from error
    finally:
        timer.cancel()


@lru_cache(maxsize=1)
def _share_arena(onnxruntime: Any) -> None:
    """Gives onnxruntime the arena of this process. Where the program itself has made one, that one counts."""
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    with suppress(Exception):  # the one that was made before
        arena = onnxruntime.OrtArenaCfg(most_graph_bytes(), AS_REQUESTED, USUAL, USUAL)
        onnxruntime.create_and_register_allocator(memory, arena)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
