"""Writes the holdout of a bundle, which is the test block of its session as bins and as raw frames."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from edgedistill.config import StudentShape
from edgedistill.data.bins import SessionBins
from edgedistill.data.lfp.lfp import Gap, Lfp
from edgedistill.data.opening.digest import require_unchanged
from edgedistill.data.recording import open_recording
from edgedistill.frontend import FrontEnd, FrontEndConfig
from edgedistill.pipeline.graph_checks import holdout_stretch
from edgedistill.scratch import fill_file, release_pages
from edgedistill.training.batches import TrainingSession
from edgedistill.training.evaluate import unscale_behavior

HOLDOUT_BYTES = 64 << 20  # most bytes of raw frames; at 30 kHz, a few minutes of recording would fill a bundle


def write_holdout(bins: SessionBins, session: TrainingSession, shape: StudentShape) -> IO[bytes]:
    """Returns `holdout.npz`, opened, which holds the test block after a run-up of one receptive field.

    It holds the models' input (T, I), the standardized features it was made from (T, I), the channels that were there
    (T, C), spike counts (T, U), kinematics (T, K), and raw frames in uV.
    """
    stretch = holdout_stretch(session, shape)
    frames = raw_stretch(bins, stretch.start, stretch.stop)
    return open_npz(holdout_bins(session, stretch, unscale_behavior(session)) | frames)


def holdout_bins(
    session: TrainingSession, stretch: slice, kinematics: npt.NDArray[np.floating[Any]]
) -> dict[str, npt.NDArray[Any]]:
    """Returns the arrays of `holdout.npz` without raw frames. `kinematics` (T, K) are those of the whole session."""
    assert session.source is not None
    return {
        "bins": session.inputs("lfp")[stretch].numpy(),
        "present": session.source.present[stretch].numpy(),
        "there": session.source.there[stretch].numpy(),
        **spike_counts(session, stretch),
        "kinematics": kinematics[stretch].astype(np.float32),
        "score_from": np.array(session.split.test.start - stretch.start),
        "first_bin": np.array(stretch.start),
    }


def raw_frames(lfp: Lfp, config: FrontEndConfig, first: int, stop: int) -> dict[str, npt.NDArray[Any]]:
    """Returns raw frames of bins `first` to `stop`, at most HOLDOUT_BYTES."""
    start = config.edge(first)
    frames = min(config.edge(stop) - start, HOLDOUT_BYTES // (4 * lfp.channels))
    return {"frames": lfp.read(start, start + frames), "frame_start": np.array(start)}


def spike_counts(session: TrainingSession, stretch: slice) -> dict[str, npt.NDArray[Any]]:
    """Returns the counts (T, U), and `unobserved` (T, U) where some unit was not observed in some bin.

    Returns nothing for a session without units.
    """
    if session.counts is None:
        return {}
    counts = session.counts[stretch].numpy()
    unknown = np.isnan(counts)
    return {"counts": np.nan_to_num(counts).astype(np.uint8)} | ({"unobserved": unknown} if unknown.any() else {})


def raw_stretch(bins: SessionBins, first: int, stop: int) -> dict[str, npt.NDArray[Any]]:
    """Returns raw frames of bins `first` to `stop`, at most HOLDOUT_BYTES, and the front end's state before.

    Raises RecordingError where the file is no longer the one that the bins were made from.
    """
    config = bins.frontend
    assert config is not None
    with require_unchanged(bins.path, bins.sha256), open_recording(Path(bins.path), bins.names) as recording:
        lfp = recording.lfp
        assert lfp is not None
        front_end = FrontEnd(config)
        block = max(1, (8 << 20) // (4 * lfp.channels))
        for frames_uv in lfp.read_blocks(block, 0, config.edge(first)):
            if isinstance(frames_uv, Gap):
                front_end.gap(frames_uv.frames)
            else:
                front_end.push(frames_uv)
        state = {f"fe_{name}": value for name, value in front_end.export_state().items()}
        return raw_frames(lfp, config, first, stop) | state


def pack_npz(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """Returns small arrays as the bytes of an .npz file."""
    file = io.BytesIO()
    write_npz(file, arrays)
    return file.getvalue()


def open_npz(arrays: Mapping[str, npt.NDArray[Any]]) -> IO[bytes]:
    """Returns large arrays as an opened .npz file without a name, which the caller closes."""
    return fill_file(lambda file: write_npz(file, arrays))


def write_npz(file: IO[bytes], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Writes arrays as `np.savez` does, without pickle, and gives back the memory of what was read of files for it."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(_Frugal(member), array, allow_pickle=False)  # writes block by block


class _Frugal:
    """Hands blocks of arrays on to a file, and then gives back the memory of the pages they were read from."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, block: bytes) -> None:
        self._file.write(block)
        release_pages()
