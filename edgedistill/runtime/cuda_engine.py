"""Opens the CUDA engine. A bundle goes in, and a started decoder comes out.

The library and kernel that this user compiled are checked against this machine before either is loaded. The results
equal those of the oracle to the last bit. `abi_engine` calls the decoder.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path

from edgedistill.bundle import Bundle
from edgedistill.bundle.build_record import BUILD_JSON, LABELS, BuildRecord, check_device, check_fits, read_loaded_files
from edgedistill.config import StudentShape
from edgedistill.errors import EngineError
from edgedistill.frontend import FrontEndConfig
from edgedistill.machine.gpu import Gpu, find_gpu
from edgedistill.runtime.abi_engine import AbiEngine, OpenedLibrary
from edgedistill.runtime.build_choice import add_compile_command, choose_build, choose_target
from edgedistill.runtime.c_abi import load_library
from edgedistill.user_cache import write_private_copy

TARGET = "cuda"


def open_cuda_engine(bundle: Bundle, shape: StudentShape, config: FrontEndConfig) -> AbiEngine:
    """Opens what `edgedistill compile --target cuda` left in the user's cache for this machine's GPU.

    Raises EngineError that says what is missing, has changed, or was made for another bundle, chip or driver, and which
    command helps.
    """
    target = choose_target(bundle, "cuda", TARGET)
    try:
        folder, record = choose_build(bundle, target, "cuda", check_cuda_build)
        engine = AbiEngine(open_build(record, read_loaded_files(folder, record)), shape, config)
    except EngineError as error:
        raise add_compile_command(error, bundle, target) from error
    return engine


def check_cuda_build(folder: Path, record: BuildRecord, bundle: Bundle) -> None:
    """Raises EngineError unless this machine's GPU can run what was compiled."""
    check_fits(folder, record, bundle)
    gpu = find_gpu()
    check_device(folder, record, list_device_facts(gpu))
    toolkit = record.fingerprint.device.get("toolkit", "")
    # The machine that compiled the kernel may have had no driver to compare the toolkit with.
    if toolkit and int(toolkit.split(".")[0]) > int(gpu.cuda.split(".")[0]):
        raise EngineError(
            f"{folder}: the CUDA engine there was compiled with a newer toolkit than this machine's driver knows",
            got=f"toolkit {toolkit} in {BUILD_JSON}",
            expected=f"CUDA {gpu.cuda.split('.')[0]} or older, as the driver here supports",
        )


def list_device_facts(gpu: Gpu) -> dict[str, str]:
    """Returns what a cubin depends on, by its name in a fingerprint.

    The toolkit is left out, because nvcc may be missing here.
    """
    return {"chip": gpu.chip, "driver": gpu.driver}


def open_build(record: BuildRecord, files: Mapping[str, bytes]) -> OpenedLibrary:
    """Starts a decoder of the library among `files`, which were checked.

    The library opens the others by path. They are therefore written to a folder that nobody else can write to, and that
    is removed once the library has read them. Raises EngineError with the reason if it does not start, such as memory,
    the device or a missing file.
    """
    library = load_library(record.library, files[record.library])
    decoder = ctypes.c_void_p()
    with write_private_copy({name: data for name, data in files.items() if name != record.library}) as folder:
        code = library.ed_open(os.fsencode(folder), ctypes.byref(decoder))
    if code:
        raise EngineError(
            f"the {LABELS[record.engine]} engine of '{record.model}' does not start:"
            f" {library.ed_strerror(code).decode()}",
            got=f"code {code} of ed_open",
            causes=_CAUSES.get(code, ()),
            next_step=_STEPS.get(code),
        )
    assert decoder.value is not None
    size = sum(len(data) for name, data in files.items() if name == record.library or not name.endswith(".so"))
    return OpenedLibrary(library, decoder.value, record.engine, size=size)


_CAUSES = {-13: ("another process holds the GPU's memory: nvidia-smi lists them",)}
_STEPS = {-11: "edgedistill doctor", -13: "free memory on the GPU, then run the same command again", -15: "nvidia-smi"}
