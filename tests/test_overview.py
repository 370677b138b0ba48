"""The pictures of the documents say what the kept results say."""

from __future__ import annotations

from xml.etree import ElementTree

from benchmarks import overview


def test_the_pictures_are_those_that_the_kept_results_give() -> None:
    for name, drawn in overview.draw_pictures().items():
        assert (overview.IMAGES / name).read_text() == drawn, "run: python -m benchmarks.overview"
        ElementTree.fromstring(drawn)


def test_the_trace_lies_within_its_axes() -> None:
    values = [0.0, 30.0, -30.0]
    assert [overview.place(value, 30.0) for value in values] == [overview.MIDDLE, overview.TOP, overview.BOTTOM]
