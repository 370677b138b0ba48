"""NVIDIA's own plugin registries load our plugin: those of TensorRT 10.16, 11.4 and TensorRT for RTX 1.7.

None of them needs a GPU. What they hand out is called as in test_tensorrt_plugin.py, and computes the oracle's bits
with the kernel on the emulated GPU.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.tensorrt.libraries import lean_library, rtx_library
from benchmarks.tensorrt.wheels import CUDA_HEADERS, HEADERS, LEAN_10, LEAN_11, RTX

from ..nvidia_wheels import require_wheels
from .tensorrt_builds import FETCHED, TESTS, compile_cpp, headers
from .tensorrt_fakes import plugin_library
from .test_tensorrt_plugin import FIELDS, Handle, create, enqueued, load_harness, random_case

LIBRARIES: dict[str, tuple[str, int, Callable[[], Path]]] = {
    "10.16": (LEAN_10, 10, lambda: lean_library(10)),
    "11.4": (LEAN_11, 11, lambda: lean_library(11)),
    "RTX 1.7": (RTX, 11, rtx_library),
}


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Compiles the harness and the plugin."""
    require_wheels(HEADERS, *CUDA_HEADERS)
    folder = tmp_path_factory.mktemp("registry")
    options = ("-O1", "-fvisibility=default", *headers(FETCHED))
    return compile_cpp(folder / "harness.so", [TESTS / "plugin_harness.cpp"], options), plugin_library(folder, FETCHED)


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_registry_of_nvidias_loads_the_plugin_and_lets_it_go(libraries: tuple[Path, Path], name: str) -> None:
    wheel, major, find = LIBRARIES[name]
    require_wheels(wheel)
    harness, plugin = libraries
    arguments = tuple(map(str, (harness, plugin, find()))), major
    code = f"from tests.kernels.test_tensorrt_registry import drive; drive(*{arguments[0]!r}, {arguments[1]})"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr == "EdAttention: field v_scale is missing\n"  # no registry has a logger for a plugin


def drive(harness_path: str, plugin_path: str, tensorrt: str, major: int) -> None:
    """Uses the plugin through a registry, in a process of its own."""
    harness, plugin = load_harness(Path(harness_path)), plugin_path.encode()
    for _ in range(2):  # after it was let go, it can be loaded again
        assert harness.open_registered(tensorrt.encode(), major, plugin) == 0, harness.complaint()
        assert harness.creator_facts().decode().split("|")[:3] == ["EdAttention", "1", ""]
        assert [fact.split(":")[0] for fact in harness.creator_facts().decode().split("|")[3:]] == list(FIELDS)
        case = random_case(2, 33, 16)
        for way in ("clone_of", "attached", "through_a_plan"):
            made = create(harness)
            assert harness.plugin_facts(made).decode().startswith("EdAttention|1||")
            copy = Handle(getattr(harness, way)(made))
            if way != "through_a_plan":
                harness.destroy(made)
            assert (enqueued(harness, copy, case) == case.wanted()).all(), way
            harness.destroy(copy)
        assert harness.close_registered(major) == 0
    assert harness.open_registered(tensorrt.encode(), major, plugin) == 0
    assert not create(harness, v_scale=None)
