"""A crowd of clients in a process of its own: ``python crowd.py URL SECONDS CLIENTS PATH...``.

Each asks about once a second, as a page does, one path after the other. Prints JSON: the seconds that each
answer took, and how many there were of each status.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> int:
    """One request over an open connection; the status of its answer."""
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    await writer.drain()
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = int(head.partition("content-length:")[2].partition("\r\n")[0])
    await reader.readexactly(length)
    return int(head.split(" ", 2)[1])


async def client(
    port: int, until: float, paths: list[str], turn: int, found: list[tuple[float, int]]
) -> None:
    """Ask until the time is over."""
    await asyncio.sleep(turn / 64)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.monotonic() < until:
        began = time.monotonic()
        status = await ask(reader, writer, paths[turn % len(paths)])
        found.append((time.monotonic() - began, status))
        turn += 1
        await asyncio.sleep(1.0)
    writer.close()


async def main() -> None:
    port, seconds, clients, paths = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    found: list[tuple[float, int]] = []
    until = time.monotonic() + seconds
    await asyncio.gather(*(client(port, until, paths, turn, found) for turn in range(clients)))
    statuses = Counter(str(status) for _, status in found)
    print(json.dumps({"seconds": [seconds for seconds, _ in found], "statuses": statuses}))


if __name__ == "__main__":
    asyncio.run(main())
