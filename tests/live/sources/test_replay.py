"""A recording is replayed at its pace, and decoded to the bits of `run`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from threading import Event
from time import monotonic

import numpy as np
import pytest

from edgedistill.bundle import Bundle
from edgedistill.data.recording import open_recording
from edgedistill.decoding import decode_file
from edgedistill.live.loop import LiveStream
from edgedistill.live.sources.replay import ReplaySource
from edgedistill.runtime import Decoder

from ..fakes import KeepingSink
from ..test_loop import PLAIN


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from ...data.nwb_files import whole_session

    return whole_session(tmp_path_factory.mktemp("replay") / "s1.nwb", seconds=30)


def test_a_replay_is_decoded_as_run_decodes_the_file(session: Path, bundle: Bundle, decoder: Decoder) -> None:
    kept, settings = KeepingSink(), replace(PLAIN, backlog_s=600, seconds=20)
    counters = LiveStream(decoder, ReplaySource(session, bundle, speed=100), {"kept": kept}, settings).run(Event())
    assert counters.lost_frames == 0
    with open_recording(session) as recording:
        whole = decode_file(decoder, recording)
    assert len(kept.bins) >= 2000
    for bin_, output, end_s in zip(kept.bins, whole.outputs, whole.times_s, strict=False):
        assert bin_.kinematics.tobytes() == output.kinematics.tobytes()
        assert bin_.flags == output.flags
        assert bin_.stamp_s is not None
        assert bin_.stamp_s == pytest.approx(end_s, abs=0.01)


def test_frames_come_when_they_are_due(session: Path, bundle: Bundle) -> None:
    source = ReplaySource(session, bundle, speed=2)
    header = source.open(Event())
    assert header is not None
    assert header.matched
    began, frames = monotonic(), 0
    while frames < 100:  # 0.4 s of signal
        chunk = source.read(0.1)
        if chunk is not None:
            assert chunk.numbers is not None
            assert np.array_equal(chunk.numbers, np.arange(frames, frames + len(chunk.frames)))
            frames += len(chunk.frames)
    assert monotonic() - began >= 0.19
    source.close()
