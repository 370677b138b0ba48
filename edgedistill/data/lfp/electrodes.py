"""Reads what the electrode table says of the channels of an LFP: labels, positions, and marks of bad channels.

The input is a pynwb ElectricalSeries. The outputs are an `Electrode` for each channel, and plain sentences on the
columns that were used or that look like marks but could not be used.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np

LABEL_COLUMNS = (
    *("channel_name", "channel_label", "label", "electrode_name", "electrode_label", "contact_name", "contact_label"),
    *("contact_id", "contact_ids", "electrode_id", "channel_id", "name", "names", "channel", "contact"),
)
POSITION_COLUMNS = (("rel_x", "rel_y", "rel_z"), ("x", "y", "z"))

# The words in the name of a column that marks bad channels. `is`, `mask`, `channel` and the like may stand around them.
BAD_COLUMNS = (
    *("bad", "noisy", "noise", "dead", "broken", "rejected", "reject", "exclude", "excluded", "artifact"),
    *("artifactual", "floating", "outofbrain", "outsidebrain", "disconnected", "faulty", "shorted"),
)
GOOD_COLUMNS = (
    *("good", "valid", "validdata", "usable", "use", "used", "include", "included", "connected", "inbrain"),
    "insidebrain",
)
QUALITY_COLUMNS = ("quality", "qc", "goodorbad", "goodbad")
STATE_COLUMNS = ("status", "state", "condition")  # of the channel, or of the animal or the task
AROUND = r"(is|has|channel|chan|ch|electrode|elec|contact|site|s|mask|flag|marked|as|label|lfp|signal)*"
KINDS = {
    kind: re.compile(f"{AROUND}({'|'.join(names)}){AROUND}")
    for kind, names in (
        *(("bad", BAD_COLUMNS), ("good", GOOD_COLUMNS)),
        *(("quality", QUALITY_COLUMNS), ("state", STATE_COLUMNS)),
    )
}
BAD_WORDS = (
    *("bad", "noise", "noisy", "dead", "out", "broken", "reject", "rejected", "exclude", "excluded", "invalid"),
    *("unusable", "faulty", "defective", "disconnected", "floating", "open", "shorted", "fail", "failed", "flat"),
    *("inactive", "unconnected", "artifact"),
)
TRUE_WORDS, FALSE_WORDS = ("true", "t", "yes", "y", "1", "1.0"), ("false", "f", "no", "n", "0", "0.0")
NEGATIONS = ("no", "not", "non", "un", "low", "without")  # "low noise" is no bad channel
GOOD_WORDS = ("good", "ok", "okay", "fine", "usable", "valid", "clean", "pass", "passed", "active", "connected")


@dataclass(frozen=True)
class Electrode:
    """Holds what the electrode table says of one channel."""

    id: str
    label: str | None = None  # from the first of LABEL_COLUMNS whose values are all different
    position: tuple[float, ...] | None = None  # rel_x, rel_y, rel_z or else x, y, z, as far as the table has them
    bad: str | None = None  # why the table marks the channel as bad, e.g. "bad_channel is True"


def read_electrode_rows(node: Any) -> tuple[int, ...] | None:
    """Returns the rows of the electrode table that a series names, one per channel, or None without a table."""
    region = getattr(node, "electrodes", None)
    return None if region is None else tuple(int(row) for row in region.data[:])


def read_electrodes(node: Any, channels: int) -> tuple[tuple[Electrode, ...], tuple[str, ...]]:
    """Returns an `Electrode` per channel, and notes. Without a usable table the ids are the numbers of the columns."""
    rows = read_electrode_rows(node)
    if rows is None or len(rows) != channels:
        return tuple(Electrode(str(channel)) for channel in range(channels)), ()
    table = node.electrodes.table
    ids = [str(table.id[row]) for row in rows]
    repeated: tuple[str, ...] = ()
    if len(set(ids)) != channels:
        repeated = ("several channels have one electrode id, so the ids are the numbers of the columns",)
        ids = [str(channel) for channel in range(channels)]
    held = {name: _read_plain_column(table[name]) for name in table.colnames}
    columns = {name: _pick(values, rows) for name, values in held.items() if values is not None}
    labels, positions = _find_labels(columns, channels), _find_positions(columns, channels)
    bad, notes = find_bad_channels(columns, channels)
    return tuple(
        Electrode(ids[c], labels[c] if labels else None, positions[c] if positions else None, bad.get(c))
        for c in range(channels)
    ), (*repeated, *notes)


def _read_plain_column(column: Any) -> Any:
    """Returns one value a row, with the words of an enumeration, or None for rows of several values and for links."""
    if hasattr(column, "target") or type(column).__name__ == "DynamicTableRegion":
        return None
    values = read_column(column.data)
    words = getattr(column, "elements", None)
    if values is None or words is None:
        return values
    return [words.data[int(value)] for value in values]


def read_column(data: Any) -> Any:
    """Returns a column with one value a row, or None for another. Zarr does not give references to objects."""
    if type(data).__name__ == "ContainerZarrReferenceDataset":  # a pickle, which may run any code when it is read
        return None
    try:
        return data[:] if np.ndim(data) == 1 else None
    except OSError:
        raise
    except Exception:  # hdmf raises many kinds where a column refers to objects that cannot be built
        return None


def _pick(data: Any, rows: Sequence[int]) -> list[Any]:
    values = data[:]
    return [to_plain(values[row]) for row in rows]


def to_plain(value: Any) -> Any:
    """Returns a value of a column as Python holds it: numpy scalars as numbers, bytes as text."""
    value = value.item() if isinstance(value, np.generic) else value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def shorten_column(name: str) -> str:
    """Returns the name of a column in small letters and without anything between: `isBadChannel` is `isbadchannel`."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _find_labels(columns: dict[str, list[Any]], channels: int) -> list[str] | None:
    short = {shorten_column(name): name for name in columns}
    for wanted in LABEL_COLUMNS:
        if (name := short.get(shorten_column(wanted))) is not None:
            labels = [str(value).strip() for value in columns[name]]
            if len(set(labels)) == channels and all(labels):
                return labels
    return None


def _find_positions(columns: dict[str, list[Any]], channels: int) -> list[tuple[float, ...]] | None:
    for axes in POSITION_COLUMNS:
        held = [columns[axis] for axis in axes if axis in columns]
        try:
            values = np.array(held, dtype=np.float64).T
        except (TypeError, ValueError):
            continue
        values = values[:, np.isfinite(values).all(axis=0)] if values.size else values
        found = [tuple(float(x) for x in row) for row in values]
        if values.size and len(set(found)) == channels:
            return found
    return None


def find_bad_channels(columns: dict[str, list[Any]], channels: int) -> tuple[dict[int, str], tuple[str, ...]]:
    """Returns by channel why it is bad, and notes, from the columns of the electrode table (each with C values).

    A column that would make all channels bad is noted and not used, and so is a quality that is only a number.
    """
    bad: dict[int, str] = {}
    notes = []
    for name, values in columns.items():
        kind = _tell_kind(name, values)
        if kind is None:
            continue
        marks = [_is_bad(value, kind) for value in values]
        if _holds_amounts(values, kind):
            notes.append(f"column {name} of the electrode table holds numbers without a meaning: not used")
        elif all(mark is True for mark in marks):
            notes.append(f"column {name} of the electrode table marks all {channels} channels as bad: not used")
        else:
            marked = [c for c, mark in enumerate(marks) if mark is True]
            for c in marked:
                bad.setdefault(c, f"{name} is {values[c]} in the electrode table")
            if any(marks):
                notes.append(f"column {name} of the electrode table marks {len(marked)} of {channels} channels as bad")
            if unclear := [values[c] for c, mark in enumerate(marks) if mark is None and _says_something(values[c])]:
                notes.append(f"column {name} of the electrode table holds {unclear[0]!r}, which was not understood")
    return bad, tuple(notes)


def _tell_kind(name: str, values: Sequence[Any]) -> str | None:
    """Returns what a column says by its name, else by its values: words of which some mean good and some mean bad."""
    short = shorten_column(name)
    kind = next((kind for kind, pattern in KINDS.items() if pattern.fullmatch(short)), None)
    if kind is None and values and all(isinstance(value, str) for value in values):
        words = {value.strip().lower() for value in values}
        if words <= {*GOOD_WORDS, *BAD_WORDS} and words & {*GOOD_WORDS} and words & {*BAD_WORDS}:
            return "quality"
    if kind is None and "label" in short and all(isinstance(value, (str, int, float)) for value in values):
        several = 1 < len({value for value in values if _says_something(value)}) < len(values)
        if several and _holds_amounts(values, "quality"):
            return "quality"  # such as 0 for good and 1 for dead
    return kind


def _says_something(value: Any) -> bool:
    return value == value and bool(str(value).strip())


def _holds_amounts(values: Sequence[Any], kind: str) -> bool:
    """Returns whether a column holds numbers that are no marks: grades of a quality, or noise in uV."""
    if kind in ("quality", "state"):
        texts = [str(value) for value in values if _says_something(value)]
        return bool(texts) and not any(re.search("[a-z]", text.lower()) for text in texts)
    return any(value not in (0, 1, -1) and value == value for value in values if not isinstance(value, str))


def _is_bad(value: Any, kind: str) -> bool | None:
    """Returns whether a value marks a bad channel, or None where it says neither (empty, NaN, an unknown word)."""
    if isinstance(value, str):
        word = value.strip().lower()
        if kind in ("quality", "state"):
            return _find_bad_word(word, kind)
        if word in BAD_WORDS:
            return True
        if word in GOOD_WORDS:
            return False
        if word not in (*TRUE_WORDS, *FALSE_WORDS):
            return None
        return (word in TRUE_WORDS) == (kind == "bad")
    if kind in ("quality", "state") or value not in (0, 1):
        return None
    return bool(value) == (kind == "bad")


def _find_bad_word(text: str, kind: str) -> bool | None:
    """Returns whether a text in small letters says that a channel is bad, or None where a word for bad may mean else.

    A word does not count after a negation in the same phrase. In a column of states it counts only if all words are
    known, because "open field" is no open channel.
    """
    good, bad = {*GOOD_WORDS}, {*BAD_WORDS}
    phrases = [re.findall("[a-z]+", phrase) for phrase in re.split(r"[^a-z\s_-]+", text)]
    words = {word for phrase in phrases for word in phrase if not re.fullmatch(AROUND, word)}
    sure = {word for phrase in phrases for word in takewhile(lambda word: word not in NEGATIONS, phrase)}
    if sure & bad and (kind == "quality" or words <= good | bad):
        return True
    return None if words & bad or (words - sure) & good else False
