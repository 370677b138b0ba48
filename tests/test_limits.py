"""What a file claims is compared with a limit before memory is taken, and names cannot act on those who read them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tracemalloc
import zipfile
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from benchmarks.cpu.bundle_changes import BLANK, MANIFEST, Case
from edgedistill import limits
from edgedistill.bundle import open_bundle
from edgedistill.bundle.contents import read_decoder_spec, read_holdout, read_tensors
from edgedistill.config import StudentShape, read_toml
from edgedistill.data.opening.hdf5_files import require_hdf5
from edgedistill.decoding import format_csv_header
from edgedistill.errors import BundleError, ConfigError, EngineError, RecordingError
from edgedistill.frontend import FrontEndConfig
from edgedistill.limits import plain_name, plain_text, read_json, read_plain
from edgedistill.runtime import Decoder
from edgedistill.runtime.decoder import DecoderInfo
from edgedistill.runtime.onnx_content import find_graph_fault

from .bundles import write_test_bundle
from .cli.calling import call

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_test_bundle(tmp_path_factory.mktemp("limits") / "test.edge").path


@pytest.fixture
def case(original: Path, tmp_path: Path) -> Case:
    """A copy of the bundle that can be changed and signed again."""
    return Case(original, tmp_path, np.random.default_rng(0))


# ---------------------------------------------------------------- bundles


def test_a_bundle_with_too_many_files_or_bytes_is_refused_unless_told(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = case.write()
    size = sum(map(len, case.files.values()))
    monkeypatch.setattr(limits, "BUNDLE_GB", 1)
    assert open_bundle(path).names
    monkeypatch.setattr("edgedistill.bundle.reading.most_bundle_bytes", lambda: size - 1)
    with pytest.raises(BundleError, match=r"too large for a bundle(.|\n)*EDGEDISTILL_LARGEST_BUNDLE_GB"):
        open_bundle(path)
    monkeypatch.undo()
    case.manifest["files"] |= {f"f{i}": BLANK for i in range(10_001)}
    with pytest.raises(BundleError, match=r"too many files(.|\n)*at most 10000"):
        open_bundle(case.write())
    monkeypatch.setenv(limits.LARGER, "4")
    with pytest.raises(BundleError, match="is missing"):
        open_bundle(case.write())


@pytest.mark.parametrize("told", ["", "x", "-3", "1", "²", "9" * 99])
def test_a_limit_that_makes_no_sense_is_the_usual_one(monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    monkeypatch.setenv(limits.LARGER, told)
    assert limits.most_bundle_bytes() == 2 * 10**9


def test_a_large_manifest_is_not_parsed(case: Case) -> None:
    folder = case.write()
    (folder / MANIFEST).write_bytes(b"[" + b"[]," * (4 << 20) + b"0]")
    tracemalloc.start()
    with pytest.raises(BundleError, match="too large"):
        open_bundle(folder)
    assert tracemalloc.get_traced_memory()[1] < 40 << 20
    tracemalloc.stop()


def test_the_directory_of_a_zip_is_not_read_if_it_claims_too_much(tmp_path: Path) -> None:
    path = tmp_path / "many.edge.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MANIFEST, b"{}")
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x05\x06")
    data[at + 12 : at + 16] = (100 << 20).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(BundleError, match="too large to be a bundle"):
        open_bundle(path)


def test_a_zip_that_unpacks_to_gigabytes_is_refused_before_anything_of_it_is_read(case: Case) -> None:
    path = case.place / "small.edge.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr(MANIFEST, case.sign())
        with archive.open("student.onnx", "w") as file:
            for _ in range(300):
                file.write(bytes(1 << 20))
    assert path.stat().st_size < 4 << 20
    tracemalloc.start()
    with pytest.raises(BundleError, match=r"too large to be a bundle(.|\n)*claim to unpack"):
        open_bundle(path)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_the_list_of_a_zip_is_read_once_for_all_files_and_has_an_end(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list that is read again for each of 10,000 files takes hours."""
    path = case.place / "many.edge.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {MANIFEST: case.sign(), **case.files}.items():
            archive.writestr(name, data)
    bundle, opened = open_bundle(path), []
    real = zipfile.ZipFile.__init__

    def count(archive: zipfile.ZipFile, file: object, *rest: object) -> None:
        opened.append(file)
        real(archive, file, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(zipfile.ZipFile, "__init__", count)
    bundle.verify()
    assert len(opened) == 1 < len(bundle.names)
    monkeypatch.undo()
    with zipfile.ZipFile(path, "a") as archive:
        for i in range(10_001):
            archive.writestr(f"{i}", b"")
    with pytest.raises(BundleError, match=r"this zip lists too many files(.|\n)*at most 10000"):
        open_bundle(path)


def test_a_file_is_in_memory_once_when_it_is_read(case: Case) -> None:
    case.files["student.onnx"] = bytes(64 << 20)
    bundle = open_bundle(case.write())
    tracemalloc.start()
    assert len(bundle.read("student.onnx")) == 64 << 20
    assert tracemalloc.get_traced_memory()[1] < 80 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("shape", "packed"), [("(1099511627776,)", 0), ("(4, 4)", 0), ("(-1,)", 0), ("(120000000,)", 480_000_000)]
)
def test_an_array_that_claims_more_than_its_file_holds_is_not_made(case: Case, shape: str, packed: int) -> None:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    made = io.BytesIO()
    with (
        zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("bins.npy", "w") as file,
    ):
        file.write(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode())
        for _ in range(0, packed, 1 << 20):
            file.write(bytes(1 << 20))
    case.files["holdout.npz"] = made.getvalue()
    tracemalloc.start()
    with pytest.raises(BundleError, match=r"holdout\.npz.*not read(.|\n)*claim"):
        read_holdout(open_bundle(case.write()))
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


def test_a_header_of_tensors_with_an_unknown_type_is_refused(case: Case) -> None:
    header = json.dumps({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    name = "fill_in.safetensors"
    case.files[name] = len(header).to_bytes(8, "little") + header + bytes(4)
    with pytest.raises(BundleError, match="fill_in"):
        read_tensors(open_bundle(case.write()), name)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("frontend", "rate", "1e999999999"), ("frontend", "rate", "9" * 5000), ("frontend", "rate", "1/0"),
        ("frontend", "channels", 10**9), ("frontend", "channels", True), ("frontend", "flat_s", 1e30),
        ("frontend", "filter_order", 10**6), ("frontend", "line_hz", 1e-9), ("frontend", "highpass_hz", 1e-300),
        ("frontend", "bin_ms", 10**400), ("frontend", "recover_s", float("inf")), ("frontend", "notch_q", "high"),
        ("model", "window", 10**12), ("model", "d", 2**40), ("model", "lags", 2**62), ("model", "layers", 2**31),
    ],
)  # fmt: skip
def test_a_decoder_that_would_take_memory_or_time_without_an_end_is_refused(
    case: Case, part: str, key: str, value: object
) -> None:
    case.manifest[part][key] = value
    with pytest.raises(BundleError, match=r"manifest\.json"):
        read_decoder_spec(open_bundle(case.write()))


def test_a_number_beyond_every_float_is_refused(case: Case) -> None:
    case.manifest["metrics"] = {"r2": 10**400}
    with pytest.raises(BundleError, match="beyond every float"):
        open_bundle(case.write())


def test_the_largest_arrays_and_students_are_allowed() -> None:
    assert FrontEndConfig(Fraction(30_000), 1024).inputs == 1024
    assert StudentShape(5 * 1024, 16, 512, 8, 8, 1000, 2048, 3, 4, 20).lag_rows == 20
    with pytest.raises(ConfigError, match="cannot keep that many samples"):
        FrontEndConfig(Fraction(30_000), 65_536, flat_s=60)


# ---------------------------------------------------------------- ONNX


def varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def message(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def inside(tensor: bytes, *path: int | tuple[int, bytes]) -> bytes:
    """Puts a message into others. A pair in the path is a message with these bytes in front."""
    for part in reversed(path):
        number, before = part if isinstance(part, tuple) else (part, b"")
        tensor = message(number, before + tensor)
    return tensor


ADD = message(4, b"Add")
NODE, STEP = ((1, ADD),), ((7, ADD),)
PLUGIN_CALL = message(7, b"edgedistill") + message(4, b"EdAttention")
PLUGIN_NAME = message(10, b"edgedistill") + message(1, b"EdAttention")
EXTERNAL = varint(14 << 3) + varint(1)


@pytest.mark.parametrize(
    "path",
    [(7, 5), (20, 1, 5), *((7, *NODE, 5, *rest) for rest in ((5,), (10,), (6, 5))), ((25, PLUGIN_NAME), *STEP, 5, 5)],
)
def test_data_outside_a_graph_are_found_wherever_they_are_named(path: tuple[int | tuple[int, bytes], ...]) -> None:
    assert "outside" in str(find_graph_fault(inside(EXTERNAL, *path)))
    assert "outside" in str(find_graph_fault(inside(message(13, message(1, b"location")), *path)))
    assert find_graph_fault(inside(varint(14 << 3) + b"\0", *path)) is None


def test_a_field_that_readers_take_for_another_is_refused() -> None:
    hidden = varint((14 << 3) + (1 << 32)) + varint(1)  # field 14 to a reader of 32 bits
    longer = b"\xf0\x00\x01"  # field 14 in one byte more than it needs
    for tensor in (hidden, longer, varint(14 << 3) + b"\x81\x00", b"\x00\x01", varint(8) + b"\xff" * 9 + b"\x7f"):
        assert "protocol buffer" in str(find_graph_fault(inside(tensor, 7, 5)))
    assert find_graph_fault(inside(varint(8) + b"\xff" * 9 + b"\x01", 7, 5)) is None  # -1 has ten bytes


@pytest.mark.parametrize("name", ["Loop", "ConstantOfShape", "RandomNormal", "Pad", "ConcatFromSequence", "Expand"])
def test_operators_that_no_step_graph_has_are_refused(name: str) -> None:
    assert name in str(find_graph_fault(inside(message(4, name.encode()), 7, 1)))
    assert name in str(find_graph_fault(inside(ADD + message(4, name.encode()), 7, 1)))
    assert name in str(find_graph_fault(inside(message(4, name.encode()), (25, PLUGIN_NAME), 7)))


def test_only_the_plugin_has_a_domain_and_a_function_and_no_tensor_is_sparse() -> None:
    assert find_graph_fault(inside(ADD, 7, 1)) is None
    assert find_graph_fault(inside(PLUGIN_CALL, 7, 1)) is None
    assert find_graph_fault(inside(ADD, (25, PLUGIN_NAME), 7)) is None
    assert "EdAttention" in str(find_graph_fault(inside(PLUGIN_CALL, (25, PLUGIN_NAME), 7)))  # a function in itself
    assert "Add" in str(find_graph_fault(inside(message(7, b"com.microsoft") + ADD, 7, 1)))
    assert "Add" in str(find_graph_fault(message(25, message(1, b"Add"))))
    for path in ((7, 15), (7, *NODE, 5, 22), (7, *NODE, 5, 23)):
        assert "sparse" in str(find_graph_fault(inside(b"", *path)))


def test_graphs_too_deep_and_other_bytes_are_refused() -> None:
    assert "deep" in str(find_graph_fault(inside(b"", 7, *((1, ADD), 5, 6) * 20)))
    for junk in (b"\x3a", b"\xff" * 20, b"\x3a\xff\xff\xff\x7f", b"\x0b"):
        assert "protocol buffer" in str(find_graph_fault(junk))


def test_a_bundle_whose_graph_reads_another_file_is_refused(case: Case) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(case.files["student.onnx"])
    assert find_graph_fault(case.files["student.onnx"]) is None
    assert find_graph_fault(case.files["student.int8.onnx"]) is None
    tensor = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    (case.place / "secret.bin").write_bytes(bytes(len(tensor.raw_data)))
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", str(case.place / "secret.bin")
    case.files["student.onnx"] = model.SerializeToString()
    with pytest.raises(EngineError, match="outside the graph"):
        Decoder(open_bundle(case.write()), "onnxruntime")


# ---------------------------------------------------------------- names and other files


EVIL = "\x1b]0;own\x07=1+1\x9b31m\u202e\u2028"


def test_names_reach_a_terminal_without_control_characters(case: Case) -> None:
    case.manifest["name"] = "decoder" + EVIL
    case.manifest["outputs"][0]["name"] = EVIL
    case.manifest["session"] = {"id": EVIL}
    path = case.write()
    for words in (("inspect", path), ("inspect", path, "--json"), ("run", path, "-")):
        shown = call(*words, stdin=b"")
        assert shown.exit_code == 0
        assert not set(shown.output) & set("\x1b\x07\x9b\u202e\u2028")
    assert json.loads(call("inspect", path, "--json").stdout)["name"] == "decoder" + EVIL
    case.manifest["engine"] = EVIL
    refused = call("run", case.write("other.edge"), "-", stdin=b"")
    assert refused.exit_code == 1
    assert not set(refused.output) & set("\x1b\x07\x9b\u202e\u2028")


def test_a_name_with_a_line_of_its_own_passes_for_no_line_of_ours(case: Case) -> None:
    forged = "x\nfiles  9, all signed by the lab\nerror: none"
    case.manifest["name"] = case.manifest["preset"] = case.manifest["session"]["id"] = forged
    case.manifest["outputs"][0]["unit"] = case.manifest["created_by"] = forged
    case.manifest["metrics"] = {forged: 1.0}
    case.manifest["graphs"] = {forged: {"usable": False, "reason": forged}}
    shown = call("inspect", case.write())
    assert shown.exit_code == 0
    lines = shown.output.splitlines()
    assert sum(line.startswith("files ") for line in lines) == 1
    assert not [line for line in lines if line.startswith("error:")]


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@x", "\x00=1", "\n\t=1", " =1", "\u200b=1"])
def test_no_column_of_a_csv_is_a_formula(name: str) -> None:
    info = DecoderInfo("n", "c", "0" * 64, Fraction(1000), ("a",), (name,), ("cm/s",), 1.0, 0.0, 10)
    header = format_csv_header(info)
    assert len(header.splitlines()) == 1
    assert all(column.strip('"')[0] not in "=+-@\t\r" for column in header.split(","))
    assert plain_name("cursor_vel_x (cm/s)") == "cursor_vel_x (cm/s)"
    split = DecoderInfo("n", "c", "0" * 64, Fraction(1000), ("a",), ("a;=1+1",), ("cm/s",), 1.0, 0.0, 10)
    assert '"a;=1+1 (cm/s)"' in format_csv_header(split)  # in countries where a semicolon parts columns
    assert plain_text("µV, R²\n\tx") == "µV, R²\n\tx"


def test_pipes_and_large_files_are_refused_at_once(tmp_path: Path) -> None:
    pipe, large, deep = tmp_path / "pipe.toml", tmp_path / "large.toml", tmp_path / "deep.toml"
    os.mkfifo(pipe)
    large.write_bytes(b"#" * (limits.MOST_SETTINGS_BYTES + 1))
    deep.write_text("a = " + "[" * 5000)
    for path, says in ((pipe, "not a plain file"), (large, "larger than"), (deep, "not a TOML file")):
        with pytest.raises(ConfigError, match=says):
            read_toml(path)
    with pytest.raises(RecordingError, match="not a plain file"):
        require_hdf5(pipe)
    with pytest.raises(OSError, match="not a plain file"):
        read_plain(Path("/dev/zero"), 10)
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        read_plain(tmp_path, 10)
    with pytest.raises(OSError, match="not a plain file"):
        read_json(pipe, 10)
    deep.write_text("[" * 99_999)
    with pytest.raises(ValueError, match="too deep"):
        read_json(deep, 1 << 20)
    for words in (("inspect", pipe), ("report", pipe)):
        assert call(*words, "--out", tmp_path / "x.html").exit_code in (1, 2)
    assert call("report", pipe, "--out", tmp_path / "x.html").exit_code == 1


def test_a_config_of_other_kinds_is_refused_by_name() -> None:
    config = FrontEndConfig(Fraction(1000), 4)
    for change in (
        {"channels": 4.0},
        {"bin_ms": "10"},
        {"flat_uv": None},
        {"rate": 1e3},
        {"bands": ((1.0, 9.0),) * 65},
    ):
        with pytest.raises(ConfigError):
            replace(config, **change)


# ---------------------------------------------------------------- the fuzzer


@pytest.mark.parametrize("cases", [15, pytest.param(600, marks=pytest.mark.variant)])
def test_no_changed_bundle_ends_in_a_traceback_a_hang_or_gigabytes(original: Path, tmp_path: Path, cases: int) -> None:
    module = ["-m", "benchmarks.cpu.fuzz_bundles", str(original), "--cases", str(cases), "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, *module], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "fuzz_bundles.json").read_text())
    assert result["found"] == []
    assert result["cases"] == cases
