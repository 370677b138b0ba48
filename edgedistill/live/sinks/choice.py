"""Makes the sink that a user names, such as `csv:decoded.csv`."""

from __future__ import annotations

from edgedistill.errors import ConfigError, did_you_mean
from edgedistill.live.sink import Sink

KINDS = ("lsl", "nwb", "csv", "page")


def make_sink(words: str) -> Sink:
    """Returns the sink. Raises ConfigError for an unknown kind, and EngineError where a package is missing."""
    kind, colon, rest = words.partition(":")
    if not colon or not rest or kind not in KINDS:
        raise ConfigError(
            f"'{words}' is no sink",
            got=did_you_mean(kind, KINDS) if kind not in KINDS else "nothing behind the colon",
            expected="lsl:NAME, nwb:FILE.nwb, csv:FILE.csv, csv:- or page:PORT",
        )
    if kind == "lsl":
        from edgedistill.live.sinks.lsl import LslSink

        return LslSink(rest)
    if kind == "nwb":
        from edgedistill.live.sinks.nwb import NwbSink

        return NwbSink(rest)
    if kind == "csv":
        from edgedistill.live.sinks.csv import CsvSink

        return CsvSink(rest)
    return _make_page(rest)


def _make_page(address: str) -> Sink:
    from edgedistill.live.sinks.page.sink import PageSink

    return PageSink(address)
