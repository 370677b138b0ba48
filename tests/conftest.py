"""Tests that need a device or minutes are skipped with the reason, never silently."""

from __future__ import annotations

import os
import platform
import re
import shutil
import signal
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from edgedistill import staging

from . import compiled_once

ROOT = Path(__file__).parents[1]

# Files of more than ten seconds.
LONG = frozenset(
    f"tests/{name}.py"
    for name in (
        *(
            f"kernels/test_{part}"
            for part in ("aarch64", "c_frontend", "c_step", "c_stream", "cortex_m55", "cortex_m7")
        ),
        *(f"kernels/test_{part}" for part in ("cuda_engine", "cuda_faults", "cuda_step", "fuzz", "gpu_suite")),
        *("kernels/test_tensorrt_engine", "runtime/test_c_engine", "runtime/test_cuda_engine"),
        *("kernels/test_cmake", "bench/test_bench", "cli/test_bench", "cli/test_calibrate", "cli/test_run"),
        *("compile/c/test_library", "compile/tensorrt/test_nvidia_builder", "data/test_real_layouts"),
        *("docs/test_json_keys", "live/test_loop", "matching/test_recording", "pipeline/test_inputs"),
        *("test_house", "test_limits", "training/test_ranks"),
    )
)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what runs behind it; tests send this signal
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run, and no limit of their time, so that a change is judged, not luck or a busy machine.
# --hypothesis-profile=default draws others. More of them are further variants, where a test does not say how many.
for name, examples in (("steady", 30), ("steady variants", 100)):
    settings.register_profile(
        name,
        max_examples=examples,
        derandomize=True,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")
    parser.addoption("--variants", action="store_true", help="also run further variants of what other tests cover")


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("steady variants" if config.getoption("--variants") else "steady")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    jetson = Path("/etc/nv_tegra_release").exists()
    lacking = {
        "gpu": None if shutil.which("nvidia-smi") or jetson else "no NVIDIA GPU on this machine",
        "tensorrt": None if find_spec("tensorrt") else "TensorRT is not installed",
        "jetson": None if jetson else "this machine is not a Jetson",
        "exact_int8_products": None
        if adds_int8_products_exactly()
        else "onnxruntime saturates sums of int8 products on an x86 processor without VNNI",
        "slow": None if config.getoption("--slow") else "takes minutes: pytest --slow",
        "variant": None if config.getoption("--variants") else "another test covers most of it: pytest --variants",
    }
    items.sort(key=lambda item: place_in_line(item.nodeid))
    for item in items:
        for mark in item.iter_markers():
            if reason := lacking.get(mark.name):
                item.add_marker(pytest.mark.skip(reason=reason))


def adds_int8_products_exactly() -> bool:
    """Tells whether onnxruntime does: on x86 without VNNI it adds pairs of products in 16 bits, which saturate."""
    return platform.machine() != "x86_64" or "vnni" in Path("/proc/cpuinfo").read_text(encoding="utf-8")


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keeps what is compiled away from the cache of the user who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder / "edgedistill"


@pytest.fixture(scope="session", autouse=True)
def compiled_by_all_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Says where the workers of this run share what they compile, as compiled_once.py does."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "compiled"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(compiled_once.SHARED, str(folder))
        yield


@pytest.fixture(scope="session", autouse=True)
def unsynced() -> Iterator[None]:
    """Lets no test wait for a busy disk. A test that looks at the waiting brings it back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(staging, "_sync_whole_disk", lambda descriptor: True)
        patch.setattr(staging, "_sync", lambda descriptor: None)
        yield


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns an empty cache of compiled engines that only this test uses."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own-cache"))
    return tmp_path / "own-cache" / "edgedistill"


def group_of(nodeid: str) -> str:
    """Returns what one worker runs whole: a file, whose tests share fixtures, or all that share the long build."""
    file = nodeid.partition("::")[0]
    return "pipeline" if file.startswith("tests/pipeline/") and shares_the_build(file) else file


@cache
def shares_the_build(file: str) -> bool:
    """Tells whether a file of tests/pipeline uses the sessions and builds that its conftest.py makes once."""
    return re.search(r"\b(home|first|first_work|pretrained): ", (ROOT / file).read_text(encoding="utf-8")) is not None


def place_in_line(nodeid: str) -> tuple[bool, bool]:
    """Returns where a test stands: those whose files take longest come first, so that no worker ends long before."""
    group = group_of(nodeid)
    return group != "pipeline", group not in LONG


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Returns a scheduler that deals out groups of tests in the order of the collection."""
    from xdist.scheduler import LoadScopeScheduling

    config.option.loadscopereorder = False

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return Groups(config, log)
