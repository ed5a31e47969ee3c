"""Messages between a worker and the process that does its work: a JSON head, and bytes that belong to it."""

from __future__ import annotations

import json
import threading
from multiprocessing.connection import Connection
from typing import Any

__all__ = ["Line"]


class Line:
    """One end of a connection. Any thread may send, one receives. ``EOFError`` once the other end is gone.

    Nothing is pickled: whatever the working process became, it can send no more than data.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    @classmethod
    def of(cls, descriptor: int) -> Line:
        """The end with this file descriptor."""
        return cls(Connection(descriptor))

    def send(self, head: dict[str, Any], body: bytes = b"") -> None:
        """Send a message; raises ``EOFError`` if nobody is there to read it."""
        text = json.dumps(head, ensure_ascii=False).encode("utf-8", "replace")
        with self._lock:
            try:
                self._connection.send_bytes(len(text).to_bytes(4, "big") + text + body)
            except (BrokenPipeError, ConnectionResetError, OSError) as error:
                raise EOFError("the other end is closed") from error

    def receive(self) -> tuple[dict[str, Any], bytes]:
        """Wait for the next message."""
        try:
            data = self._connection.recv_bytes()
        except (ConnectionResetError, OSError) as error:
            raise EOFError("the other end is closed") from error
        size = int.from_bytes(data[:4], "big")
        return json.loads(data[4 : 4 + size]), data[4 + size :]

    def waits(self, seconds: float) -> bool:
        """Whether there is something to receive, an end included, within ``seconds``."""
        try:
            return self._connection.poll(seconds)
        except (BrokenPipeError, ConnectionResetError, OSError):
            return True

    def close(self) -> None:
        """Close this end."""
        self._connection.close()
