"""The socket that a server listens at."""

from __future__ import annotations

import asyncio
import socket

from vitrail.commands.serve import _bound


async def _delays(listening: socket.socket) -> bool:
    """Whether asyncio lets small parts of an answer wait for the reader's word (Nagle)."""
    found: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        found.set_result(not connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    async with await asyncio.start_server(serve, sock=listening):
        _, writer = await asyncio.open_connection(*listening.getsockname()[:2])
        delays = await found
        writer.close()
        await writer.wait_closed()
    return delays


def test_answers_are_sent_at_once() -> None:
    """With the other kind of socket every answer of two parts took 40 ms more."""
    assert not asyncio.run(_delays(_bound("127.0.0.1", 0, retry=False)))
    plain = socket.socket(socket.AF_INET, socket.SOCK_STREAM)  # the control
    plain.bind(("127.0.0.1", 0))
    assert asyncio.run(_delays(plain))
