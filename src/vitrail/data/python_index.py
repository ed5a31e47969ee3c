"""One file from the Python package index that pip is set up for, found by its hash and only read.

``pip download`` of a source archive prepares its metadata, which runs the archive's own ``setup.py`` or build
backend before any hash could be compared. So the file is looked up in the index itself (PEP 503: a page of
links, each with the SHA-256 of its file) and fetched as bytes.
"""

from __future__ import annotations

import base64
import contextlib
import html.parser
import os
import re
import shutil
import ssl
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from vitrail.errors import DataError

__all__ = ["fetch_by_hash", "indexes"]

DEFAULT_INDEX = "https://pypi.org/simple"
TIMEOUT_S = 60
MAX_PAGE_BYTES = 64 << 20


def fetch_by_hash(name: str, sha256: str, target: Path) -> None:
    """Write the file of project ``name`` whose link carries ``sha256`` to ``target``.

    The hash is what the index says; the caller compares it with the bytes. Raises :class:`DataError` that
    tells for each index why it gave nothing.
    """
    settings = _settings()
    context = _trust(settings)
    reasons = []
    for index in indexes(settings):
        try:
            link = _link(index, name, sha256, context)
            if link is not None:
                with _opened(link, context) as answer, target.open("wb") as out:
                    shutil.copyfileobj(answer, out)
                return
            reasons.append(f"{_shown(index)} has no file with that hash")
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            reasons.append(f"{_shown(index)}: {getattr(error, 'reason', None) or error}")
    raise DataError(f"cannot find {name} with SHA-256 {sha256[:16]}...: {'; '.join(reasons)}")


def indexes(settings: dict[str, str] | None = None) -> list[str]:
    """Addresses of the indexes that pip asks, in its order; the environment goes before the files."""
    given = _settings() if settings is None else settings
    found = [_setting(given, "index-url") or DEFAULT_INDEX, *_setting(given, "extra-index-url").split()]
    return [
        one for one in dict.fromkeys(found) if urllib.parse.urlsplit(one).scheme in ("https", "http", "file")
    ]


def _settings() -> dict[str, str]:
    """What ``pip config list`` knows, by ``section.key``; ``:env:`` is the section of the environment."""
    command = [sys.executable, "-m", "pip", "config", "list", "--disable-pip-version-check"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        told = ""  # without pip its defaults hold
    rows = re.findall(r"^([^=\s]+)=(['\"])(.*)\2$", told, re.MULTILINE)
    return {key: value.replace("\\n", "\n") for key, _, value in rows}


def _setting(settings: dict[str, str], key: str) -> str:
    for section in (":env:", "download", "global", "install"):
        if value := settings.get(f"{section}.{key}"):
            return value
    return ""


def _trust(settings: dict[str, str]) -> ssl.SSLContext:
    own = _setting(settings, "cert")
    return ssl.create_default_context(cafile=own if own and os.path.isfile(own) else None)


class _Links(html.parser.HTMLParser):
    """Collects every address that a page links to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found += [value for name, value in attributes if name == "href" and value]


def _link(index: str, name: str, sha256: str, context: ssl.SSLContext) -> str | None:
    """The address of the file whose link ends in ``#sha256=...``; None if the page has none."""
    page = f"{index.rstrip('/')}/{re.sub(r'[-_.]+', '-', name).lower()}/"
    if page.startswith("file:"):
        page += "index.html"
    with _opened(page, context) as answer:
        text = answer.read(MAX_PAGE_BYTES).decode("utf-8", "replace")
        base = getattr(answer, "url", None) or page  # after a redirection links are relative to the new place
    links = _Links()
    links.feed(text)
    for link in links.found:
        address, _, fragment = urllib.parse.urljoin(base, link).partition("#")
        if f"sha256={sha256}" in fragment.split("&") and address.split(":")[0] in ("https", "http", "file"):
            return address
    return None


@contextlib.contextmanager
def _opened(address: str, context: ssl.SSLContext) -> Iterator[IO[bytes]]:
    """Open an address; a name and password in it go into the header, as pip does."""
    parts = urllib.parse.urlsplit(address)
    request = urllib.request.Request(address, headers={"Accept": "text/html, */*;q=0.1"})
    if "@" in parts.netloc:
        who, host = parts.netloc.rsplit("@", 1)
        request = urllib.request.Request(parts._replace(netloc=host).geturl(), headers=dict(request.headers))
        secret = base64.b64encode(urllib.parse.unquote(who).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {secret}")
    with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=context) as answer:
        yield answer


def _shown(address: str) -> str:
    """The address without a password."""
    parts = urllib.parse.urlsplit(address)
    return parts._replace(netloc=parts.netloc.rsplit("@", 1)[-1]).geturl()
