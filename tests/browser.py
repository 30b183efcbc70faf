"""A page in headless Chromium, asked through the DevTools protocol (tornado speaks websocket)."""

import asyncio
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
SWITCHES = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
SECONDS = 60  # for one answer, so that a browser that hangs is told; far above what it takes


class Tab:
    """A tab: `visit` a page, then `ask` it in JavaScript; `errors` are those of the last visit."""

    def __init__(self, address: str) -> None:
        self._loop = asyncio.new_event_loop()
        request = HTTPRequest(address)
        self._socket = self._wait(self._connect(request))
        self._number = 0
        self._events: list[dict] = []
        self.errors: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def _wait(self, answer: Any) -> Any:
        return self._loop.run_until_complete(asyncio.wait_for(answer, SECONDS))

    async def _connect(self, request: HTTPRequest) -> Any:
        return await websocket_connect(request, max_message_size=1 << 28)

    def _call(self, method: str, **parameters: Any) -> dict:
        self._number += 1
        text = json.dumps({"id": self._number, "method": method, "params": parameters})
        self._wait(self._send(text))
        while (message := self._read()).get("id") != self._number:
            pass
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']}")
        return message["result"]

    async def _send(self, text: str) -> None:
        await self._socket.write_message(text)

    async def _next(self) -> str | None:
        return await self._socket.read_message()

    def _read(self) -> dict:
        held = self._wait(self._next())
        if held is None:
            raise RuntimeError("the browser has closed the connection")
        message = json.loads(held)
        if "method" in message:
            self._events.append(message)
        return message

    def size(self, width: int, height: int) -> None:
        """The size of the screen in CSS pixels."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            screenWidth=width,
            screenHeight=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def visit(self, page: Path) -> None:
        """Open a file and wait until it has loaded."""
        self._events.clear()
        self._call("Page.navigate", url=page.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._read()
        # A turn of the page's own clock: what its scripts do once it has loaded.
        self.ask("new Promise(done => requestAnimationFrame(() => setTimeout(done, 0)))")
        self.errors = [told for event in self._events for told in _told(event)]

    def ask(self, script: str) -> Any:
        """The value of an expression on the page; a promise is waited for."""
        done = self._call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in done:
            raise RuntimeError(f"{script[:200]}: {done['exceptionDetails']}")
        return done["result"].get("value")

    def picture(self, to: Path) -> None:
        """Keep what the screen shows."""
        import base64

        to.write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        self._socket.close()
        self._loop.close()


def _told(event: dict) -> list[str]:
    """The errors that an event tells: exceptions, console.error, files that do not load."""
    held = event["params"]
    if event["method"] == "Runtime.exceptionThrown":
        details = held["exceptionDetails"]
        return [details.get("exception", {}).get("description", details["text"])]
    if event["method"] == "Runtime.consoleAPICalled" and held["type"] == "error":
        return [str([arg.get("value", arg.get("description")) for arg in held["args"]])]
    if event["method"] == "Log.entryAdded" and held["entry"]["level"] == "error":
        return [f"{held['entry']['text']} {held['entry'].get('url', '')}".strip()]
    return []


@contextmanager
def tab() -> Iterator[Tab]:
    """A tab of a browser of its own, gone afterwards."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [str(CHROMIUM), *SWITCHES, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            # Its first lines tell the port that it has chosen.
            told = (line for line in process.stderr)
            address = next(line.split()[-1] for line in told if "DevTools listening" in line)
            held = Tab(_page_of(address))
            yield held
            held.close()
        finally:
            process.terminate()
            process.wait()
            process.stderr.close()


def _page_of(address: str) -> str:
    """The websocket of the first tab of a browser."""
    import urllib.request

    port = address.split("/")[2]
    with urllib.request.urlopen(f"http://{port}/json/list", timeout=SECONDS) as answer:
        tabs = json.load(answer)
    return next(each["webSocketDebuggerUrl"] for each in tabs if each["type"] == "page")
