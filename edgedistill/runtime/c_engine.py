"""Opens the C engine. A bundle goes in, its library is found or compiled, and a started decoder comes out.

The decoder lies in memory that Python owns. Its results equal those of the oracle to the last bit. `abi_engine` calls
it.
"""

from __future__ import annotations

import ctypes
import logging
import shutil
from pathlib import Path

import numpy as np

from edgedistill.bundle import Bundle
from edgedistill.bundle.build_record import BuildRecord, check_fits, read_loaded_files
from edgedistill.config import StudentShape
from edgedistill.errors import EngineError, NotCompiled
from edgedistill.frontend import FrontEndConfig
from edgedistill.machine.processor import read_cpu_features
from edgedistill.runtime.abi_engine import AbiEngine, OpenedLibrary
from edgedistill.runtime.build_choice import add_compile_command, choose_build
from edgedistill.runtime.c_abi import ALIGN, load_library
from edgedistill.target import load_target

HOST = "host"

logger = logging.getLogger(__name__)


def open_c_engine(bundle: Bundle, shape: StudentShape, config: FrontEndConfig) -> AbiEngine:
    """Opens the library that this user compiled on this machine. It is compiled now if there is none that fits.

    Raises EngineError, with the command that helps, where the library does not start. Raises DeviceError where there is
    no compiler.
    """
    record, files = _find_library(bundle)
    try:
        data = files[record.library]
        return AbiEngine(start_decoder(load_library(record.library, data), record.model, len(data)), shape, config)
    except EngineError as error:
        raise add_compile_command(error, bundle, f"{HOST} --force") from error


def _find_library(bundle: Bundle) -> tuple[BuildRecord, dict[str, bytes]]:
    """Returns the record of a library and the bytes that were checked."""
    try:
        folder, record = choose_build(bundle, HOST, "c", check_c_build)
        return record, read_loaded_files(folder, record)
    except EngineError as error:
        reason = "" if isinstance(error, NotCompiled) else f", because {error.what} ({error.got})"
    from edgedistill.compile.c.library import compile_c_library  # only here, as most processes find the library

    logger.warning("compiling the C engine of %s for this machine, once (a few seconds)%s", bundle.path, reason)
    engine = compile_c_library(bundle, load_target(HOST))
    return engine.record, read_loaded_files(engine.folder, engine.record)


def can_compile_c() -> bool:
    """Returns whether this machine has the compiler with which `open_c_engine` makes a library that is missing."""
    compiler = load_target(HOST).compiler
    return compiler is not None and shutil.which(compiler.command) is not None


def check_c_build(folder: Path, record: BuildRecord, bundle: Bundle) -> None:
    """Raises EngineError unless this machine's processor can run what was compiled."""
    check_fits(folder, record, bundle)
    if missing := sorted(set(record.fingerprint.requires) - read_cpu_features()):
        raise EngineError(
            f"{folder}: the C engine there was compiled for another chip",
            got=f"it needs {', '.join(missing)}",
            expected="instructions that this CPU has",
        )


def start_decoder(library: ctypes.CDLL, model: str, size: int = 0) -> OpenedLibrary:
    """Starts a decoder of the model `ed_model_<model>` in fresh memory. Raises EngineError if it does not start."""
    symbol = ctypes.addressof(ctypes.c_char.in_dll(library, f"ed_model_{model}"))
    state_bytes = library.ed_state_bytes(symbol)
    room = np.zeros(state_bytes + ALIGN, np.uint8)
    memory = room[-room.ctypes.data % ALIGN :]
    decoder = ctypes.c_void_p()
    if code := library.ed_init(symbol, memory.ctypes.data, state_bytes, ctypes.byref(decoder)):
        raise EngineError(f"the C engine does not start: {library.ed_strerror(code).decode()}", got=code)
    assert decoder.value is not None
    return OpenedLibrary(library, decoder.value, size=size, memory=memory)
