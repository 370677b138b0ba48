"""What `make demo` draws of the predictions that `run` writes."""

from __future__ import annotations

from pathlib import Path

from benchmarks import demo
from edgedistill.data.recording import open_recording
from edgedistill.decoding import decode_file, write_predictions
from edgedistill.runtime import Decoder

from .bundles import write_test_bundle
from .data.nwb_files import whole_session


def test_the_predictions_of_run_can_be_drawn(tmp_path: Path) -> None:
    bundle = tmp_path / "test.edge"
    decoder = Decoder(write_test_bundle(bundle))
    session = whole_session(tmp_path / "s1.nwb", seconds=40)
    with open_recording(session) as recording:
        write_predictions(decode_file(decoder, recording), tmp_path / "predictions.csv")
    demo.draw(session, tmp_path / "predictions.csv", {"int8_r2": 0.5}, tmp_path / "decoded.png")
    assert (tmp_path / "decoded.png").read_bytes().startswith(b"\x89PNG")
