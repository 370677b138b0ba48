"""Tests that the example program, built as its first comment says, decodes what the definition decodes."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edgedistill.bundle import Bundle
from edgedistill.compile.c.library import SOURCES
from edgedistill.compile.engines import compile_bundle
from edgedistill.runtime import Decoder

from ..compile.engines import quick_host, write_engine_bundle
from ..runtime.streams import frames_of
from .c_builds import KERNELS

EXAMPLE = KERNELS / "examples" / "decode_stdin.c"
FRAMES = 400

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc (apt install gcc)")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    made = write_engine_bundle(tmp_path_factory.mktemp("example") / "slow.edge", "slow", name="rat 7")
    compile_bundle(made, quick_host())
    return made


def built(bundle: Bundle, *parts: str) -> Path:
    """Builds the program from `build/host` of the bundle as a user has it, with the library or from the sources."""
    folder = bundle.path / "build" / "host"
    flags = [
        *json.loads((folder / "build.json").read_text())["fingerprint"]["flags"],
        "-Werror",
        "-Iinclude",
        "-Ic",
        "-Imodel",
    ]
    command = ["gcc", *flags, "-DMODEL=ed_model_rat_7", str(EXAMPLE), *parts, "-o", "decode"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "decode"


def run(program: Path, data: bytes) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([str(program)], input=data, cwd=program.parent, capture_output=True, check=False)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.mark.parametrize(
    "parts",
    [("./libed_rat_7.so",), ('-DED_MODEL_HEADER="model_rat_7.h"', *SOURCES)],
    ids=["library", "sources"],
)
def test_prints_what_the_oracle_decodes(bundle: Bundle, parts: tuple[str, ...]) -> None:
    frames = frames_of("slow", FRAMES)
    done = run(built(bundle, *parts), frames.astype("<f4").tobytes())
    assert done.returncode == 0, done.stderr
    head, names, *lines = done.stdout.splitlines()
    assert head.startswith("# rat 7 (")
    assert names == "# bin flags v0[cm/s] sd v1[cm/s] sd"
    expected = Decoder(bundle, "oracle").push(frames)
    assert len(lines) == len(expected) > 100
    for line, output in zip(lines, expected, strict=True):
        bin_, flags, *values = line.split()
        assert (int(bin_), int(flags)) == (output.bin, output.flags)
        pairs = np.stack([output.kinematics, output.deviation], axis=1)
        assert np.array(values, np.float32).tobytes() == pairs.tobytes()  # nine digits determine a float32


def test_a_truncated_frame_is_reported(bundle: Bundle) -> None:
    done = run(built(bundle, "./libed_rat_7.so"), bytes(4 * 3 * 7 + 4))
    assert done.returncode == 1
    assert done.stderr == "decode: stdin ended inside a frame\n"


def test_the_example_is_short() -> None:
    assert len(EXAMPLE.read_text().splitlines()) < 80
