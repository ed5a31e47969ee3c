"""A crowd of clients in a process of its own: ``python crowd.py PORT SECONDS CLIENTS PICTURE PATH...``.

Each asks about once a second, as a page does, one path after the other. Now and then it asks for a tiny
picture, cancels every second one of those, and marks ``PICTURE`` as a favourite or takes the mark away.
Prints JSON: the seconds that each answer took, how many there were of each status and of each kind of
question, and what was wrong with an answer.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from typing import Any

TINY = {"prompt": "an apple", "model": "tiny", "steps": 1}
OFTEN = 6
"""Of so many questions one changes something."""


class Crowd:
    """What all clients found."""

    def __init__(self, port: int, until: float, picture: str, paths: list[str]) -> None:
        self.port, self.until, self.picture, self.paths = port, until, picture, paths
        self.seconds: list[float] = []
        self.statuses: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.wrong: list[str] = []

    async def client(self, turn: int) -> None:
        """Ask until the time is over."""
        await asyncio.sleep(turn / 64)
        line = await asyncio.open_connection("127.0.0.1", self.port)
        wanted: list[str] = []  # jobs to cancel
        while time.monotonic() < self.until:
            if turn % OFTEN:
                await self.ask(line, "look", self.paths[turn % len(self.paths)])
            elif wanted:
                await self.ask(line, "cancel", f"/api/jobs/{wanted.pop()}/cancel", {})
            elif turn // OFTEN % 3 == 0:
                mark = {"favourite": bool(turn // OFTEN % 2)}
                await self.ask(line, "favourite", f"/api/pictures/{self.picture}/favourite", mark)
            else:
                job = await self.ask(line, "submit", "/api/jobs", TINY)
                if job is not None and turn // OFTEN % 3 == 1:
                    wanted.append(job["id"])
            turn += 1
            await asyncio.sleep(1.0)
        line[1].close()

    async def ask(
        self,
        line: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        kind: str,
        path: str,
        body: object = None,
    ) -> Any:
        """One request over an open connection; what a POST answered, None if it was refused."""
        reader, writer = line
        began = time.monotonic()
        data = b"" if body is None else json.dumps(body).encode()
        more = f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n" if data else ""
        method = "POST" if data else "GET"
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n".encode() + data)
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = int(head.partition("content-length:")[2].partition("\r\n")[0])
        answer = await reader.readexactly(length)
        self.seconds.append(time.monotonic() - began)
        status = int(head.split(" ", 2)[1])
        self.statuses[str(status)] += 1
        self.kinds[kind] += 1
        if not (200 <= status < 300 or (status == 429 and "\r\nretry-after: " in head)):
            self.wrong.append(f"{method} {path}: {status} {answer[:200]!r}")
        return json.loads(answer) if data and status < 300 else None


async def main() -> None:
    port, seconds, clients = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    crowd = Crowd(port, time.monotonic() + seconds, sys.argv[4], sys.argv[5:])
    await asyncio.gather(*(crowd.client(turn) for turn in range(clients)))
    found = {name: getattr(crowd, name) for name in ("seconds", "statuses", "kinds", "wrong")}
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main())
