"""The built emoji set: what is in it, how it is split, and that a damaged one is noticed."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_emoji
from PIL import Image

from vitrail.data import emoji
from vitrail.data.emoji import STYLES, build_emoji, load_emoji
from vitrail.data.emoji_art import downsample
from vitrail.data.emoji_names import concept_of, family_of, is_wanted, normalise
from vitrail.errors import DataError, InputError


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_emoji.build_tiny(tmp_path_factory.mktemp("tiny"))


def test_every_style_is_there_without_skin_tones_doubles_and_empty_drawings(built: Path) -> None:
    bank = load_emoji(built, full=True)
    by_style = {style: {r.concept for r in bank.records if r.style == style} for style in STYLES}
    expected = {c[0] for c in tiny_emoji.CONCEPTS} - {"1f573", "1f4d9"}
    for style in STYLES[:-1]:
        assert by_style[style] == expected, style
    # the 3D package has the first nine concepts here, and its flags are left out on purpose
    assert by_style["fluent-3d"] == {c[0] for c in tiny_emoji.CONCEPTS[:8]}
    assert bank.manifest["matched"]["firefox"] == {"icons": 15, "matched": 14, "named": 14}
    assert bank.manifest["counts"]["pictures"] == len(bank) == 6 * tiny_emoji.KEPT + 8
    assert bank.manifest["counts"]["dropped_empty_or_duplicate"] == 12


def test_records_say_what_the_pictures_are(built: Path) -> None:
    bank = load_emoji(built)
    by_id = {record.id: (i, record) for i, record in enumerate(bank.records)}
    i, cat = by_id["firefox/1f408"]
    assert (cat.name_en, cat.name_zh, cat.style_index) == ("cat", "猫", 5)
    assert cat.keywords_en == ("kitten", "pet")
    assert (cat.package, cat.license, cat.kind) == ("@iconify-json/fxemoji@1.2.2", "Apache-2.0", "object")
    flag = by_id["twemoji/1f1eb-1f1f7"][1]
    assert (flag.name_en, flag.name_zh, flag.kind) == ("flag of France", "法国旗", "flag")
    assert by_id["noto/1f537"][1].kind == "symbol"
    for side in (64, 128):
        picture = bank.pictures(side)[i]
        assert picture.shape == (side, side, 4)
        assert tuple(picture[side // 2, side // 2]) == (0xF0, 0x8A, 0x1C, 255)
        assert tuple(picture[0, 0]) == (0, 0, 0, 0)
    with pytest.raises(DataError, match="not of 32"):
        bank.pictures(32)


def test_the_small_pictures_are_the_large_ones_reduced(built: Path) -> None:
    bank = load_emoji(built)
    np.testing.assert_array_equal(downsample(np.asarray(bank.pictures(128)), 64), bank.pictures(64))


def test_attribution_names_every_package(built: Path) -> None:
    text = (built / "ATTRIBUTION.md").read_text()
    for package in emoji.PACKAGES.values():
        assert f"{package.name} {package.version}" in text
        assert package.licence in text


def test_building_twice_gives_the_same_files_and_replaces_the_old_set(tmp_path: Path) -> None:
    first = json.loads((tiny_emoji.build_tiny(tmp_path) / "manifest.json").read_text())
    second = json.loads((tiny_emoji.build_tiny(tmp_path) / "manifest.json").read_text())
    assert first["files"] == second["files"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archives", "emoji"]  # nothing staged is left


def test_other_folders_and_sizes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="is not an emoji set"):
        build_emoji(tmp_path / "mine")
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"
    with pytest.raises(InputError, match="is a file"):
        build_emoji(tmp_path / "mine" / "letter.txt")
    with pytest.raises(InputError, match="64, 128 or 256"):
        build_emoji(tmp_path / "new", size=100)


def test_an_interrupted_build_leaves_no_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object) -> list[int]:
        raise KeyboardInterrupt

    monkeypatch.setattr(emoji, "distinct", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tiny_emoji.build_tiny(tmp_path)
    assert not (tmp_path / "emoji").exists()


def test_a_damaged_set_is_noticed(built: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="vitrail data build emoji"):
        load_emoji(tmp_path)

    def copy(name: str) -> Path:
        shutil.copytree(built, tmp_path / name)
        return tmp_path / name

    cut = copy("cut")
    (cut / "pictures_64.npy").write_bytes((cut / "pictures_64.npy").read_bytes()[:-1])
    with pytest.raises(DataError, match=r"pictures_64\.npy has \d+ bytes"):
        load_emoji(cut)
    changed = copy("changed")
    text = (changed / "metadata.jsonl").read_text(encoding="utf-8")
    (changed / "metadata.jsonl").write_text(text.replace('"cat"', '"dog"', 1), encoding="utf-8")
    with pytest.raises(DataError, match="was changed"):
        load_emoji(changed)
    flipped = copy("flipped")
    data = bytearray((flipped / "pictures_64.npy").read_bytes())
    data[-5] ^= 1
    (flipped / "pictures_64.npy").write_bytes(bytes(data))
    with pytest.raises(DataError, match="was changed"):
        load_emoji(flipped, full=True)
    (copy("gone") / "metadata.jsonl").unlink()
    with pytest.raises(DataError, match=r"metadata\.jsonl is missing"):
        load_emoji(tmp_path / "gone")


def test_reducing_matches_pillow_and_keeps_edges_free_of_halos() -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (1, 32, 32, 4), dtype=np.uint8)
    mine = downsample(picture, 16)[0].astype(int)
    theirs = Image.fromarray(picture[0]).convert("RGBa").resize((16, 16), Image.Resampling.BOX)
    # Pillow rounds the premultiplied bytes, vitrail does not: compare, premultiplied, to 2 of 255
    product = mine[..., :3] * mine[..., 3:] / 255
    assert np.abs(product - np.asarray(theirs)[..., :3]).max() <= 2
    assert np.abs(mine[..., 3] - np.asarray(theirs)[..., 3]).max() <= 1
    half = np.zeros((1, 8, 8, 4), np.uint8)
    half[:, :, :3] = (
        200,
        30,
        30,
        255,
    )  # a red shape whose edge falls inside a block, black transparency around it
    assert (downsample(half, 4)[0, :, 1] == (200, 30, 30, 128)).all()


def test_split_depends_on_nothing_but_the_cell() -> None:
    cells = [(f"{0x1F000 + i:x}", style) for i in range(1500) for style in STYLES]
    splits = emoji.split_cells(cells)
    shuffled = cells[:]
    random.Random(1).shuffle(shuffled)
    assert emoji.split_cells(shuffled) == splits
    shares = {name: sum(s == name for s in splits.values()) / len(cells) for name in ("concept", "cell")}
    # 1,500 concepts: binomial standard deviation .0056; 9,975 cells: .0024
    assert shares["concept"] == pytest.approx(emoji.HELD_OUT_CONCEPTS, abs=0.017)
    assert shares["cell"] == pytest.approx(emoji.HELD_OUT_CELLS, abs=0.01)
    for concept in {concept for concept, _ in cells}:
        own = [splits[concept, style] for style in STYLES]
        assert set(own) == {"concept"} or own.count("train") >= emoji.MIN_TRAIN_CELLS
    # concepts of three styles or fewer keep them all
    few = emoji.split_cells([cell for cell in cells if cell[1] in STYLES[:3]])
    assert "cell" not in few.values()
    # gendered forms go together
    family = emoji.split_cells([(c, s) for i in range(300) for s in STYLES
                                for c in (f"{0x1F000 + i:x}", f"{0x1F000 + i:x}-200d-2640")])  # fmt: skip
    for concept, style in family:
        if family[concept, style] == "concept":
            assert family[concept.split("-")[0], style] == "concept"


def test_concept_names() -> None:
    assert concept_of("0023-FE0F-20E3") == "23-20e3"
    assert not is_wanted("1f3c3-1f3fb")
    assert not is_wanted("1f3fb")
    assert not is_wanted("1f6b6-200d-27a1")
    assert is_wanted("1f468-200d-1f9b0")
    assert family_of("1f3c3-200d-2640") == "1f3c3"
    assert family_of("1f469-200d-1f33e") == family_of("1f468-200d-1f33e") == "1f9d1-200d-1f33e"
    assert family_of("1f468-200d-1f469-200d-1f466") == "1f468-200d-1f469-200d-1f466"
    assert (
        normalise("flag-for-flag-afghanistan")
        == normalise("flag: Afghanistan")
        == normalise("flag of Afghanistan")
    )
    assert normalise("woman’s boot") == normalise("womans-boot")
