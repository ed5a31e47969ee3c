"""A line between one machine and a database that can be cut: a TCP proxy of 127.0.0.1 in a thread of its own.

``open`` hands everything on. ``closed`` ends every connection and takes no new one. ``hole`` takes whatever
is sent and hands on nothing, without a word to either side, as a firewall that has lost its state: what was
connected then stays dumb for good. ``stalled`` keeps what is sent until the line is ``open`` again, as TCP
does.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from typing import Any, Literal

__all__ = ["Line"]

State = Literal["open", "closed", "hole", "stalled"]


class Line:
    """``with Line(port) as line``: ``line.port`` leads to ``port`` as long as ``line.set`` lets it.

    ``delay``: seconds that every piece takes in each direction. ``asked``: how often one side of a connection
    spoke after the other one had: the round trips.
    """

    def __init__(self, port: int, delay: float = 0.0) -> None:
        self.delay = delay
        self.asked = 0
        self._target = port
        self._state: State = "open"
        self._loop = asyncio.new_event_loop()
        self._changed = asyncio.Event()
        self._pairs: set[_Pair] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.port = 0

    def __enter__(self) -> Line:
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._connected, "127.0.0.1", 0, backlog=256))
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self.set("closed")

        async def end() -> None:
            self._server.close()
            for task in asyncio.all_tasks():
                if task is not asyncio.current_task():
                    task.cancel()

        self._run(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def url(self, url: str) -> str:
        """The address of a database, by way of this line."""
        return url.replace(f":{self._target}/", f":{self.port}/")

    def set(self, state: State) -> None:
        """From now on the line is so."""

        async def change() -> None:
            self._state = state
            for pair in list(self._pairs):
                if state == "hole":
                    pair.dumb = True
                elif state == "closed":
                    pair.end()
            self._changed.set()
            self._changed = asyncio.Event()

        self._run(change())

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pair = _Pair(writer)
        self._pairs.add(pair)
        try:
            if self._state == "closed":
                return
            if self._state == "hole":
                while await reader.read(1 << 16):
                    pass
                return
            far_reader, pair.far = await asyncio.open_connection("127.0.0.1", self._target)
            await asyncio.wait(
                [
                    asyncio.ensure_future(self._pump(pair, reader, pair.far, asks=True)),
                    asyncio.ensure_future(self._pump(pair, far_reader, writer, asks=False)),
                ],
                return_when=asyncio.FIRST_COMPLETED,
            )
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            pair.end()
            self._pairs.discard(pair)

    async def _pump(
        self, pair: _Pair, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, asks: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                while self._state == "stalled":
                    await self._changed.wait()
                if pair.dumb:
                    continue
                if asks and pair.answered:
                    self.asked += 1
                pair.answered = not asks
                if self.delay:
                    await asyncio.sleep(self.delay)
                writer.write(data)
                await writer.drain()
            while pair.dumb:  # the end of one side is not heard on the other one either
                await asyncio.sleep(0.5)


class _Pair:
    """The two connections of one client; ``dumb``: neither hears the other any more."""

    def __init__(self, near: asyncio.StreamWriter) -> None:
        self.near = near
        self.far: asyncio.StreamWriter | None = None
        self.dumb = False
        self.answered = True

    def end(self) -> None:
        for writer in (self.near, self.far):
            if writer is not None:
                with contextlib.suppress(Exception):
                    writer.transport.abort()
