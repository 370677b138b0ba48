"""Reads the project's Markdown: its headings, its links, its tables of keys, and its tree of files."""

from __future__ import annotations

import re
import subprocess
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = (*sorted(DOCS.glob("*.md")), README, ROOT / "CHANGELOG.md")

FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def without_code(text: str) -> str:
    """The text without fenced blocks and without code in backticks, whose brackets are no links."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))


def headings(page: Path) -> list[str]:
    """The headings of a page, without the marks of code."""
    found = re.findall(r"^#{1,6} (.+)$", FENCE.sub("", text_of(page)), re.MULTILINE)
    return [re.sub(r"[`*]", "", heading).strip() for heading in found]


def anchors(page: Path) -> set[str]:
    """What a link to a heading of the page may end in, after the `#`."""
    return {slug(heading) for heading in headings(page)}


def slug(heading: str) -> str:
    """The anchor that mkdocs gives a heading: Python-Markdown's rule for its table of contents."""
    plain = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


def links(page: Path) -> Iterator[str]:
    """The targets of all Markdown links and pictures of a page, those to other sites left out."""
    for target in re.findall(r"\]\(([^)\s]+)[^)]*\)", re.sub(r"`[^`\n]*`", "", FENCE.sub("", text_of(page)))):
        if not re.match(r"[a-z]+:", target):
            yield target


def section(page: Path, heading: str) -> str:
    """The text under a heading, up to the next heading of any level."""
    parts = re.split(r"^#{1,6} (.+)$", FENCE.sub("", text_of(page)), flags=re.MULTILINE)
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        if name.replace("`", "").strip() == heading:
            return body
    raise AssertionError(f"{page.name} has no section '{heading}'")


def table_rows(text: str) -> Iterator[list[str]]:
    """The cells of every row of the Markdown tables in a text, headers and rules left out."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    for line, after in zip(rows, [*rows[1:], ""], strict=True):
        if re.match(r"\|[\s:|-]+\|$", line) or re.match(r"\|[\s:|-]+\|$", after):
            continue
        yield [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


# ---------------------------------------------------------------- the tree of files


TREE_PAGE = DOCS / "architecture.md"
TREE = re.compile(r"(<!-- tree -->\n```text\n)(.*?)(\n```\n<!-- /tree -->)", re.DOTALL)
SHOWN = ("edgedistill", "kernels", "emulation", "benchmarks", "targets", "calibration", "docs", "tests")
FOLDERS_ONLY = ("tests", "benchmarks/results")  # their files are too many, or belong to a device
COLUMN = 34  # where descriptions begin


@dataclass(frozen=True)
class Entry:
    """One line of the tree. The path of a folder ends in a slash."""

    path: str
    description: str


def tracked_files() -> list[str]:
    """The files of the repository: those in git, and new ones that git does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=240).stdout
    return sorted({name for name in listed.splitlines() if (ROOT / name).is_file()})


def paths_on_disk() -> list[str]:
    """Every folder and file that the tree must name, folders first within their folder, in alphabetical order."""
    wanted: set[str] = set()
    for name in tracked_files():
        parts = name.split("/")
        if parts[0] not in SHOWN or len(parts) < 2:
            continue
        folders = ["/".join(parts[:depth]) for depth in range(1, len(parts))]
        shown = [f for f in folders if not f.startswith("benchmarks/results/")]
        wanted |= {f"{folder}/" for folder in shown}
        if parts[-1] != "__init__.py" and not name.startswith(tuple(f"{folder}/" for folder in FOLDERS_ONLY)):
            wanted.add(name)
    return sorted(wanted, key=_in_order)


def _in_order(path: str) -> list[tuple[int, int, str]]:
    """Sorts by folder; the rooms stand in the order of SHOWN, and in each room folders come before files."""
    parts = path.rstrip("/").split("/")
    last = len(parts) - 1
    ranks = [0 if i < last or path.endswith("/") else 1 for i in range(len(parts))]
    first = SHOWN.index(parts[0])
    return [(first if i == 0 else 0, rank, part) for i, (rank, part) in enumerate(zip(ranks, parts, strict=True))]


def described_tree(text: str) -> list[Entry]:
    """The entries of the tree in the text of docs/architecture.md."""
    found = TREE.search(text)
    assert found, f"{TREE_PAGE} holds no block between <!-- tree --> and <!-- /tree -->"
    entries: list[Entry] = []
    folders: list[str] = []
    for line in filter(str.strip, found[2].splitlines()):
        depth = (len(line) - len(line.lstrip())) // 2
        name, _, description = line.strip().partition(" ")
        folders = [*folders[:depth], name]
        entries.append(Entry("".join(folders), description.strip()))
        if not name.endswith("/"):
            folders.pop()
    return entries


def drawn_tree(entries: list[Entry]) -> str:
    """The block of the tree, a line an entry."""
    lines = []
    for entry in entries:
        parts = entry.path.rstrip("/").split("/")
        name = "  " * (len(parts) - 1) + parts[-1] + ("/" if entry.path.endswith("/") else "")
        lines.append(f"{name:<{COLUMN - 1}} {entry.description}".rstrip())
    return "\n".join(lines)


def tree_of_the_disk(text: str) -> str:
    """The block as it must be: the paths on disk, with the descriptions that the text has for them."""
    known = {entry.path: entry.description for entry in described_tree(text)}
    return drawn_tree([Entry(path, known.get(path, "")) for path in paths_on_disk()])


def main() -> None:
    """Rewrites the tree of docs/architecture.md: paths from the disk, descriptions kept, new ones left empty."""
    text = text_of(TREE_PAGE)
    TREE_PAGE.write_text(TREE.sub(lambda m: m[1] + tree_of_the_disk(text) + m[3], text), encoding="utf-8")


if __name__ == "__main__":
    main()
