"""A page as a browser shows it: what it asks for, what it complains of, how wide it is. Skips where no Chromium is installed.

Chromium is spoken to over two pipes by its DevTools protocol: a JSON message each way, ended by a zero byte.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
#: runs what its arguments say, with the first two, numbers of files, as its files 3 and 4
AS_3_AND_4 = """import os, sys, fcntl
for wanted, given in zip((3, 4), [fcntl.fcntl(int(n), fcntl.F_DUPFD, 10) for n in sys.argv[1:3]]):
    os.dup2(given, wanted)
os.execv(sys.argv[3], sys.argv[3:])"""
#: what the page says of itself
MEASURES = """({
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  jutting: [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1
    && !e.closest('.scroll, pre, .unseen, svg *')).map(e => e.outerHTML.slice(0, 90)),
  background: getComputedStyle(document.body).backgroundColor.match(/[0-9.]+/g).slice(0, 3).map(Number),
  ink: getComputedStyle(document.body).color.match(/[0-9.]+/g).slice(0, 3).map(Number),
  broken: [...document.images].filter(i => !i.naturalWidth).map(i => i.alt),
  flat: [...document.querySelectorAll('figure > svg')].filter(s => s.getBoundingClientRect().height < 20).length,
  heading: document.querySelector('h1')?.innerText ?? '', height: document.documentElement.scrollHeight
})"""


@dataclass(frozen=True)
class Looked:
    """What a look at a page gave.

    Attributes:
        requests: addresses it asked for, itself and what stands in it aside.
        complaints: what the console said.
        said: MEASURES of it.
        picture: PNG of the whole page.
    """

    requests: list[str]
    complaints: list[str]
    said: dict[str, Any]
    picture: bytes


class Browser:
    """One headless Chromium."""

    def __init__(self, process: subprocess.Popen[bytes], to: int, since: int):
        self.process, self._to, self._from = process, to, since
        self._rest, self._number = b"", 0
        self.events: list[dict[str, Any]] = []

    def ask(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """The answer to a command; what happens meanwhile is put into `events`."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        os.write(self._to, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        while True:
            told = self._next()
            if told.get("id") == self._number:
                assert "error" not in told, told
                return told["result"]
            self.events.append(told)

    def wait(self, method: str) -> None:
        """Until this has happened."""
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self._next())

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._from, 1 << 16)
            assert part, f"the browser ended with {self.process.wait()}"
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\0")
        return json.loads(line)

    def look(self, page: Path, width: int, dark: bool = False) -> Looked:
        """Open a file at a width in pixels, in light or dark."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.ask(f"{domain}.enable", session)
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.ask("Emulation.setDeviceMetricsOverride", session, **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", session, features=[scheme])
        self.events.clear()
        self.ask("Page.navigate", session, url=page.as_uri())
        self.wait("Page.loadEventFired")
        said = self.ask("Runtime.evaluate", session, expression=MEASURES, returnByValue=True)["result"][
            "value"
        ]
        shot = self.ask("Page.captureScreenshot", session, captureBeyondViewport=True,
                        clip={"x": 0, "y": 0, "width": width, "height": min(said["height"], 16000), "scale": 1})  # fmt: skip
        self.ask("Target.closeTarget", targetId=target)
        happened = [(event["method"], event["params"]) for event in self.events if "params" in event]
        asked = [given["request"]["url"] for name, given in happened if name == "Network.requestWillBeSent"]
        complaints = [json.dumps(given) for name, given in happened if name in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")]  # fmt: skip
        elsewhere = [url for url in asked if url != page.as_uri() and not url.startswith("data:")]
        return Looked(elsewhere, complaints, said, base64.b64decode(shot["data"]))


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser, ended when the block is left; without one the test is skipped."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser here: none of {', '.join(NAMES)} is on the path")
    (to_read, to), (since, since_write) = os.pipe(), os.pipe()
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe", "--no-first-run", "--hide-scrollbars"]  # fmt: skip
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [sys.executable, "-c", AS_3_AND_4, str(to_read), str(since_write), found, *options, f"--user-data-dir={profile}"],
            pass_fds=(to_read, since_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_read)
        os.close(since_write)
        try:
            yield Browser(process, to, since)
        finally:
            process.kill()
            process.wait()
            os.close(to)
            os.close(since)
