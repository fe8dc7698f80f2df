"""A headless Chromium with one page, in which scripts run one at a time: what a real browser makes of them.

The page (chromium.html) is served from here. A script tells what happens to it over a WebSocket of its own, in the
lines of tests/wire/javascript.py.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from http import HTTPStatus
from pathlib import Path

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from .support import until
from .wire.javascript import Script
from .wire.seed import missing

PAGE = Path(__file__).with_suffix(".html")

# No sandbox: CI is root in a container, and has little shared memory. The rest keeps it from calling home.
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


class Chromium:
    """A browser and what it is served; scripts may import the modules of `folder`, as `/name.mjs`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._scripts: dict[str, str] = {}
        self._channels: dict[str, ServerConnection] = {}

    @contextlib.asynccontextmanager
    async def run(self, text: str) -> AsyncIterator[Script]:
        """Run `text` as a module in a page of its own."""
        path = f"/{len(self._scripts)}"
        self._scripts[f"{path}.mjs"] = text
        await self._channels["/"].send(path)
        await until(lambda: path in self._channels)
        async with self._channels[path] as channel:
            yield _Page(channel)

    async def appears(self, browser: subprocess.Popen[bytes]) -> None:
        """Wait until it shows the page."""
        await until(lambda: "/" in self._channels or browser.poll() is not None, 30, "Chromium's first page")
        assert browser.poll() is None, "Chromium ended at once"

    async def keep(self, channel: ServerConnection) -> None:
        assert channel.request is not None
        self._channels[channel.request.path] = channel
        await channel.wait_closed()

    def answer(self, channel: ServerConnection, request: Request) -> Response | None:
        """A page, a script, a module; None where a channel begins."""
        if "Upgrade" in request.headers:
            return None
        path = request.path
        if not path.endswith(".mjs"):
            return _response(channel, PAGE.read_text(encoding="utf-8"), "text/html")
        text = self._scripts.get(path) or (self._folder / path[1:]).read_text(encoding="utf-8")
        return _response(channel, text, "text/javascript")


class _Page(Script):
    """A script that is in a page."""

    def __init__(self, channel: ServerConnection) -> None:
        super().__init__()
        self._channel = channel

    async def tell(self, line: str) -> None:
        await self._channel.send(line)

    async def read(self) -> str:
        try:
            return f"{await self._channel.recv()}\n"
        except ConnectionClosed:
            return ""


@contextlib.asynccontextmanager
async def headless(folder: Path) -> AsyncIterator[Chromium]:
    """A Chromium of the test's own. Skips the test where there is none."""
    chromium = Chromium(folder)
    async with serve(chromium.keep, "127.0.0.1", 0, process_request=chromium.answer, max_size=None) as server:
        port = server.sockets[0].getsockname()[1]
        with _browser(f"http://127.0.0.1:{port}/") as browser:
            await chromium.appears(browser)
            yield chromium


@contextlib.contextmanager
def _browser(url: str) -> Iterator[subprocess.Popen[bytes]]:
    """Chromium with a profile of its own, in a process group of its own, all of which ends with this."""
    program = shutil.which("chromium")
    if program is None:
        missing("Chromium is not installed (Debian: apt-get install chromium)")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [str(program), *OPTIONS, f"--user-data-dir={profile}", url]
        browser = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield browser
        finally:
            browser.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                browser.wait(5)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(browser.pid, signal.SIGKILL)
            browser.wait()


def _response(channel: ServerConnection, text: str, kind: str) -> Response:
    response = channel.respond(HTTPStatus.OK, text)
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = f"{kind}; charset=utf-8"
    return response
