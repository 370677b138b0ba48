"""A source is compared with the bundle before its first frame, as a recording is."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from edgedistill.bundle import Bundle
from edgedistill.errors import RecordingError
from edgedistill.live.matched_source import MatchedSource, match_source
from edgedistill.runtime import Decoder

from ..bundles import write_test_bundle
from .fakes import header

LABELS = ("e1", "e2", "e3")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    channels = [{"id": str(i), "label": label} for i, label in enumerate(LABELS)]
    return write_test_bundle(tmp_path_factory.mktemp("labels") / "test.edge", channels=channels)


def match(bundle: Bundle, **changes: object) -> MatchedSource:
    with Decoder(bundle, "onnxruntime") as decoder:
        return match_source(bundle, decoder.info, header(**changes))


def test_labels_put_channels_in_order_and_say_so(labelled: Bundle) -> None:
    matched = match(labelled, channel_names=("e3", "e1", "e2"), gain_uv=(1.0, 2.0, 0.5))
    assert matched.columns == (1, 2, 0)
    assert "by their labels" in matched.warnings[0]
    frames = np.array([[30.0, 10.0, 20.0]], np.float32)
    assert matched.arrange(frames).tolist() == [[20.0, 10.0, 30.0]]
    assert matched.arrange(frames.astype(np.int16)).dtype == np.float32


def test_further_channels_are_left_out(labelled: Bundle) -> None:
    names = ("trigger", "e1", "e2", "e3")
    matched = match(labelled, channel_names=names, channel_count=4, gain_uv=(1.0,) * 4)
    assert matched.columns == (1, 2, 3)
    assert any("trigger" in warning for warning in matched.warnings)


def test_frames_in_order_and_in_microvolts_are_not_copied(bundle: Bundle) -> None:
    frames = np.ones((4, 3), np.float32)
    assert np.shares_memory(match(bundle).arrange(frames), frames)


def test_a_source_without_names_is_a_warning(bundle: Bundle) -> None:
    assert any("does not name its channels" in warning for warning in match(bundle).warnings)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rate": Fraction(500)}, "500 Hz"),
        ({"rate": Fraction(250) * (1 + Fraction(1, 1000))}, "250.25 Hz"),
        ({"channel_count": 4, "gain_uv": (1.0,) * 4}, "4 channels"),
        ({"channel_count": 4, "gain_uv": (1.0,) * 4, "channel_names": ("e1", "e2", "x", "y")}, "4 channels"),
        ({"channel_names": ("e2", "e1", "other")}, "label"),
    ],
)
def test_what_no_decoding_can_make_up_for_is_refused(
    labelled: Bundle, changes: dict[str, object], said: str, tmp_path: Path
) -> None:
    with pytest.raises(RecordingError, match=said):
        match(labelled, **changes)


def test_a_rate_within_two_crystals_is_a_warning(bundle: Bundle) -> None:
    matched = match(bundle, rate=Fraction(250) * (1 + Fraction(100, 10**6)))
    assert any("ppm" in warning for warning in matched.warnings)
