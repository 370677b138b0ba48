"""Makes the source that a user names, such as `lsl:amplifier`."""

from __future__ import annotations

from pathlib import Path

from edgedistill.bundle import Bundle
from edgedistill.errors import ConfigError, did_you_mean
from edgedistill.live.source import Source

KINDS = ("lsl", "tcp", "replay", "-")


def make_source(words: str, bundle: Bundle, *, lfp: str | None = None, speed: float | None = None) -> Source:
    """Returns the source. `lfp` and `speed` belong to a replay.

    Raises ConfigError for an unknown kind, and EngineError where a package is missing.
    """
    kind, colon, rest = words.partition(":")
    if kind != "replay" and (lfp is not None or speed is not None):
        raise ConfigError("--speed and --lfp belong to a recording that is replayed", got=words, expected="replay:FILE")
    if words == "-":
        from edgedistill.live.sources.framed import open_stdin_source

        return open_stdin_source()
    if not colon or not rest or kind not in KINDS:
        raise ConfigError(
            f"'{words}' is no source",
            got=did_you_mean(kind, KINDS) if kind not in KINDS else "nothing behind the colon",
            expected="lsl:NAME, tcp:HOST:PORT, replay:FILE.nwb or -",
        )
    if kind == "lsl":
        from edgedistill.live.sources.lsl import LslSource

        return LslSource(rest)
    if kind == "tcp":
        from edgedistill.live.sources.framed import open_tcp_source

        return open_tcp_source(rest)
    from edgedistill.live.sources.replay import ReplaySource

    return ReplaySource(Path(rest), bundle, lfp, 1.0 if speed is None else speed)
