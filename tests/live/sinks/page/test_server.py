"""Tests that the page is served to this machine alone, that no browser can hold the stream up, and that it ends."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection, HTTPResponse

import pytest

from edgedistill.errors import ConfigError, OutputError
from edgedistill.live.sinks.page import PageSink, server
from edgedistill.live.sinks.page.served_page import ASSETS, ServedPage
from edgedistill.live.sinks.page.server import address_from_text
from edgedistill.live.sinks.page.viewers import MOST_VIEWERS, MOST_WAITING_BYTES, Audience, Viewer

from ....waiting import LONGEST_S, wait_until
from .streams import MadeStream, make_description


def serve(port: int = 0, **changes: object) -> ServedPage:
    return ServedPage("127.0.0.1", port, make_description(**changes))


@pytest.fixture
def page() -> Iterator[ServedPage]:
    page = serve()
    yield page
    page.close()


def port_of(page: ServedPage) -> int:
    return int(page.url.rstrip("/").rpartition(":")[2])


def get(page: ServedPage, path: str, method: str = "GET", **headers: str) -> HTTPResponse:
    """Asks for a path. The answer to /events stays open."""
    connection = HTTPConnection("127.0.0.1", port_of(page), timeout=LONGEST_S)
    connection.request(method, path, headers=headers)
    return connection.getresponse()


def read_until(answer: HTTPResponse, words: bytes) -> bytes:
    """Reads events until some words were in them."""
    seen = b""
    while words not in seen:
        line = answer.readline()
        assert line, "the events ended"
        seen += line
    return seen


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8765", ("127.0.0.1", 8765)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),
        ("rig.local:8765", ("rig.local", 8765)),
        ("[::1]:8765", ("::1", 8765)),
    ],
)
def test_an_address_is_a_port_with_or_without_a_host(text: str, expected: tuple[str, int]) -> None:
    assert address_from_text(text) == expected


@pytest.mark.parametrize("text", ["", "here", "65536", "-1", "::1:8765", ":8765", "host:", "host:port", "٣"])
def test_an_address_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"page:PORT or page:HOST:PORT"):
        PageSink(text)


def test_without_a_host_the_page_is_served_to_this_machine_alone(page: ServedPage) -> None:
    assert page.url.startswith("http://127.0.0.1:")
    for path, (_, _, kind) in ASSETS.items():
        answer = get(page, path)
        assert (answer.status, answer.headers["Content-Type"]) == (200, kind)
        assert len(answer.read()) > 100


def test_browsers_are_told_to_load_nothing_from_elsewhere(page: ServedPage) -> None:
    headers = get(page, "/").headers
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert "http" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "Access-Control-Allow-Origin" not in headers
    assert "Python" not in headers["Server"]


@pytest.mark.parametrize("path", ["/../page.py", "/page.py", "//etc/passwd", "/events/", "/%2e%2e/sink.py"])
def test_nothing_but_the_page_is_read(page: ServedPage, path: str) -> None:
    assert get(page, path).status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nothing_can_be_written(page: ServedPage, method: str) -> None:
    assert get(page, "/", method=method).status == 501


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "", "[", "localhost@x"]
)
@pytest.mark.parametrize("path", ["/", "/events"])
def test_a_name_that_another_site_pointed_here_is_refused(page: ServedPage, path: str, host: str) -> None:
    answer = get(page, path, Host=host)
    assert answer.status == 421
    assert b"header" not in answer.read()


@pytest.mark.parametrize("origin", ["https://evil.example", "http://127.0.0.1:1", "null"])
def test_another_site_cannot_take_the_place_of_a_browser_that_watches(page: ServedPage, origin: str) -> None:
    assert get(page, "/events", Origin=origin).status == 403
    assert get(page, "/events", Origin=page.url.rstrip("/")).status == 200


@pytest.mark.parametrize("host", ["127.0.0.1:8765", "localhost", "LOCALHOST:99", "[::1]:8765", "192.168.1.7"])
def test_addresses_and_own_names_are_answered(page: ServedPage, host: str) -> None:
    assert get(page, "/", Host=host).status == 200


def test_events_come_as_the_stream_does_and_end_with_it() -> None:
    page, stream = serve(), MadeStream()
    answer = get(page, "/events?first=16")
    assert answer.headers["Content-Type"] == "text/event-stream"
    assert b'"state":"waiting"' in read_until(answer, b"event: status\n") + answer.readline()
    page.add(stream.block())
    seen = read_until(answer, b"event: bins\n") + answer.readline()
    assert b'"first":16' in seen
    assert b'"state":"streaming"' in read_until(answer, b"streaming")
    page.add(stream.end())
    closer = threading.Thread(target=page.close)
    closer.start()
    assert b'"state":"ended"' in read_until(answer, b"ended")
    assert b"header" not in answer.read()  # up to the end of the answer
    closer.join()
    with pytest.raises(OSError, match="refused"):
        get(page, "/")


@pytest.mark.parametrize("query", ["", "?first=", "?first=x", "?first=-1", "?first=99999999999999999999", "?first=²"])
def test_an_odd_choice_of_channels_shows_the_first_ones(page: ServedPage, query: str) -> None:
    path = "/events" + query.replace("²", "%C2%B2")
    answer = get(page, path)
    page.add(MadeStream().block())
    assert b'"first":0' in read_until(answer, b"event: bins\n") + answer.readline()


def test_a_browser_that_takes_nothing_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody lets that browser go here, so whoever waited for it would wait for ever."""
    monkeypatch.setattr(server._Handler, "timeout", None)
    page, stream = serve(), MadeStream()
    with closing(socket.create_connection(("127.0.0.1", port_of(page)))) as slow:
        slow.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = get(page, "/events")
        for _ in range(400):
            page.add(stream.block())
        read_until(answer, b"399")
        page.add(stream.end())
        page.close()
    assert not [one for one in threading.enumerate() if "live page" in one.name]


def test_a_port_in_use_is_refused(page: ServedPage) -> None:
    with pytest.raises(OutputError, match=r"(?s)cannot be served at 127\.0\.0\.1:\d+\n.*in use\n.*another stream"):
        serve(port_of(page))


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7"])
def test_an_address_of_another_machine_is_refused(host: str) -> None:
    with pytest.raises(OutputError, match="cannot be served"):
        ServedPage(host, 8765, make_description())


def test_two_pages_are_served_at_once(page: ServedPage) -> None:
    other = serve(bundle="other.edge")
    assert b"other.edge" in read_until(get(other, "/events"), b"bundle")
    assert b"monkey.edge" in read_until(get(page, "/events"), b"bundle")
    other.close()
    assert get(page, "/").status == 200


def test_a_page_can_be_served_again_at_once() -> None:
    first = serve()
    get(first, "/").read()
    port = port_of(first)
    first.close()
    second = serve(port)
    assert get(second, "/").status == 200
    second.close()


def test_more_browsers_than_can_watch_are_told_so(page: ServedPage) -> None:
    watching = [get(page, "/events") for _ in range(MOST_VIEWERS)]
    assert {answer.status for answer in watching} == {200}
    assert get(page, "/events").status == 503
    assert get(page, "/").status == 200
    watching[0].close()
    stream = MadeStream()

    def is_free() -> bool:
        page.add(stream.block())  # one that has gone is noticed when it is sent something
        return get(page, "/events").status == 200

    wait_until(is_free)


def test_connections_that_say_nothing_are_bounded(page: ServedPage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server._Handler, "timeout", None)  # none is let go because it is slow
    before = set(threading.enumerate())

    def answering() -> int:
        return len(set(threading.enumerate()) - before)

    idle = [socket.create_connection(("127.0.0.1", port_of(page))) for _ in range(120)]
    most = server.MOST_CONNECTIONS
    wait_until(lambda: len(select.select(idle, [], [], 0)[0]) == 120 - most)  # these were closed without a word
    assert answering() == most
    for one in idle:
        one.close()
    wait_until(lambda: answering() == 0)
    assert get(page, "/").status == 200


# ---------------------------------------------------------------- viewers


def test_a_slow_viewer_loses_the_oldest_events() -> None:
    viewer, size = Viewer(0), MOST_WAITING_BYTES // 4
    for i in range(10):
        viewer.put(bytes([i]) * size)
    taken = viewer.take(0.0)
    assert taken is not None
    assert [event[0] for event in taken] == [6, 7, 8, 9]
    assert viewer.dropped == 6
    viewer.put(b"next")
    assert viewer.take(0.0) == [b"next"]
    assert viewer.take(0.0) == []
    viewer.put(b"last")
    viewer.close()
    assert viewer.take(0.0) == [b"last"]
    assert viewer.take(0.0) is None


def test_an_event_is_made_once_for_all_who_show_the_same_channels() -> None:
    audience, made = Audience(), []
    viewers = [Viewer(0), Viewer(16), Viewer(0)]

    def make(first: int) -> bytes:
        made.append(first)
        return str(first).encode()

    for viewer in viewers:
        assert audience.join(viewer)
    audience.send(make)
    assert sorted(made) == [0, 16]
    assert [viewer.take(0.0) for viewer in viewers] == [[b"0"], [b"16"], [b"0"]]
    audience.leave(viewers[0])
    audience.tell(b"all")
    assert [viewer.take(0.0) for viewer in viewers] == [[], [b"all"], [b"all"]]
    audience.close()
    assert not audience.join(Viewer(0))
    assert viewers[1].take(0.0) is None
