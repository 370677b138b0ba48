"""Runs the page in a process of its own, so that the thread that decodes shares no interpreter lock with it.

The sink writes pickles to the process's stdin: host and port, the description, then blocks, with None where nothing
came. The process answers with one line of JSON on stdout, the page's address or why it cannot be served, and ends when
stdin does.
"""

from __future__ import annotations

import json
import pickle
import signal
import sys
from typing import Any

from edgedistill.errors import OutputError
from edgedistill.live.sinks.page.served_page import ServedPage

FIELDS = ("what", "got", "causes", "next_step")  # of an error


def main() -> None:
    """Serves until stdin ends, however that happens. The program that decodes is the one that signals are meant for."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    host, port = _read()
    try:
        page = ServedPage(host, port, _read())
    except OutputError as error:
        _answer({name: getattr(error, name) for name in FIELDS})
        return
    _answer({"url": page.url})
    try:
        while True:
            block = _read()
            if block is None:
                page.flush()
            else:
                page.add(block)
    except (EOFError, pickle.UnpicklingError):  # the latter within a block, where the program was killed
        page.close()


def _read() -> Any:
    return pickle.load(sys.stdin.buffer)


def _answer(found: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(found, default=str) + "\n")
    sys.stdout.flush()
