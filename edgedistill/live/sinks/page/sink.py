"""The sink `page:ADDRESS`: shows a stream to browsers while it runs."""

from __future__ import annotations

from importlib import resources
from threading import Event, Thread
from time import monotonic, sleep

from edgedistill.live.records import StreamBlock, StreamDescription
from edgedistill.live.sinks.page.feed import Feed
from edgedistill.live.sinks.page.server import Asset, PageServer, address_from_text
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


class PageSink:
    """Serves the page of one stream from `open` to `close`."""

    def __init__(self, address: str) -> None:
        """Takes PORT or HOST:PORT. Without a host only this machine can see the page. Raises ConfigError."""
        self._host, self._port = address_from_text(address)
        self._audience, self._ended = Audience(), Event()
        self._server: PageServer | None = None
        self._feed: Feed | None = None
        self._ticker: Thread | None = None

    @property
    def url(self) -> str:
        """Returns the address of the page once it is open."""
        if self._server is None:
            raise RuntimeError("the page has no address before it is open")
        return self._server.url

    def open(self, description: StreamDescription) -> None:
        """Starts to serve. Raises OutputError where the address cannot be had."""
        self._feed = feed = Feed(description)
        self._server = PageServer(
            self._host,
            self._port,
            read_assets(),
            self._audience,
            lambda: feed.header() + feed.status(len(self._audience)),
        )
        self._ticker = Thread(target=self._tick, args=(feed,), name="ticks of the live page", daemon=True)
        self._ticker.start()

    def accept(self, block: StreamBlock) -> None:
        """Shows a block with the next tick."""
        if self._feed is not None:
            self._feed.add(block)

    def idle(self) -> None:
        """Shows the last frames, which waited for others."""
        if self._feed is not None:
            self._feed.flush()

    def close(self) -> None:
        """Tells the browsers that the stream has ended, and stops to serve."""
        self._ended.set()
        if self._ticker is not None:
            self._ticker.join()
        self._audience.close()
        until = monotonic() + LAST_WORDS_S
        while len(self._audience) and monotonic() < until:
            sleep(TICK_S)
        if self._server is not None:
            self._server.close()

    def _tick(self, feed: Feed) -> None:
        told, told_at = "", 0.0
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
