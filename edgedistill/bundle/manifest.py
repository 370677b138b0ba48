"""Parses `manifest.json`. The parsed JSON goes in, and a frozen `Manifest` comes out.

Only this module and `contents` know the keys of the manifest. Every key but "format", "sha256" and "files" may be
absent, since older and smaller bundles lack some. Unknown keys are ignored, since a later version may add some. A value
of the wrong type is refused, and the error names its key.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TypeVar, cast

from edgedistill.errors import BundleError
from edgedistill.target import Gate

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"  # of the manifest; `signing` says what it holds
LONGEST_SHOWN = 200  # characters of a wrong value in a message

T = TypeVar("T")
Json = Mapping[str, object]


@dataclass(frozen=True)
class Session:
    """Names the session that the bundle's read-out was fitted on."""

    id: str | None
    subject: str | None
    start: str | None = None  # ISO 8601, UTC


@dataclass(frozen=True)
class Channel:
    """Describes the electrode of one column of a frame, as the electrode table of the session does."""

    id: str
    label: str | None = None  # the unique name of the contact
    position: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Int8Sizes:
    """Holds the sizes of the INT8 student, and the names of its parts that stay in float32."""

    weight_bytes: int
    state_bytes: int
    kept_float32: tuple[str, ...]


@dataclass(frozen=True)
class Confidence:
    """Says on how much data the deviations of the outputs were calibrated."""

    labelled_bins: int  # bins with labels that no training saw
    standard_error: float | None  # of the share that a 90 % interval covers, because those bins are few
    note: str | None = None  # why the deviations are not calibrated


@dataclass(frozen=True)
class Smoothing:
    """Says which filter smooths the outputs, and what its choice rests on."""

    kind: str  # "kalman" or "none"
    order: int | None = None  # bins of kinematics in its state
    noise: float | None = None  # factor of the observation noise
    validation_r2: float | None = None  # of the smoothed outputs, on the block on which the filter was chosen
    raw_validation_r2: float | None = None  # of the outputs that were not smoothed
    note: str | None = None  # why nothing was chosen

    def describe(self) -> str:
        """Returns which filter it is, and what it brought on the block on which it was chosen."""
        if self.kind == "none":
            return f"none, because of: {self.note}" if self.note else "none, which decoded the validation block best"
        raw, smooth = ("?" if r2 is None else f"{r2:.3f}" for r2 in (self.raw_validation_r2, self.validation_r2))
        return f"{self.kind} of order {self.order}, R² on the validation block {raw} before it and {smooth} after it"

    def to_json(self) -> dict[str, object]:
        """Returns the entry for `manifest.json`. NaN becomes None, because JSON has no NaN."""
        return _replace_nan(asdict(self))


@dataclass(frozen=True)
class Provenance:
    """Says with which sessions and which versions of packages the bundle was built."""

    sessions: Mapping[str, str | None]  # session id -> sha256 of its file
    versions: Mapping[str, str]  # package -> version
    seed: int | None
    series: Mapping[str, Mapping[str, str]]  # session id -> "lfp", "units", "behavior" -> path inside its file
    others: Json  # further keys, such as the mode of adaptation

    def to_json(self) -> dict[str, object]:
        """Returns the entry for the manifest."""
        known = {"sessions": dict(self.sessions), "versions": dict(self.versions), "seed": self.seed}
        known["series"] = {session: dict(parts) for session, parts in self.series.items()}
        return {name: value for name, value in known.items() if value not in ({}, None)} | dict(self.others)


@dataclass(frozen=True)
class GraphVerdict:
    """Holds what a build measured about one step graph. A figure that was not measured is None."""

    usable: bool
    reason: str | None = None  # why the graph is not usable
    integers_off_share: float | None = None  # share of an INT8 graph's integers that differ from the oracle's
    largest_integer_difference: int | None = None
    largest_output_deviation: float | None = None  # in standard deviations of that output
    r2_difference: float | None = None  # R² of the graph minus R² of the model that it was written from

    def to_json(self) -> dict[str, object]:
        """Returns the entry for `manifest.json`. NaN becomes None, because JSON has no NaN."""
        return _replace_nan(asdict(self))


@dataclass(frozen=True)
class Manifest:
    """Holds everything that `manifest.json` says. The value of an absent key is None or empty."""

    format: int
    sha256: str  # identifies the whole bundle
    files: Mapping[str, str]  # name -> sha256
    name: str
    created_by: str | None
    session: Session | None
    preset: str | None
    target: str | None
    engine: str | None  # the engine that the bundle was built for
    recipe: str | None  # the calibration recipe
    int8: Int8Sizes | None
    confidence: Confidence | None
    smoothing: Smoothing | None  # None in a bundle of format 2 or older
    metrics: Mapping[str, float | None] | None
    gates: tuple[Gate, ...] | None
    provenance: Provenance | None
    group_delay_ms: float | None  # of the front end
    smoothing_delay_ms: float | None  # of the filter that smooths the outputs; 0 without one
    channels: tuple[Channel, ...] | None  # one a column of a frame; None in a bundle before 0.2
    graphs: Mapping[str, GraphVerdict]  # step graph -> verdict; a graph without one may be used
    decoder: Json = field(repr=False)  # the keys that `contents.read_decoder_spec` parses

    def why_left_out(self, file: str) -> str | None:
        """Returns why the step graph with this file name may not be used.

        Returns None where the graph may be used, and for a bundle that was written before verdicts existed.
        """
        return reasons_left_out(self.graphs).get(file)


def reasons_left_out(graphs: Mapping[str, GraphVerdict]) -> dict[str, str]:
    """Returns the file name of each step graph that may not be used, with the reason."""
    unknown = "the build found that its output differs too much from the student's"
    return {name: verdict.reason or unknown for name, verdict in graphs.items() if not verdict.usable}


def _replace_nan(facts: Json) -> dict[str, object]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in facts.items()
    }


DECODER_KEYS = ("model", "frontend", "normalization", "channel_ids", "outputs")


def parse_manifest(path: Path, content: Json) -> Manifest:
    """Returns the manifest of the bundle at `path`, whose "format", "sha256" and "files" were checked before.

    Raises BundleError for a key whose value has the wrong type.
    """
    read = _Reader(f"{path}: '{MANIFEST}'", content)
    return Manifest(
        format=cast(int, content["format"]),
        sha256=cast(str, content["sha256"]),
        files=cast(Mapping[str, str], content["files"]),
        name=read.text("name") or "",
        created_by=read.text("created_by"),
        session=read.table("session", _session),
        preset=read.text("preset"),
        target=read.text("target"),
        engine=read.text("engine"),
        recipe=read.text("recipe"),
        int8=read.table("int8", _int8_sizes),
        confidence=read.table("confidence", _confidence),
        smoothing=read.table("smoothing", _smoothing),
        metrics=read.table("metrics", lambda table: {name: table.number(name) for name in table.content}),
        gates=read.tables("gates", _gate),
        provenance=read.table("provenance", _provenance),
        group_delay_ms=read.number("group_delay_ms"),
        smoothing_delay_ms=read.number("smoothing_delay_ms"),
        channels=read.tables("channels", _channel) or None,
        graphs=read.table("graphs", _verdicts) or {},
        decoder={key: content[key] for key in DECODER_KEYS if key in content},
    )


def _session(table: _Reader) -> Session:
    return Session(table.text("id"), table.text("subject"), table.text("start"))


def _channel(table: _Reader) -> Channel:
    found = table.value("position", list, "a list of coordinates")
    if any(isinstance(x, bool) or not isinstance(x, (int, float)) or abs(x) > 1e9 for x in found or ()):
        raise table.make_error("position", found, "a list of coordinates")
    return Channel(table.text("id") or "", table.text("label"), None if found is None else tuple(map(float, found)))


def _int8_sizes(table: _Reader) -> Int8Sizes:
    kept = table.value("kept_float32", list, "a list of parts") or []
    return Int8Sizes(table.whole_number("weight_bytes"), table.whole_number("state_bytes"), tuple(map(str, kept)))


def _confidence(table: _Reader) -> Confidence:
    return Confidence(table.whole_number("labelled_bins"), table.number("standard_error"), table.text("note"))


def _smoothing(table: _Reader) -> Smoothing:
    return Smoothing(
        kind=table.text("kind") or "",
        order=table.value("order", int, "a whole number"),
        noise=table.number("noise"),
        validation_r2=table.number("validation_r2"),
        raw_validation_r2=table.number("raw_validation_r2"),
        note=table.text("note"),
    )


def _gate(table: _Reader) -> Gate:
    limit, ok = table.number("limit"), table.value("ok", bool, "true, false or null")
    if limit is None:
        raise table.make_error("limit", None, "a number")
    return Gate(table.text("name") or "", table.number("value"), limit, ok, table.text("reason"))


def _provenance(table: _Reader) -> Provenance:
    own = {part.name for part in fields(Provenance)}
    seed = table.value("seed", int, "a whole number")
    sessions = table.table("sessions", lambda inner: {name: inner.text(name) for name in inner.content})
    versions = table.table("versions", _texts)
    series = table.table("series", lambda inner: {name: inner.table(name, _texts) or {} for name in inner.content})
    others = {name: value for name, value in table.content.items() if name not in own}
    return Provenance(sessions or {}, versions or {}, seed, series or {}, others)


def _texts(table: _Reader) -> dict[str, str]:
    return {name: table.text(name) or "" for name in table.content}


def _verdicts(table: _Reader) -> dict[str, GraphVerdict]:
    found = {name: table.table(name, _verdict) for name in table.content}
    return {name: verdict for name, verdict in found.items() if verdict is not None}


def _verdict(table: _Reader) -> GraphVerdict:
    return GraphVerdict(
        usable=table.value("usable", bool, "true or false") is not False,
        reason=table.text("reason"),
        integers_off_share=table.number("integers_off_share"),
        largest_integer_difference=table.value("largest_integer_difference", int, "a whole number"),
        largest_output_deviation=table.number("largest_output_deviation"),
        r2_difference=table.number("r2_difference"),
    )


@dataclass(frozen=True)
class _Reader:
    """Reads typed values of one JSON object. A key that is absent or null is read as None."""

    where: str  # file and parent keys, for messages
    content: Json

    def value(self, key: str, kind: type[T], expected: str) -> T | None:
        found = self.content.get(key)
        if found is None:
            return None
        if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
            raise self.make_error(key, found, expected)
        return found

    def text(self, key: str) -> str | None:
        return self.value(key, str, "a text")

    def whole_number(self, key: str) -> int:
        found = self.value(key, int, "a whole number")
        if found is None:
            raise self.make_error(key, None, "a whole number")
        return found

    def number(self, key: str) -> float | None:
        found = self.content.get(key)
        if found is None:
            return None
        if isinstance(found, bool) or not isinstance(found, (int, float)):
            raise self.make_error(key, found, "a number")
        if isinstance(found, int) and abs(found) > sys.float_info.max:
            raise self.make_error(key, "a whole number beyond every float", "a number")
        return float(found)

    def table(self, key: str, parse: Callable[[_Reader], T]) -> T | None:
        found = self.value(key, dict, "an object")
        return None if found is None else parse(_Reader(f"{self.where}, {key}", found))

    def tables(self, key: str, parse: Callable[[_Reader], T]) -> tuple[T, ...] | None:
        found = self.value(key, list, "a list of objects")
        if found is None:
            return None
        for one in found:
            if not isinstance(one, dict):
                raise self.make_error(key, one, "a list of objects")
        return tuple(parse(_Reader(f"{self.where}, {key}", one)) for one in found)

    def make_error(self, key: str, found: object, expected: str) -> BundleError:
        got = repr(found)
        shown = got if len(got) <= LONGEST_SHOWN else f"{got[:LONGEST_SHOWN]}…"
        return BundleError(f"{self.where}: '{key}' is not what a build writes", got=shown, expected=expected)
