"""The documents hold to the program: commands, options, links, cited documents, make targets, the tree of files."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import click
import pytest

from edgedistill.bench.robustness_subjects import LFP_RIDGE
from edgedistill.bench.subjects import SUBJECTS
from edgedistill.cli import main
from edgedistill.runtime.decoder import ENGINES

from ..cli.calling import parameters_of
from .pages import (
    DOCS,
    PAGES,
    README,
    ROOT,
    TREE,
    TREE_PAGE,
    anchors,
    described_tree,
    headings,
    links,
    paths_on_disk,
    section,
    slug,
    table_rows,
    text_of,
    tracked_files,
    tree_of_the_disk,
)

CLI = DOCS / "cli.md"
PAST = ("CHANGELOG.md", "decisions.md")  # they also name what once was
SOURCES = (".py", ".c", ".h", ".cpp", ".cu", ".cuh", ".toml", ".sh", ".md", ".css", ".txt")
MADE_BY_COMMANDS = ("demo-output/", "build/", "site/")


def names(pages: tuple[Path, ...]) -> list[str]:
    return [page.relative_to(ROOT).as_posix() for page in pages]


def test_decisions_are_in_the_order_of_their_numbers() -> None:
    numbers = [int(number) for number in re.findall(r"^### (\d+)\. ", text_of(DOCS / "decisions.md"), re.MULTILINE)]
    assert numbers == sorted(set(numbers))


# ---------------------------------------------------------------- commands and options


def test_the_pages_lists_of_commands_are_those_of_the_program() -> None:
    listed = re.findall(r"^\| \[`(\w+)`\]\(#\w+\)", text_of(CLI), re.MULTILINE)
    assert listed == list(main.commands)


def test_a_subject_of_the_bench_has_one_name_everywhere() -> None:
    known = {*SUBJECTS, *ENGINES, LFP_RIDGE}
    like = r"(?:onnxruntime|torch|lfp|spike)-(?:student|teacher|ridge|eager|dynamic|published|int8|fp32|float32)[\w-]*"
    scripts = [name for name in tracked_files() if re.fullmatch(r"benchmarks/.*\.sh", name)]
    pages = (page for page in PAGES if page.name not in PAST)
    for page in (*pages, *(ROOT / name for name in scripts)):
        text = text_of(page)
        named = {*re.findall(rf"`({like})`", text), *re.findall(r"--against ([a-z][\w-]*)", text)}
        assert named <= known, f"{page.name}: {named - known}"
    listed = set(
        re.findall(r"`([\w-]+)`", next(r[1] for r in table_rows(section(CLI, "bench")) if "--against" in r[0]))
    )
    assert listed == {*SUBJECTS} - {"lfp-student-fp32", "lfp-student-int8"}


@pytest.mark.parametrize("command", main.commands)
def test_every_option_stands_with_its_meaning_and_default(command: str) -> None:
    rows = {}
    for cells in table_rows(section(CLI, command)):
        option = re.match(r"`(--[\w-]+)", cells[0])
        assert option, f"{cells[0]} is no option"
        rows[option[1]] = cells
    options = [p for p in parameters_of(command) if isinstance(p, click.Option)]
    assert set(rows) == {max(option.opts, key=len) for option in options}
    for option in options:
        cells = rows[max(option.opts, key=len)]
        assert len(cells) == 3
        assert all(cells), f"{command} {cells[0]}: a meaning and a default"
        assert ("required" in cells[2]) == option.required, f"{command} {cells[0]}"
        if isinstance(option.type, click.Choice) and len(option.type.choices) < 4 and "|" in cells[0]:
            assert "|".join(option.type.choices) in cells[0]
        for choice in getattr(option.type, "choices", ()):
            assert choice in " ".join(cells), f"{command} {cells[0]} does not name {choice}"


@pytest.mark.parametrize("command", main.commands)
def test_a_default_in_the_page_is_that_of_the_program(command: str) -> None:
    rows = {cells[0].split()[0].strip("`"): cells[2] for cells in table_rows(section(CLI, command))}
    for option in parameters_of(command):
        if not isinstance(option, click.Option) or option.is_flag or option.multiple or option.required:
            continue
        default = option.default() if callable(option.default) else option.default
        if isinstance(default, (str, int, float)) and default != ".":
            shown = f"{default:g}" if isinstance(default, float) else str(default)
            assert shown in rows[max(option.opts, key=len)], f"{command} {option.opts}"


def test_the_documents_name_no_option_that_is_not_there() -> None:
    for line in re.findall(r"edgedistill [a-z][^`\n#]*", "\n".join(map(text_of, PAGES))):
        words = re.split(r"[\s|&;)]+", line)
        command = words[1].strip(",.:*'\"")
        if command not in main.commands:
            continue  # prose: "edgedistill turns recordings ..."
        known = {name for parameter in parameters_of(command) for name in parameter.opts} | {"--help"}
        for word in words[2:]:
            if word == "edgedistill":
                break
            if word.startswith("--"):
                assert word.partition("=")[0].strip(",.:") in known, line


# ---------------------------------------------------------------- what is cited exists


@pytest.mark.parametrize("page", names((*PAGES, ROOT / "kernels/README.md", ROOT / "calibration/README.md")))
def test_every_link_leads_somewhere(page: str) -> None:
    here = ROOT / page
    for link in links(here):
        path, _, anchor = link.partition("#")
        target = (here.parent / path).resolve() if path else here
        assert target.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page}: {link}; there are {sorted(anchors(target))}"


def test_every_document_that_code_or_documents_cite_exists() -> None:
    missing = []
    for name in tracked_files():
        path = ROOT / name
        if path.suffix not in SOURCES or Path(__file__) == path or name.startswith("shared/"):
            continue
        for cited in set(re.findall(r"(?<![\w/*<.-])((?:[\w-]+/)*[\w-]+\.md)\b", text_of(path))):
            places = (ROOT / cited, DOCS / cited, path.parent / cited)
            if not any(place.is_file() for place in places):
                missing.append(f"{name} cites {cited}")
    assert not missing


def test_every_section_that_code_cites_exists() -> None:
    """A citation reads numerics.md, "State"; it may be cut short, and may run over two lines of a comment."""
    missing = []
    for name in tracked_files():
        path = ROOT / name
        if path.suffix not in SOURCES or Path(__file__) == path or name.startswith("shared/"):
            continue
        flat = re.sub(r"\s*\n[\s*#/]*", " ", text_of(path))
        for page, cited in re.findall(r"\b([\w-]+\.md)`?,? (?:section )?\"([^\"]+)\"", flat):
            known = [heading.lower() for heading in headings(DOCS / page)] if (DOCS / page).is_file() else []
            if not any(heading.startswith(cited.lower().rstrip(" .…")) for heading in known):
                missing.append(f'{name} cites {page}, "{cited}"')
    assert not missing


def test_every_path_in_the_documents_exists() -> None:
    """Paths of the repository stand in backticks, since the site holds the pages of docs/ alone."""
    rooms = {path.split("/")[0] for path in tracked_files() if "/" in path}
    cited = {
        (page.name, path)
        for page in PAGES
        if page.name not in PAST
        for path in re.findall(r"`([\w.-]+/[\w./-]*)`", text_of(page))
        if path.split("/")[0] in rooms and not path.startswith(MADE_BY_COMMANDS)
    }
    assert not {(page, path) for page, path in cited if not (ROOT / path).exists()}


def test_every_make_target_and_benchmark_in_the_documents_exists() -> None:
    rules = set(re.findall(r"^([\w-]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    for page in PAGES:
        text = text_of(page)
        for target in re.findall(r"(?:^|`)make ([a-z]+)\b", text, re.MULTILINE):
            assert target in rules, f"{page.name}: make {target}"
        if page.name in PAST:
            continue
        for module in re.findall(r"python -m (benchmarks[.\w]*)", text):
            assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), f"{page.name}: {module}"
        for script in re.findall(r"(?:bash|python) ((?:benchmarks|kernels)/[\w./-]+)", text):
            assert (ROOT / script).is_file(), f"{page.name}: {script}"


def test_the_readme_fits_on_a_page() -> None:
    assert len(text_of(README).splitlines()) <= 150


def test_an_anchor_is_what_mkdocs_makes_of_a_heading() -> None:
    assert slug("Results, and what limits them") == "results-and-what-limits-them"
    assert slug("R²: what it is – and isn't") == "r2-what-it-is-and-isnt"


# ---------------------------------------------------------------- the tree


def test_the_tree_in_the_architecture_is_the_tree_on_disk() -> None:
    text = text_of(TREE_PAGE)
    found = TREE.search(text)
    assert found
    page, disk = found[2].splitlines(), tree_of_the_disk(text).splitlines()
    advice = "python -m tests.docs.pages rewrites the tree; describe what is new"
    assert page == disk, "\n".join([advice, *difflib.unified_diff(page, disk, "page", "disk", lineterm="", n=0)])
    assert [entry.path for entry in described_tree(text)] == paths_on_disk()


def test_every_line_of_the_tree_says_what_the_file_is_for() -> None:
    bare = [entry.path for entry in described_tree(text_of(TREE_PAGE)) if not entry.description]
    assert not bare, f"no description: {', '.join(bare)}"


def test_a_file_that_is_added_or_removed_is_noticed(tmp_path: Path) -> None:
    text = text_of(TREE_PAGE)
    removed = text.replace(next(line for line in text.splitlines() if line.startswith("    oracle.py ")) + "\n", "", 1)
    added = text.replace("\nkernels/", "\n  phantom.py   does not exist\nkernels/", 1)
    for changed in (removed, added):
        assert changed != text
        assert [entry.path for entry in described_tree(changed)] != paths_on_disk()
