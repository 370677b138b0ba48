"""Opens the C engine. A bundle goes in, its compiled library is checked and loaded, and a started decoder comes out.

The decoder lies in memory that Python owns. Its results equal those of the oracle to the last bit. `abi_engine` calls
it.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np

from edgedistill.bundle import Bundle
from edgedistill.bundle.build_record import BuildRecord, check_files, check_fits
from edgedistill.config import StudentShape
from edgedistill.errors import EngineError
from edgedistill.frontend import FrontEndConfig
from edgedistill.machine.processor import read_cpu_features
from edgedistill.runtime.abi_engine import AbiEngine, OpenedLibrary
from edgedistill.runtime.build_choice import add_compile_command, choose_build
from edgedistill.runtime.c_abi import ALIGN, load_library

HOST = "host"


def open_c_engine(bundle: Bundle, shape: StudentShape, config: FrontEndConfig) -> AbiEngine:
    """Opens what `edgedistill compile` left in the bundle for this machine.

    Raises EngineError that says what is missing, has changed, or was made for another bundle, interface or chip, and
    which command helps.
    """
    try:
        folder, record = choose_build(bundle, HOST, "c", check_c_build)
        check_files(folder, record)
        data = (folder / record.library).read_bytes()
        library = load_library(folder / record.library, data)
        engine = AbiEngine(start_decoder(library, record.model, len(data)), shape, config)
    except EngineError as error:
        raise add_compile_command(error, bundle, HOST) from error
    return engine


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
