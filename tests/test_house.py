"""The house: every test is collected, layers hold, modules explain themselves, the wheel works without torch."""

from __future__ import annotations

import ast
import email
import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Sequence
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from .git_files import tracked_files

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "edgedistill"
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py"))


PARTS = [*PACKAGE.glob("*.py"), *PACKAGE.glob("*/__init__.py")]
HOST = {"data", "models", "training", "quantization", "ranks"}
TOP = {"cli", "pipeline", "live", "bench", "stream_file", "decoding", "matching", "doctor", "convert"}


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """import-linter on the package in `folder`, which goes before the installed one."""
    command = "from importlinter.cli import lint_imports_command as main; main()"
    env = {**os.environ, "PYTHONPATH": str(folder), "PYTHONWARNINGS": "ignore", "COLUMNS": "300"}
    return run([sys.executable, "-c", command, "--no-cache"], cwd=folder, env=env)


def run(
    command: Sequence[str | Path], cwd: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    # Without PYTHONPATH, by which this checkout could be imported in place of the wheel.
    env = env or {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=500, check=False)


# ---------------------------------------------------------------- every test runs

# A plugin under which pytest finds test files exactly as it does otherwise, but imports none of them: the whole suite
# would take half a minute to import. Each file holds one item that stands for all of its tests.
FILES_ONLY = """
import pytest

class Untouched(pytest.File):
    def collect(self):
        yield Whole.from_parent(self, name="whole")

class Whole(pytest.Item):
    def runtest(self):
        raise AssertionError("this plugin is for --collect-only")

def pytest_pycollect_makemodule(module_path, parent):
    return Untouched.from_parent(parent, path=module_path)
"""


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def files_with_tests(root: Path) -> set[str]:
    """Returns the tracked files below tests/ that are named as tests, or that define a test under another name."""
    found = set()
    for name in tracked_files(root):
        path = Path(name)
        if path.parts[0] != "tests" or path.suffix != ".py":
            continue
        functions = [
            node.name for node in parse(root / path).body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        ]
        if path.name.startswith("test_") or any(function.startswith("test_") for function in functions):
            found.add(name)
    return found


def collected_files(root: Path, folder: Path) -> set[str]:
    """Returns the files that `pytest` without arguments takes tests from in `root`.

    It runs in a copy in `folder`, beside the plugin, whose files are empty, except for what a conftest.py says of the
    collection. What they would import takes many seconds.
    """
    (folder / "files_only.py").write_text(FILES_ONLY, encoding="utf-8")
    copy = folder / "collected"
    for name in tracked_files(root):
        path = copy / name
        if name.startswith("tests/") or name == "pyproject.toml":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(keep_what_collects(root / name) if path.suffix != ".toml" else (root / name).read_text())
    # Only the plugin that pyproject.toml sets an option of is loaded: the others take seconds and collect nothing.
    options = ("--collect-only", "-q", "-p", "files_only", "-p", "pytest_timeout", "-p", "no:cacheprovider")
    own = {"PYTHONPATH": str(folder), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
    env = {**os.environ, **own}
    listed = run([sys.executable, "-m", "pytest", *options], cwd=copy, env=env)
    assert listed.returncode in (0, 5), listed.stdout + listed.stderr  # 5: nothing was collected
    return {line.split("::")[0] for line in listed.stdout.splitlines() if line.endswith("::whole")}


def keep_what_collects(path: Path) -> str:
    """Returns the lines of a conftest.py that leave out files. Hooks that could do so are not known here."""
    if path.name != "conftest.py":
        return ""
    body = parse(path).body
    hooks = [node.name for node in body if isinstance(node, ast.FunctionDef)]
    assert not {"pytest_ignore_collect", "pytest_collect_file", "pytest_collect_directory"}.intersection(hooks)
    assigned = [
        node for node in body if isinstance(node, ast.Assign) and "collect_ignore" in ast.unparse(node.targets[0])
    ]
    return "\n".join(map(ast.unparse, assigned))


def test_every_file_that_is_named_as_a_test_defines_one() -> None:
    for name in files_with_tests(ROOT):
        tree = parse(ROOT / name)
        assert any(isinstance(node, ast.FunctionDef) and node.name.startswith("test_") for node in ast.walk(tree)), name


def test_every_test_file_in_git_is_collected(tmp_path: Path) -> None:
    expected = files_with_tests(ROOT)
    assert "tests/test_house.py" in expected
    assert expected - collected_files(ROOT, tmp_path) == set()


@pytest.mark.parametrize(
    ("lost", "changed"),
    [
        ("tests/build/test_lost.py", {"pyproject.toml": ("norecursedirs = ", "# ")}),  # pytest's own list names "build"
        ("tests/dist/test_lost.py", {}),
        ("tests/.hidden/test_lost.py", {}),
        ("tests/kernels/check_lost.py", {}),
        ("tests/kernels/test_lost.py", {"tests/conftest.py": ("", 'collect_ignore = ["kernels"]\n')}),
        ("tests/test_lost.py", {"pyproject.toml": ('testpaths = ["tests"]', 'testpaths = ["tests/kept"]')}),
    ],
)
def test_a_test_file_that_is_not_collected_is_noticed(
    tmp_path: Path, lost: str, changed: dict[str, tuple[str, str]]
) -> None:
    root, kept = tmp_path / "house", "tests/kept/test_kept.py"
    for name in (lost, kept, "tests/conftest.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("" if name.endswith("conftest.py") else "def test_nothing() -> None: ...\n")
    shutil.copy(ROOT / "pyproject.toml", root)
    for name, (old, new) in changed.items():
        text = (root / name).read_text(encoding="utf-8")
        assert old in text
        (root / name).write_text(text.replace(old, new, 1), encoding="utf-8")
    git = run(["git", "init", "--quiet"], cwd=root)
    if git.returncode:
        pytest.skip(f"git does not answer here: {git.stderr}")
    expected = files_with_tests(root)
    assert expected == {lost, kept}
    assert expected - collected_files(root, tmp_path) == {lost}


# ---------------------------------------------------------------- layers


# Modules, a forbidden line in each, and the contract that must catch it. None of these lines makes another one legal,
# so all of them stand in one copy of the package, except for the last, by which nearly everything imports the models.
FORBIDDEN = [
    ("runtime/new.py", "import torch", "live without torch"),
    ("target.py", "def late():\n    import pynwb", "live without torch"),
    ("measure/new.py", "from edgedistill import data", "device does not know the host"),
    ("models/new.py", "import edgedistill.runtime", "host does not know the device"),
    ("runtime/newer.py", "import edgedistill.measure", "upward within the device"),
    ("training/new.py", "import edgedistill.quantization.integers", "upward within the host"),
    ("compile/c/new.py", "import edgedistill.compile.cuda", "upward within compile"),
    ("quantization/graph_rules/new.py", "import edgedistill.quantization.onnx_graph", "upward within quantization"),
    ("models/transformer.py", "import edgedistill.models.student", "in a circle"),
    ("runtime/stream.py", "import edgedistill.runtime.decoder", "upward within runtime"),
    ("machine/programs.py", "import edgedistill.machine.jetson", "upward within machine"),
    ("pipeline/request.py", "import edgedistill.pipeline.building", "upward within pipeline"),
    ("bench/subjects.py", "import edgedistill.bench.comparison", "upward within bench"),
    ("cli/run.py", "import edgedistill.cli.inspect", "no command"),
    ("homeless.py", "", "top over host"),
    ("errors.py", "import edgedistill.models", "top over host"),
]


@pytest.fixture(scope="module")
def broken_contracts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Returns what import-linter says of each contract that the forbidden lines break, by the contract's name."""
    pytest.importorskip("importlinter", reason="import-linter comes with the extra dev")
    said: dict[str, str] = {}
    for number, wrong in enumerate((FORBIDDEN[:-1], FORBIDDEN[-1:])):
        house = tmp_path_factory.mktemp(f"house{number}")
        shutil.copytree(PACKAGE, house / "edgedistill", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", house)
        for module, line, _ in wrong:
            with (house / "edgedistill" / module).open("a", encoding="utf-8") as file:
                file.write(f"\n{line}\n")
        result = lint_imports(house)
        assert result.returncode == 1, result.stdout + result.stderr
        names = "|".join(map(re.escape, re.findall(r"^(.+) BROKEN", result.stdout, re.MULTILINE)))
        _, *parts = re.split(rf"^({names})$", result.stdout.partition("Broken contracts")[2], flags=re.MULTILINE)
        for name, text in zip(parts[::2], parts[1::2], strict=True):
            said[name] = said.get(name, "") + text
    return said


def test_the_layers_hold() -> None:
    pytest.importorskip("importlinter", reason="import-linter comes with the extra dev")
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(("module", "line", "contract"), FORBIDDEN)
def test_a_forbidden_import_is_caught(broken_contracts: dict[str, str], module: str, line: str, contract: str) -> None:
    importer = f"edgedistill.{module.removesuffix('.py').replace('/', '.')}"
    imported = line.rpartition("import ")[2]
    if line.startswith("from edgedistill "):
        imported = f"edgedistill.{imported}"
    if contract == "in a circle":
        caught = f"No cycles are allowed in {importer.rpartition('.')[0]}."
    else:
        caught = f"{importer} -> {imported}" if line else f"- {importer}\n"
    assert [name for name, text in broken_contracts.items() if contract in name and caught in text], broken_contracts


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
    """Returns the Python of an environment that holds the wheel and what it depends on, as a device would."""
    pytest.importorskip("hatchling", reason="the wheel's builder comes with the extra dev")
    folder = tmp_path_factory.mktemp("device")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--no-index", "-q"]
    built = run([*pip, "wheel", *options, "-w", folder, ROOT], cwd=folder)
    assert built.returncode == 0, built.stderr
    venv.create(folder / "env")
    python = folder / "env" / "bin" / "python"
    (wheel,) = folder.glob("edgedistill-*.whl")
    installed = run([*pip, "--python", python, "install", "-q", "--no-deps", "--no-index", wheel], cwd=folder)
    assert installed.returncode == 0, installed.stderr
    (site,) = folder.glob("env/lib/*/site-packages")
    link_dependencies(wheel, site)
    return python


def link_dependencies(wheel: Path, site: Path) -> None:
    """Links the packages that the wheel needs, and those that they need, from this environment into `site`."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        waiting = email.message_from_bytes(archive.read(name)).get_all("Requires-Dist") or []
    linked: set[str] = set()
    while waiting:
        needed = Requirement(waiting.pop())
        if needed.name in linked or (needed.marker is not None and not needed.marker.evaluate({"extra": ""})):
            continue
        linked.add(needed.name)
        found = distribution(needed.name)
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            (site / top).symlink_to(str(found.locate_file(top)))
        waiting += found.requires or []
    assert {"numpy", "scipy", "click"} <= linked


def test_the_wheel_needs_no_torch(device: Path) -> None:
    code = (
        "import edgedistill.runtime, importlib.util as u, sys\n"
        "assert not any(u.find_spec(name) for name in ('torch', 'pynwb', 'onnx', 'matplotlib'))\n"
        "print(edgedistill.__file__)"
    )
    result = run([device, "-c", code], cwd=device.parent)
    assert result.returncode == 0, result.stderr
    assert str(device.parent.parent) in result.stdout  # the wheel, not this checkout


def test_the_wheel_carries_targets_kernels_recipes_presets_and_the_live_page(device: Path) -> None:
    code = (
        "from edgedistill.assets import asset_folder\n"
        "from edgedistill.config import preset_names\n"
        "from edgedistill.live.sinks.page.served_page import read_assets\n"
        "from edgedistill.target import target_names\n"
        "print(*preset_names(), *target_names(), *read_assets())\n"
        "print([f.name for n in ('kernels', 'calibration') for f in asset_folder(n).iterdir()])"
    )
    result = run([device, "-c", code], cwd=device.parent)
    assert result.returncode == 0, result.stderr
    for name in ("nano", "edge", "paper", "host", "jetson-thor", "README.md", "/page.js"):
        assert name in result.stdout


@pytest.mark.skipif(not (PACKAGE / "cli").exists(), reason="this checkout has no command line")
def test_the_wheel_lists_targets_and_examines_the_machine(device: Path) -> None:
    listed = run([device.parent / "edgedistill", "targets", "--json"], cwd=device.parent)
    assert listed.returncode == 0, listed.stderr
    assert "jetson-thor" in json.dumps(json.loads(listed.stdout))
    examined = run([device.parent / "edgedistill", "doctor", "--json"], cwd=device.parent)
    assert "torch" in json.dumps(json.loads(examined.stdout)), examined.stderr
