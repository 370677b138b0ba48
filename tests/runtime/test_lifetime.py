"""A decoder gives back what it holds, and says no to a second thread and after its end."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgedistill.bundle import Bundle
from edgedistill.compile.c.library import compile_c_library
from edgedistill.errors import EngineError
from edgedistill.runtime import Decoder
from edgedistill.runtime.abi_engine import AbiEngine

from ..compile.engines import quick_host, write_engine_bundle

ENGINES = ("c", "oracle")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    bundle = write_engine_bundle(tmp_path_factory.mktemp("lifetime") / "slow.edge", "slow")
    compile_c_library(bundle, quick_host())
    return bundle


def frames(decoder: Decoder, n: int = 400) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, decoder.frontend_config.channels)).astype(np.float32)


class MallocInfo(ctypes.Structure):
    """What mallinfo2 of glibc tells."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "max", "freed", "uordblks", "free", "keep")
    )


def allocated_bytes() -> int:
    """Returns the bytes that C code and numpy hold in this process, whatever of them is in memory right now."""
    gc.collect()
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        pytest.skip("this C library has no mallinfo2")
    mallinfo.restype = MallocInfo
    found = mallinfo()
    return int(found.uordblks + found.hblkhd)


def held_files() -> tuple[int, int]:
    """Returns how many descriptors this process has, and how many mappings of compiled engines."""
    gc.collect()
    maps = Path("/proc/self/maps").read_text().splitlines()
    return len(list(Path("/proc/self/fd").iterdir())), sum("/libed_" in line for line in maps)


@pytest.mark.parametrize("how", ["closed", "forgotten"])
def test_opening_many_times_leaks_nothing(bundle: Bundle, how: str) -> None:
    def open_one() -> Decoder:
        decoder = Decoder(bundle, "c")
        decoder.push(frames(decoder, 100))
        return decoder

    def open_some(times: int) -> None:
        for _ in range(times):
            decoder = open_one()
            if how == "closed":
                decoder.close()

    open_some(20)  # until all that is made once is there
    files, before = held_files(), allocated_bytes()
    kept = [open_one() for _ in range(10)]
    of_ten = allocated_bytes() - before
    for decoder in kept:
        decoder.close()
    del kept, decoder
    before = allocated_bytes()
    open_some(100)
    assert held_files() == files
    assert allocated_bytes() - before < of_ten / 2  # not even of five, where a hundred were opened


@pytest.mark.parametrize("engine", ENGINES)
def test_after_the_end_every_call_is_refused(bundle: Bundle, engine: str) -> None:
    with Decoder(bundle, engine) as decoder:
        x, state = frames(decoder), decoder.export_state()
        assert decoder.push(x)
    for call in (
        lambda: decoder.push(x), lambda: decoder.push_i16(x.astype(np.int16), 1.0), lambda: decoder.gap(3),
        lambda: decoder.step(np.zeros(decoder.shape.channels)), decoder.reset, decoder.export_state,
        lambda: decoder.import_state(state), lambda: decoder.latent,
        lambda: decoder.set_normalization(*np.ones((2, decoder.shape.channels))),
    ):  # fmt: skip
        with pytest.raises(EngineError, match="closed"):
            call()
    decoder.close()
    assert decoder.info.engine == engine  # what was known of it stays known


def test_an_engine_that_was_closed_refuses_and_does_not_crash(bundle: Bundle) -> None:
    decoder = Decoder(bundle, "c")
    engine = decoder._stream
    assert isinstance(engine, AbiEngine)
    decoder.close()
    engine.close()
    for call in (
        lambda: engine.push(frames(decoder)),
        lambda: engine.step(np.zeros(8, np.float32)[: engine.shape.channels]),
    ):
        with pytest.raises(EngineError, match="null"):
            call()


@pytest.fixture
def waiting(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Decoder, threading.Event]]:
    """A decoder inside a push of another thread, and the event that lets it go on."""
    decoder, inside, leave = Decoder(bundle, "oracle"), threading.Event(), threading.Event()
    push = decoder._stream.push

    def slow(x: np.ndarray) -> object:
        inside.set()
        leave.wait()
        return push(x)

    monkeypatch.setattr(decoder._stream, "push", slow)
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(decoder.push(frames(decoder))))
    thread.start()
    inside.wait()
    yield decoder, leave
    leave.set()
    thread.join()
    assert found


def test_a_second_thread_is_refused_while_the_first_one_decodes(waiting: tuple[Decoder, threading.Event]) -> None:
    decoder, leave = waiting
    for call in (lambda: decoder.push(frames(decoder)), decoder.reset, decoder.export_state, decoder.close):
        with pytest.raises(EngineError, match="another thread"):
            call()
    leave.set()


def test_threads_that_push_at_once_never_tear_a_stream(bundle: Bundle) -> None:
    decoder, refused, taken = Decoder(bundle, "c"), [], []
    x = frames(decoder, 7)

    def push_once() -> None:
        try:
            taken.extend(output.bin for output in decoder.push(x))
        except EngineError as error:
            refused.append(str(error))

    def work() -> None:
        for _ in range(300):
            push_once()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all("another thread" in text for text in refused)
    assert sorted(taken) == list(range(len(taken)))
