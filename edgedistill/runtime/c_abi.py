"""Declares the C ABI (`kernels/include/edgedistill.h`) in ctypes. A library's bytes go in, its functions come out.

The header explains what the functions do, and `abi_engine` calls them.
"""

from __future__ import annotations

import ctypes as c
import hashlib
import os

import numpy as np

from edgedistill.errors import EngineError
from edgedistill.user_cache import write_private_copy

MAX_OUTPUTS = 16  # ED_MAX_OUTPUTS
ALIGN = 64  # ED_ALIGN
LONGEST_NAME = 200  # characters of the name that a file in memory gets; the system allows 249 bytes

OUTPUT = np.dtype(  # ed_output
    [
        ("bin", "u8"),
        ("end_frame", "u8"),
        ("flags", "u4"),
        ("bad_channels", "u4"),
        ("kinematics", "f4", (MAX_OUTPUTS,)),
        ("deviation", "f4", (MAX_OUTPUTS,)),
    ]
)


class Info(c.Structure):
    """Mirrors the struct ed_info."""

    _fields_ = (
        *((name, c.c_uint32) for name in ("abi_version", "channels", "inputs", "outputs", "latent")),
        *((name, c.c_uint64) for name in ("rate_numerator", "rate_denominator")),
        *((name, c.c_uint32) for name in ("bin_ms", "warmup_bins", "smoothing_states")),
        *((name, c.c_double) for name in ("group_delay_ms", "smoothing_delay_ms")),
        *((name, c.c_size_t) for name in ("state_bytes", "export_bytes")),
        *((name, c.c_char_p) for name in ("name", "variant")),
        *((name, c.POINTER(c.c_char_p)) for name in ("channel_ids", "output_names", "output_units")),
        *((name, c.c_char_p) for name in ("manifest_sha256", "weights_sha256")),
    )


_P, _N, _INT = c.c_void_p, c.c_size_t, c.c_int
_PUSH = (_P, _P, _N, _P, _N, _P)
SIGNATURES = {
    "ed_strerror": (c.c_char_p, (_INT,)),
    "ed_state_bytes": (_N, (_P,)),
    "ed_init": (_INT, (_P, _P, _N, _P)),
    "ed_open": (_INT, (c.c_char_p, _P)),
    "ed_close": (None, (_P,)),
    "ed_info_get": (c.POINTER(Info), (_P,)),
    "ed_reset": (None, (_P,)),
    "ed_outputs_for": (_N, (_P, _N)),
    "ed_push": (_INT, _PUSH),
    "ed_push_i16": (_INT, _PUSH),
    "ed_set_gain": (_INT, (_P, _P, _P)),
    "ed_gap_outputs": (_INT, (_P, _N, _P, _N, _P)),
    "ed_step": (_INT, (_P, _P, _P)),
    "ed_set_normalization": (_INT, (_P, _P, _P)),
    "ed_latent": (_INT, (_P, _P, _N)),
    "ed_raw_kinematics": (_INT, (_P, _P, _N)),
    "ed_state_export": (_INT, (_P, _P, _N)),
    "ed_state_import": (_INT, (_P, _P, _N)),
}


def load_library(name: str, data: bytes) -> c.CDLL:
    """Loads the library `name` whose bytes `data` were checked.

    It is loaded from memory and not from a file, so that exactly the checked bytes run. A library that was compiled
    again under the same name is also not mistaken for the one that this process has already loaded. The same bytes are
    loaded once, however many decoders are opened, and stay loaded. Raises EngineError if the system refuses it.
    """
    digest = hashlib.sha256(data).digest()
    if digest not in _LOADED:
        _LOADED[digest] = _load(name, data)
    return _LOADED[digest]


_LOADED: dict[bytes, c.CDLL] = {}  # by the hash of their bytes; each holds a descriptor


def _load(name: str, data: bytes) -> c.CDLL:
    try:
        library = _open(name, data)
        for symbol, (result, arguments) in SIGNATURES.items():
            function = getattr(library, symbol)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise EngineError(
            f"{name}: this library cannot be loaded",
            got=error,
            causes=("it was compiled on a system with a newer C library",),
        ) from error
    return library


def _open(name: str, data: bytes) -> c.CDLL:
    """Opens the library from a file in memory, or from a private copy where the system has no such files.

    The descriptor of that file stays open. The loader identifies a library by its path, which holds the number of the
    descriptor, and would mistake a new library with a reused number for the old one.
    """
    if not hasattr(os, "memfd_create"):
        with write_private_copy({name: data}) as folder:
            return c.CDLL(str(folder / name))
    descriptor = os.memfd_create(name[:LONGEST_NAME])
    with open(descriptor, "wb", closefd=False) as file:
        file.write(data)
    try:
        return c.CDLL(f"/proc/self/fd/{descriptor}")
    except OSError:
        os.close(descriptor)  # nothing was loaded under its number
        raise
