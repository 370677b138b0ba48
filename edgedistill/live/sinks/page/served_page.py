"""Serves the page of one stream: its description and its blocks come in, and browsers see them."""

from __future__ import annotations

from importlib import resources
from threading import Event, Thread
from time import monotonic, sleep

from edgedistill.live.records import StreamBlock, StreamDescription
from edgedistill.live.sinks.page.feed import Feed
from edgedistill.live.sinks.page.server import Asset, PageServer
from edgedistill.live.sinks.page.viewers import Audience

TICK_S = 0.05
STATUS_S = 0.5
LAST_WORDS_S = 1.0  # that browsers have to take what waits for them at the end
ASSETS = {
    "/": ("edgedistill.live.sinks.page", "page.html", "text/html; charset=utf-8"),
    "/page.css": ("edgedistill.live.sinks.page", "page.css", "text/css; charset=utf-8"),
    "/colours.css": ("edgedistill.report", "colours.css", "text/css; charset=utf-8"),
    "/page.js": ("edgedistill.live.sinks.page", "page.js", "text/javascript; charset=utf-8"),
    "/rings.js": ("edgedistill.live.sinks.page", "rings.js", "text/javascript; charset=utf-8"),
    "/drawing.js": ("edgedistill.live.sinks.page", "drawing.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("edgedistill.live.sinks.page", "icon.svg", "image/svg+xml"),
}


class ServedPage:
    """Serves the page of one stream from its start to `close`."""

    def __init__(self, host: str, port: int, description: StreamDescription) -> None:
        """Starts to serve. Raises OutputError where the address cannot be had."""
        self._feed, self._audience, self._ended = Feed(description), Audience(), Event()
        self._server = PageServer(host, port, read_assets(), self._audience, self._greet)
        self._ticker = Thread(target=self._tick, name="ticks of the live page", daemon=True)
        self._ticker.start()

    @property
    def url(self) -> str:
        """Returns the address of the page."""
        return self._server.url

    def add(self, block: StreamBlock) -> None:
        """Shows a block with the next tick."""
        self._feed.add(block)

    def flush(self) -> None:
        """Shows frames that wait for others."""
        self._feed.flush()

    def close(self) -> None:
        """Tells the browsers that the stream has ended, and stops to serve."""
        self._ended.set()
        self._ticker.join()
        self._audience.close()
        until = monotonic() + LAST_WORDS_S
        while len(self._audience) and monotonic() < until:
            sleep(TICK_S)
        self._server.close()

    def _greet(self) -> bytes:
        """Returns what a browser is sent first."""
        return self._feed.header() + self._feed.status(len(self._audience))

    def _tick(self) -> None:
        feed, told, told_at = self._feed, "", 0.0
        while True:
            if ended := self._ended.wait(TICK_S):
                feed.end()
            if (new := feed.take()) is not None:
                self._audience.send(new.event)
            if ended or feed.state != told or monotonic() - told_at >= STATUS_S:
                told, told_at = feed.state, monotonic()
                self._audience.tell(feed.status(len(self._audience)))
            if ended:
                return


def read_assets() -> dict[str, Asset]:
    """Returns content type and content of every file of the page, by its path in the address."""
    return {
        path: (kind, (resources.files(package) / name).read_bytes()) for path, (package, name, kind) in ASSETS.items()
    }
