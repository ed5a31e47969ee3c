"""The artwork of the emoji set before it becomes one: what the packages hold, and how it is drawn.

Icon sets bring SVG text, named by code points or in words; one package brings encoded pictures. Everything is
drawn at 256 px and reduced with the colours weighted by alpha, so that edges keep their colour.
"""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitrail.data.emoji_names import Annotation, NameIndex, concept_of, is_wanted
from vitrail.data.emoji_tables import FXEMOJI_NAMES
from vitrail.data.packages import Progress, read_members
from vitrail.errors import DataError, MissingExtraError

__all__ = ["STYLE_PACKAGES", "Source", "collect_sources", "downsample", "draw_all", "is_flag"]

STYLE_PACKAGES: dict[str, str] = {
    "noto": "@iconify-json/noto",
    "noto-classic": "@iconify-json/noto-v1",
    "twemoji": "@iconify-json/twemoji",
    "emojione": "@iconify-json/emojione",
    "firefox": "@iconify-json/fxemoji",
    "fluent-flat": "@iconify-json/fluent-emoji-flat",
    "fluent-3d": "@lobehub/fluent-emoji-3d",
}


@dataclass(frozen=True)
class Source:
    """A picture before it is drawn: where it belongs, and its SVG text or encoded bytes."""

    concept: str
    style: str
    art: str | bytes


def collect_sources(
    archives: dict[str, Path], annotations: dict[str, Annotation]
) -> tuple[list[Source], dict[str, str], dict[str, dict[str, int]]]:
    """Every wanted picture of every style, the Unicode group by concept, and match counts by style."""
    icon_sets = {
        style: _read_iconify(archives[name]) for style, name in STYLE_PACKAGES.items() if "iconify" in name
    }
    index = NameIndex()
    groups: dict[str, str] = {}
    for concept, annotation in annotations.items():
        index.add(annotation.name_en, concept)
    for style in ("noto", "fluent-flat", "twemoji"):
        icons, chars, categories = icon_sets[style]
        for codes, name in chars.items():
            index.add(name, concept_of(codes))
        for alias, entry in icons.get("aliases", {}).items():
            if (target := index.find(entry["parent"])) is not None:
                index.add(alias, target)
        by_name = {name: concept_of(codes) for codes, name in chars.items()}
        for group, members in categories.items():
            for name in members:
                if name in by_name:
                    groups.setdefault(by_name[name], group)
    index.add_unicode_names(annotations)

    sources: list[Source] = []
    matched: dict[str, dict[str, int]] = {}
    for style, name in STYLE_PACKAGES.items():
        if style in icon_sets:
            found, total = _iconify_sources(style, *icon_sets[style][:2], index)
        else:
            found, total = _webp_sources(style, archives[name])
        named = [source for source in found if source.concept in annotations]
        matched[style] = {"icons": total, "matched": len(found), "named": len(named)}
        sources.extend(named)
    return sources, groups, matched


def _read_iconify(archive: Path) -> tuple[dict[str, Any], dict[str, str], dict[str, list[str]]]:
    """icons.json, code points -> icon name, group -> icon names."""
    wanted = {"icons.json", "chars.json", "metadata.json"}
    files = {
        name.rsplit("/", 1)[-1]: json.loads(contents)
        for name, contents in read_members(archive, lambda name: name.removeprefix("package/") in wanted)
    }
    if not wanted <= files.keys():
        raise DataError(
            f"{archive.name} lacks {', '.join(sorted(wanted - files.keys()))}; the package changed its layout"
        )
    return files["icons.json"], dict(files["chars.json"]), files["metadata.json"].get("categories", {})


def _iconify_sources(
    style: str, icons: dict[str, Any], chars: dict[str, str], index: NameIndex
) -> tuple[list[Source], int]:
    by_name = {name: concept_of(codes) for codes, name in chars.items()}
    taken = set(by_name.values())
    aliases: dict[str, list[str]] = {}
    for alias, entry in icons.get("aliases", {}).items():
        aliases.setdefault(entry["parent"], []).append(alias)
    found: dict[str, Source] = {}
    total = 0
    for name, icon in icons["icons"].items():
        if name.endswith("skin-tone") or icon.get("hidden") or name[-5:-1] == "tone":
            continue
        concept = by_name.get(name)
        if concept is None:
            candidates = [index.find(FXEMOJI_NAMES.get(name, name) if style == "firefox" else name)]
            candidates += [index.find(alias) for alias in aliases.get(name, [])]
            concept = next((c for c in candidates if c is not None and c not in taken), None)
        if concept is not None and not is_wanted(concept):
            continue
        total += 1
        if concept is not None:
            found.setdefault(concept, Source(concept, style, _square_svg(icons, icon)))
    return list(found.values()), total


def _square_svg(icons: dict[str, Any], icon: dict[str, Any]) -> str:
    """The icon's body in a square view box, centred."""
    left, top = float(icon.get("left", icons.get("left", 0))), float(icon.get("top", icons.get("top", 0)))
    width = float(icon.get("width", icons.get("width", 16)))
    height = float(icon.get("height", icons.get("height", 16)))
    side = max(width, height)
    box = f"{left - (side - width) / 2:g} {top - (side - height) / 2:g} {side:g} {side:g}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box}" width="{side:g}" height="{side:g}">{icon["body"]}</svg>'
    )


def _webp_sources(style: str, archive: Path) -> tuple[list[Source], int]:
    """Pictures named by code points; flags are left out, their licence in that package is not plain."""
    found: list[Source] = []
    for name, contents in read_members(archive, lambda name: name.endswith(".webp")):
        try:
            concept = concept_of(name.rsplit("/", 1)[-1].removesuffix(".webp"))
        except ValueError:
            continue  # a picture that is not named by code points shows no known concept
        if is_wanted(concept) and not is_flag(concept):
            found.append(Source(concept, style, contents))
    return sorted(found, key=lambda source: source.concept), len(found)


def is_flag(concept: str) -> bool:
    """Country and region flags, and the flags made of a waving flag and something else."""
    first = int(concept.split("-")[0], 16)
    return 0x1F1E6 <= first <= 0x1F1FF or concept.startswith(("1f3f4-", "1f3f3-"))


# --- drawing --------------------------------------------------------------------------------------


def draw_all(
    sources: list[Source], size: int, workers: int, tell: Progress
) -> tuple[NDArray[np.uint8], list[Source]]:
    """Draw every source; returns uint8 (N, size, size, 4) and the sources that gave a drawing."""
    try:
        import resvg_py
    except ImportError as error:
        raise MissingExtraError("resvg-py", "data") from error

    def draw(source: Source) -> NDArray[np.uint8]:
        if isinstance(source.art, str):
            png = resvg_py.svg_to_bytes(svg_string=source.art, width=256, height=256, skip_system_fonts=True)
            return _decode(bytes(png), size)
        return _decode(source.art, size)

    pictures = np.zeros((len(sources), size, size, 4), np.uint8)
    drawn: list[Source] = []
    with ThreadPoolExecutor(workers) as pool:
        for number, picture in enumerate(pool.map(draw, sources)):
            if number % 64 == 0:
                tell("drawing", number, len(sources))
            if (picture[..., 3] > 16).mean() > 0.005:  # an empty or nearly empty drawing teaches nothing
                pictures[len(drawn)] = picture
                drawn.append(sources[number])
    tell("drawing", len(sources), len(sources))
    return pictures[: len(drawn)], drawn


def _decode(data: bytes, size: int) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data), formats=("PNG", "WEBP")) as opened:
        if max(opened.size) > 1024:
            raise DataError(f"a picture of {opened.size} pixels in the emoji packages, expected at most 1024")
        picture = opened.convert("RGBA")
    if picture.size != (256, 256):
        side = max(picture.size)
        square = Image.new("RGBA", (side, side))
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        picture = square.convert("RGBa").resize((256, 256), Image.Resampling.BOX).convert("RGBA")
    drawing: NDArray[np.uint8] = downsample(np.asarray(picture)[None], size)[0]
    return drawing


def downsample(pictures: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Reduce (N, side, side, 4) straight-alpha RGBA by averaging square blocks, colours weighted by alpha.

    side must be a multiple of size, or size itself. Colour where nothing is drawn is 0.
    """
    count, side = pictures.shape[:2]
    factor = side // size
    result = np.empty((count, size, size, 4), np.uint8)
    for start in range(0, count, 256):
        block = pictures[start : start + 256].astype(np.float32)
        alpha = block[..., 3:]
        block[..., :3] *= alpha
        mean = block.reshape(len(block), size, factor, size, factor, 4).mean(axis=(2, 4))
        mean[..., :3] /= np.maximum(mean[..., 3:], 1e-6)
        result[start : start + 256] = np.where(mean[..., 3:] >= 0.5, np.clip(np.rint(mean), 0, 255), 0)
    return result
