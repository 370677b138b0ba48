"""Reads the members of each version of TensorRT's Python bindings, on a machine with neither TensorRT nor a GPU.

A wheel of `tensorrt-cu12-bindings` or `tensorrt-cu13-bindings` holds one extension module, which needs nine functions
of three libraries. With empty libraries that have those functions, it can be imported in a process of its own. No
object can be created there, but `dir()` and the signatures at the start of the docstrings are those of that version.

Wheels are unpacked and not installed. `make setup` fetches them (`benchmarks/tensorrt/wheels.py`).
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.tensorrt.wheels import BINDINGS

from ...nvidia_wheels import require_wheels

NEEDED = {  # all functions that the extension module needs: library -> names
    "nvinfer": (
        "createInferBuilder_INTERNAL",
        "createInferRefitter_INTERNAL",
        "createInferRuntime_INTERNAL",
        "getBuilderPluginRegistry",
        "getPluginRegistry",
    ),
    "nvonnxparser": (
        "createNvOnnxParser_INTERNAL",
        "createNvOnnxParserRefitter_INTERNAL",
        "getNvOnnxParserVersion",
    ),
    "nvinfer_plugin": ("initLibNvInferPlugins",),
}
DUMP = """
import inspect, json, sys
import tensorrt_bindings.tensorrt as trt
def describe(thing):
    return {"doc": inspect.getdoc(thing) or "", "callable": callable(thing)}
def describe_class(cls):
    bases = [base.__name__ for base in cls.__mro__[1:] if base.__module__ == cls.__module__]
    members = {name: describe(getattr(cls, name)) for name in dir(cls)}
    return {"doc": inspect.getdoc(cls) or "", "members": members, "bases": bases}
names = [name for name in dir(trt)]
classes = {name: describe_class(getattr(trt, name)) for name in names if inspect.isclass(getattr(trt, name))}
module = {name: describe(getattr(trt, name)) for name in names}
json.dump({"classes": classes, "module": module}, sys.stdout)
"""


@dataclass(frozen=True)
class Signature:
    """Describes one overload of a function, as its docstring states it."""

    parameters: tuple[str, ...]  # without self
    optional: int  # how many of the last parameters have a default
    result: str  # class name, or "" for none


@dataclass(frozen=True, eq=False)
class Bindings:
    """Holds the classes and functions of one version."""

    version: str
    classes: Mapping[str, Any]
    module: Mapping[str, Any]

    def has_member(self, cls: str, name: str) -> bool:
        """Returns whether objects of that class have the attribute."""
        return name in self.classes[cls]["members"]

    def signatures(self, cls: str | None, name: str) -> list[Signature]:
        """Returns the overloads of a method, of a function of the module (`cls` is None), or of a class (`__init__`).

        There are none where the docstring states none.
        """
        members = self.module if cls is None else self.classes[cls]["members"]
        return signatures_in(members[name]["doc"], name) if name in members else []


def bindings(version: str) -> Bindings:
    """Returns the bindings of that version. Skips the test where its wheel or a compiler is missing."""
    return _load(*require_wheels(BINDINGS[version]))


@cache
def _load(wheel: Path) -> Bindings:
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        package = folder / "tensorrt_bindings" / "__init__.py"
        in_python = _assigned_names(package.read_text(encoding="utf-8"))
        package.write_text("")  # the real file would load the real libraries
        major = wheel.name.split("-")[1].split(".")[0]
        for library, functions in NEEDED.items():
            _write_empty_library(folder, f"lib{library}.so.{major}", functions)
        environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(folder)}
        done = subprocess.run(
            [sys.executable, "-c", DUMP], env=environment, capture_output=True, text=True, timeout=240, check=False
        )
    assert done.returncode == 0, done.stderr
    offered = json.loads(done.stdout)
    return Bindings(wheel.name.split("-")[1], offered["classes"], offered["module"] | in_python)


def _assigned_names(source: str) -> dict[str, Any]:
    """Returns the names that the package adds to the extension module, such as __version__."""
    targets = (target for node in ast.parse(source).body if isinstance(node, ast.Assign) for target in node.targets)
    return {target.id: {"doc": "", "callable": False} for target in targets if isinstance(target, ast.Name)}


def _write_empty_library(folder: Path, soname: str, functions: tuple[str, ...]) -> None:
    source = folder / f"{soname}.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in functions))
    command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{soname}", "-o", str(folder / soname), str(source)]
    subprocess.run(command, check=True, capture_output=True)


# ---------------------------------------------------------------- signatures


def signatures_in(doc: str, name: str) -> list[Signature]:
    """Reads the overloads, such as `name(self: A, b: int = 0) -> C`, at the start of a docstring of pybind11."""
    pattern = re.compile(rf"^(?:\d+\. )?{re.escape(name)}\((.*)\)(?: -> (.*))?$", re.MULTILINE)
    return [_signature(*match.groups()) for match in pattern.finditer(doc) if "*args" not in match[1]]


def _signature(inside: str, result: str | None) -> Signature:
    parts = [part.strip() for part in _split(inside) if part.strip() not in ("", "*", "/")]
    parts = [part for part in parts if part.split(":")[0] != "self"]
    names = tuple(part.split(":")[0].split("=")[0].strip() for part in parts)
    optional = sum(" = " in part for part in parts)
    last = (result or "").strip().split(".")[-1]
    return Signature(names, optional, "" if last == "None" else last)


def _split(inside: str) -> list[str]:
    """Splits a text at the commas outside all brackets."""
    parts, depth = [""], 0
    for letter in inside:
        depth += (letter in "([{<") - (letter in ")]}>")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
