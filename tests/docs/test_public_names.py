"""The hook that ends the build of the site where a public name has no docstring."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from .pages import DOCS, ROOT

SOURCE = '''"""A module."""

LIMIT = 3


class Told:
    """A class."""

    value: int

    @property
    def bare_property(self) -> int:
        return 1

    def told(self) -> None:
        """A method."""

        def inner() -> None: ...

    def bare_method(self) -> None: ...

    def _private(self) -> None: ...

    def __len__(self) -> int:
        return 0


class Bare: ...


def bare_function() -> None: ...
'''


@pytest.fixture
def hook() -> ModuleType:
    pytest.importorskip("griffe", reason="griffe comes with the extra docs: make docs")
    spec = spec_from_file_location("public_names", DOCS / "public_names.py")
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_public_and_bare_is_named(hook: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small/__init__.py").write_text('"""A package."""\nfrom small.part import Bare\n')
    (tmp_path / "small/part.py").write_text(SOURCE)
    (tmp_path / "small/bare_module.py").write_text("")
    assert hook.undocumented("small", tmp_path) == [
        "small.bare_module",
        "small.part.Bare",
        "small.part.Told.bare_method",
        "small.part.Told.bare_property",
        "small.part.bare_function",
    ]


def test_every_public_name_of_the_package_is_documented(hook: ModuleType) -> None:
    assert hook.undocumented(hook.PACKAGE, ROOT) == []
