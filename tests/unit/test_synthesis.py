"""Composed pictures: the caption is true of the pixels, and held-out combinations stay out of training."""

from __future__ import annotations

import colorsys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_emoji
from numpy.typing import NDArray
from PIL import Image
from skimage.measure import label

from vitrail.data import captions
from vitrail.data.composition import colour_key, held_out, relation_key, scene_key
from vitrail.data.emoji import load_emoji
from vitrail.data.object_index import COLOURS, ObjectIndex, colour_name, flip_safe
from vitrail.data.pixels import area_resize, hsv_to_rgb, over, resize_matrix, rgb_to_hsv
from vitrail.data.scenes import SCENES, paint_scene
from vitrail.data.synthesis import (
    HELD_OUT_TASKS,
    Item,
    Spec,
    Synthesiser,
    held_out_compositions,
    without_colour,
)

WHITE = (255, 255, 255)


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> Synthesiser:
    folder: Path = tiny_emoji.build_tiny(tmp_path_factory.mktemp("tiny"))
    bank = load_emoji(folder)
    # every tiny picture is trained here, so that every drawing can be composed
    return Synthesiser(replace(bank, records=[replace(record, split="train") for record in bank.records]))


@pytest.fixture(scope="module")
def specs(maker: Synthesiser) -> list[Spec]:
    rng = np.random.default_rng(0)
    return [maker.draw(rng) for _ in range(1200)]


def drawn(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where a picture on white is not white."""
    mask: NDArray[np.bool_] = (picture < 235).any(axis=2)
    return mask


def nearest_colour(rgb: NDArray[np.float64]) -> str:
    return min(COLOURS, key=lambda name: float(np.abs(np.array(COLOURS[name].rgb) - rgb).sum()))


def find(maker: Synthesiser, name: str, style: str = "noto") -> int:
    return next(i for i, r in enumerate(maker.bank.records) if r.name_en == name and r.style == style)


# --- picture operations ---------------------------------------------------------------------------


def test_resizing_matches_pillow() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 52, 4), dtype=np.uint8)
    mine = area_resize(picture.astype(np.float32), 17, 30)
    theirs = np.stack(
        [
            np.asarray(Image.fromarray(picture[..., c]).resize((30, 17), Image.Resampling.BILINEAR))
            for c in range(4)
        ],
        2,
    )
    assert np.abs(mine - theirs).max() <= 1.01  # Pillow rounds to bytes after each direction
    np.testing.assert_allclose(resize_matrix(64, 23).sum(axis=1), 1, rtol=1e-6)


def test_colour_models_match_the_standard_library() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (200, 3)).astype(np.float32)
    rgb[:4] = [[0, 0, 0], [255, 255, 255], [7, 7, 7], [255, 0, 0]]
    expected = np.array([colorsys.rgb_to_hsv(*(float(c) / 255 for c in row)) for row in rgb])
    np.testing.assert_allclose(rgb_to_hsv(rgb), expected, atol=1e-6)
    np.testing.assert_allclose(hsv_to_rgb(rgb_to_hsv(rgb)), rgb, atol=1e-3)


def test_over_matches_pillow_also_past_the_edges() -> None:
    rng = np.random.default_rng(0)
    ground = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
    picture = rng.integers(0, 256, (12, 12, 4), dtype=np.uint8)
    for top, left in ((4, 5), (-6, 14), (15, -3), (30, 30)):
        canvas = ground.astype(np.float32)
        alpha = picture[..., 3:] / np.float32(255)
        over(canvas, np.concatenate([picture[..., :3] * alpha, alpha], axis=2), top, left)
        theirs = Image.fromarray(ground).convert("RGBA")
        layer = Image.new("RGBA", theirs.size)
        layer.paste(Image.fromarray(picture), (left, top))
        expected = np.asarray(Image.alpha_composite(theirs, layer))[..., :3]
        assert np.abs(np.rint(canvas) - expected).max() <= 1


# --- what is held out -----------------------------------------------------------------------------


def test_a_tenth_is_held_out_and_mirrored_relations_are_one() -> None:
    keys = [colour_key(f"{i:x}", colour) for i in range(400) for colour in COLOURS]
    share = sum(map(held_out, keys)) / len(keys)
    assert share == pytest.approx(0.10, abs=0.017)  # 4,800 keys: standard deviation .0043
    assert relation_key("a", "left", "b") == relation_key("b", "right", "a") != relation_key("b", "left", "a")
    assert (
        relation_key("a", "above", "b") == relation_key("b", "below", "a") != relation_key("a", "left", "b")
    )


def combination(maker: Synthesiser, spec: Spec) -> list[str]:
    """Every key that a spec's picture could be held out for, worked out anew from where its objects lie."""
    items = spec.items[-2:] if spec.task == "pair" else spec.items[-1:]
    concepts = [maker.bank.records[item.index].concept for item in items]
    keys = [colour_key(c, item.colour) for c, item in zip(concepts, items, strict=True) if item.colour]
    if spec.scene:
        keys.append(scene_key(concepts[0], spec.scene))
    if spec.task == "pair":
        across, down = items[1].x - items[0].x, items[1].y - items[0].y
        place = (
            ("left" if across > 0 else "right")
            if abs(across) > abs(down)
            else ("above" if down > 0 else "below")
        )
        keys.append(relation_key(concepts[0], place, concepts[1]))
    return keys


def test_training_never_draws_a_held_out_combination(maker: Synthesiser, specs: list[Spec]) -> None:
    assert not [spec.caption for spec in specs for key in combination(maker, spec) if held_out(key)]
    assert not [spec.caption for spec in specs if spec.key and held_out(spec.key)]


def test_held_out_compositions_are_held_out_distinct_and_repeatable(maker: Synthesiser) -> None:
    found = held_out_compositions(maker.bank, 12, 5, maker.index)
    assert found == held_out_compositions(maker.bank, 12, 5, maker.index)
    assert found != held_out_compositions(maker.bank, 12, 6, maker.index)
    assert len({spec.key for spec in found}) == len(found) == 12
    for spec in found:
        assert held_out(spec.key)
        assert spec.key in combination(maker, spec) or spec.task == "recolour"
    assert {spec.task for spec in found} == set(HELD_OUT_TASKS)


def test_only_train_pictures_are_composed(maker: Synthesiser) -> None:
    records = [replace(r, split="train" if r.style == "noto" else "cell") for r in maker.bank.records]
    only = Synthesiser(replace(maker.bank, records=records))
    rng = np.random.default_rng(0)
    assert {records[item.index].style for _ in range(200) for item in only.draw(rng).items} == {"noto"}


def test_a_bank_without_objects_has_nothing_to_compose(maker: Synthesiser) -> None:
    none = replace(maker.bank, records=[replace(r, split="concept") for r in maker.bank.records])
    assert Synthesiser(none).empty
    assert held_out_compositions(none, 5, 0) == []


# --- captions against pixels ----------------------------------------------------------------------


def test_every_kind_is_drawn_and_none_is_empty(maker: Synthesiser, specs: list[Spec]) -> None:
    assert set(Counter(spec.task for spec in specs)) == {
        "recolour", "background", "count", "pair", "size", "rendition", "scene",
    }  # fmt: skip
    for spec in specs[:300]:
        picture = maker.render(spec)
        assert picture.shape == (64, 64, 3)
        assert picture.dtype == np.uint8
        assert np.ptp(picture.astype(int), axis=(0, 1)).max() > 40, spec.caption
        assert "  " not in spec.caption
        assert not spec.caption.startswith(" ")


def test_a_spec_alone_makes_the_picture(maker: Synthesiser, specs: list[Spec]) -> None:
    for spec in specs[:60]:
        np.testing.assert_array_equal(maker.render(spec), maker.render(spec))


def test_large_pictures_show_the_same_scene(maker: Synthesiser, specs: list[Spec]) -> None:
    for spec in [spec for spec in specs if spec.rendition in ("", "grey")][:80]:
        large = maker.render(spec, 128).reshape(64, 2, 64, 2, 3).astype(float).mean(axis=(1, 3))
        # edges may fall half a pixel elsewhere; the picture as a whole may not
        assert np.abs(large - maker.render(spec)).mean() < 9, spec.caption


@pytest.mark.parametrize("colour", COLOURS)
def test_painted_objects_have_the_named_colour(maker: Synthesiser, colour: str) -> None:
    for name in ("red apple", "banana", "deciduous tree"):
        item = Item(find(maker, name), colour=colour)
        picture = maker.render(
            Spec("recolour", "", (item,), background=(120, 60, 120), background_end=(120, 60, 120))
        )
        inside = picture[28:36, 28:36].reshape(-1, 3).astype(float)
        assert nearest_colour(np.median(inside, axis=0)) == colour, name


def test_recolour_captions_name_the_colour(maker: Synthesiser, specs: list[Spec]) -> None:
    for spec in [spec for spec in specs if spec.task == "recolour"]:
        named = [colour for colour in COLOURS if f"{colour} " in spec.caption.split(" background")[0]]
        colour = spec.items[0].colour or colour_name(maker.index.hsv[spec.items[0].index])
        assert colour in named, spec.caption
    assert without_colour("red apple") == "apple"
    assert without_colour("leafy green") == "leafy green"
    assert without_colour("blueberry") == "blueberry"


def test_backgrounds_have_the_named_colour(maker: Synthesiser, specs: list[Spec]) -> None:
    for spec in [spec for spec in specs if spec.task == "background"]:
        named = next(c for c in COLOURS if f" {c} background" in f" {spec.caption}")
        corner = maker.render(spec)[[0, 0, -1, -1], [0, -1, 0, -1]].astype(float).mean(axis=0)
        assert nearest_colour(corner) == named, spec.caption


def test_counts(maker: Synthesiser, specs: list[Spec]) -> None:
    words = {"one": 1, "two": 2, "three": 3, "four": 4}
    seen = set()
    for spec in [spec for spec in specs if spec.task == "count" and spec.background == WHITE]:
        number = words[spec.caption.split()[0]]
        seen.add(number)
        record = maker.bank.records[spec.items[0].index]
        whole = label(drawn(maker.render(replace(spec, items=spec.items[:1]))), connectivity=2).max()
        assert label(drawn(maker.render(spec)), connectivity=2).max() == number * whole, (
            spec.caption,
            record.id,
        )
    assert seen == {1, 2, 3, 4}


PLACES = {  # phrase -> axis of the picture, and whether the first object comes first along it
    " left of ": (1, 1),
    " to the left of ": (1, 1),
    " right of ": (1, -1),
    " above ": (0, 1),
    " over ": (0, 1),
    " below ": (0, -1),
    " under ": (0, -1),
    " at the top and ": (0, 1),
    " at the bottom and ": (0, -1),
    " on the left and ": (1, 1),
    " on the right and ": (1, -1),
}


def test_pairs_lie_as_the_caption_says(maker: Synthesiser, specs: list[Spec]) -> None:
    seen = set()
    for spec in [spec for spec in specs if spec.task == "pair"]:
        bare = replace(spec, background=WHITE, background_end=WHITE)
        alone = [drawn(maker.render(replace(bare, items=(item,)))) for item in spec.items]
        assert (alone[0] & alone[1]).sum() < 40  # they do not hide each other
        for item in spec.items:
            said = captions.names(maker.bank.records[item.index].name_en)
            assert any(name in spec.caption or without_colour(name) in spec.caption for name in said), (
                spec.caption
            )
        first, second = (np.argwhere(mask).mean(axis=0) for mask in alone)
        for phrase, (axis, sign) in PLACES.items():
            if phrase in spec.caption:
                assert (second - first)[axis] * sign > 15, spec.caption
                seen.add(phrase)
    assert seen == set(PLACES)


def test_sizes(maker: Synthesiser, specs: list[Spec]) -> None:
    for spec in [spec for spec in specs if spec.task == "size"]:
        rows, columns = np.nonzero(drawn(maker.render(spec)))
        side = max(np.ptp(rows), np.ptp(columns)) + 1
        if any(word in spec.caption.split() for word in ("small", "tiny", "little")):
            assert side <= 30, spec.caption
        else:
            assert side >= 56, spec.caption


def test_renditions(maker: Synthesiser, specs: list[Spec]) -> None:
    seen = set()
    for spec in [spec for spec in specs if spec.task == "rendition"]:
        picture = maker.render(spec).astype(int)
        seen.add(spec.rendition)
        if spec.rendition == "pixel":
            blocks = picture.reshape(16, 4, 16, 4, 3)
            assert (blocks == blocks[:, :1, :, :1]).all(), spec.caption
            continue
        assert np.ptp(picture, axis=2).max() <= 1, spec.caption  # without hue
        ink = (picture[..., 0] < 128).mean()
        if spec.rendition == "line":
            assert 0.005 < ink < 0.5
        if spec.rendition == "silhouette":
            assert 0.02 < ink < 0.95
            assert picture.min() < 30
    assert seen == {"line", "silhouette", "grey", "pixel"}


@pytest.mark.parametrize("name", SCENES)
def test_scenes(maker: Synthesiser, name: str) -> None:
    small, large = paint_scene(name, 64, 3), paint_scene(name, 128, 3)
    assert small.shape == (64, 64, 3)
    assert small.min() >= 0
    assert small.max() <= 255
    assert np.abs(large.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3)) - small).mean() < 6
    np.testing.assert_array_equal(small, paint_scene(name, 64, 3))
    assert (small != paint_scene(name, 64, 4)).any()


def test_the_index_knows_the_drawings(maker: Synthesiser) -> None:
    index: ObjectIndex = maker.index
    apple, tree, face = (find(maker, name) for name in ("red apple", "deciduous tree", "grinning face"))
    y0, y1, x0, x1 = index.boxes[apple]
    assert (y1 - y0, x1 - x0) == pytest.approx((46, 46), abs=2)  # a circle of 72 % of 64 pixels
    assert colour_name(index.hsv[apple]) == "red"
    assert index.is_one_hue[apple]
    assert colour_name(index.hsv[tree]) == "green"
    assert face not in index.countable  # "a face to the left of a face" is no scene
    flag, symbol = find(maker, "flag of France"), find(maker, "large blue diamond")
    assert not {flag, symbol} & set(index.objects.tolist())
    assert not flip_safe(maker.bank.records[flag])
    assert flip_safe(maker.bank.records[apple])
