"""Tests the page in a browser: that it shows the stream, asks nobody else for anything, and does not grow."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgedistill.live.sinks.page import served_page
from edgedistill.live.sinks.page.served_page import ServedPage

from ....waiting import wait_until
from .browser import CHROMIUM, Tab, open_browser
from .streams import MadeStream, make_description

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
STREAMING = "document.querySelector('#state').textContent === 'streaming'"
COLOURS = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with open_browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


@contextmanager
def served(**changes: object) -> Iterator[tuple[ServedPage, MadeStream]]:
    """Serves a stream that the test feeds."""
    page = ServedPage("127.0.0.1", 0, make_description(**changes))
    try:
        yield page, MadeStream()
    finally:
        page.close()


@contextmanager
def fed(page: ServedPage, stream: MadeStream, bins_per_s: float) -> Iterator[None]:
    """Feeds a stream in a thread of its own."""
    stop, began = threading.Event(), time.monotonic()

    def feed() -> None:
        first = stream.bin
        while not stop.wait(0.02):
            while stream.bin - first < (time.monotonic() - began) * bins_per_s:
                page.add(stream.block(lost=stream.bin % 1000 in range(400, 430)))

    thread = threading.Thread(target=feed, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def count_inked(tab: Tab, selector: str) -> int:
    """Returns how many pixels of a canvas are drawn."""
    script = (
        f"(() => {{ const c = document.querySelector({selector!r}); if (!c.width || !c.height) return 0; "
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; "
        "let n = 0; for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n; })()"
    )
    return int(tab.run(script))


def require_silence(tab: Tab, page: ServedPage) -> None:
    """Fails where the browser logged anything, or asked anyone but the page."""
    assert tab.logged == []
    assert tab.requested
    assert all(url.startswith(page.url) for url in tab.requested)


@pytest.mark.parametrize("look", ["light", "dark", "phone"])
def test_the_page_shows_a_stream_in_every_look(tab: Tab, tmp_path: Path, look: str) -> None:
    phone = {"phone": True, "width": 390, "height": 844} if look == "phone" else {}
    with served() as (page, stream):
        for _ in range(400):
            stream.block()
        tab.open(page.url, dark=look == "dark", **phone)
        with fed(page, stream, 100):
            tab.wait(STREAMING)
            tab.wait("document.querySelectorAll('#flags tr').length === 5")
            pictures = ["#output-0", "#output-1", "#cursor", "#latency", "#raw"]
            for picture in pictures:
                wait_until(lambda picture=picture: count_inked(tab, picture) > 500)  # type: ignore[misc]
        tab.shoot(tmp_path / f"{look}.png")
        assert (tmp_path / f"{look}.png").stat().st_size > 20_000
        red = int(re.findall(r"\d+", tab.run(COLOURS))[0])
        assert red < 60 if look == "dark" else red > 200
        width = int(tab.run("document.documentElement.scrollWidth"))
        assert width <= (390 if look == "phone" else 1280)  # nothing stands out at the side
        require_silence(tab, page)


def test_everything_that_is_drawn_is_also_said_in_words(tab: Tab) -> None:
    with served() as (page, stream):
        tab.open(page.url)
        for _ in range(310):
            page.add(stream.block())
        tab.wait("document.querySelector('#latency-words').textContent.includes('of 310 after the deadline')")
        assert "2 of 40 (ch05, ch11)" in tab.text("#masked")
        assert re.fullmatch(r"−?\d+\.\d ± 3\.5 cm/s", tab.text("#now-0"))
        assert "It is not the position of the hand" in tab.text("#cursor-words")
        assert "not in force" in tab.text("#manners")
        assert "the limit is 64 kB" in tab.text("#warnings")
        assert "gaps0" in tab.text("#counters")
        labels = "[...document.querySelectorAll('canvas')].map((c) => c.getAttribute('aria-label') ?? '')"
        assert all(len(label) > 30 for label in tab.run(labels))
        named = (
            "[...document.querySelectorAll('button, select')].every((e) => (e.labels?.length || e.textContent.trim()))"
        )
        assert tab.run(named)
        page.add(stream.wait("the amplifier has vanished"))
        tab.wait("document.querySelector('#state').textContent === 'waiting for the source'")
        assert tab.text("#reason") == "the amplifier has vanished"
        page.add(stream.end("the recording is over"))
        tab.wait("document.querySelector('#state').textContent === 'ended'")
        require_silence(tab, page)


def test_the_end_is_told_and_not_tried_again(tab: Tab) -> None:
    with served() as (page, stream):
        tab.open(page.url)
        with fed(page, stream, 100):
            tab.wait(STREAMING)
    tab.wait("document.querySelector('#state').textContent === 'ended'")
    time.sleep(1.5)  # a browser would connect again after a second
    assert [url for url in tab.requested if "events" in url] == [f"{page.url}events?first=0"]
    assert "has ended" in tab.text("#notice")
    require_silence(tab, page)


def test_a_silent_source_is_noticed(tab: Tab) -> None:
    with served() as (page, stream):
        tab.open(page.url)
        page.add(stream.block())
        tab.wait("document.querySelector('#state').textContent.startsWith('nothing for')")
        with fed(page, stream, 100):
            tab.wait(STREAMING)
        require_silence(tab, page)


def test_names_are_text_whatever_they_hold(tab: Tab) -> None:
    evil = "<img src=x onerror=alert(1)></script><script>document.title='taken'</script>"
    labels = tuple(f"{evil}{i}" for i in range(40))
    hostile = {"bundle": evil, "source": evil, "output_names": (evil, evil), "output_units": (evil, evil)}
    with served(**hostile, channel_labels=labels, warnings=(evil,)) as (page, stream):
        tab.open(page.url)
        for _ in range(150):
            page.add(stream.block())
        tab.wait("document.querySelector('#masked').textContent.includes('onerror')")
        assert tab.text("#bundle") == evil
        assert tab.run("document.querySelectorAll('img').length") == 0
        assert "taken" not in str(tab.run("document.title")).replace(evil, "")
        require_silence(tab, page)


def test_other_channels_and_a_pause_can_be_chosen(tab: Tab) -> None:
    with served() as (page, stream):
        tab.open(page.url)
        with fed(page, stream, 100):
            tab.wait(STREAMING)
            assert tab.text("#shown") == "1 to 16 of 40"
            tab.run("document.querySelector('#after').click(); document.querySelector('#after').click()")
            assert tab.text("#shown") == "33 to 40 of 40"
            assert tab.run("document.querySelector('#after').disabled")
            wait_until(lambda: f"{page.url}events?first=32" in tab.requested)
            wait_until(lambda: count_inked(tab, "#raw") > 500)
            tab.run("document.querySelector('#pause').click()")
            tab.run("new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
            still, shown = "document.querySelector('#output-0').toDataURL()", stream.bin
            before = tab.run(still)
            wait_until(lambda: stream.bin > shown + 50)
            assert tab.run(still) == before
            tab.run("document.querySelector('#pause').click()")
            wait_until(lambda: tab.run(still) != before)
        require_silence(tab, page)


def test_the_cursor_follows_a_velocity_and_decays_to_the_centre(tab: Tab) -> None:
    with served() as (page, _):
        tab.open(page.url)
        found = tab.run("""import('/rings.js').then(({ Cursor }) => {
            const cursor = new Cursor(0.01, 1, 100), at = [];
            for (let bin = 0; bin < 2000; bin++) cursor.move(bin, 3, -1, true);
            at.push(cursor.x, cursor.y);
            for (let bin = 2000; bin < 2100; bin++) cursor.move(bin, 0, 0, true);
            at.push(cursor.x);
            cursor.move(2299, 0, 0, true);  // two seconds that this page never saw
            at.push(cursor.x);
            cursor.move(2300, 7, 8, false);
            return [...at, cursor.x, cursor.y];
        })""")
        resting = 3 * 0.01 / (1 - 2.718281828 ** (-0.01))  # the sum of a velocity that decays by 1 % a bin
        expected = [resting, -resting / 3, resting * 2.718281828**-1, resting * 2.718281828**-3, 7, 8]
        assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("events", [250, pytest.param(12_000, marks=pytest.mark.slow)])
def test_neither_the_page_nor_the_server_grows(tab: Tab, monkeypatch: pytest.MonkeyPatch, events: int) -> None:
    """12,000 events are those of ten minutes."""
    monkeypatch.setattr(served_page, "TICK_S", 0.02)  # the pace of the page is 0.05
    sent = [0]
    with served() as (page, stream):
        send = page._audience.send
        monkeypatch.setattr(page._audience, "send", lambda make: (sent.__setitem__(0, sent[0] + 1), send(make)))
        tab.open(page.url, width=700, height=600)
        with fed(page, stream, 500):
            tab.wait(STREAMING)
            wait_until(lambda: sent[0] > 150)  # all rings are full
            before, began = tab.heap_bytes(), sent[0]
            nodes = tab.run("document.querySelectorAll('*').length")
            wait_until(lambda: sent[0] - began > events, longest_s=900)
            assert tab.run("document.querySelectorAll('*').length") == nodes
        wait_until(lambda: tab.heap_bytes() - before < 400_000)  # when what still came in was drawn
        require_silence(tab, page)
