"""The house: layers hold, modules explain themselves, the wheel works on a machine without torch."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "edgedistill"
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py"))


PARTS = [*PACKAGE.glob("*.py"), *PACKAGE.glob("*/__init__.py")]
HOST = {"data", "models", "training", "quantization"}
TOP = {"cli", "pipeline", "bench", "decoding", "doctor"}


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """import-linter on the package in `folder`, which goes before the installed one."""
    command = "from importlinter.cli import lint_imports_command as main; main()"
    env = {**os.environ, "PYTHONPATH": str(folder), "PYTHONWARNINGS": "ignore"}
    return run([sys.executable, "-c", command, "--no-cache"], cwd=folder, env=env)


def run(
    command: Sequence[str | Path], cwd: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=110, check=False)


# ---------------------------------------------------------------- layers


@pytest.fixture
def copied_house(tmp_path: Path) -> Path:
    shutil.copytree(PACKAGE, tmp_path / "edgedistill", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_layers_hold() -> None:
    pytest.importorskip("importlinter", reason="import-linter comes with the extra dev")
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "line", "broken_contract"),
    [
        ("runtime/new.py", "import torch", "live without torch"),
        ("target.py", "def late():\n    import pynwb", "live without torch"),
        ("measure/new.py", "from edgedistill import data", "device does not know the host"),
        ("models/new.py", "import edgedistill.runtime", "host does not know the device"),
        ("runtime/new.py", "import edgedistill.measure", "upward within the device"),
        ("training/new.py", "import edgedistill.quantization.integers", "upward within the host"),
        ("compile/c/new.py", "import edgedistill.compile.cuda", "upward within compile"),
        ("quantization/graph_rules/new.py", "import edgedistill.quantization.onnx_graph", "upward within quantization"),
        ("errors.py", "import edgedistill.models", "top over host"),
        ("homeless.py", "", "top over host"),
    ],
)
def test_a_forbidden_import_is_caught(copied_house: Path, module: str, line: str, broken_contract: str) -> None:
    pytest.importorskip("importlinter", reason="import-linter comes with the extra dev")
    with (copied_house / "edgedistill" / module).open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    result = lint_imports(copied_house)
    assert result.returncode == 1, result.stdout + result.stderr
    broken = [text for text in result.stdout.splitlines() if text.strip().endswith("BROKEN")]
    assert any(broken_contract in text for text in broken) or "homeless" in result.stdout


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is_for(module: str) -> None:
    assert ast.get_docstring(ast.parse((ROOT / module).read_text(encoding="utf-8")))


def test_whatever_is_not_host_or_top_is_kept_free_of_torch() -> None:
    parts = {path.parent.name if path.name == "__init__.py" else path.stem for path in PARTS} - {
        "edgedistill",
        "__main__",
    }
    house = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for part in parts - HOST - TOP:
        assert f'"edgedistill.{part}",' in house, f"list {part} in the import contract of pyproject.toml"


# ---------------------------------------------------------------- the wheel


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty environment with the wheel and what it depends on: what a device would have."""
    pytest.importorskip("hatchling", reason="the wheel's builder comes with the extra dev")
    folder = tmp_path_factory.mktemp("device")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--no-index", "-q"]
    built = run([*pip, "wheel", *options, "-w", folder, ROOT], cwd=folder)
    assert built.returncode == 0, built.stderr
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    (wheel,) = folder.glob("edgedistill-*.whl")
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--retries", "0"]
    installed = run([*pip, "install", "-q", "-c", ROOT / "constraints.txt", wheel], cwd=folder)
    if installed.returncode and "connection" in installed.stderr.lower():
        pytest.skip("the package index is not reachable from this machine")
    assert installed.returncode == 0, installed.stderr
    return python


def test_the_wheel_needs_no_torch(device: Path) -> None:
    code = (
        "import edgedistill.runtime, importlib.util as u, sys\n"
        "assert not any(u.find_spec(name) for name in ('torch', 'pynwb', 'onnx', 'matplotlib'))\n"
        "print(edgedistill.__file__)"
    )
    result = run([device, "-c", code], cwd=device.parent)
    assert result.returncode == 0, result.stderr
    assert str(device.parent.parent) in result.stdout  # the wheel, not this checkout


def test_the_wheel_carries_targets_kernels_recipes_and_presets(device: Path) -> None:
    code = (
        "from edgedistill.assets import asset_folder\n"
        "from edgedistill.config import preset_names\n"
        "from edgedistill.target import target_names\n"
        "print(*preset_names(), *target_names())\n"
        "print([f.name for n in ('kernels', 'calibration') for f in asset_folder(n).iterdir()])"
    )
    result = run([device, "-c", code], cwd=device.parent)
    assert result.returncode == 0, result.stderr
    for name in ("nano", "edge", "paper", "host", "jetson-thor", "README.md"):
        assert name in result.stdout


@pytest.mark.skipif(not (PACKAGE / "cli").exists(), reason="this checkout has no command line")
def test_the_wheel_lists_targets_and_examines_the_machine(device: Path) -> None:
    listed = run([device.parent / "edgedistill", "targets", "--json"], cwd=device.parent)
    assert listed.returncode == 0, listed.stderr
    assert "jetson-thor" in json.dumps(json.loads(listed.stdout))
    examined = run([device.parent / "edgedistill", "doctor", "--json"], cwd=device.parent)
    assert "torch" in json.dumps(json.loads(examined.stdout)), examined.stderr
