"""Bits of a ``.vtl`` file against WebP's and JPEG's at equal LPIPS.

    VITRAIL_DATA=... python benchmarks/vqgan_codec.py MODEL [--pictures 64] [--size 64] [--no-prior]

Pictures: held-out emoji (concepts that no training picture shows), over white, and photographs that come
with scikit-image. Each is written as ``.vtl``, read back and compared with the original by LPIPS (VGG16).
WebP (method 6) and JPEG (optimised, 4:2:0) are written at the qualities of a ladder, at full size and at half
size enlarged again, WebP without loss too; their size at the ``.vtl`` file's LPIPS is read off between two
rungs, linearly in the logarithm of the size. What a ladder cannot reach is not invented: where its worst file
is already better than the ``.vtl`` file, that counts, and the other way round its best; the figures say for
how many. All sizes are whole files, headers included.

The last line printed is JSON: codec_vs_webp_bits_ratio (below 1: fewer bits than WebP) is the ratio of the
summed bytes over the emoji, photographs_vs_webp_bits_ratio over the photographs.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vitrail.data.emoji_bank import load_emoji
from vitrail.images import to_tensor
from vitrail.models.perceptual import LPIPS, load_lpips
from vitrail.tasks.compress import compress, read_codes
from vitrail.tasks.context import Context
from vitrail.tasks.loading import Loader
from vitrail.tasks.tokenizers import decode_codes, load_tokenizer

__all__ = ["codec", "emoji_pictures", "photographs"]

LADDER = (0, 1, 2, 3, 5, 8, 12, 16, 20, 25, 30, 40, 50, 60, 70, 80, 90, 95, 100)
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "ihc.png")


@dataclass(frozen=True)
class Rung:
    """One file of a codec: its bytes and its LPIPS to the original."""

    size: int
    distance: float


def emoji_pictures(count: int, size: int) -> list[Image.Image]:
    """``count`` pictures of held-out concepts, ``size`` x ``size`` pixels, evenly over the set."""
    bank = load_emoji()
    held = bank.indices("concept")
    side = size if size in bank.arrays else max(bank.arrays)
    found = []
    for index in held[np.linspace(0, len(held) - 1, min(count, len(held))).round().astype(int)]:
        drawing = Image.fromarray(np.array(bank.pictures(side)[index]))
        white = Image.new("RGBA", drawing.size, (255, 255, 255, 255))
        flat = Image.alpha_composite(white, drawing).convert("RGB")
        found.append(flat if flat.width == size else flat.resize((size, size), Image.Resampling.BOX))
    return found


def photographs(longest: int) -> list[Image.Image]:
    """scikit-image's photographs, the longest side ``longest`` pixels at most; none where it is missing."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        return []
    found = []
    for name in PHOTOGRAPHS:
        path = Path(spec.origin).parent / "data" / name
        if path.is_file():
            with Image.open(path) as picture:
                small = picture.convert("RGB")
            small.thumbnail((longest, longest), Image.Resampling.LANCZOS)
            found.append(small)
    return found


def distance(judge: LPIPS, original: Image.Image, other: Image.Image) -> float:
    """LPIPS between two pictures of one size."""
    with torch.inference_mode():
        return float(judge(to_tensor([original]), to_tensor([other])))


def rungs_near(judge: LPIPS, picture: Image.Image, kind: str, wanted: float) -> list[Rung]:
    """The files of ``kind`` ("webp", "jpeg") around LPIPS ``wanted``, at full and at half size.

    Bisection over the ladder of qualities: LPIPS falls along it but for ripples between neighbours.
    """
    half = picture.resize((max(1, picture.width // 2), max(1, picture.height // 2)), Image.Resampling.BOX)
    rungs = []
    for source in (picture, half):
        tried: dict[int, Rung] = {}

        def at(index: int, source: Image.Image = source, tried: dict[int, Rung] = tried) -> float:
            if index not in tried:
                tried[index] = rung(judge, picture, packed(source, kind, LADDER[index]))
            return tried[index].distance

        low, high = 0, len(LADDER) - 1  # the answer lies in (low, high]
        if at(low) > wanted and at(high) <= wanted:
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if at(middle) <= wanted else (middle, high)
        rungs += tried.values()
    if kind == "webp":
        rungs.append(rung(judge, picture, packed(picture, "lossless", 100)))
    return rungs


def packed(picture: Image.Image, kind: str, quality: int) -> bytes:
    """The bytes of a file."""
    target = io.BytesIO()
    if kind == "jpeg":
        picture.save(target, "JPEG", quality=max(1, quality), optimize=True, subsampling=2)
    else:
        picture.save(target, "WEBP", quality=quality, method=6, lossless=kind == "lossless")
    return target.getvalue()


def rung(judge: LPIPS, picture: Image.Image, data: bytes) -> Rung:
    """Size of a file, and its LPIPS to the picture it was made of; enlarged if it is smaller."""
    with Image.open(io.BytesIO(data)) as opened:
        decoded = opened.convert("RGB")
    if decoded.size != picture.size:
        decoded = decoded.resize(picture.size, Image.Resampling.BICUBIC)
    return Rung(len(data), distance(judge, picture, decoded))


def size_at(rungs: Sequence[Rung], wanted: float) -> tuple[float, str]:
    """Bytes at LPIPS ``wanted``, and "within", or "better" or "worse" where even the end of the ladder is.

    The smallest file that is at least as good, moved towards the next worse rung below it.
    """
    good = [rung for rung in rungs if rung.distance <= wanted]
    if not good:
        return float(max(rung.size for rung in rungs)), "worse"
    best = min(good, key=lambda rung: rung.size)
    smaller = [rung for rung in rungs if rung.size < best.size]
    if not smaller:
        return float(best.size), "better"
    below = max(smaller, key=lambda rung: rung.size)
    span = below.distance - best.distance
    share = 0.0 if span <= 0 else (wanted - best.distance) / span
    return math.exp(math.log(best.size) * (1 - share) + math.log(below.size) * share), "within"


def measure(
    model: str, pictures: Sequence[Image.Image], judge: LPIPS, loader: Loader, *, prior: bool
) -> list[dict[str, Any]]:
    """One row a picture: bits a pixel of the three formats at the LPIPS of the ``.vtl`` file."""
    context = Context()
    tokenizer = load_tokenizer(loader, model)
    rows = []
    for picture in pictures:
        made = compress(picture, model, loader, context, prior=prior)
        codes = torch.from_numpy(read_codes(made.data, model, loader, context).codes)
        again = decode_codes(tokenizer, codes, context, picture.size)
        with torch.inference_mode():
            wanted = float(judge(to_tensor([picture]), again[None].clamp(-1, 1)))
        row: dict[str, Any] = {
            "lpips": wanted,
            "pixels": picture.width * picture.height,
            "vtl": len(made.data),
            "method": made.method,
            "tried": made.tried,
        }
        for kind in ("webp", "jpeg"):
            row[kind], row[f"{kind}_end"] = size_at(rungs_near(judge, picture, kind, wanted), wanted)
        rows.append(row)
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Bits a pixel, ratios with their interval, and how often a codec's ladder ended."""
    pixels = sum(row["pixels"] for row in rows)
    found: dict[str, Any] = {
        "n": len(rows),
        "lpips": statistics.fmean(row["lpips"] for row in rows),
        "methods": {
            name: sum(row["method"] == name for row in rows) for name in ("static", "context", "prior")
        },
        "bits_per_pixel": {
            name: 8 * sum(row[name] for row in rows) / pixels for name in ("vtl", "webp", "jpeg")
        },
    }
    tried = {name for row in rows for name in row["tried"]}
    found["bytes_by_method"] = {
        name: statistics.fmean(row["tried"][name] for row in rows if name in row["tried"])
        for name in sorted(tried)
    }
    for kind in ("webp", "jpeg"):
        ratio = np.array([[row["vtl"], row[kind]] for row in rows], dtype=np.float64)
        found[f"vs_{kind}"] = float(ratio[:, 0].sum() / ratio[:, 1].sum())
        found[f"vs_{kind}_ci95"] = interval(ratio)
        ends = [row[f"{kind}_end"] for row in rows]
        found[f"{kind}_ladder_ended"] = {name: ends.count(name) for name in ("better", "worse")}
    return found


def interval(pairs: np.ndarray[Any, Any], draws: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the ratio of sums over pictures (n, 2)."""
    random = np.random.default_rng(0)
    chosen = random.integers(0, len(pairs), (draws, len(pairs)))
    sums = pairs[chosen].sum(axis=1)
    low, high = np.percentile(sums[:, 0] / sums[:, 1], [2.5, 97.5])
    return float(low), float(high)


def codec(
    model: str, *, pictures: int = 64, size: int = 64, photo_size: int = 256, prior: bool = True
) -> dict[str, Any]:
    """Measure the codec; ``codec_vs_webp_bits_ratio`` is the figure, below 1 is fewer bits than WebP.

    ``size``: side in pixels of the emoji, as the tokenizer was trained; ``photo_size``: longest side of the
    photographs, which it never saw. Raises :class:`vitrail.errors.DataError` where the emoji set or LPIPS
    is not built.
    """
    judge, loader = load_lpips(), Loader()
    parts = {
        "emoji": measure(model, emoji_pictures(pictures, size), judge, loader, prior=prior),
        "photographs": measure(model, photographs(photo_size), judge, loader, prior=prior),
    }
    result: dict[str, Any] = {name: summary(rows) for name, rows in parts.items() if rows}
    result["codec_vs_webp_bits_ratio"] = result["emoji"]["vs_webp"]
    if "photographs" in result:
        result["photographs_vs_webp_bits_ratio"] = result["photographs"]["vs_webp"]
    return result


def main() -> None:
    """Print the table, then the JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="name or folder of a tokenizer or of a prior with one inside")
    parser.add_argument("--pictures", type=int, default=64, help="held-out emoji")
    parser.add_argument("--size", type=int, default=64, help="side of the emoji in pixels")
    parser.add_argument("--photo-size", type=int, default=256, help="longest side of the photographs")
    parser.add_argument("--no-prior", action="store_true", help="leave the prior out")
    given = parser.parse_args()
    result = codec(
        given.model,
        pictures=given.pictures,
        size=given.size,
        photo_size=given.photo_size,
        prior=not given.no_prior,
    )
    print("pictures     n   LPIPS   bits a pixel: vtl    webp    jpeg   vtl/webp (95 %)          vtl/jpeg")
    for name in ("emoji", "photographs"):
        if name in result:
            part = result[name]
            bits, (low, high) = part["bits_per_pixel"], part["vs_webp_ci95"]
            print(
                f"{name:<11}{part['n']:>4}{part['lpips']:>8.3f}{bits['vtl']:>19.3f}{bits['webp']:>8.3f}"
                f"{bits['jpeg']:>8.3f}{part['vs_webp']:>10.3f} ({low:.3f} to {high:.3f})"
                f"{part['vs_jpeg']:>12.3f}"
            )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
