"""Prompts to states: the tokenizer, chunks, weights, layers, inversions, schedules, AND.

The reference for tokens is transformers' tokenizer, for layers and inversions diffusers' pipelines; weights
and chunks are checked against their definition, computed here by hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sd_compare import pipeline, relative
from sd_tiny import make_bpe_file, make_folder, make_vocabulary, vocabulary

from vitrail.backends.sd import words as words_module
from vitrail.backends.sd.open import open_stable_diffusion
from vitrail.backends.sd.prompt_grammar import Span, Variant, parse
from vitrail.backends.sd.words import ClipWords, standard_words
from vitrail.data.packages import Package
from vitrail.errors import ArtifactError, DataError, InputError

pytestmark = pytest.mark.filterwarnings("ignore")
EXACT = 1e-5


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("sd")
    return {family: make_folder(home / family, family) for family in ("sd1", "sd2", "sdxl")}


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, Any]:
    return {family: open_stable_diffusion(folder) for family, folder in folders.items()}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(make_vocabulary(tmp_path_factory.mktemp("words")))


def said(text: str) -> Variant:
    return parse(text).subprompts[0].at(0, 1)


def encoded(model: Any, variant: Variant, **more: Any) -> torch.Tensor:
    states: torch.Tensor = model.parts.text.encode(variant, **more).states
    return states


# --- the tokenizer ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ours(theirs: Any) -> ClipWords:
    return ClipWords.from_folder(Path(theirs.name_or_path))


@given(st.text(max_size=60))
@settings(max_examples=150, deadline=None)
def test_tokens_are_those_of_transformers(ours: ClipWords, theirs: Any, text: str) -> None:
    assume("<|" not in text)
    assert ours.ids(text) == theirs(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize(
    "text", ["A PHOTO of a cat, the red-house's garden 42!", "über-Größe 日本語 🎨", "  "]
)
def test_words_of_people(ours: ClipWords, theirs: Any, text: str) -> None:
    assert ours.ids(text) == theirs(text, add_special_tokens=False).input_ids


def test_control_tokens_cannot_be_written(ours: ClipWords) -> None:
    assert not {ours.start, ours.end} & set(ours.ids("a <|endoftext|> cat <|startoftext|>"))


def test_the_vocabulary_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetched once, by its hash, and never again; without a network the error names the other ways."""
    monkeypatch.setenv("VITRAIL_DATA", str(tmp_path))
    asked: list[str] = []

    def refuse(package: Package, cache: Path | None = None) -> Path:
        asked.append(package.name)
        raise DataError("no network")

    monkeypatch.setattr(words_module, "fetch", refuse)
    with pytest.raises(ArtifactError, match=r"no network\. Or put the tokenizer/ folder"):
        standard_words()
    assert asked == ["clip-anytorch"]
    (tmp_path / "networks").mkdir()
    make_bpe_file(tmp_path / "networks" / "bpe_simple_vocab_16e6.txt.gz")
    assert standard_words(pad="!").vocabulary == vocabulary()
    assert standard_words(pad="!").pad == 0
    assert len(asked) == 1


@pytest.mark.parametrize(
    "content",
    [b"", b"\x1f\x8b broken", b"no merges here\na b\n", b"\xff\xfe", b"#version: 0.2\nxx yy\n"],
)
def test_files_that_are_no_merges(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "merges.gz").write_bytes(content)
    with pytest.raises(ArtifactError):
        ClipWords.from_bpe_file(tmp_path / "merges.gz")


# --- chunks and weights -------------------------------------------------------------------------------------


def by_hand(folder: Path, rows: list[list[int]]) -> torch.Tensor:
    """States (rows, 77, C) of rows of at most 75 tokens, by transformers' own class and loader."""
    encoder = pipeline("StableDiffusionPipeline", folder).text_encoder
    start, end = vocabulary()["<|startoftext|>"], vocabulary()["<|endoftext|>"]
    framed = [[start, *row, *[end] * (76 - len(row))] for row in rows]
    states: torch.Tensor = encoder(torch.tensor(framed)).last_hidden_state
    return states


def test_long_prompts(folders: dict[str, Path], models: dict[str, Any], theirs: Any) -> None:
    text = " ".join(["red", "cat", "blue", "dog", "night"] * 20)
    ids = theirs(text, add_special_tokens=False).input_ids
    assert len(ids) == 100
    wanted = by_hand(folders["sd1"], [ids[:75], ids[75:]]).reshape(1, 154, -1)
    assert relative(encoded(models["sd1"], said(text)), wanted) <= EXACT


def test_a_chunk_ends_at_a_comma(folders: dict[str, Path], models: dict[str, Any], theirs: Any) -> None:
    """If one of its last 20 tokens is one: what belongs together stays together."""
    head, tail = "cat " * 60 + ",", "dog " * 40
    ids = theirs(head, add_special_tokens=False).input_ids, theirs(tail, add_special_tokens=False).input_ids
    wanted = by_hand(folders["sd1"], [ids[0], ids[1]]).reshape(1, 154, -1)
    assert relative(encoded(models["sd1"], said(head + tail)), wanted) <= EXACT
    far = theirs("cat " * 50 + "," + tail, add_special_tokens=False).input_ids
    wanted = by_hand(folders["sd1"], [far[:75], far[75:]]).reshape(1, 154, -1)
    assert relative(encoded(models["sd1"], said("cat " * 50 + "," + tail)), wanted) <= EXACT


def test_break(folders: dict[str, Path], models: dict[str, Any], theirs: Any) -> None:
    rows = [theirs(text, add_special_tokens=False).input_ids for text in ("a red cat", "the night sky")]
    wanted = by_hand(folders["sd1"], rows).reshape(1, 154, -1)
    assert relative(encoded(models["sd1"], said("a red cat BREAK the night sky")), wanted) <= EXACT


def test_weights(folders: dict[str, Path], models: dict[str, Any], theirs: Any) -> None:
    """States times weights, then the mean of the chunk as it was."""
    ids = theirs("a red cat in the garden", add_special_tokens=False).input_ids
    plain = by_hand(folders["sd1"], [ids])
    weights = torch.ones(77)
    weights[2], weights[6] = 1.5, 1.1  # after the start: a, red, cat, in, the, garden
    wanted = plain * weights[:, None]
    wanted = wanted * (plain.mean() / wanted.mean())
    got = encoded(models["sd1"], said("a (red:1.5) cat in the (garden)"))
    assert relative(got, wanted) <= EXACT
    assert relative(got, plain) > 1e-2
    assert torch.equal(
        encoded(models["sd1"], said("a (red:1) cat")), encoded(models["sd1"], said("a red cat"))
    )


def test_too_long_a_prompt_and_too_deep_a_layer(models: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="longer than 2400 tokens"):
        models["sd1"].read("cat " * 2500)
    with pytest.raises(InputError, match="clip skip is 4; the text encoder has 3 layers"):
        models["sd1"].adding(clip_skip=4).read("a cat")
    with pytest.raises(InputError, match="has no styles"):
        models["sd1"].read("a cat", "", "noto")


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("skip", [1, 2, 3])
def test_layers(
    family: str,
    skip: int,
    folders: dict[str, Path],
    models: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """diffusers counts the layers that are left out, from 1 (SDXL: one more than its own)."""
    from transformers import CLIPTextModel

    # diffusers 0.42 looks for the norm where transformers had it before version 5
    monkeypatch.setattr(CLIPTextModel, "text_model", property(lambda self: self), raising=False)
    if family == "sdxl":
        pipe = pipeline("StableDiffusionXLPipeline", folders[family])
        theirs = None if skip < 3 else skip - 2
        wanted, _, pooled, _ = pipe.encode_prompt("a red cat", clip_skip=theirs)
        found = models[family].parts.text.encode(said("a red cat"), skip)
        assert relative(found.pooled, pooled) <= EXACT
        assert relative(found.states, wanted) <= EXACT
        return
    pipe = pipeline("StableDiffusionPipeline", folders[family])
    wanted, _ = pipe.encode_prompt("a red cat", "cpu", 1, False, clip_skip=None if skip == 1 else skip - 1)
    assert relative(encoded(models[family], said("a red cat"), clip_skip=skip), wanted) <= EXACT


# --- textual inversion --------------------------------------------------------------------------------------


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like A1111's with an inversion of three vectors for SD1, and one for another family."""
    from safetensors.torch import save_file

    (tmp_path / "embeddings").mkdir()
    generator = torch.Generator().manual_seed(4)
    save_file(
        {"emb_params": torch.randn(3, 128, generator=generator)}, tmp_path / "embeddings/zog.safetensors"
    )
    save_file({"emb_params": torch.randn(3, 96)}, tmp_path / "embeddings/other.safetensors")
    monkeypatch.setenv("VITRAIL_MODEL_FOLDERS", str(tmp_path))
    return tmp_path


def test_an_inversion_in_a_prompt(programs: Path, models: dict[str, Any], tmp_path: Path) -> None:
    import diffusers

    pipe = diffusers.StableDiffusionPipeline.from_pretrained(make_folder(tmp_path / "m", "sd1"))
    pipe.load_textual_inversion(programs / "embeddings" / "zog.safetensors", token="<zog>")
    wanted, _ = pipe.encode_prompt("a red <zog> cat", "cpu", 1, False)
    model = models["sd1"]
    read = model.read("a red zog cat")
    bound = model.bind(read, 64, 64, "float32")
    got = bound._states(said("a red zog cat"), negative=False).states
    assert relative(got, wanted) <= EXACT
    assert read.hints == ()
    assert "is read as a word" in model.read("zog and other").hints[0]
    plain = model.read("a red cat")
    assert plain.payload.embeddings == ()
    added = model.adding(embeddings=["zog"]).read("a red cat")
    assert [item.name for item in added.payload.embeddings] == ["zog"]


def test_weights_of_an_inversion(programs: Path, models: dict[str, Any]) -> None:
    model = models["sd1"]
    read = model.read("a (zog:1.5) cat")
    chunk = model.parts.text.chunks(said("a (zog:1.5) cat"), read.payload.embeddings)[0]
    assert chunk.weights[:6] == (1.0, 1.0, 1.5, 1.5, 1.5, 1.0)
    assert [place for place, _ in chunk.fixes] == [2]


# --- what changes on the way --------------------------------------------------------------------------------


def denoised(
    model: Any, prompt: str, step: int = 0, steps: int = 1, negative: str = ""
) -> list[torch.Tensor]:
    bound = model.bind(model.read(prompt, negative), 64, 64, "float32")
    bound.step, bound.steps = step, steps
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)) * 3
    return list(bound.pair(x, torch.tensor([2.5])))


def test_schedules(models: dict[str, Any]) -> None:
    model = models["sd1"]
    for step, prompt in ((0, "a cat"), (3, "a cat"), (4, "a dog"), (7, "a dog")):
        got = denoised(model, "a [cat:dog:0.5]", step, 8)
        assert torch.equal(got[0], denoised(model, prompt)[0])
    for step, prompt in ((0, "a cat"), (1, "a dog"), (2, "a cat")):
        assert torch.equal(denoised(model, "a [cat|dog]", step, 8)[0], denoised(model, prompt)[0])


def test_and(models: dict[str, Any]) -> None:
    """uncond + w1 (cond1 - uncond) + w2 (cond2 - uncond)"""
    model = models["sd1"]
    cat, nothing = denoised(model, "a cat", negative="night")
    dog, _ = denoised(model, "a dog", negative="night")
    wanted = nothing + 0.7 * (cat - nothing) + 1.2 * (dog - nothing)
    got, uncond = denoised(model, "a cat :0.7 AND a dog :1.2", negative="night")
    assert relative(got, wanted) <= 1e-4
    assert relative(uncond, nothing) <= 1e-5


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_prompts_of_different_lengths(family: str, models: dict[str, Any]) -> None:
    model = models[family]
    long, short = "red cat " * 50, "blue dog"
    cond, uncond = denoised(model, long, negative=short)
    assert relative(cond, denoised(model, long, negative=long)[0]) <= 1e-5
    assert relative(uncond, denoised(model, short, negative=short)[1]) <= 1e-5


def test_a_batch_is_its_pictures(models: dict[str, Any]) -> None:
    """Every picture of a batch with its own prompt's states, sizes and pooled text beside it."""
    model = models["sdxl"]
    bound = model.bind(model.read("a cat", "a dog"), 64, 64, "float32")
    x = torch.randn(3, 4, 8, 8) * 3
    sigma = torch.tensor([2.5, 1.0, 4.0])
    both = bound.pair(x, sigma)
    for i in range(3):
        for whole, one in zip(both, bound.pair(x[i : i + 1], sigma[i : i + 1]), strict=True):
            assert relative(whole[i : i + 1], one) <= 1e-4


def test_spans_are_what_the_grammar_gives() -> None:
    assert said("a (cat)") == ((Span("a ", 1.0), Span("cat", 1.1)),)
