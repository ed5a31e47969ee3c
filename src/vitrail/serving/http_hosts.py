"""Where a server may listen, and under which names it answers; light, so that a refusal comes at once."""

from __future__ import annotations

from collections.abc import Iterable

from vitrail.errors import InputError
from vitrail.files import shown

__all__ = ["LOOPBACK", "MIN_TOKEN", "check_bind", "host_names", "is_loopback"]

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
"""Names of this machine that no other one reaches."""

MIN_TOKEN = 16
"""Fewest characters of a token."""


def is_loopback(host: str) -> bool:
    """Whether a server that listens at ``host`` is reached from this machine alone."""
    return host.strip("[]").lower() in LOOPBACK


def check_bind(host: str, token: str | None) -> None:
    """Raise :class:`InputError` for a server that other machines could reach and that asks for no token."""
    if token is not None and 0 < len(token) < MIN_TOKEN:
        raise InputError(f"the token is too short; give at least {MIN_TOKEN} characters")
    if not is_loopback(host) and not token:
        raise InputError(
            f"--host {shown(host, 60)} lets other machines in; give --token too, or leave it at 127.0.0.1"
        )


def host_names(given: Iterable[str]) -> frozenset[str]:
    """Names under which the server answers, in the form in which they are compared."""
    return frozenset(name.strip().strip("[]").rstrip(".").lower() for name in given if name.strip())
