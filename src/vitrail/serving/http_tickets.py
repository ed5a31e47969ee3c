"""Addresses that open one picture for a while, where the server asks for a token.

Clients of OpenAI's interface get a picture's address and fetch it, or show it, without their key: its own are
signed and valid for an hour, and so are ours. What is signed is the path and the time, so that nobody makes a
ticket of another picture from it, nor one that lasts longer.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from urllib.parse import parse_qs

__all__ = ["TICKET_SECONDS", "ticket", "ticket_holds"]

TICKET_SECONDS = 3600
"""How long a ticket may last."""

_PATH = re.compile(r"^/api/pictures/[0-9a-f]{1,80}/file$")


def ticket(token: str, path: str, until: int) -> str:
    """The query that opens ``path`` until the second ``until``."""
    return f"until={until}&key={_key(token, path, until)}"


def ticket_holds(token: str, path: str, query: bytes) -> bool:
    """Whether ``query`` opens ``path`` now."""
    if not _PATH.match(path):
        return False
    given = parse_qs(query.decode("latin-1"))
    until, key = given.get("until", []), given.get("key", [])
    if len(until) != 1 or len(key) != 1 or not re.fullmatch("[0-9]{1,12}", until[0]):
        return False
    now, end = time.time(), int(until[0])
    right = hmac.compare_digest(_key(token, path, end).encode(), key[0].encode("utf-8", "replace"))
    return right and now <= end <= now + TICKET_SECONDS


def _key(token: str, path: str, until: int) -> str:
    words = f"vitrail picture {path} {until}"
    return hmac.new(token.encode(), words.encode(), hashlib.sha256).hexdigest()
