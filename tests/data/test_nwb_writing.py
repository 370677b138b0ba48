"""A large NWB file is written block by block, and a full disk raises an error in place of a crash."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
from hdmf.backends.hdf5.h5_utils import H5DataIO
from pynwb import TimeSeries

from edgedistill.data.nwb_writing import read_subject, write_large_nwb, write_nwb

from .nwb_files import new_nwb


def test_blocks_fill_their_dataset_in_order(tmp_path: Path) -> None:
    rows = np.arange(3000, dtype=np.int16).reshape(1000, 3)
    nwb = new_nwb()
    space = H5DataIO(shape=rows.shape, dtype=rows.dtype, chunks=(64, 3))
    nwb.add_acquisition(TimeSeries(name="wide", data=space, unit="V", rate=1.0))
    write_large_nwb(nwb, tmp_path / "a.nwb", {"acquisition/wide/data": (rows[i : i + 77] for i in range(0, 1000, 77))})
    with h5py.File(tmp_path / "a.nwb") as file:
        np.testing.assert_array_equal(file["acquisition/wide/data"][()], rows)


def test_a_full_disk_raises_an_error_and_does_not_crash_the_interpreter(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the full disk, on which HDF5 crashes the interpreter."""
    code = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r})
from pathlib import Path
import numpy as np
from edgedistill.errors import OutputError
from edgedistill.convert import convert_makin
from tests.convert.published import write_makin
home = Path({str(tmp_path)!r})
made = write_makin(home / "in")
for limit in (1 << 12, 1 << 16, 1 << 18, 1 << 19):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        convert_makin(made.mat, made.broadband, home / "out.nwb")
    except OutputError as error:
        assert "could not be written" in str(error), error
        print("told")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["told"] * 4
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_the_subject_of_a_file_is_read_without_its_id(tmp_path: Path) -> None:
    write_nwb(new_nwb(), tmp_path / "a.nwb")
    expected = {"species": "Macaca mulatta", "sex": "U", "age": "P9Y", "description": "none"}
    assert read_subject(tmp_path / "a.nwb") == expected
    (tmp_path / "b.nwb").write_bytes(b"no NWB")
    assert read_subject(tmp_path / "b.nwb") == {}


def test_facts_of_a_subject_that_are_no_texts_or_dates_are_left_out(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.nwb", "w") as file:
        file["general/subject/date_of_birth"] = "yesterday"
        file["general/subject/sex"] = [1, 2, 3]
        file["general/subject/age"] = np.bytes_(b"P9Y\xff\x1b")
        file.create_group("general/subject/species")
    assert read_subject(tmp_path / "a.nwb") == {"age": "P9Y\ufffd"}
