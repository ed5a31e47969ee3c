"""Picture metadata: our own record to the letter, A1111's text by its own rules, damaged files."""

from __future__ import annotations

import io
import json
import re
import struct
import time
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from vitrail.errors import DataError, InputError
from vitrail.provenance.dialects import PictureSettings, from_a1111, settings_of, to_a1111
from vitrail.provenance.metadata import FORMATS, PictureFormat, encode, read
from vitrail.schema import MAX_PROMPT, ImageRecord, SamplingDefaults, TextToImageRequest

PICTURE = Image.merge("RGB", [Image.linear_gradient("L").resize((32, 24)).rotate(a) for a in (0, 90, 180)])
ALL: list[PictureFormat] = ["png", "jpeg", "webp"]


def record(prompt: str = "a cat", **values: Any) -> ImageRecord:
    request = TextToImageRequest(prompt=prompt, **values).resolve(SamplingDefaults(), seed=965400086)
    return ImageRecord(
        request=request,
        seed=request.seed,
        model_name="shell-64",
        model_sha256="6ce0161689" + "0" * 54,
        versions={"vitrail": "0.1.0"},
        created=datetime(2026, 1, 2, tzinfo=UTC),
    )


HARD = st.text(
    st.characters(exclude_categories=["Cc", "Cs"]) | st.sampled_from('\n\t,:"\\()[]{}<>猫坐🐈'),
    min_size=1,
    max_size=50,
)
PROMPT = st.one_of(
    HARD,
    st.lists(
        st.sampled_from(["Negative prompt:", "Steps: 20, ", "\n", "cat", '"', "一只猫", ": ", ", "]),
        min_size=1,
    ).map("".join),
).filter(lambda text: text.strip() != "")


# -- our own record ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ALL)
@settings(max_examples=60, deadline=None)
@given(prompt=PROMPT, negative=PROMPT | st.just(""))
def test_the_record_comes_back_to_the_letter(format: PictureFormat, prompt: str, negative: str) -> None:
    made = record(prompt, negative_prompt=negative)
    info = read(encode(PICTURE, format, made))
    assert info.record == made
    assert info.problems == []
    assert info.settings == settings_of(made)


@pytest.mark.parametrize("format", ALL)
def test_the_longest_record_fits(format: PictureFormat) -> None:
    """Every text at its limit, in characters of four bytes: a JPEG segment holds 65,533 bytes."""
    wide = "\U0001f408" * MAX_PROMPT
    made = record(wide, negative_prompt=wide, style="s" * 64).model_copy(
        update={"understood_as": wide * 2, "hints": ("\U0001f408" * 200,) * 16}
    )
    info = read(encode(PICTURE, format, made))
    assert info.record == made
    assert from_a1111(info.texts["parameters"]).prompt == wide  # type: ignore[union-attr]


@pytest.mark.parametrize("format", ["jpeg", "webp"])
@pytest.mark.parametrize("again", ["jpeg", "webp", "png"])
def test_the_record_survives_saving_again_with_pillow(format: PictureFormat, again: str) -> None:
    """The reason for MakerNote: EXIF carried along keeps the record; through rotation too."""
    made = record("一只猫", negative_prompt="dog")
    with Image.open(io.BytesIO(encode(PICTURE, format, made))) as opened:
        target = io.BytesIO()
        ImageOps.exif_transpose(opened).save(target, again, exif=opened.getexif())
    if again == "png":
        with Image.open(io.BytesIO(target.getvalue())) as png:
            note = png.getexif().get_ifd(0x8769)[0x927C]
        assert ImageRecord.from_json(note.removeprefix(b"vitrail\0")) == made
    else:
        assert read(target.getvalue()).record == made


@pytest.mark.parametrize("format", ALL)
def test_the_pixels_are_the_pictures(format: PictureFormat) -> None:
    picture = PICTURE.resize((256, 192))
    data = encode(picture, format, record(), quality=100)
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.format == format.upper()
        difference = np.abs(np.asarray(opened.convert("RGB")).astype(int) - np.asarray(picture))
    assert difference.max() == 0 if format == "png" else difference.mean() < 2
    assert set(FORMATS) == set(ALL)


def test_bad_settings_of_a_file_are_refused() -> None:
    with pytest.raises(InputError, match="format 'gif' is unknown; allowed are png, jpeg, webp"):
        encode(PICTURE, "gif")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="quality 0 is out of range; allowed 1 to 100"):
        encode(PICTURE, "jpeg", quality=0)
    with pytest.raises(InputError, match="save as PNG"):
        encode(PICTURE, "jpeg", parameters="x" * 40_000)


# -- the A1111 text ------------------------------------------------------------------------------------------


def a1111_reader(text: str) -> dict[str, str]:
    """A1111's own rules, written down once more and plainly."""
    pattern = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
    prompt, negative, done = "", "", False
    *lines, last = text.strip().split("\n")
    if len(pattern.findall(last)) < 3:
        lines.append(last)
        last = ""
    for line in lines:
        line = line.strip()
        if line.startswith("Negative prompt:"):
            done, line = True, line[16:].strip()
        if done:
            negative += line if negative == "" else "\n" + line
        else:
            prompt += line if prompt == "" else "\n" + line
    found: dict[str, str] = {}
    for key, value in pattern.findall(last):
        if value[:1] == value[-1:] == '"' and len(value) > 1:
            value = json.loads(value)
        size = re.match(r"^(\d+)x(\d+)$", value)
        if size:
            found[f"{key}-1"], found[f"{key}-2"] = size[1], size[2]
        else:
            found[key] = value
    return found | {"Prompt": prompt, "Negative prompt": negative}


def test_the_text_is_exactly_a1111s() -> None:
    made = PictureSettings(
        program="a1111",
        prompt="a cat, sitting",
        negative_prompt="dog",
        steps=20,
        sampler="DPM++ 2M",
        schedule="Karras",
        cfg_scale=7.0,
        seed=965400086,
        width=512,
        height=768,
        model_hash="6ce0161689",
        model="name",
        denoising_strength=0.4,
        extra={"Version": "v1.10.1", "Lora hashes": "a: 1, b: 2", "Clip skip": "2", "VAE": "x"},
    )
    assert to_a1111(made) == (
        "a cat, sitting\n"
        "Negative prompt: dog\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.0, Seed: 965400086, "
        "Size: 512x768, Model hash: 6ce0161689, Model: name, VAE: x, Denoising strength: 0.4, Clip skip: 2, "
        'Lora hashes: "a: 1, b: 2", Version: v1.10.1'
    )
    assert from_a1111(to_a1111(made)) == made


def test_our_own_pictures_in_that_text() -> None:
    made = record(
        "a cat", negative_prompt="dog", sampler="dpmpp_2m", schedule="karras", cfg_scale=7.0, steps=20
    )
    assert to_a1111(settings_of(made)) == (
        "a cat\nNegative prompt: dog\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.0, Seed: 965400086, "
        "Size: 128x128, Model hash: 6ce0161689, Model: shell-64, Guidance interval: 0-1, Shift: 1, "
        "Version: vitrail 0.1.0"
    )
    assert "Negative prompt" not in to_a1111(settings_of(record()))


def kept(text: str) -> str:
    """What the form keeps of a prompt: lines without the blanks at their ends."""
    return "\n".join(line.strip() for line in text.strip().split("\n"))


PLAIN = PROMPT.map(kept).filter(lambda text: not re.search(r"^\s*Negative prompt:", text, re.MULTILINE))
VALUE = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from(',:"\n'), max_size=20)
KEY = st.from_regex(r"\A[A-Za-z][A-Za-z0-9 /\-]{0,20}[a-z0-9]\Z")


@settings(max_examples=300, deadline=None)
@given(
    prompt=PLAIN,
    negative=PLAIN | st.just(""),
    extra=st.dictionaries(KEY, VALUE, max_size=4),
    seed=st.integers(0, 2**64 - 1),
)
def test_what_is_written_is_read_by_both_readers(
    prompt: str, negative: str, extra: dict[str, str], seed: int
) -> None:
    known = {
        "Steps",
        "Sampler",
        "Schedule type",
        "CFG scale",
        "Seed",
        "Size",
        "Model hash",
        "Model",
        "Version",
    }
    extra = {key: value for key, value in extra.items() if key not in known | {"Prompt", "Negative prompt"}}
    made = PictureSettings(
        "a1111",
        prompt.strip(),
        negative.strip(),
        20,
        "Euler a",
        "Simple",
        0.1 + 0.2,
        seed,
        64,
        48,
        extra=extra,
    )
    text = to_a1111(made)
    assert from_a1111(text) == made
    reference = a1111_reader(text)
    assert reference["Prompt"] == made.prompt
    assert reference["Negative prompt"] == made.negative_prompt
    assert (reference["Seed"], reference["Size-1"], reference["Size-2"]) == (str(seed), "64", "48")
    for key, value in extra.items():
        if value and not re.match(r"^\d+x\d+$", value):
            assert reference[key] == value


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "Steps: 20",
                "Seed: 1",
                ", ",
                "\n",
                ":",
                '"',
                "\\",
                "a b-c/d",
                " ",
                "Negative prompt:",
                "é",
                "3x4",
            ]
        ),
        max_size=25,
    ).map("".join)
)
def test_any_text_is_read_as_a1111_reads_it(text: str) -> None:
    mine = from_a1111(text)
    assert mine is not None
    try:
        reference = a1111_reader(text)
    except ValueError:  # A1111 itself stumbles over a broken escape
        return
    assert (mine.prompt, mine.negative_prompt) == (
        reference["Prompt"].strip("\n"),
        reference["Negative prompt"].strip("\n"),
    ) or (
        kept(mine.prompt).split() == reference["Prompt"].split()
        and kept(mine.negative_prompt).split() == reference["Negative prompt"].split()
    )
    if "Seed" in reference and reference["Seed"].isdigit():
        assert mine.seed == int(reference["Seed"])


@pytest.mark.parametrize(
    "text",
    [
        "a" * 199_000,
        " " * 199_000,
        "a:" * 99_000,
        'a1: "x, ' * 24_000,
        '"\\' * 90_000,
        "ab: " * 49_000,
        "x" * 10**6,
    ],
)
def test_long_hostile_texts_take_no_time(text: str) -> None:
    start = time.process_time()
    from_a1111("prompt\n" + text)
    assert time.process_time() - start < 1.0


# -- damaged and hostile -------------------------------------------------------------------------------------


def png_with(*chunks: tuple[bytes, bytes], at_end: bool = False) -> bytes:
    target = io.BytesIO()
    PICTURE.save(target, "PNG")
    plain = target.getvalue()
    raw = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    cut = len(plain) - 12 if at_end else 33
    return plain[:cut] + raw + plain[cut:]


def test_text_after_the_pixels_is_found() -> None:
    data = png_with((b"tEXt", b"parameters\0a cat\nSteps: 2, Seed: 5, Size: 3x4"), at_end=True)
    found = read(data).settings
    assert found is not None
    assert (found.prompt, found.seed, found.height) == ("a cat", 5, 4)


@pytest.mark.parametrize(
    "chunk",
    [
        (b"zTXt", b"parameters\0\0" + zlib.compress(bytes(100 << 20))),
        (b"iTXt", b"parameters\0\1\0\0\0" + zlib.compress(bytes(100 << 20))),
        (b"zTXt", b"parameters\0\0not zlib"),
        (b"zTXt", b"parameters\0\0" + zlib.compress(b"x" * 100)[:-9]),
        (b"iTXt", b"parameters\0"),
        (b"iTXt", b"vitrail\0\0\0\0\0" + b'{"format": 1}'),
        (b"iTXt", b"vitrail\0\0\0\0\0" + b"[" * 100_000),
        (b"iTXt", b"vitrail\0\0\0\0\0" + b"\xff\xfe"),
        (b"tEXt", b"vitrail\0" + b"9" * 300_000),
    ],
)
def test_damaged_text_is_a_problem_and_no_crash(chunk: tuple[bytes, bytes]) -> None:
    start = time.process_time()
    info = read(png_with(chunk, (b"tEXt", b"Comment\0still there")))
    assert time.process_time() - start < 1.0
    assert len(info.problems) == 1
    assert "\n" not in info.problems[0]
    assert info.record is None
    assert info.texts["Comment"] == "still there"


@pytest.mark.parametrize("format", ALL)
def test_flipped_bytes_never_crash_the_reader(format: PictureFormat) -> None:
    data = encode(PICTURE, format, record("一只猫", negative_prompt="dog"))
    random = np.random.default_rng(3)
    read_well = 0
    for _ in range(250):
        broken = bytearray(data)
        for position in random.integers(0, min(len(data), 2500), random.integers(1, 5)):
            broken[position] = random.integers(0, 256)
        try:
            info = read(bytes(broken))
        except DataError:
            continue
        read_well += info.record is not None
        assert all("\n" not in problem for problem in info.problems)
    assert read_well > 0


def test_a_picture_without_settings_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(encode(PICTURE, "png"))
    info = read(path)
    assert (info.settings, info.record, info.texts, info.problems) == (None, None, {}, [])
    with pytest.raises(InputError):
        read(tmp_path / "missing.png")
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(DataError):
        read(tmp_path / "x.txt")
