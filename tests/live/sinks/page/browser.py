"""Drives a headless Chromium over its debugging pipe, so that tests see what a person would see.

Nothing but the standard library is needed. Each message is JSON that a zero byte ends.
"""

from __future__ import annotations

import base64
import json
import os
import queue
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ....waiting import LONGEST_S, wait_until

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--disable-extensions"),
    "--disable-dev-shm-usage",  # which containers keep small
    *("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--js-flags=--expose-gc"),
)
COMMANDS, ANSWERS = 3, 4  # descriptors that Chromium reads from and writes to


class Tab:
    """One page in the browser, and everything that it logged and asked for."""

    def __init__(self, write: int, read: int) -> None:
        self.logged: list[str] = []  # messages of the console, errors and warnings of the browser
        self.requested: list[str] = []  # addresses
        self._write, self._session, self._number = write, "", 0
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._read, args=(read,), daemon=True).start()
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command and returns its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._answers.get(timeout=LONGEST_S)
            if answer["id"] == self._number:
                assert "error" not in answer, (method, answer)
                found: dict[str, Any] = answer["result"]
                return found

    def open(self, url: str, *, width: int = 1280, height: int = 1000, dark: bool = False, phone: bool = False) -> None:
        """Goes to an address, as a screen of that size shows it."""
        scale = 2 if phone else 1
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=phone
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.ask("Page.navigate", url="about:blank")
        self.wait("location.href === 'about:blank'")
        self.logged.clear()
        self.requested.clear()
        self.ask("Page.navigate", url=url)
        self.wait("location.href !== 'about:blank' && document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """Returns the value of an expression in the page."""
        result = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def text(self, selector: str) -> str:
        """Returns the text of an element."""
        return str(self.run(f"document.querySelector({selector!r})?.textContent ?? ''"))

    def wait(self, script: str, timeout_s: float = LONGEST_S) -> None:
        """Waits until an expression is true."""
        wait_until(lambda: bool(self.run(script)), timeout_s)

    def heap_bytes(self, tries: int = 6) -> int:
        """Returns the least size of the page's objects after garbage was collected, in some tries.

        What the page works on at that moment counts, and so one try alone says little.
        """
        sizes = []
        for _ in range(tries):
            self.ask("HeapProfiler.collectGarbage")
            sizes.append(int(self.ask("Runtime.getHeapUsage")["usedSize"]))
            time.sleep(0.2)
        return min(sizes)

    def shoot(self, path: Path) -> None:
        """Takes a picture of the whole page."""
        found = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def _read(self, read: int) -> None:
        waiting = b""
        while piece := os.read(read, 1 << 16):
            *whole, waiting = (waiting + piece).split(b"\0")
            for message in map(json.loads, whole):
                if "id" in message:
                    self._answers.put(message)
                else:
                    self._note(message["method"], message.get("params", {}))

    def _note(self, method: str, found: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requested.append(found["request"]["url"])
        elif method == "Log.entryAdded":
            self.logged.append(f"{found['entry']['level']}: {found['entry']['text']} {found['entry'].get('url', '')}")
        elif method == "Runtime.consoleAPICalled":
            self.logged.append(f"{found['type']}: {found['args']}")
        elif method == "Runtime.exceptionThrown":
            self.logged.append(f"exception: {found['exceptionDetails']}")


@contextmanager
def open_browser(folder: Path) -> Iterator[Tab]:
    """Starts a browser that keeps its files in `folder`, and ends it."""
    assert CHROMIUM is not None
    to_browser, from_browser = os.pipe(), os.pipe()

    def place() -> None:
        ends = os.dup(to_browser[0]), os.dup(from_browser[1])
        os.dup2(ends[0], COMMANDS)
        os.dup2(ends[1], ANSWERS)

    with (folder / "browser.log").open("wb") as log:
        process = subprocess.Popen(
            [CHROMIUM, *QUIET, "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}"],
            preexec_fn=place,
            pass_fds=(COMMANDS, ANSWERS),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
    for end in (to_browser[0], from_browser[1]):
        os.close(end)
    try:
        tab = Tab(to_browser[1], from_browser[0])
        yield tab
        os.write(to_browser[1], json.dumps({"id": 0, "method": "Browser.close"}).encode() + b"\0")
        process.wait(LONGEST_S)
    finally:
        process.kill()
        process.wait()
        os.close(to_browser[1])
