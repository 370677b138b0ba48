"""The page on safety traces every requirement to hazards and to tests, all of which exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest

from .pages import DOCS, ROOT, section, table_rows

PAGE = DOCS / "safety.md"
REQUIREMENTS = list(table_rows(section(PAGE, "Requirements")))
HAZARDS = [cells[0] for cells in table_rows(section(PAGE, "Hazards"))]


@cache
def collect_tests(file: str) -> frozenset[str]:
    """The tests that pytest would collect from a file of tests/."""
    path = ROOT / "tests" / file
    if not path.is_file():
        return frozenset()
    functions = ast.parse(path.read_text(encoding="utf-8")).body
    return frozenset(f.name for f in functions if isinstance(f, ast.FunctionDef) and f.name.startswith("test_"))


def missing_tests(cell: str) -> Iterator[str]:
    """The tests in a cell that do not exist. What stands in backticks and names no test of a file is one too."""
    for cited in re.findall(r"`([^`]*)`", cell):
        file, _, name = cited.partition("::")
        if name not in collect_tests(file):
            yield cited


@pytest.mark.parametrize("cells", REQUIREMENTS, ids=lambda cells: cells[0])
def test_every_test_that_shows_a_requirement_exists(cells: list[str]) -> None:
    assert re.findall(r"`[^`]+::test_\w+`", cells[3]), "no test shows it"
    assert not list(missing_tests(cells[3]))


def test_requirements_are_numbered_and_hazards_known_and_each_is_served() -> None:
    assert [cells[0] for cells in REQUIREMENTS] == [f"R{number}" for number in range(1, len(REQUIREMENTS) + 1)]
    served = [set(cells[2].split(", ")) for cells in REQUIREMENTS]
    assert all(served)
    assert set().union(*served) == set(HAZARDS)


def test_a_test_that_was_renamed_is_noticed() -> None:
    here = "docs/test_safety.py::test_a_test_that_was_renamed_is_noticed"
    cell = f"`{here}`, `{here}_again`, `docs/test_none.py::test_a`, `docs/test_safety.py`"
    assert list(missing_tests(cell)) == [f"{here}_again", "docs/test_none.py::test_a", "docs/test_safety.py"]
