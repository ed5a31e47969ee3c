"""A sensible recipe for a folder of pictures, with the reasons for each choice."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vitrail.data.folder import FolderSource
from vitrail.data.transforms import suggest_augmentation
from vitrail.errors import ArtifactError
from vitrail.models.lexicon import translate
from vitrail.recipe import Recipe, parse_recipe
from vitrail.store import artifacts
from vitrail.training.sources import picture_cache

__all__ = ["suggest_recipe"]

#: Up to this many pictures -> passes over them. Small sets need more passes to be learnt at all, large
#: ones show enough in each; the length never leaves the bounds below.
_PASSES = ((50, 300), (500, 120), (5_000, 60), (50_000, 30))
_MOST_PASSES_BEYOND = 20
_SHORTEST, _LONGEST = 4_000, 2_000_000


def suggest_recipe(folder: str | Path, overrides: Iterable[str] = ()) -> tuple[Recipe, list[str]]:
    """Look at every picture of ``folder`` and return a recipe for it with one line of explanation a choice.

    ``overrides`` are ``section.key=value`` settings that have the last word. Raises :class:`DataError` if no
    picture can be used, :class:`InputError` for a missing folder or an override that is not allowed.
    """
    source = FolderSource.open(folder, cache=picture_cache())  # the training that follows finds it checked
    count = len(source)
    captions = [record.caption for record in source.records if record.caption]
    lines = [
        f"{count} pictures can be used, {len(source.problems)} files cannot, {len(captions)} have a caption"
    ]
    tables: dict[str, Any] = {
        "kind": "text_to_image",
        "name": re.sub(r"[^A-Za-z0-9._-]+", "-", source.root.name).strip("-._")[:60] or "pictures",
        "data": {"source": str(source.root)},
    }
    model, warm = _model(count, len(captions), len(source.styles), _short_side(source), lines)
    tables["model"] = model
    size = model["image_size"]
    batch = 16 if count < 200 else 32 if count < 2_000 else 64
    lines.append(f"batches of {batch}: small sets gain from more steps, large ones from steadier ones")
    augmentation, reason = suggest_augmentation(count)
    lines.append(f"variation: {reason}")
    drop = 0.1 if captions else 0.0
    tables["data"] |= {
        "size": size,
        "batch_size": batch,
        "flip": augmentation.flip,
        "crop": augmentation.crop,
        "caption_drop": drop,
        "style_drop": 0.1 if source.styles else 0.0,
    }
    overrides = list(overrides)
    length = _wanted(overrides) or _length(count, warm is not None)  # warm-up, average and samples go by it
    lines.append(
        f"{length:,} pictures long, {length / count:.0f} passes over the set; longer runs learn small sets "
        "by heart (optim.until_images changes it)"
    )
    tables["optim"] = {
        "lr": 2e-4 if warm else 5e-4,
        "warmup_images": min(10_000, length // 20),
        "ema_half_life_images": max(500, min(50_000, length // 20)),
        "weight_decay": 0.05 if count < 5_000 else 0.01,
        "until_images": length,
    }
    prompts = list(dict.fromkeys(translate(caption).english for caption in captions))[:8] or ["a picture"] * 4
    tables["run"] = {
        "sample_every_images": max(batch, length // (20 if captions else 10)),
        "sample_prompts": prompts,
        "log_every_seconds": 2.0,  # somebody watches: the first point of the curve comes at once
    }
    if warm is not None:
        tables["run"]["warm_start"] = warm
    return parse_recipe(tables, overrides, origin=f"recipe for {source.root.name}"), lines


def _short_side(source: FolderSource) -> float:
    return statistics.median(min(record.width, record.height) for record in source.records)


def _model(
    count: int, captions: int, styles: int, side: float, lines: list[str]
) -> tuple[dict[str, Any], str | None]:
    """The network's section, and where its first weights come from (None: from nothing)."""
    if 2 * captions >= count:
        shipped = _shipped()
        if shipped is not None:
            lines.append(
                "begins from the shipped model, which knows what words mean in pictures; its size is kept "
                f"({shipped['image_size']} px)"
            )
            return {"kind": "shell_dit", **shipped}, "default"
        lines.append(
            "there is no shipped model to begin from: the words are learnt from these captions alone"
        )
    elif captions:
        lines.append(
            "fewer than half of the pictures have a caption: the network begins afresh, words steer little"
        )
    else:
        lines.append("no captions: the network learns the look of the set, words will not steer it")
    size = 64 if side >= 48 else 32
    small = count < 1_000
    width, depth, heads = (256, 4, 4) if small else (384, 6, 6)
    lines.append(f"{size} px: half of the pictures have a shorter side of {side:.0f} px or more")
    lines.append(f"a network of width {width} and {depth} blocks: {'few' if small else 'enough'} pictures")
    shape = {"image_size": size, "width": width, "depth": depth, "heads": heads, "styles": styles}
    return {"kind": "shell_dit", **shape}, None


def _shipped() -> dict[str, Any] | None:
    """The configuration of the shipped text-to-image network; None if this installation has none."""
    try:
        manifest = artifacts.read_manifest(artifacts.find("default"), verify=False)
    except ArtifactError:
        return None  # an installation without weights can still train
    return dict(manifest.config) if manifest.kind == "shell_dit" else None


def _wanted(overrides: list[str]) -> int | None:
    """The length that ``overrides`` ask for; None if they ask for none, or for what is no number."""
    found = [re.fullmatch(r"\s*optim\.until_images\s*=\s*([1-9][0-9_]*)\s*", text) for text in overrides]
    return next((int(match[1]) for match in reversed(found) if match is not None), None)


def _length(count: int, warm: bool) -> int:
    passes = next((passes for most, passes in _PASSES if count <= most), _MOST_PASSES_BEYOND)
    wanted = count * passes // (2 if warm else 1)
    return min(_LONGEST, max(_SHORTEST, wanted))
