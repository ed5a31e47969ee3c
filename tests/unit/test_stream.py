"""The training stream: a pure function of (seed, pictures seen), even-handed, and true to the pictures."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import tiny_emoji
import torch
from PIL import Image

from vitrail.data.batch import Batch
from vitrail.data.emoji import EmojiBank, load_emoji
from vitrail.data.object_index import ObjectIndex
from vitrail.data.stream import EmojiStream, EpochOrder, default_weight
from vitrail.errors import DataError, InputError


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> EmojiBank:
    return load_emoji(tiny_emoji.build_tiny(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def index(bank: EmojiBank) -> ObjectIndex:
    return ObjectIndex.of(bank)


def same(one: Batch, other: Batch) -> bool:
    return (
        torch.equal(one.pixels, other.pixels)
        and one.captions == other.captions
        and torch.equal(one.styles, other.styles)
    )


def joined(batches: list[Batch]) -> Batch:
    return Batch(
        torch.cat([batch.pixels for batch in batches]),
        [caption for batch in batches for caption in batch.captions],
        torch.cat([batch.styles for batch in batches]),
    )


def test_batches_are_what_training_takes(bank: EmojiBank, index: ObjectIndex) -> None:
    batch = next(EmojiStream(bank, 8, 0, index=index)(0))
    assert (batch.pixels.shape, batch.pixels.dtype) == ((8, 3, 64, 64), torch.float32)
    assert batch.pixels.is_contiguous()
    assert (batch.styles.shape, batch.styles.dtype, len(batch)) == ((8,), torch.int64, 8)
    assert batch.pixels.min() >= -1
    assert batch.pixels.max() <= 1
    assert next(EmojiStream(bank, 2, 0, size=128, index=index)(0)).pixels.shape == (2, 3, 128, 128)


def test_going_on_from_any_number_of_pictures_seen_is_bit_identical(
    bank: EmojiBank, index: ObjectIndex
) -> None:
    straight = list(islice(EmojiStream(bank, 8, 3, index=index)(0), 6))
    resumed = list(islice(EmojiStream(bank, 8, 3, index=index)(24), 3))
    assert all(same(a, b) for a, b in zip(straight[3:], resumed, strict=True))
    other_size = list(islice(EmojiStream(bank, 4, 3, index=index)(0), 12))
    assert same(joined(straight), joined(other_size))
    assert not same(straight[0], next(EmojiStream(bank, 8, 4, index=index)(0)))


def test_epochs_show_every_picture_its_due_number_of_times() -> None:
    weights = np.array([1.0, 0.3, 0.5, 1.0, 0.07] * 20)
    order = EpochOrder(weights, 5)
    epochs = 40
    length = sum(len(order._members(epoch)) for epoch in range(epochs))
    shown = Counter(order.at(number) for number in range(length))
    for picture, weight in enumerate(weights):
        assert abs(shown[picture] - weight * epochs) <= 1
    even = EpochOrder(np.ones(30), 1)
    first, second = ([even.at(number) for number in range(start, start + 30)] for start in (0, 30))
    assert sorted(first) == sorted(second) == list(range(30))
    assert first != second
    assert [EpochOrder(np.ones(30), 1).at(number) for number in (45, 7)] == [second[15], first[7]]


def test_weights_by_kind(bank: EmojiBank) -> None:
    weights = {record.concept: default_weight(record) for record in bank.records}
    assert (weights["1f408"], weights["1f537"], weights["1f1eb-1f1f7"], weights["1f3c3-200d-2640"]) == (
        1,
        0.3,
        0.3,
        0.5,
    )
    people = replace(
        bank.records[0], concept="1f468-200d-1f469-200d-1f466", name_en="family of man, woman and boy"
    )
    assert default_weight(people) == 0.3


def test_only_the_asked_splits_are_shown(bank: EmojiBank) -> None:
    records = [
        replace(r, split="cell" if i % 2 else "train", name_en=f"thing{i}")
        for i, r in enumerate(bank.records)
    ]
    stream = EmojiStream(replace(bank, records=records), 16, 0, synthetic_share=0, caption_drop=0)
    numbers = set()
    for batch in islice(stream(0), 12):
        for caption in batch.captions:
            numbers |= {
                int(word.strip(",").removeprefix("thing"))
                for word in caption.split()
                if word.startswith("thing")
            }
    assert numbers
    assert all(number % 2 == 0 for number in numbers)
    with pytest.raises(DataError, match="no pictures to show"):
        EmojiStream(replace(bank, records=[replace(r, split="concept") for r in bank.records]), 4, 0)


def test_plain_pictures_are_the_drawings_on_white(bank: EmojiBank, index: ObjectIndex) -> None:
    stream = EmojiStream(bank, 16, 0, synthetic_share=0, flip=False, jitter=0, index=index)
    batch = next(stream(0))
    for k in range(16):
        i = int(stream._members[stream._order.at(k)])
        drawing = Image.fromarray(bank.pictures(64)[i])
        expected = np.asarray(Image.alpha_composite(Image.new("RGBA", (64, 64), "white"), drawing))[..., :3]
        found = (batch.pixels[k].permute(1, 2, 0).numpy() + 1) * 127.5
        assert np.abs(found - expected).max() <= 1.01


def test_jitter_keeps_the_whole_drawing_on_white(bank: EmojiBank, index: ObjectIndex) -> None:
    still = EmojiStream(bank, 32, 0, synthetic_share=0, flip=False, jitter=0, index=index)
    moved = EmojiStream(bank, 32, 0, synthetic_share=0, flip=False, jitter=1, index=index)
    a, b = next(still(0)).pixels, next(moved(0)).pixels
    ink = (
        (1 - b).sum(dim=(1, 2, 3)) / (1 - a).sum(dim=(1, 2, 3))
    ).numpy()  # area goes with the square of the scale
    assert ((ink > 0.8**2 - 0.03) & (ink < 1.03)).all()
    assert ink.std() > 0.05


def test_mirroring_only_where_it_is_true(bank: EmojiBank, index: ObjectIndex) -> None:
    flags = [i for i, record in enumerate(bank.records) if record.kind == "flag"]
    one = {side: array[flags[:1]] for side, array in bank.arrays.items()}
    flag_only = EmojiBank([replace(bank.records[flags[0]], split="train")], one, {})
    stream = EmojiStream(flag_only, 1, 0, jitter=0)
    first = next(stream(0)).pixels
    assert all(torch.equal(batch.pixels, first) for batch in islice(stream(0), 20))
    lopsided = one[64].copy()
    lopsided[:, :, :20] = 0  # unlike its mirror image, and unlike itself upside down
    lopsided[:, :24, 20:30] = 0
    cat = EmojiBank([replace(flag_only.records[0], kind="object", name_en="cat")], {64: lopsided}, {})
    shown = [batch.pixels for batch in islice(EmojiStream(cat, 1, 0, jitter=0, synthetic_share=0)(0), 20)]
    upright = Image.alpha_composite(Image.new("RGBA", (64, 64), "white"), Image.fromarray(lopsided[0]))
    as_drawn = torch.from_numpy(np.array(upright.convert("RGB"))).permute(2, 0, 1)[None].float() / 127.5 - 1
    mirrored = as_drawn.flip(3)
    kinds = [(torch.allclose(x, as_drawn, atol=0.01), torch.allclose(x, mirrored, atol=0.01)) for x in shown]
    assert set(kinds) == {(True, False), (False, True)}


@pytest.mark.parametrize("share", [0.0, 0.25, 0.4, 0.5])
def test_share_of_composed_pictures(bank: EmojiBank, index: ObjectIndex, share: float) -> None:
    stream = EmojiStream(bank, 20, 0, synthetic_share=share, index=index)
    made: list[int] = []
    draw = stream._synthesiser.draw
    stream._synthesiser.draw = lambda rng: made.append(1) or draw(rng)  # type: ignore[method-assign, func-returns-value]
    list(islice(stream(0), 10))
    assert len(made) == round(200 * share)


def test_dropped_captions_and_styles(bank: EmojiBank, index: ObjectIndex) -> None:
    batch = joined(list(islice(EmojiStream(bank, 50, 0, synthetic_share=0, index=index)(0), 30)))
    no_caption = np.array([caption == "" for caption in batch.captions])
    no_style = (batch.styles == 0).numpy()
    assert no_caption.mean() == pytest.approx(0.1, abs=0.03)  # 1,500 draws: standard deviation .0077
    assert no_style.mean() == pytest.approx(0.1, abs=0.03)
    assert (no_caption & no_style).mean() < 0.025  # each by itself
    kept = next(EmojiStream(bank, 40, 0, synthetic_share=0, caption_drop=0, style_drop=0, index=index)(0))
    assert "" not in kept.captions
    assert (kept.styles > 0).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"seed": -1},
        {"synthetic_share": 0.6},
        {"caption_drop": 1.5},
        {"jitter": -0.1},
    ],
)
def test_settings_out_of_range(bank: EmojiBank, wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        EmojiStream(bank, **{"batch_size": 4, "seed": 0} | wrong)  # type: ignore[arg-type]


def test_a_set_without_that_size(bank: EmojiBank) -> None:
    with pytest.raises(DataError, match="not of 256"):
        EmojiStream(bank, 4, 0, size=256)
