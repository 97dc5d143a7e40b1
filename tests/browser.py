"""A headless Chromium, driven over pipes: what a page asks for, complains of, and looks like."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pytest

# Chromium reads its commands from file descriptor 3 and answers on 4.
_LAUNCH = (
    "import fcntl, os, sys;"
    # Out of the way of 3 and 4 first, which they may be themselves.
    "r, w = (fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3]);"
    "os.dup2(r, 3); os.dup2(w, 4); os.execv(sys.argv[3], sys.argv[3:])"
)
_OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--remote-debugging-pipe"),
)


def chromium() -> str | None:
    """Path of a Chromium, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for name in names if (path := shutil.which(name))), None)


needs_chromium = pytest.mark.skipif(chromium() is None, reason="Chromium: not installed")


@dataclass
class Visit:
    """What a browser noticed of a page."""

    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


class Browser:
    """One page of one browser."""

    def __init__(self, to: BinaryIO, answers: BinaryIO) -> None:
        self._to, self._answers = to, answers
        self._number = 0
        self._session: str | None = None
        self.visit = Visit()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        """Give a command and wait for its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        self._to.flush()
        while (answer := self._read()).get("id") != self._number:
            self._note(answer)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def open(
        self, path: Path | str, *, width: int, height: int = 844, phone: bool = False
    ) -> Visit:
        """Load a file or a URL at a width in CSS pixels, until all of it is there."""
        self.visit = Visit()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )
        self.call("Page.navigate", url=path if isinstance(path, str) else path.resolve().as_uri())
        while True:
            event = self._read()
            self._note(event)
            if event.get("method") == "Page.loadEventFired":
                return self.visit

    def emulate(self, *, dark: bool = False, printed: bool = False) -> None:
        """Show pages as on a dark screen or on paper from here on."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        media = "print" if printed else ""
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def evaluate(self, expression: str) -> Any:
        """Give the value of a JavaScript expression in the page."""
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def _read(self) -> Any:
        content = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            assert byte, "the browser has gone"
            content += byte
        return json.loads(content)

    def _note(self, event: Any) -> None:
        method, params = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.visit.requests.append(params["request"]["url"])
        elif method == "Log.entryAdded":
            self.visit.complaints.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled":
            self.visit.complaints.append(str(params["args"]))
        elif method == "Runtime.exceptionThrown":
            self.visit.complaints.append(str(params["exceptionDetails"]))

    def picture(self, box: dict[str, float] | None = None) -> bytes:
        """Give what is to be seen of the page, or of a part of it, as PNG.

        `box` has `x`, `y`, `width` and `height` in CSS pixels from the page's upper left corner.
        """
        clip = {} if box is None else {"clip": {**box, "scale": 1}}
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, **clip)
        return base64.b64decode(shot["data"])

    def pdf(self) -> bytes:
        """Print the page on A4."""
        printed = self.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)
        return base64.b64decode(printed["data"])


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Start a browser with a new profile, and end it."""
    program = chromium()
    assert program is not None
    read_commands, write_commands = os.pipe()
    read_answers, write_answers = os.pipe()
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", _LAUNCH, str(read_commands), str(write_answers), program),
            *(*_OPTIONS, f"--user-data-dir={profile}"),
        ],
        pass_fds=(read_commands, write_answers),
        stderr=subprocess.DEVNULL,
    )
    os.close(read_commands)
    os.close(write_answers)
    try:
        with open(write_commands, "wb") as to, open(read_answers, "rb") as answers:  # noqa: PTH123
            yield Browser(to, answers)
    finally:
        process.terminate()
        process.wait(30)
