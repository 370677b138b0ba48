"""The sink `page:ADDRESS`: shows a stream to browsers while it runs."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from contextlib import suppress

from edgedistill.errors import OutputError
from edgedistill.live.records import StreamBlock, StreamDescription
from edgedistill.live.sinks.page.server import address_from_text

ENDING_S = 5.0  # that the page has to tell browsers of the end


class PageSink:
    """Gives a stream to a process that serves its page."""

    def __init__(self, address: str) -> None:
        """Takes PORT or HOST:PORT. Without a host only this machine can see the page. Raises ConfigError."""
        self._host, self._port = address_from_text(address)
        self._process: subprocess.Popen[bytes] | None = None
        self.url: str | None = None  # of the page once it is open

    def open(self, description: StreamDescription) -> None:
        """Starts to serve. Raises OutputError where the address cannot be had."""
        # Modules are looked for where this process found them, and never beside the user's files.
        start = f"import sys; sys.path[:] = {sys.path!r}; from {__package__}.process import main; main()"
        command = [sys.executable, "-c", start]
        self._process = subprocess.Popen(  # signals of the terminal are for this program
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._send((self._host, self._port))
            self._send(description)
        answer = json.loads(self._process.stdout.readline() or b"{}")
        if "what" in answer:
            raise OutputError(**answer)
        if "url" not in answer:
            raise OutputError("the live page did not start", causes=("its message stands above",))
        self.url = answer["url"]

    def accept(self, block: StreamBlock) -> None:
        """Shows a block. Raises OSError where the process of the page has ended."""
        self._send(block)

    def idle(self) -> None:
        """Shows the last frames, which waited for others."""
        self._send(None)

    def close(self) -> None:
        """Lets the page tell browsers that the stream has ended, and ends its process."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(OSError):
            process.stdin.close()
        try:
            process.wait(ENDING_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    def _send(self, message: object) -> None:
        if self._process is None or self._process.stdin is None:
            raise BrokenPipeError("the page is not open")
        pickle.dump(message, self._process.stdin, protocol=5)
        self._process.stdin.flush()
