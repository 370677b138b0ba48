"""Computes a hash of the code that a kept stage depends on.

The name of the module that makes a stage goes in. A hash comes out, over that module and every module of this package
that it imports, directly or through others. Docstrings and comments do not count, so that a change of wording does not
start a new training. The sources are read and not run, so that an import inside a function counts as well.
"""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from importlib.resources import files
from importlib.util import resolve_name
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sys

    if sys.version_info >= (3, 11):
        from importlib.resources.abc import Traversable
    else:
        from importlib.abc import Traversable

PACKAGE = "edgedistill"


@cache
def installed_code_digest(module: str) -> str:
    """Returns `code_digest` of a module of the package that is running, such as "edgedistill.pipeline.teacher"."""
    return code_digest(module, files(PACKAGE))


def code_digest(module: str, package: Traversable) -> str:
    """Returns the SHA-256 over the statements of `module` and of all that it imports from the folder `package`.

    Raises ModuleNotFoundError where `module` is not in that folder.
    """
    digest = hashlib.sha256()
    for name in sorted(find_needed_modules(module, package)):
        statements, _ = read_source(source_of(name, package) or "", name)
        digest.update(f"{name} {statements}\n".encode())
    return digest.hexdigest()


def find_needed_modules(module: str, package: Traversable) -> set[str]:
    """Returns the full names of `module` and of the modules of this package that it needs.

    The `__init__` of a package counts only where a module imports from the package itself. In this package these files
    contain nothing but imports, so the others need not be followed.
    """
    if source_of(module, package) is None:
        raise ModuleNotFoundError(f"no module {module} in {package}")
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        source = None if name in found else source_of(name, package)
        if source is not None:
            found.add(name)
            waiting.extend(read_source(source, name)[1])
    return found


def source_of(module: str, package: Traversable) -> str | None:
    """Returns the source of a module or a package's `__init__`, or None for a name outside this package."""
    top, *parts = module.split(".")
    if top != PACKAGE:
        return None
    folder = package
    for part in parts[:-1]:
        folder = folder / part
    places = [folder / f"{parts[-1]}.py", folder / parts[-1] / "__init__.py"] if parts else [folder / "__init__.py"]
    return next((place.read_text(encoding="utf-8") for place in places if place.is_file()), None)


@cache
def read_source(source: str, module: str) -> tuple[str, frozenset[str]]:
    """Returns the hash of the statements in a source, and the names it imports. Some of these are not modules.

    `import_module("NAME")` counts as an import.
    """
    tree = ast.parse(source)
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), module.rpartition(".")[0])
            imported.update((base, *(f"{base}.{alias.name}" for alias in node.names)))
        elif isinstance(node, ast.Call) and (name := read_import_module(node)) is not None:
            imported.add(name)
        elif isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = [statement for statement in node.body if not is_docstring(statement)]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), frozenset(imported)


def read_import_module(call: ast.Call) -> str | None:
    """Returns the name that a call of `import_module` is given as a text, or None for any other call."""
    called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", None)
    if called != "import_module" or not call.args or not isinstance(call.args[0], ast.Constant):
        return None
    return str(call.args[0].value)


def is_docstring(statement: ast.stmt) -> bool:
    """Tells whether a statement is a bare string, which does nothing when it runs."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
