"""Compares an open recording with a bundle: the series that is read, channels, rate, amplitude and day."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from edgedistill.bundle import Bundle
from edgedistill.bundle.contents import DecoderSpec, read_decoder_spec
from edgedistill.bundle.manifest import Channel, Manifest
from edgedistill.data.behavior.choice import find_behavior_like
from edgedistill.data.bins import file_sha256
from edgedistill.data.lfp.choice import find_option_like
from edgedistill.data.lfp.lfp import MIN_RATE_HZ, Lfp
from edgedistill.data.recording import Recording
from edgedistill.data.session import BINS_PER_S
from edgedistill.errors import RecordingError
from edgedistill.matching.amplitude import describe_length, judge_ratios, measure_ratios
from edgedistill.matching.channels import find_order
from edgedistill.matching.clock import MOST_PPM, describe_days, describe_rates, measure_ppm
from edgedistill.matching.matched import MatchedRecording


def match_recording(bundle: Bundle, recording: Recording, keeps_statistics: bool = True) -> MatchedRecording:
    """Compares a recording with the bundle and returns it as the bundle's decoder takes it, with warnings.

    Another day is a warning where the statistics of the bundle will be used (`keeps_statistics`). The LFP and the
    behavior are those of the paths or names that the bundle was built from, where the file has them and the user named
    none. Raises RecordingError where another number of channels, another rate, an order that cannot be put right or an
    impossible amplitude says that the bundle cannot decode the recording.
    """
    spec, manifest = read_decoder_spec(bundle), bundle.manifest
    recording = _prefer_series(recording, manifest)
    recording.require(("lfp",))
    lfp = recording.lfp
    assert lfp is not None
    _require_fit(spec, lfp, recording)
    channels = manifest.channels or tuple(map(Channel, spec.channel_ids))
    order = find_order(channels, lfp.electrodes, f"{recording.path}, {lfp.series}")
    if not order.as_stored:
        lfp = lfp.in_order(order.columns)
        recording = recording.with_lfp(lfp)
    bad = [electrode.bad for electrode in lfp.electrodes]
    matched = MatchedRecording(
        recording,
        lfp,
        masked=np.array([reason is not None for reason in bad]),
        stretch=float(spec.front_end.rate / lfp.rate),
    )
    std = _find_slow_deviation(spec)
    found = [
        describe_rates(lfp.rate, spec.front_end.rate),
        *order.warnings,
        _describe_marks(bad, channels, std),
        _describe_session(recording, manifest) if keeps_statistics else None,
        _describe_silence(manifest),
        *_compare_amplitude(matched, spec, manifest, [c.label or c.id for c in channels]),
    ]
    return replace(matched, warnings=tuple(warning for warning in found if warning is not None))


def _find_slow_deviation(spec: DecoderSpec) -> npt.NDArray[np.float64]:
    """Returns the deviation (C,) of each channel's slow LFP in uV, in the session of the bundle."""
    return np.array(spec.normalization.std[: spec.front_end.channels])


def _require_fit(spec: DecoderSpec, lfp: Lfp, recording: Recording) -> None:
    """Raises RecordingError for another number of channels, or for a rate that no two clocks of one kind differ by."""
    rate, channels, ppm = spec.front_end.rate, len(spec.channel_ids), measure_ppm(lfp.rate, spec.front_end.rate)
    got, expected = f"{lfp.channels} channels", f"{channels} channels"
    if lfp.channels == channels:
        if abs(ppm) <= MOST_PPM:
            _require_frames(lfp, recording)
            return
        got = f"{float(lfp.rate):.10g} Hz" + (f", off by {abs(ppm):.0f} ppm" if abs(ppm) < 10_000 else "")
        expected = f"{float(rate):.10g} Hz, at most {MOST_PPM} ppm off"
    raise RecordingError(
        f"{recording.path}: {lfp.series} is not from the array that the bundle decodes",
        got=got,
        expected=expected,
        causes=(
            *(("the timestamps are in milliseconds or samples instead of seconds",) if lfp.rate < MIN_RATE_HZ else ()),
            "the session is of another array",
            "the file holds several series and another one is meant",
        ),
        next_step=f"edgedistill inspect {recording.path} lists the series for --lfp; on the bundle it shows channels "
        "and rate",
    )


def _require_frames(lfp: Lfp, recording: Recording) -> None:
    if lfp.frames < lfp.rate / BINS_PER_S:
        raise RecordingError(
            f"{recording.path}: {lfp.series} is shorter than a bin",
            got=f"{lfp.frames} frames",
            expected=f"at least {1000 // BINS_PER_S} ms of LFP",
            causes=("the file was cut while it was written", "another series holds the LFP"),
            next_step=f"edgedistill inspect {recording.path} lists the series for --lfp",
        )


def _prefer_series(recording: Recording, manifest: Manifest) -> Recording:
    """Returns the recording with the series named that the bundle was built from, where the user named none."""
    stated, names = _read_series(manifest), recording.names
    if names.lfp is None and "lfp" in stated:
        with suppress(RecordingError):  # a clock that cannot be read; reading the LFP then says why
            names = replace(names, lfp=find_option_like(recording.series, stated["lfp"], recording.path))
    if names.behavior is None and "behavior" in stated:
        names = replace(names, behavior=find_behavior_like(recording.series, stated["behavior"]))
    return recording if names == recording.names else recording.with_names(names)


def _read_series(manifest: Manifest) -> Mapping[str, str]:
    """Returns what was read from the session of the bundle, by part. An older bundle does not say."""
    if manifest.provenance is None or manifest.session is None:
        return {}
    return manifest.provenance.series.get(manifest.session.id or "", {})


def _compare_amplitude(matched: MatchedRecording, spec: DecoderSpec, manifest: Manifest, names: list[str]) -> list[str]:
    """Returns warnings about the amplitude. The session of the bundle itself is never warned of."""
    if (short := describe_length(matched, spec.front_end)) is not None:
        return [short]
    ratios = measure_ratios(matched, spec.front_end, _find_slow_deviation(spec))
    try:
        found = judge_ratios(ratios, names, matched.recording.path, matched.series)
    except RecordingError:
        if _is_own_session(matched.recording, manifest, matched.series):
            return []
        raise
    return [] if found and _is_own_session(matched.recording, manifest, matched.series) else found


def _describe_marks(bad: list[str | None], channels: tuple[Channel, ...], std: npt.NDArray[np.float64]) -> str | None:
    """Returns a warning that lists the channels which the recording marks as bad and the bundle uses."""
    marked = {c.label or c.id: why for c, why, used in zip(channels, bad, std > 0, strict=True) if why and used}
    if not marked:
        return None
    reasons = ", ".join(sorted(set(marked.values())))
    count = (
        "1 channel that the file marks as bad is"
        if len(marked) == 1
        else f"{len(marked)} channels that the file marks as bad are"
    )
    return f"{count} masked: {', '.join(marked)} ({reasons})"


def _describe_session(recording: Recording, manifest: Manifest) -> str | None:
    """Returns a warning where the recording is another session than the bundle's, with the time between both."""
    own = manifest.session
    if own is None or (own.id is None and own.start is None):
        return None
    later = None if own.start is None else describe_days(recording.session_start, own.start)
    if later is None and (recording.session_id == own.id or _is_own_session(recording, manifest)):
        return None
    when = f"recorded {later} the bundle's session '{own.id}'" if later else f"not the bundle's session '{own.id}'"
    return (
        f"session '{recording.session_id}' was {when}: the statistics of '{own.id}' are used; `edgedistill adapt` "
        "makes a bundle for this day"
    )


def _describe_silence(manifest: Manifest) -> str | None:
    """Returns a warning where an older bundle does not state what is compared."""
    start = None if manifest.session is None else manifest.session.start
    missing = [
        *(["the labels and positions of its channels"] if manifest.channels is None else []),
        *(["when its session began"] if start is None else []),
    ]
    if not missing:
        return None
    return f"the bundle does not state {' or '.join(missing)}, so that was not compared; a newer build states it"


def _is_own_session(recording: Recording, manifest: Manifest, series: str | None = None) -> bool:
    """Returns whether the file is the one that the bundle was built on, and the series too. This hashes the file."""
    if manifest.provenance is None or manifest.session is None:
        return False
    digest = manifest.provenance.sessions.get(manifest.session.id or "")
    read = _read_series(manifest).get("lfp", series)
    return digest is not None and series in (None, read) and file_sha256(recording.path) == digest
