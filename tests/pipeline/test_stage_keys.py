"""A kept stage runs again when its inputs, code or libraries change, but not when only comments and docstrings do."""

from __future__ import annotations

import ast
import shutil
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest

import edgedistill
from edgedistill.errors import EdgeDistillError, OutputError
from edgedistill.pipeline import cache as cache_module
from edgedistill.pipeline.cache import Cache, stage_key, wait_until_seen
from edgedistill.pipeline.code_digest import code_digest, find_needed_modules, installed_code_digest
from edgedistill.pipeline.library_versions import find_libraries, find_version, installed_versions

PACKAGE = Path(edgedistill.__file__).parent
READ, TEACHER, STUDENTS, SEARCHES, LINEAR, LABELS, RANGES = STAGES = tuple(
    f"edgedistill.pipeline.{name}"
    for name in ("inputs", "teacher", "students", "searched_students", "linear_fits", "spike_labels", "ranges")
)
TRAININGS = {TEACHER, STUDENTS, SEARCHES, RANGES}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Returns a copy of the package's sources that a test may change."""
    return Path(shutil.copytree(PACKAGE, tmp_path / "edgedistill", ignore=shutil.ignore_patterns("__pycache__")))


def digests(package: Path) -> dict[str, str]:
    return {stage: code_digest(stage, package) for stage in STAGES}


def stages_that_change_with(path: str, package: Path) -> set[str]:
    """Returns the stages whose digest changes with a statement that is added to a module. Restores the module."""
    before, source = digests(package), (package / path).read_text(encoding="utf-8")
    (package / path).write_text(source + "\nADDED = 1\n", encoding="utf-8")
    after = digests(package)
    (package / path).write_text(source, encoding="utf-8")
    return {stage for stage in STAGES if after[stage] != before[stage]}


def name_of(path: Path, package: Path) -> str:
    """Returns the full name of the module in a file."""
    parts = ("edgedistill", *path.relative_to(package).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def in_other_words(source: str) -> str:
    """Returns the same program with other docstrings, one for every function, other comments and other spacing."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            if ast.get_docstring(node) is not None:
                del node.body[0]
            node.body.insert(0, ast.Expr(ast.Constant("Other words.")))
    future = "from __future__ import annotations"
    return "# A comment.\n" + ast.unparse(tree).replace(future, f"{future}\n\n\n# Another comment.")


def test_the_stages_that_are_kept_are_those_tested_here() -> None:
    found = {
        f"edgedistill.pipeline.{path.stem}"
        for path in (PACKAGE / "pipeline").glob("*.py")
        if any(
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and (node.func.attr, len(node.args)) in (("stage", 3), ("shared_stage", 3), ("open_folder", 3))
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        )
    }
    assert found == set(STAGES)


def test_other_words_change_no_key(package: Path) -> None:
    before = digests(package)
    hashed = {name for stage in STAGES for name in find_needed_modules(stage, package)}
    files = [path for path in package.rglob("*.py") if name_of(path, package) in hashed]
    assert len(files) == len(hashed) > 40
    for path in files:
        source = path.read_text(encoding="utf-8")
        path.write_text(in_other_words(source), encoding="utf-8")
        assert path.read_text(encoding="utf-8") != source
    assert digests(package) == before


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_its_own_module(package: Path, stage: str) -> None:
    assert stage in stages_that_change_with(f"pipeline/{stage.rpartition('.')[2]}.py", package)


@pytest.mark.parametrize(
    ("path", "stages"),
    [
        ("quantization/integers.py", {RANGES}),
        ("quantization/exact_torch.py", {RANGES}),
        ("quantization/calibration/observers.py", {RANGES}),
        ("quantization/training/finetuning.py", {RANGES}),
        ("numerics/oracle.py", {RANGES}),
        ("quantization/graph_rules/quantization_rules.py", set()),  # graphs are written again for every bundle
        ("compile/engines.py", set()),
        ("models/teacher.py", TRAININGS),
        ("training/pretrain.py", TRAININGS),
        ("training/distill.py", {STUDENTS, SEARCHES, RANGES}),
        ("training/midway.py", TRAININGS),
        ("data/lfp/lfp.py", {READ, *TRAININGS, LINEAR, LABELS}),
        ("training/baselines.py", {LINEAR, LABELS}),
    ],
)
def test_a_statement_changes_the_keys_of_the_stages_that_run_it(package: Path, path: str, stages: set[str]) -> None:
    assert stages_that_change_with(path, package) == stages


def test_nothing_of_quantization_is_behind_the_training() -> None:
    for stage in (READ, TEACHER, STUDENTS, SEARCHES, LINEAR, LABELS):
        assert not [name for name in find_needed_modules(stage, PACKAGE) if "quantization" in name], stage


def test_every_way_to_import_counts(tmp_path: Path) -> None:
    sources = {
        "__init__": "VERSION = 1",
        "a": "from typing import TYPE_CHECKING\nimport edgedistill.b\nfrom edgedistill.c import x\n"
        "from edgedistill import d\nfrom .room import e\nfrom .room.inner import z\n"
        "if TYPE_CHECKING:\n    import edgedistill.f\ndef late():\n    from edgedistill.g import y\n"
        "    import_module('edgedistill.h'), importlib.import_module('edgedistill.i'), import_module(x)\n",
        **dict.fromkeys(("b", "c", "d", "f", "g", "h", "i", "unused"), "x = y = 1"),
    }
    (tmp_path / "room").mkdir()
    for name, source in sources.items():
        (tmp_path / f"{name}.py").write_text(source)
    for name in ("__init__", "e", "inner", "unused"):
        (tmp_path / "room" / f"{name}.py").write_text("z = 1")
    expected = {"a", "b", "c", "d", "f", "g", "h", "i", "room", "room.e", "room.inner"}
    found = find_needed_modules("edgedistill.a", tmp_path)
    assert found == {"edgedistill", *(f"edgedistill.{name}" for name in expected)}
    with pytest.raises(ModuleNotFoundError, match=r"edgedistill\.none"):
        code_digest("edgedistill.none", tmp_path)


def test_the_installed_package_is_what_is_hashed() -> None:
    assert installed_code_digest(TEACHER) == code_digest(TEACHER, PACKAGE)


# ---------------------------------------------------------------- the libraries


def test_the_libraries_of_a_stage_are_those_that_its_modules_import() -> None:
    found = {stage: find_libraries(stage, PACKAGE) for stage in STAGES}
    assert found[READ] >= {"numpy", "scipy", "h5py", "pynwb", "hdmf", "hdmf_zarr", "zarr", "hdf5plugin"}
    assert not found[READ] & {"torch", "optuna"}
    assert found[TEACHER] >= {"torch", "numpy", "safetensors"}
    assert found[LINEAR] >= {"numpy", "sklearn"}
    assert [stage for stage in STAGES if "optuna" in found[stage]] == [SEARCHES]
    for stage in STAGES:
        for library in found[stage] - {"tomli"}:  # Python has it since 3.11
            assert find_version(library) is not None or find_spec(library) is None, library


def test_an_import_that_is_added_becomes_a_library_of_the_stages_behind_it(package: Path) -> None:
    before = {stage: find_libraries(stage, package) for stage in STAGES}
    path = package / "training" / "baselines.py"
    path.write_text(path.read_text(encoding="utf-8") + "\ndef late():\n    import joblib.parallel\n", encoding="utf-8")
    after = {stage: find_libraries(stage, package) for stage in STAGES}
    assert {stage for stage in STAGES if after[stage] != before[stage]} == {LINEAR, LABELS}
    assert after[LINEAR] - before[LINEAR] == {"joblib"}


@pytest.mark.parametrize("library", ["torch", "scikit-learn", "h5py"])
def test_another_version_of_a_library_changes_the_keys_of_the_stages_that_import_it(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {stage: stage_key("name", [], stage) for stage in STAGES}
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "9.9.9" if name == library else version(name))
    installed_versions.cache_clear()
    after = {stage: stage_key("name", [], stage) for stage in STAGES}
    installed_versions.cache_clear()
    of_torch = TRAININGS | {LINEAR, LABELS}
    expected = {"torch": of_torch, "scikit-learn": of_torch, "h5py": set(STAGES)}[library]
    assert {stage for stage in STAGES if after[stage] != before[stage]} == expected


def test_a_library_that_is_missing_has_no_version_and_python_is_named() -> None:
    assert find_version("no_such_library") is None
    assert installed_versions(READ)["python"] == ".".join(map(str, sys.version_info[:2]))


# ---------------------------------------------------------------- the cache


def fill(folder: Path) -> None:
    (folder / "result").write_text("done")


fill.__module__ = TEACHER  # as if this function were defined in that module


def test_a_stage_is_kept_until_its_inputs_or_its_code_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path / "work")
    first = cache.stage("teacher", [1], fill)
    assert cache.stage("teacher", [1], fill) == first
    assert cache.stage("teacher", [2], fill) != first
    monkeypatch.setattr(cache_module, "installed_code_digest", lambda module: f"other code of {module}")
    assert cache.stage("teacher", [1], fill) != first
    assert [stage.cached for stage in cache.stages] == [False, True, False, False]


def test_a_stage_that_fails_is_not_kept_and_says_why(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    fail.__module__ = TEACHER
    with pytest.raises(OutputError, match=r"stage 'teacher'[\s\S]*the disk is full[\s\S]*--work"):
        Cache(tmp_path / "work").stage("teacher", [1], fail)
    assert not list(tmp_path.iterdir())


def test_a_stage_that_was_removed_while_it_was_used_says_so(tmp_path: Path) -> None:
    """One process waits for no file server."""
    kept = Cache(tmp_path / "work").stage("teacher", [1], fill)
    assert wait_until_seen(kept) == kept
    shutil.rmtree(tmp_path / "work")
    with pytest.raises(EdgeDistillError, match="removed while it was used"):
        wait_until_seen(kept)


def test_seconds_of_a_stage_within_another_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 4.0, 10.0, 20.0, 21.0, 21.5, 22.5])
    monkeypatch.setattr(cache_module, "monotonic", lambda: next(clock))
    cache = Cache(tmp_path / "work")

    def make(folder: Path) -> None:
        with cache.timed("latents"):
            fill(folder)

    make.__module__ = TEACHER
    cache.stage("student", [1], make)
    seconds = cache.start_clock()  # as a search does, whose training lists what it computes
    with cache.timed("targets"):
        pass
    cache.note("search", seconds())
    found = [(stage.name, stage.seconds) for stage in cache.stages]
    assert found == [("latents", 3), ("student", 7), ("targets", 0.5), ("search", 2)]
