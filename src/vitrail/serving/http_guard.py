"""What stands before every route: who asks, from where, with what kind of body, and how much of it.

A server on this machine is within reach of every page that its user's browser shows. So each request must
name a host that is ours (a foreign name may have been pointed at this machine, "DNS rebinding"), must not
come from another page (Origin, Sec-Fetch-Site), and where it changes something must have a content type that
a form of another page cannot send. A body is counted and timed while it comes, and refused before it is kept.
All of it is one ASGI layer, so that no route can be forgotten.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import ipaddress
import re
import time
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vitrail.serving.http_errors import Refusal, error_answer
from vitrail.serving.http_hosts import LOOPBACK
from vitrail.serving.http_tickets import ticket_holds

__all__ = ["COOKIE", "Guard", "Limits"]

COOKIE = "vitrail_token"
_HOST = re.compile(r"^(?:\[([0-9a-fA-F:.]{2,45})\]|([A-Za-z0-9.-]{1,253}))(?::([0-9]{1,5}))?$")
_CHANGES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_METHODS = _CHANGES | {"GET", "HEAD", "OPTIONS"}
_OPEN = frozenset({"/health", "/ready"})
"""What a load balancer may ask without a token; they tell nothing."""

API_POLICY = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True)
class Limits:
    """How much a request may be.

    json, files: bytes of a body, where it holds settings alone and where it holds pictures. seconds: how long
    a body may take, beside the time of ``rate`` bytes a second. pause: seconds between two pieces of it.
    """

    json: int = 1 << 20
    files: int = 96 << 20
    seconds: float = 20.0
    rate: int = 64 << 10
    pause: float = 10.0


_WITH_FILES = (
    "/api/jobs",
    "/api/studio/",
    "/sdapi/v1/txt2img",
    "/sdapi/v1/img2img",
    "/sdapi/v1/png-info",
    "/sdapi/v1/extra-",
    "/v1/images/edits",
    "/v1/images/variations",
)
_FORMS = ("/v1/images/edits", "/v1/images/variations")
_BYTES = ("/api/studio/",)
#: Clients of A1111 post to these without a body and without a type. A page of a stranger's that did the same
#: would say where it comes from.
_WITHOUT_BODY = frozenset(
    f"/sdapi/v1/{name}"
    for name in (
        *("interrupt", "skip", "refresh-checkpoints", "refresh-loras", "refresh-vae", "refresh-embeddings"),
        *("unload-checkpoint", "reload-checkpoint"),
    )
)


@dataclass
class Guard:
    """The ASGI layer around ``app``.

    hosts: names that a request may be for; any address of digits too where ``addresses`` (a server that other
    machines reach). origins: other pages that may use the server (``https://page.example``). token: what
    every request must bring, None for a server that only this machine reaches. page_policy: the
    Content-Security-Policy of the studio's page.
    """

    app: ASGIApp
    hosts: frozenset[str] = LOOPBACK
    addresses: bool = False
    origins: frozenset[str] = frozenset()
    token: str | None = None
    page_policy: str | None = None
    limits: Limits = field(default_factory=Limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let ``scope`` through, or answer why not."""
        if scope["type"] == "websocket":  # there are none
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, path = Headers(scope=scope), str(scope["path"])

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._add_headers(message, path, headers.get("origin"))
            await send(message)

        refusal = self._refused(scope, headers, path)
        if refusal is None and (entered := self._enter(scope, path)) is not None:
            await entered(scope, receive, sending)
            return
        body = _Body(receive, self.limits, self._most(path))
        if refusal is None:
            refusal = body.refused(headers)
        if refusal is not None:
            answer = error_answer(path, refusal, headers.get("accept-language", ""))
            answer.headers["Connection"] = "close"
            await answer(scope, receive, sending)
            return
        answered = False

        async def noting(message: Message) -> None:
            # Whatever the application makes of a body that broke off, the answer says why it did.
            nonlocal answered
            if not answered and body.refusal is not None:
                answer = error_answer(path, body.refusal, headers.get("accept-language", ""))
                answer.headers["Connection"] = "close"
                answered = True
                await answer(scope, receive, sending)
            elif body.refusal is None:
                answered = True
                await sending(message)

        await self.app(scope, body, noting)

    def _refused(self, scope: Scope, headers: Headers, path: str) -> Refusal | None:
        """Why the request is not served; its body has not been touched."""
        method = str(scope["method"])
        if method not in _METHODS:
            return Refusal(405, "MethodNotAllowed", "this method is not known here")
        if b"%00" in scope.get("raw_path", b"") or b"%00" in scope["query_string"] or "\0" in path:
            return Refusal(400, "InputError", "the address holds a NUL character")
        if "content-length" in headers and "transfer-encoding" in headers:
            # A proxy in front might take the one and we the other, and see the next request elsewhere.
            return Refusal(400, "InputError", "the body's length is said in two ways")
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._ours(hosts[0]):
            return Refusal(403, "ForeignHost", "this server does not answer to that host; see --allow-host")
        origins = headers.getlist("origin")
        if origins and not (len(origins) == 1 and self._same(origins[0], hosts[0])):
            return Refusal(403, "ForeignOrigin", "another page may not use this server; see --allow-origin")
        if not origins and headers.get("sec-fetch-site") in ("cross-site", "same-site") and path != "/":
            return Refusal(403, "ForeignOrigin", "another page may not use this server; see --allow-origin")
        if self.token is not None and path not in _OPEN and method != "OPTIONS":
            if method == "GET" and ticket_holds(self.token, path, scope["query_string"]):
                return None
            given = _given_token(headers)
            if given is None or not self._right(given):
                if path == "/" and "token" in parse_qs(scope["query_string"].decode("latin-1")):
                    return None  # it is looked at in _enter
                challenge = {"WWW-Authenticate": 'Bearer realm="vitrail"'}
                return Refusal(401, "Unauthorized", "the token is missing or wrong", challenge)
        return _type_refused(headers, path) if method in _CHANGES else None

    def _ours(self, host: str) -> bool:
        match = _HOST.match(host)
        if match is None:
            return False
        name = (match[1] or match[2]).rstrip(".").lower()
        if name in self.hosts:
            return True
        if not self.addresses:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _same(self, origin: str, host: str) -> bool:
        if origin in self.origins:
            return True
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()

    def _right(self, given: str) -> bool:
        assert self.token is not None
        wanted = (self.token, _cookie_of(self.token))
        return any([hmac.compare_digest(given.encode(), one.encode()) for one in wanted])

    def _enter(self, scope: Scope, path: str) -> RedirectResponse | None:
        """The page's own address with ``?token=``: a browser gets a cookie in its place."""
        if self.token is None or path != "/" or scope["method"] != "GET":
            return None
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token")
        if given is None:
            return None
        answer = RedirectResponse("/", 303)
        if self._right(given[0]):
            answer.set_cookie(COOKIE, _cookie_of(self.token), httponly=True, samesite="strict", path="/")
        return answer

    def _most(self, path: str) -> int:
        return self.limits.files if path.startswith(_WITH_FILES) else self.limits.json

    def _add_headers(self, message: MutableMapping[str, Any], path: str, origin: str | None) -> None:
        headers = MutableHeaders(scope=message)
        if origin in self.origins and "Access-Control-Allow-Origin" not in headers:
            headers["Access-Control-Allow-Origin"] = origin  # for its page to read why it was refused
            headers.add_vary_header("Origin")
        page = self.page_policy is not None and (path == "/" or path.startswith("/studio/"))
        if "Content-Security-Policy" not in headers:
            headers["Content-Security-Policy"] = self.page_policy or "" if page else API_POLICY
            headers.setdefault("X-Frame-Options", "DENY")  # a report is shown inside the page
        headers["X-Content-Type-Options"] = "nosniff"
        headers["Referrer-Policy"] = "no-referrer"
        headers["Cross-Origin-Resource-Policy"] = "cross-origin" if self.origins else "same-origin"
        headers["Cross-Origin-Opener-Policy"] = "same-origin"
        if path.startswith("/api/"):
            headers.setdefault("Cache-Control", "no-store")


def _type_refused(headers: Headers, path: str) -> Refusal | None:
    """Why a request that changes something has the wrong kind of body."""
    types = headers.getlist("content-type")
    empty = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
    if not types and empty and path in _WITHOUT_BODY:
        return None
    kind = types[0].partition(";")[0].strip().lower() if len(types) == 1 else ""
    allowed = ["application/json"]
    if path in _FORMS:
        allowed = ["multipart/form-data"]
    elif path.startswith(_BYTES):
        allowed.append("application/octet-stream")
    if kind in allowed:
        return None
    return Refusal(415, "UnsupportedMediaType", f"send this with Content-Type: {' or '.join(allowed)}")


def _given_token(headers: Headers) -> str | None:
    """The token of ``Authorization: Bearer``, of a password (A1111 clients), or of the page's cookie.

    Some of A1111's clients have one field for both, and some of OpenAI's a header of their own.
    """
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            name, colon, password = base64.b64decode(value, validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            return None
        return password if colon else name
    for header in ("api-key", "x-api-key"):
        if header in headers:
            return headers[header]
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return None
    return cookie.value if cookie is not None else None


def _cookie_of(token: str) -> str:
    return hashlib.sha256(f"vitrail cookie {token}".encode()).hexdigest()


class _Body:
    """A body that is counted and timed while the application reads it."""

    def __init__(self, receive: Receive, limits: Limits, most: int) -> None:
        self._receive, self._limits, self._most = receive, limits, most
        self._count = 0
        self._until: float | None = None
        self._whole = False
        self.refusal: Refusal | None = None

    def refused(self, headers: Headers) -> Refusal | None:
        """Why a body is refused for what its header says."""
        length = headers.get("content-length")
        if length is not None and (not re.fullmatch(r"[0-9]{1,18}", length) or int(length) > self._most):
            return self._large()
        return None

    def _large(self) -> Refusal:
        return Refusal(413, "TooLarge", f"the body is too large; allowed are {self._most} bytes here")

    async def __call__(self) -> Message:
        if self._whole:
            return await self._receive()  # the next message is that the client has gone
        now = time.monotonic()
        if self._until is None:
            self._until = now + self._limits.seconds
        wait = min(self._until + self._count / self._limits.rate - now, self._limits.pause)
        try:
            async with asyncio.timeout(max(0.0, wait)):
                message = await self._receive()
        except TimeoutError:
            self.refusal = Refusal(408, "TooSlow", "the body came too slowly and was given up")
            raise ClientDisconnect from None
        if message["type"] == "http.request":
            self._count += len(message.get("body", b""))
            self._whole = not message.get("more_body", False)
            if self._count > self._most:
                self.refusal = self._large()
                raise ClientDisconnect
        return message
