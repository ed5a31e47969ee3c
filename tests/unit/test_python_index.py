"""Files of a Python package index: found by hash, fetched as bytes, and no code of them runs."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vitrail.data import python_index
from vitrail.data.packages import Package, fetch
from vitrail.data.python_index import fetch_by_hash, indexes
from vitrail.errors import DataError


def source_archive(marker: Path) -> bytes:
    """An sdist whose ``setup.py`` leaves a mark when it runs."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        setup = f"open({str(marker)!r}, 'w').write('ran')\n".encode()
        for name, contents in (("thing-1.0/setup.py", setup), ("thing-1.0/PKG-INFO", b"Name: thing\n")):
            member = tarfile.TarInfo(name)
            member.size = len(contents)
            tar.addfile(member, io.BytesIO(contents))
    return data.getvalue()


class Index:
    """A small index on this machine: pages and files by path, and the headers of what was asked."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None]] = []
        index = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.asked.append((self.path, self.headers.get("Authorization")))
                found = index.files.get(self.path)
                self.send_response(404 if found is None else 200)
                self.end_headers()
                self.wfile.write(found or b"")

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def index() -> Iterator[Index]:
    served = Index()
    thread = threading.Thread(target=served.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield served
    served.server.shutdown()
    served.server.server_close()
    thread.join()


def use(monkeypatch: pytest.MonkeyPatch, **settings: str) -> None:
    named = {key.replace("_", "-"): value for key, value in settings.items()}
    monkeypatch.setattr(python_index, "_settings", lambda: {f"global.{k}": v for k, v in named.items()})


def test_a_source_archive_is_fetched_and_its_setup_never_runs(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "ran"
    data = source_archive(marker)
    digest = hashlib.sha256(data).hexdigest()
    links = {"thing-0.9.tar.gz": "0" * 64, "thing-1.0.tar.gz": digest}
    page = "".join(f'<a href="../../files/{file}#sha256={hashed}">x</a>' for file, hashed in links.items())
    index.files = {"/simple/the-thing/": page.encode(), "/files/thing-1.0.tar.gz": data}
    use(monkeypatch, index_url=f"http://{index.host}/simple")
    package = Package("The_Thing", "1.0", digest, "MIT", "nobody", "pip")
    assert fetch(package, tmp_path / "cache").read_bytes() == data
    assert not marker.exists()
    assert [path for path, _ in index.asked] == ["/simple/the-thing/", "/files/thing-1.0.tar.gz"]


def test_bytes_that_are_not_what_the_link_says_are_thrown_away(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hashlib.sha256(b"right").hexdigest()
    index.files = {"/simple/thing/": f'<a href="/f#sha256={digest}">x</a>'.encode(), "/f": b"wrong"}
    use(monkeypatch, index_url=f"http://{index.host}/simple/")
    with pytest.raises(DataError, match="came with SHA-256"):
        fetch(Package("thing", "1.0", digest, "MIT", "nobody", "pip"), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_second_index_is_asked_where_the_first_has_nothing(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hashlib.sha256(b"data").hexdigest()
    folder = tmp_path / "simple" / "thing"
    folder.mkdir(parents=True)
    (folder / "thing.whl").write_bytes(b"data")
    (folder / "index.html").write_text(f'<a href="thing.whl#sha256={digest}">x</a>')
    extra = f"http://{index.host}/gone {(tmp_path / 'simple').as_uri()}"
    use(monkeypatch, index_url=f"http://{index.host}/simple", extra_index_url=extra)
    fetch_by_hash("thing", digest, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"data"
    with pytest.raises(
        DataError, match=r"cannot find thing .*Not Found.*Not Found.*has no file with that hash"
    ):
        fetch_by_hash("thing", "1" * 64, tmp_path / "out")


def test_a_password_goes_into_the_header_and_into_no_message(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.files = {"/simple/thing/": b""}
    use(monkeypatch, index_url=f"http://me:s%40cret@{index.host}/simple")
    with pytest.raises(DataError) as caught:
        fetch_by_hash("thing", "1" * 64, tmp_path / "out")
    assert "cret" not in str(caught.value)
    assert index.asked == [("/simple/thing/", "Basic " + base64.b64encode(b"me:s@cret").decode())]


def test_pips_own_settings_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = tmp_path / "pip.conf"
    own.write_text(
        "[global]\nindex-url = https://one.example/simple\nextra-index-url = https://two.example/x\n"
    )
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(own))
    assert indexes()[:2] == ["https://one.example/simple", "https://two.example/x"]
    monkeypatch.setenv("PIP_INDEX_URL", "https://three.example/simple")
    assert indexes()[0] == "https://three.example/simple"
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert indexes() == [python_index.DEFAULT_INDEX]
