"""The judge learns to tell coloured shapes apart, comes back from disk, and knows nothing of noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vitrail.errors import ArtifactError, InputError
from vitrail.evaluation.matcher import Matcher, MatcherSettings, Vocabulary, words_of
from vitrail.evaluation.matcher_training import MatcherBatch, contrastive_loss, soften, train_matcher
from vitrail.evaluation.prompt_hits import Question, answer, by_tag

COLOURS = {
    "red": (1, -1, -1),
    "green": (-1, 1, -1),
    "blue": (-1, -1, 1),
    "yellow": (1, 1, -1),
    "black": (-1, -1, -1),
}
SHAPES = ("square", "bar", "frame", "pillar")
CAPTIONS = [f"a {colour} {shape}" for colour in COLOURS for shape in SHAPES]
TINY = MatcherSettings(
    image_size=32,
    widths=(16, 24, 32),
    blocks=(1, 1, 1),
    layout=4,
    word_width=32,
    word_depth=1,
    word_heads=2,
    embedding=24,
    pictures=9000,
    batch=100,
    peak_rate=5e-3,
)


def draw(caption: str, draws: torch.Generator) -> Tensor:
    """Draw "a red bar" on white at a random place, (3, 32, 32) in [-1, 1]."""
    _, colour, shape = caption.split()
    height, width = {"square": (14, 14), "bar": (6, 22), "frame": (16, 16), "pillar": (22, 6)}[shape]
    top = int(torch.randint(1, 31 - height, (), generator=draws))
    left = int(torch.randint(1, 31 - width, (), generator=draws))
    picture = torch.ones(3, 32, 32)
    picture[:, top : top + height, left : left + width] = torch.tensor(COLOURS[colour]).float()[:, None, None]
    if shape == "frame":
        picture[:, top + 5 : top + height - 5, left + 5 : left + width - 5] = 1
    return picture


def stream(seed: int) -> Iterator[MatcherBatch]:
    draws = torch.Generator().manual_seed(seed)
    while True:
        captions = CAPTIONS * 5
        pixels = torch.stack([draw(caption, draws) for caption in captions])
        yield MatcherBatch(pixels, captions, captions, wrong=[("a red circle", "a red circle")])


@pytest.fixture(scope="module")
def judge() -> Matcher:
    return train_matcher(TINY, [*CAPTIONS, "a red circle"], stream, data_hash="shapes", precision="float32")


def ask(captions: list[str]) -> list[Question]:
    return [
        Question(f"q{i}", c, "", c, tuple(o for o in CAPTIONS if o != c), c.split()[2])
        for i, c in enumerate(captions)
    ]


def test_it_names_new_drawings_crisp_and_soft(judge: Matcher) -> None:
    draws = torch.Generator().manual_seed(99)
    captions = CAPTIONS * 5
    pixels = torch.stack([draw(caption, draws) for caption in captions])
    crisp = answer(judge, pixels, ask(captions))
    soft = answer(judge, soften(pixels, draws), ask(captions))
    assert crisp.rate.n == 100
    assert crisp.rate.value >= 0.9
    assert soft.rate.value >= 0.75
    assert crisp.ranks[crisp.hits].tolist() == [0] * int(crisp.hits.sum())
    shapes = by_tag(crisp, ask(captions))
    assert sorted(shapes) == sorted(SHAPES)
    assert sum(estimate.n for estimate in shapes.values()) == 100


def test_noise_and_blank_pictures_score_near_chance(judge: Matcher) -> None:
    draws = torch.Generator().manual_seed(5)
    questions = ask(CAPTIONS * 10)
    noise = torch.rand(200, 3, 32, 32, generator=draws) * 2 - 1
    # One in 20 is 10 of 200, standard deviation 3.1. A blank picture has one answer: it is right exactly 10
    # times.
    assert int(answer(judge, noise, questions).hits.sum()) <= 22
    assert int(answer(judge, torch.ones(200, 3, 32, 32), questions).hits.sum()) == 10


def test_it_comes_back_from_disk_the_same(judge: Matcher, tmp_path: Path) -> None:
    path = tmp_path / "judge" / "one.safetensors"
    judge.save(path)
    again = Matcher.load(path)
    pixels = next(stream(3)).pixels[:8]
    assert torch.equal(again.embed_pictures(pixels), judge.embed_pictures(pixels))
    assert torch.equal(again.features(pixels), judge.features(pixels))
    assert torch.equal(again.embed_captions(CAPTIONS), judge.embed_captions(CAPTIONS))
    assert again.name == judge.name
    assert again.settings == TINY
    assert [file.name for file in path.parent.iterdir()] == ["one.safetensors"]


def test_damaged_files_are_refused_in_one_line(judge: Matcher, tmp_path: Path) -> None:
    path = tmp_path / "judge.safetensors"
    judge.save(path)
    whole = path.read_bytes()
    for broken in (
        b"",
        b"hello",
        whole[: len(whole) // 2],
        whole.replace(b"vitrail-matcher-2", b"vitrail-matcher-9"),
    ):
        path.write_bytes(broken)
        with pytest.raises(ArtifactError, match="judge") as caught:
            Matcher.load(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(ArtifactError, match="judge"):
        Matcher.load(tmp_path / "nowhere.safetensors")


def test_training_is_a_function_of_its_settings_and_stream() -> None:
    short = replace(TINY, pictures=300)
    first, again, other = (
        train_matcher(settings, CAPTIONS, stream, data_hash="d", precision="float32").network.state_dict()
        for settings in (short, short, replace(short, seed=1))
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["picture_tower.out.weight"], other["picture_tower.out.weight"])


def test_training_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    train_matcher(replace(TINY, pictures=100), CAPTIONS, stream, data_hash="d", precision="float32")
    assert torch.equal(torch.rand(1), expected)


def test_digest_tells_settings_and_data_apart() -> None:
    names = {TINY.digest("a"), TINY.digest("b"), replace(TINY, seed=1).digest("a")}
    assert len(names) == 3
    assert TINY.digest("a") in names


def test_words_and_vocabulary() -> None:
    assert words_of("A Cat's hat, 3-D (red)") == ["a", "cats", "hat", "3", "d", "red"]
    vocabulary = Vocabulary.of(["a red cat", "a dog"])
    assert vocabulary.words == ["a", "cat", "dog", "red"]
    assert len(vocabulary) == 6
    assert vocabulary.encode(["a cat", "dog", "", "a zebra dog cat"], 3).tolist() == [
        [2, 3, 0],
        [4, 0, 0],
        [1, 0, 0],
        [2, 1, 4],
    ]


def test_word_order_is_seen_and_padding_is_not(judge: Matcher) -> None:
    one, other = judge.embed_captions(["a red bar", "bar red a"])
    assert not torch.allclose(one, other, atol=1e-3)
    alone = judge.embed_captions(["a red bar"])[0]
    beside = judge.embed_captions(["a red bar", "a red bar a red bar a red bar"])[0]
    # Padding changes the order of sums only.
    assert torch.allclose(alone, beside, atol=1e-5)


def test_pictures_are_judged_one_by_one(judge: Matcher) -> None:
    pixels = next(stream(8)).pixels[:6]
    together = judge.embed_pictures(pixels)
    apart = torch.cat([judge.embed_pictures(pixels[i : i + 1]) for i in range(6)])
    # Other batch sizes take other kernels: float32 rounding, nothing else.
    assert torch.allclose(together, apart, atol=1e-5)
    assert together.norm(dim=1).tolist() == pytest.approx([1.0] * 6, abs=1e-5)


def test_other_sizes_are_resampled(judge: Matcher) -> None:
    pixels = next(stream(8)).pixels[:20]
    large = pixels.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    similar = (judge.embed_pictures(large) * judge.embed_pictures(pixels)).sum(1)
    assert similar.min() > 0.9


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 1, 32, 32)])
def test_bad_pictures_are_refused(judge: Matcher, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="pictures must be"):
        judge.embed_pictures(torch.zeros(shape))
    with pytest.raises(InputError, match="NaN"):
        judge.embed_pictures(torch.full((1, 3, 32, 32), float("nan")))


def test_softening_keeps_shape_range_and_side() -> None:
    pixels = torch.ones(60, 3, 32, 32)
    pixels[:, :, :, 4:12] = -1  # dark on the left
    found = soften(pixels, torch.Generator().manual_seed(0))
    assert found.shape == pixels.shape
    assert found.abs().max() <= 1
    assert torch.equal(found, soften(pixels, torch.Generator().manual_seed(0)))
    assert not torch.equal(found, soften(pixels, torch.Generator().manual_seed(1)))
    left, right = found[:, :, :, :16].mean((1, 2, 3)), found[:, :, :, 16:].mean((1, 2, 3))
    assert bool((left < right).all())  # never mirrored
    assert len({tuple(row) for row in found.flatten(1)[:, ::97].tolist()}) == 60  # each picture its own way


def test_loss_wants_a_caption_for_every_picture() -> None:
    with pytest.raises(InputError, match="right caption"):
        contrastive_loss(torch.zeros(2, 2), torch.tensor([[True, False], [False, False]]))
