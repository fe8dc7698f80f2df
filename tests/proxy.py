"""A small TCP proxy before a server: cuts connections, loses answers, stands still, is slow."""

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Proxy:
    """Forwards to the port `target`; a new one is that of new connections.

    `lose_answers(n)` lets requests through and closes instead of the next `n` answers.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self._writers: set[asyncio.StreamWriter] = set()
        self._losing = 0
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.port = 0
        self.lost = 0
        self.delay_seconds = 0.0  # for each piece that passes, in either direction

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def lose_answers(self, number: int) -> None:
        self._losing = number

    def pause(self) -> None:
        """Nothing passes, nothing is closed: a connection that is half dead."""
        self._flowing.clear()

    def go_on(self) -> None:
        self._flowing.set()

    def cut(self) -> None:
        """Close every connection, now."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, up_writer}
        self._writers |= ends
        with contextlib.suppress(OSError):
            tasks = [
                asyncio.create_task(self._pump(reader, up_writer, answers=False)),
                asyncio.create_task(self._pump(up_reader, writer, answers=True)),
            ]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        for end in ends:
            end.transport.abort()
        self._writers -= ends

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool) -> None:
        while data := await reader.read(64 * 1024):
            await self._flowing.wait()
            if self.delay_seconds:
                await asyncio.sleep(self.delay_seconds)
            if answers and self._losing:
                self._losing -= 1
                self.lost += 1
                return
            writer.write(data)
            await writer.drain()


@contextlib.asynccontextmanager
async def proxy(port: int) -> AsyncIterator[Proxy]:
    """A proxy before the server on `port`, which may start later."""
    middle = Proxy(port)
    server = await asyncio.start_server(middle._serve, "127.0.0.1", 0)
    middle.port = server.sockets[0].getsockname()[1]
    try:
        yield middle
    finally:
        middle.go_on()
        server.close()
        middle.cut()
        await asyncio.sleep(0.01)
