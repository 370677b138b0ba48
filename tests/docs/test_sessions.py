"""docs/sessions.md holds the lists of the code: marks of bad channels, words for bands, reasons, and refusals."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgedistill.data import coverage
from edgedistill.data.lfp import electrodes
from edgedistill.data.lfp import words as lfp_words

from .pages import DOCS, ROOT, section, table_rows, text_of

PAGE = DOCS / "sessions.md"
CODED = re.compile(r"`([^`]+)`")
READING = (
    "edgedistill/data",
    "edgedistill/matching",
    "edgedistill/bench/holdout_scores.py",
    "edgedistill/pipeline/inputs.py",
)
INTERNAL = ("no LFP was loaded", "not a cached session", "no sessions given")  # no file of a user leads there


def coded_in(text: str) -> list[str]:
    return CODED.findall(text)


def row_of(heading: str, first: str) -> str:
    return next(cells[1] for cells in table_rows(section(PAGE, heading)) if cells[0] == first)


@pytest.mark.parametrize(
    ("first", "names"),
    [
        ("the value is true", electrodes.BAD_COLUMNS),
        ("the value is false", electrodes.GOOD_COLUMNS),
        ("the text holds a word for bad", electrodes.QUALITY_COLUMNS),
        ("the text holds a word for bad, and no word that is not known", electrodes.STATE_COLUMNS),
    ],
)
def test_every_column_that_marks_bad_channels_is_listed(first: str, names: tuple[str, ...]) -> None:
    assert coded_in(row_of("Bad channels", first)) == list(names)


def test_every_word_that_marks_bad_channels_and_every_column_of_labels_is_listed() -> None:
    text = section(PAGE, "Bad channels")
    line = next(line for line in text.splitlines() if line.startswith("- Words for bad"))
    assert coded_in(line) == [*electrodes.BAD_WORDS, *electrodes.GOOD_WORDS]
    line = next(line for line in text.splitlines() if line.startswith("- A word for bad does not count after"))
    assert coded_in(line.partition(", as in")[0]) == [*electrodes.NEGATIONS]
    true, false = next(line for line in text.splitlines() if line.startswith("- True is")).split(", and false is")
    for told, words in ((true, electrodes.TRUE_WORDS), (false, electrodes.FALSE_WORDS)):
        said = {word.lower() for word in coded_in(told)} | set(re.findall(r"\b[01]\b", told))
        assert said == {word.removesuffix(".0") for word in words}
    labels = next(line for line in text.splitlines() if line.startswith("**Names and positions"))
    assert coded_in(labels.partition(". Its position")[0]) == list(electrodes.LABEL_COLUMNS)


@pytest.mark.parametrize(
    ("first", "words"),
    [
        ("low frequencies", lfp_words.LOW_WORDS),
        ("narrow band", (*lfp_words.BAND_WORDS, *lfp_words.COPY_WORDS)),
        ("spike band", lfp_words.HIGH_WORDS),
    ],
)
def test_every_word_for_a_band_is_listed(first: str, words: tuple[str, ...]) -> None:
    found = [row for row in tables_under("## LFP", "## Units") if row[0] == first]
    assert coded_in(found[0][1]) == list(words)


def test_every_reason_is_listed_in_the_order_in_which_it_counts() -> None:
    listed = [coded_in(cells[0])[0] for cells in table_rows(section(PAGE, "How every second is accounted for"))]
    reasons = ("BEFORE", "GAP", "INVALID", "UNOBSERVED", "ALL_BAD", "SETTLING", "NO_BEHAVIOR")
    assert listed == [*(getattr(coverage, name) for name in reasons), coverage.after_end("LFP")]
    assert {n for n in vars(coverage) if n.isupper()} == set(reasons)


def tables_under(start: str, stop: str) -> Iterator[list[str]]:
    text = text_of(PAGE)
    yield from table_rows(text[text.index(f"\n{start}\n") : text.index(f"\n{stop}\n")])


def refusals() -> set[str]:
    """The messages of the page, each with … for what differs."""
    rows = tables_under("## What is refused", "## Published data sets")
    return {message for cells in rows for message in coded_in(cells[0])}


def raised() -> set[str]:
    """The first argument of every RecordingError of the reading code, with … for what is put in."""
    found = set()
    for place in READING:
        files = [ROOT / place] if place.endswith(".py") else sorted((ROOT / place).rglob("*.py"))
        for file in files:
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "RecordingError":
                    found.add(re.sub(r"^…: ", "", spell(node.args[0])))
    return found


def spell(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(spell(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return spell(node.left) + spell(node.right)
    return str(node.value) if isinstance(node, ast.Constant) else "…"


def stands_for(known: str, message: str) -> bool:
    """Whether a message of the page is one that is raised. What is put in may be spelled out in the page."""
    pattern = ".*".join(map(re.escape, message.strip("…: ").split("…")))
    return re.search(pattern, known) is not None


def test_every_refusal_is_listed() -> None:
    listed = refusals()
    plain = {message for message in raised() if message.strip("… ") and message not in INTERNAL}
    missing = [m for m in plain if not any(stands_for(known, m) for known in listed)]
    assert len(plain) > 50
    assert not missing


def test_every_refusal_in_the_page_is_one_of_the_program() -> None:
    sources = "\n".join(p.read_text() for place in READING for p in sources_of(ROOT / place))
    flat = re.sub(r"\"\s*\n\s*f?\"", "", re.sub(r"\{[^{}]*\}", "…", sources))
    for message in refusals():
        assert all(part.strip(" /:(),") in flat for part in message.split("…")), message


def sources_of(place: Path) -> list[Path]:
    return [place] if place.suffix == ".py" else sorted(place.rglob("*.py"))
