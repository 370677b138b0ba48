"""Every command that reads files refuses those that it cannot use, and names them."""

from __future__ import annotations

from pathlib import Path

import h5py

from ..bundles import write_test_bundle
from ..data.nwb_files import add_lfp, add_units, lfp_volts, new_nwb, write
from .calling import answer, refused


def test_files_that_are_no_session(bundle: Path, session: Path, tmp_path: Path) -> None:
    text, short, foreign = tmp_path / "text.nwb", tmp_path / "short.nwb", tmp_path / "plain.nwb"
    text.write_text("subject,unit,time")
    short.write_bytes(session.read_bytes()[: session.stat().st_size // 2])
    with h5py.File(foreign, "w") as file:
        file["x"] = 1
    for path, says in ((text, "not an NWB file"), (short, "truncated"), (foreign, "not NWB 2")):
        refused("inspect", path, says=(path.name, says))
        refused("run", bundle, path, "--out", tmp_path / "out.csv", says=(path.name, says))
        refused("bench", bundle, "--data", path, says=(path.name, says))
    refused("run", bundle, tmp_path / "none.nwb", says=("none.nwb", "No such file"))
    assert not (tmp_path / "out.csv").exists()


def test_sessions_that_lack_a_part(bundle: Path, tmp_path: Path) -> None:
    spikes, field = new_nwb(), new_nwb()
    add_units(spikes)
    add_lfp(field, lfp_volts(seconds=10))
    spikes_only, lfp_only = write(spikes, tmp_path / "spikes.nwb"), write(field, tmp_path / "lfp.nwb")
    refused("run", bundle, spikes_only, says=("spikes.nwb", "no LFP", "4 units"))
    refused("bench", bundle, "--data", lfp_only, says=("lfp.nwb", "no behavior"))
    assert answer("run", bundle, lfp_only)["bins"] == 1_000  # a command that decodes needs nothing but LFP


def test_a_bundle_with_one_byte_changed_is_refused_by_the_name_of_the_file(tmp_path: Path) -> None:
    bundle = write_test_bundle(tmp_path / "damaged.edge").path
    data = bytearray((bundle / "student.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "student.onnx").write_bytes(data)
    for words in (("inspect", bundle), ("bench", bundle), ("run", bundle, "-")):
        refused(*words, says=("damaged.edge", "student.onnx", "was changed"), stdin=b"")
