"""Opens one session: an NWB file in HDF5 or a Zarr folder.

The input is a path. The output is the hdmf reader, which holds the file open, the pynwb object, and a list of the parts
that cannot be read.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from edgedistill.data.opening.hdf5_datasets import import_plugins, require_readable
from edgedistill.data.opening.hdf5_files import open_nwb2, reading_error, require_hdf5
from edgedistill.data.opening.hdf5_targets import require_plain_targets
from edgedistill.data.opening.nwb_reading import Unreadable, read_nwb
from edgedistill.data.opening.session_files import is_zarr
from edgedistill.data.opening.zarr import open_zarr
from edgedistill.data.rollback_file import recover
from edgedistill.errors import RecordingError
from edgedistill.files import find_number

REQUIRED = (
    "identifier",
    "session_description",
    "session_start_time",
    "timestamps_reference_time",
    "file_create_date",
    "general",
)

ODD_CONTENT = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def open_nwb(path: Path) -> tuple[Any, Any, tuple[Unreadable, ...]]:
    """Returns the open reader, the pynwb object and what is unreadable. Raises RecordingError.

    The filters of hdf5plugin are registered before the file is opened.
    """
    if not is_zarr(path):
        with suppress(OSError):  # a folder that cannot be written to
            recover(path)  # the recording of a stream that was killed in a moment in which it was written
        require_hdf5(path)
    try:
        import h5py

        from edgedistill.data.opening.hdf5_links import LenientReader, find_broken_links
    except ImportError as error:
        raise RecordingError(
            f"{path}: reading NWB needs pynwb",
            got=str(error),
            next_step="pip install 'edgedistill[train]'",
        ) from error
    file: Any = None
    broken: tuple[Unreadable, ...] = ()
    with ExitStack() as opened, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pynwb warns of cached schemas and old conventions in files of other labs
        try:
            if is_zarr(path):
                reader = open_zarr(path)
            else:
                import_plugins()
                file = opened.enter_context(open_nwb2(h5py, path))
                require_plain_targets(file)
                broken = find_broken_links(file)
                reader = LenientReader(file=file, mode="r", load_namespaces=True)
            opened.callback(reader.close)
            nwb, unreadable = read_nwb(reader, broken)
        except RecordingError:
            raise
        except Exception as error:  # hdmf raises many kinds
            raise _explain_failure(path, file, error) from error
        opened.pop_all()  # the reader keeps the file open
    return reader, nwb, unreadable


@contextmanager
def explain_read_errors(path: Path, what: str) -> Iterator[None]:
    """Turns a read that fails half-way through a file into a RecordingError that names the file and `what`.

    A file that was not written by pynwb can hold any shape and type anywhere, so what Python says of them counts too.
    """
    try:
        yield
    except RecordingError:
        raise
    except ODD_CONTENT as error:
        raise RecordingError(
            f"{path}: {what} cannot be read",
            got=f"{type(error).__name__}: {error}",
            causes=("a shape or a type that the NWB schema does not allow", "a fault of edgedistill"),
            next_step=f"pynwb-validate {path}",
        ) from error
    except (OSError, RuntimeError) as error:
        number = find_number(error) if isinstance(error, OSError) else None
        raise reading_error(path, f"{what} cannot be read: {error}", number) from error


def _explain_failure(path: Path, file: Any, error: Exception) -> RecordingError:
    """Returns why pynwb cannot read a file: a filter that is not installed, damage, or a part that is missing."""
    text = " ".join(str(error.args[-1] if error.args else error).split())[:300]
    if isinstance(error, OSError):
        if file is not None:
            file.visititems(lambda name, held: require_readable(held, path, name))
        return reading_error(path, text, find_number(error))
    lacking = [name for name in REQUIRED if file is not None and name not in file]
    return RecordingError(
        f"{path}: pynwb cannot read this file",
        got=f"no {', no '.join(lacking)}" if lacking else f"{type(error).__name__}: {text}",
        causes=("it lacks a part that NWB 2 needs, or breaks its schema", "the file is damaged"),
        next_step=f"pynwb-validate {path}",
    )
