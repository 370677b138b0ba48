"""Serves the page and its events to browsers, from the standard library alone.

A `Audience` and the texts of the page come in, and a running server goes out. Only requests that name this machine in
`Host` are answered, so that no page from elsewhere can read the stream through a name that it points here. Nothing is
ever written, and nothing outside a fixed table is read.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import BoundedSemaphore, Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

from edgedistill.errors import ConfigError, OutputError
from edgedistill.live.sinks.page.viewers import MOST_VIEWERS, Audience, Viewer

THIS_MACHINE = "127.0.0.1"
SLOWEST_S = 10.0  # a browser that takes nothing for so long is let go
HEARTBEAT_S = 5.0
MOST_CONNECTIONS = MOST_VIEWERS + 32
MOST_PORT = 65_535
# Browsers load nothing for this page but its own files, run nothing inline, and show it in no frame.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}

Asset = tuple[str, bytes]  # content type and content


def address_from_text(text: str) -> tuple[str, int]:
    """Returns host and port of `PORT`, `HOST:PORT` or `[IPV6]:PORT`. Without a host it is this machine alone.

    Raises ConfigError.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host or (colon and not host):
        host = ""
        port = text  # refused below
    if not (port.isascii() and port.isdigit() and int(port) <= MOST_PORT):
        raise ConfigError(
            f"'page:{text}' does not say where to serve the page",
            expected=f"page:PORT or page:HOST:PORT, with a port up to {MOST_PORT}",
            next_step="page:8765 serves it on this machine alone, at http://127.0.0.1:8765",
        )
    return host or THIS_MACHINE, int(port)


class PageServer:
    """Serves one page in threads of its own until it is closed."""

    def __init__(
        self, host: str, port: int, assets: Mapping[str, Asset], audience: Audience, header: Callable[[], bytes]
    ) -> None:
        """Starts to serve `assets` by their paths, and at `/events` what `audience` is sent, after `header()`.

        Port 0 takes a free one. Raises OutputError where the address cannot be had.
        """
        try:
            self._server = _Server(host, port, assets, audience, header)
        except (OSError, UnicodeError) as error:
            raise _cannot_serve(host, port, error) from error
        self.host, self.port = host, int(self._server.server_address[1])
        self._thread = Thread(target=self._server.serve_forever, args=(0.1,), name="live page", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Returns the address of the page."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}/"

    def close(self) -> None:
        """Stops to serve. Threads of browsers that are slow end by themselves."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(
        self, host: str, port: int, assets: Mapping[str, Asset], audience: Audience, header: Callable[[], bytes]
    ) -> None:
        self.assets, self.audience, self.header = assets, audience, header
        self._room = BoundedSemaphore(MOST_CONNECTIONS)
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        self.address_family = family
        super().__init__((str(address[0]), port), _Handler)
        self.names = _own_names(host)

    def server_bind(self) -> None:
        """Binds without asking the network for the name of this machine, as `HTTPServer` does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Gives a request a thread of its own, or closes it where there are too many."""
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no further thread can be started
            self._room.release()
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answers a request."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing where a browser went away. Other errors are printed."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    def is_own(self, host: str | None) -> bool:
        """Returns whether a request's `Host` is this machine: an address, or a name that nobody else can point here."""
        name = urlsplit(f"//{host}").hostname if host else None
        if name is None:
            return False
        with suppress(ValueError):
            ipaddress.ip_address(name)
            return True
        return name in self.names


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "edgedistill", ""
    timeout = SLOWEST_S
    close_connection = True

    def do_GET(self) -> None:
        """Answers with the page, one of its files, or events until the stream ends."""
        self.close_connection = True
        target = urlsplit(self.path)
        if not self._is_own():
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST, "this name is not the one of this machine")
        elif self.headers.get("Origin") not in (None, f"http://{self.headers['Host']}"):
            self._refuse(HTTPStatus.FORBIDDEN, "another site may not watch this stream")
        elif target.path == "/events":
            self._send_events(target.query)
        elif target.path in self.server.assets:
            kind, content = self.server.assets[target.path]
            self._send_head(HTTPStatus.OK, kind, len(content))
            self.wfile.write(content)
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")

    def log_message(self, format: str, *args: object) -> None:
        """Prints nothing, since stderr belongs to the stream."""

    def _is_own(self) -> bool:
        try:
            return self.server.is_own(self.headers.get("Host"))
        except ValueError:  # not even an address
            return False

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        text = f"{why}\n".encode()
        self._send_head(status, "text/plain; charset=utf-8", len(text))
        self.wfile.write(text)

    def _send_head(self, status: HTTPStatus, kind: str, length: int | None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()

    def _send_events(self, query: str) -> None:
        first = parse_qs(query).get("first", ["0"])[0]
        viewer = Viewer(int(first) if first.isascii() and first.isdigit() and len(first) < 10 else 0)
        if not self.server.audience.join(viewer):
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too many browsers watch, or the stream has ended")
            return
        try:
            self._send_head(HTTPStatus.OK, "text/event-stream", None)
            self.wfile.write(b"retry: 1000\n\n" + self.server.header())
            while (events := viewer.take(HEARTBEAT_S)) is not None:
                self.wfile.write(b"".join(events) or b": still here\n\n")  # a browser that has gone is noticed
        finally:
            self.server.audience.leave(viewer)


def _own_names(host: str) -> set[str]:
    return {name.lower() for name in ("localhost", host, socket.gethostname())}


def _cannot_serve(host: str, port: int, error: Exception) -> OutputError:
    causes = {
        errno.EADDRINUSE: ("another stream or program serves there",),
        errno.EACCES: ("ports below 1024 belong to the administrator",),
        errno.EADDRNOTAVAIL: ("the address is not one of this machine",),
    }.get(getattr(error, "errno", None) or 0, ("the name or address of the host is wrong",))
    return OutputError(
        f"the page cannot be served at {host}:{port}",
        got=getattr(error, "strerror", None) or error,
        causes=causes,
        next_step="choose another port: --to page:8766",
    )
