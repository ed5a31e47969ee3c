"""Pinned packages: fetched by the registry's client, accepted by hash alone, read without touching the
disk.
"""

from __future__ import annotations

import hashlib
import http.server
import io
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from vitrail.data import packages
from vitrail.data.packages import Package, fetch, read_members
from vitrail.errors import DataError, StorageError

CONTENTS = b"an archive of a package"


def a_package(registry: str = "npm", contents: bytes = CONTENTS) -> Package:
    return Package("@scope/thing", "1.2.3", hashlib.sha256(contents).hexdigest(), "MIT", "nobody", registry)  # type: ignore[arg-type]


def fake_client(folder: Path, script: str, name: str = "npm") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!{sys.executable}\nimport sys, pathlib\n{script}\n")
    path.chmod(0o755)
    return path


WRITES = "out = sys.argv[sys.argv.index({flag!r}) + 1]; pathlib.Path(out, 'x.tgz').write_bytes({contents!r})"


def test_table_is_pinned_and_says_who_made_it() -> None:
    assert len(packages.PACKAGES) == 9
    for package in packages.PACKAGES.values():
        assert len(bytes.fromhex(package.sha256)) == 32
        assert package.licence
        assert package.credit


def test_cached_archive_needs_no_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    (tmp_path / "scope-thing-1.2.3.tgz").write_bytes(CONTENTS)
    assert fetch(a_package(), tmp_path).read_bytes() == CONTENTS


def test_npm_fetches_what_the_cache_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    script = (
        WRITES.format(flag="--pack-destination", contents=CONTENTS)
        + f"; open({str(log)!r}, 'a').write(sys.argv[2])"
    )
    monkeypatch.setenv("PATH", str(fake_client(tmp_path / "bin", script).parent))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "scope-thing-1.2.3.tgz").write_bytes(b"cut sh")  # a damaged one is replaced
    for _ in range(2):
        assert fetch(a_package(), tmp_path / "cache").read_bytes() == CONTENTS
    assert log.read_text() == "@scope/thing@1.2.3"  # and only once
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["scope-thing-1.2.3.tgz"]


def test_another_archive_than_the_pinned_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = WRITES.format(flag="--pack-destination", contents=b"something else")
    monkeypatch.setenv("PATH", str(fake_client(tmp_path / "bin", script).parent))
    with pytest.raises(DataError, match=r"@scope/thing@1\.2\.3 came with SHA-256"):
        fetch(a_package(), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_npm_failure_is_one_line_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "print('npm error code ENOTFOUND\\nnpm error more', file=sys.stderr); sys.exit(1)"
    monkeypatch.setenv("PATH", str(fake_client(tmp_path / "bin", script).parent))
    with pytest.raises(DataError, match="ENOTFOUND") as caught:
        fetch(a_package(), tmp_path / "cache")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "WARNING: Retrying (Retry(total=4)) after connection broken by 'ConnectError'\n"
            "ERROR: Could not find a version that satisfies the requirement thing==1.2.3\n"
            "ERROR: No matching distribution found for thing==1.2.3\n",
            "ERROR: Could not find a version that satisfies the requirement thing==1.2.3",
        ),
        ("npm error code E404\nnpm error 404 Not Found\n", "npm error code E404"),
        ("note: nothing\n", None),
    ],
)
def test_what_was_tried_again_is_no_reason(said: str, reason: str | None) -> None:
    assert packages._reason(said) == reason


def test_without_npm_and_without_a_named_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("npm_config_registry", raising=False)
    monkeypatch.delenv("NPM_CONFIG_REGISTRY", raising=False)
    with pytest.raises(DataError, match=r"npm is not installed.*npm_config_registry"):
        fetch(a_package(), tmp_path / "cache")
    monkeypatch.setenv("npm_config_registry", "file:///etc")
    with pytest.raises(DataError, match="http or https"):
        fetch(a_package(), tmp_path / "cache")


@pytest.fixture
def registry() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == "/npm/@scope/thing/-/thing-1.2.3.tgz"
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(CONTENTS if found else b"no")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/npm/"
        server.shutdown()
        thread.join()


def test_without_npm_from_the_named_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("npm_config_registry", registry)
    assert fetch(a_package(), tmp_path / "cache").read_bytes() == CONTENTS
    other = Package("absent", "1.0.0", "0" * 64, "MIT", "nobody")
    with pytest.raises(DataError, match=r"absent@1\.0\.0.*404"):
        fetch(other, tmp_path / "cache")


def test_where_the_index_does_not_answer_pip_fetches_wheels_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a source archive pip would run the build, so it must never be asked for one."""
    script = (
        "import os\n"
        "if 'config' in sys.argv:\n"
        "    print('global.index-url=' + repr('file:///nowhere/simple'))\n"
        "    raise SystemExit\n"
        "assert '--only-binary=:all:' in sys.argv and '--no-deps' in sys.argv\n"
        "assert sys.argv[-1] == '@scope/thing==1.2.3'\n" + WRITES.format(flag="-d", contents=CONTENTS)
    )
    monkeypatch.setattr(sys, "executable", str(fake_client(tmp_path / "bin", script, "python")))
    assert fetch(a_package("pip"), tmp_path / "cache").read_bytes() == CONTENTS


def test_cache_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="package cache"):
        fetch(a_package(), tmp_path / "file" / "cache")


def tar_of(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, contents in members:
            member = tarfile.TarInfo(name)
            member.size = len(contents)
            tar.addfile(member, io.BytesIO(contents))
    return path


def test_members_are_read_and_links_are_not(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tgz", ("package/a.json", b"1"), ("package/b.txt", b"2"))
    with tarfile.open(tmp_path / "link.tgz", "w:gz") as tar:
        link = tarfile.TarInfo("package/a.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert list(read_members(path, lambda name: name.endswith(".json"))) == [("package/a.json", b"1")]
    assert list(read_members(tmp_path / "link.tgz", lambda name: True)) == []
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as bundle:
        bundle.writestr("pkg/a.json", b"3")
    assert list(read_members(tmp_path / "a.whl", lambda name: True)) == [("pkg/a.json", b"3")]


@pytest.mark.parametrize("name", ["../up.json", "/root.json", "a/../../b.json", "a\\..\\..\\b.json"])
def test_names_that_leave_the_archive_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="unsafe path"):
        list(read_members(tar_of(tmp_path / "a.tgz", (name, b"1")), lambda name: True))


def test_too_large_and_cut_short_archives_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tar_of(tmp_path / "a.tgz", ("a", bytes(2000)), ("b", bytes(2000)))
    monkeypatch.setattr(packages, "MAX_TOTAL_BYTES", 3000)
    with pytest.raises(DataError, match="more than is sane"):
        list(read_members(path, lambda name: True))
    (tmp_path / "cut.tgz").write_bytes(path.read_bytes()[:30])
    with pytest.raises(DataError, match="not a readable archive"):
        list(read_members(tmp_path / "cut.tgz", lambda name: True))
