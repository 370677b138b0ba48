"""nwbinspector, the checker of the NWB project, finds nothing to mend in any kind of file that edgedistill writes."""

from __future__ import annotations

import warnings
from io import BufferedReader, BytesIO
from pathlib import Path

import pytest

from edgedistill.convert import convert_flint, convert_makin
from edgedistill.data.recording import open_recording
from edgedistill.data.simulation.nwb import simulate_to_nwb
from edgedistill.data.simulation.sessions import SimulationConfig
from edgedistill.decoding import Predictions, decode_file, decode_stream, write_predictions
from edgedistill.runtime import Decoder

from .bundles import CHANNELS, write_test_bundle
from .convert.published import write_flint, write_makin
from .data.nwb_files import add_electrodes, new_nwb, whole_session, write


def findings(path: Path) -> list[str]:
    """What nwbinspector finds that is CRITICAL or a violation of best practices."""
    nwbinspector = pytest.importorskip("nwbinspector", reason="nwbinspector comes with the extra dev")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        threshold = nwbinspector.Importance.BEST_PRACTICE_VIOLATION
        messages = list(nwbinspector.inspect_nwbfile(nwbfile_path=str(path), importance_threshold=threshold))
    return [f"{m.importance.name} {m.check_function_name} {m.location}: {m.message}" for m in messages]


def test_a_simulated_session_passes(tmp_path: Path) -> None:
    config = SimulationConfig(sessions=1, minutes=0.2, channels=4, units=3, population=40)
    assert not [found for path in simulate_to_nwb(config, tmp_path) for found in findings(path)]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return Decoder(write_test_bundle(tmp_path_factory.mktemp("bundle") / "test.edge"))


def test_predictions_of_a_recording_pass_and_know_its_subject(decoder: Decoder, tmp_path: Path) -> None:
    from pynwb import NWBHDF5IO

    with open_recording(whole_session(tmp_path / "s1.nwb", seconds=12)) as recording:
        predictions = decode_file(decoder, recording)
    write_predictions(predictions, tmp_path / "out.nwb")
    assert not findings(tmp_path / "out.nwb")
    with NWBHDF5IO(str(tmp_path / "out.nwb"), "r") as file:
        subject = file.read().subject
        assert (subject.species, subject.sex, subject.age) == ("Macaca mulatta", "U", "P9Y")


def test_predictions_of_a_stream_lack_only_the_subject_that_a_stream_does_not_name(
    decoder: Decoder, tmp_path: Path
) -> None:
    stream = BufferedReader(BytesIO(bytes(4 * CHANNELS * 500)))  # type: ignore[arg-type]
    outputs = tuple(output for part in decode_stream(decoder, stream) for output in part)
    write_predictions(Predictions(decoder.info, outputs), tmp_path / "out.nwb")
    assert findings(tmp_path / "out.nwb") == ["CRITICAL check_subject_exists /: Subject is missing."]


def test_a_converted_session_of_makin_passes(tmp_path: Path) -> None:
    made = write_makin(tmp_path, step_after=30_000)
    assert not findings(convert_makin(made.mat, made.broadband, tmp_path / "out.nwb").path)


def test_converted_sessions_of_flint_pass(tmp_path: Path) -> None:
    write_flint(tmp_path / "Flint_2012_e2.mat", recordings=2)
    files = convert_flint(tmp_path / "Flint_2012_e2.mat", tmp_path / "out")
    assert not [found for file in files for found in findings(file.path)]


def test_the_inspection_finds_what_is_wrong(tmp_path: Path) -> None:
    nwb = new_nwb()
    nwb.subject.fields.pop("sex")
    add_electrodes(nwb, 1)
    nwb.add_unit(spike_times=[2.0, 1.0])
    assert {"check_subject_sex", "check_ascending_spike_times"} <= {
        f.split()[1] for f in findings(write(nwb, tmp_path / "odd.nwb"))
    }
