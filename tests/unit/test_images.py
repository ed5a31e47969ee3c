"""The boundary between files, pictures and tensors: exact round trips, upright pictures, hostile files."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from vitrail.errors import DataError, InputError, NonFiniteError, VitrailError
from vitrail.images import MAX_PIXELS, contained, flatten, grid, open_image, read_header, to_pil, to_tensor

FORMATS = ["PNG", "JPEG", "WEBP", "GIF"]


def noise(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def encoded(picture: Image.Image, format: str, **options: object) -> bytes:
    target = io.BytesIO()
    picture.save(target, format, **options)
    return target.getvalue()


@pytest.mark.parametrize("size", [(64, 64), (30, 64), (64, 8)])
@pytest.mark.parametrize("own", [(40, 30), (200, 30), (21, 300), (64, 64), (9, 9)])
def test_a_picture_is_contained_as_pillow_does_it(own: tuple[int, int], size: tuple[int, int]) -> None:
    picture, method = noise(*own), Image.Resampling.LANCZOS
    inside = contained(picture, size, method)
    assert encoded(inside, "PNG") == encoded(ImageOps.contain(picture, size, method), "PNG")
    padded = ImageOps.pad(inside, size, method)
    assert encoded(padded, "PNG") == encoded(ImageOps.pad(picture, size, method), "PNG")


@pytest.mark.parametrize(("own", "made"), [((1, 4000), (1, 64)), ((4000, 1), (48, 1))])
def test_of_a_thin_picture_a_pixel_is_left(own: tuple[int, int], made: tuple[int, int]) -> None:
    assert contained(noise(*own), (48, 64), Image.Resampling.LANCZOS).size == made


# -- tensors -------------------------------------------------------------------------------------------------


def test_every_byte_value_survives_the_round_trip() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    picture = Image.fromarray(np.stack([ramp, ramp[::-1], ramp.T], axis=-1))
    (back,) = to_pil(to_tensor([picture]))
    assert np.array_equal(np.asarray(back), np.asarray(picture))


def test_tensor_layout_range_and_closed_form() -> None:
    pictures = [Image.new("RGB", (3, 2), (255, 0, 51)), Image.new("RGB", (3, 2), (0, 0, 0))]
    tensor = to_tensor(pictures)
    assert tensor.shape == (2, 3, 2, 3)
    assert tensor.dtype == torch.float32
    assert tensor[0, :, 1, 2].tolist() == pytest.approx([1.0, -1.0, 51 / 127.5 - 1], abs=1e-6)
    assert tensor.min() == -1.0


def test_values_are_rounded_not_truncated_and_clamped() -> None:
    wanted = torch.tensor([99.6, 99.4, 300.0, -20.0])
    (picture,) = to_pil((wanted / 127.5 - 1).view(1, 1, 1, 4).expand(1, 3, 1, 4))
    assert np.asarray(picture)[0, :, 0].tolist() == [100, 99, 255, 0]


def test_one_channel_and_single_picture() -> None:
    (picture,) = to_pil(torch.zeros(1, 5, 4))
    assert picture.mode == "RGB"
    assert picture.size == (4, 5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_never_becomes_a_picture(value: float) -> None:
    tensor = torch.zeros(2, 3, 4, 4)
    tensor[1, 2, 3, 3] = value
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        to_pil(tensor)


def test_wrong_shapes_and_sizes_are_named() -> None:
    with pytest.raises(InputError, match=r"\(1, 4, 8, 8\)"):
        to_pil(torch.zeros(1, 4, 8, 8))
    with pytest.raises(InputError, match=r"30x40.*40x30|40x30.*30x40|different sizes"):
        to_tensor([noise(40, 30), noise(30, 40)])
    with pytest.raises(InputError, match="no picture"):
        to_tensor([])


# -- opening -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_header_and_pixels(format: str, tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(encoded(noise(), format))
    header = read_header(path)
    assert (header.format, header.width, header.height) == (format, 40, 30)
    picture = open_image(path)
    assert picture.mode == "RGB"
    if format == "PNG":
        assert np.array_equal(np.asarray(picture), np.asarray(noise()))


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("alpha", [True, False])
def test_every_webp_container(lossless: bool, alpha: bool) -> None:
    """VP8L, VP8 and VP8X headers, against Pillow."""
    source = noise().convert("RGBA" if alpha else "RGB")
    if alpha:
        source.putalpha(Image.linear_gradient("L").resize(source.size))
    data = encoded(source, "WEBP", lossless=lossless, exif=b"II*\0\x08\0\0\0\0\0" if alpha else b"")
    header = read_header(data)
    assert (header.width, header.height) == Image.open(io.BytesIO(data)).size == (40, 30)


def test_progressive_jpeg_with_metadata_in_front() -> None:
    data = encoded(noise(300, 200), "JPEG", progressive=True, icc_profile=bytes(100_000), comment=b"c" * 9000)
    assert read_header(data).width == 300


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    """Against the definition of tag 0x0112: where the stored first row and first column belong."""
    stored = Image.new("RGB", (16, 8), "white")
    stored.paste("red", (0, 0, 4, 4))  # the stored top left corner
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = open_image(encoded(stored, "PNG", exif=exif))
    corner = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "tl", 6: "tr", 7: "br", 8: "bl"}[orientation]
    width, height = upright.size
    assert (width, height) == ((8, 16) if orientation > 4 else (16, 8))
    spot = (1 if corner[1] == "l" else width - 2, 1 if corner[0] == "t" else height - 2)
    assert upright.getpixel(spot) == (255, 0, 0)


def test_transparency_lies_over_white_in_every_mode() -> None:
    rgba = Image.new("RGBA", (2, 1), (200, 100, 0, 0))
    rgba.putpixel((1, 0), (200, 100, 0, 51))
    mixed = tuple(round(255 + (v - 255) * 51 / 255) for v in (200, 100, 0))
    for format in ("PNG", "WEBP"):
        data = encoded(rgba, format, **({"lossless": True, "exact": True} if format == "WEBP" else {}))
        opened = open_image(data)
        assert opened.getpixel((0, 0)) == (255, 255, 255)
        assert opened.getpixel((1, 0)) == pytest.approx(mixed, abs=1)
        assert open_image(data, keep_alpha=True).getpixel((1, 0)) == (200, 100, 0, 51)
    palette = Image.new("P", (2, 1), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.putpixel((0, 0), 0)
    opened = open_image(encoded(palette, "GIF", transparency=0))
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (10, 20, 30)]
    assert flatten(Image.new("LA", (1, 1), (0, 0))).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    opened = open_image(encoded(Image.fromarray(values), "PNG"))
    assert [opened.getpixel((x, 0)) for x in range(3)] == [(v, v, v) for v in (0, 100, 255)]


def test_cmyk_and_one_bit() -> None:
    assert open_image(encoded(noise().convert("CMYK"), "JPEG")).mode == "RGB"
    assert open_image(encoded(Image.new("1", (4, 4), 1), "PNG")).getpixel((0, 0)) == (255, 255, 255)


# -- hostile files -------------------------------------------------------------------------------------------


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    ihdr = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    body = zlib.compress(bytes(1 << 20), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def bombs() -> dict[str, bytes]:
    gif = bytearray(encoded(noise(), "GIF"))
    gif[6:10] = struct.pack("<HH", 65535, 65535)
    comment = b"!\xfe" + (b"\xff" + b"a" * 255) * 20_000 + b"\0"
    small = encoded(Image.new("L", (4, 4)), "GIF")
    first = small.index(b",", 13 + 3 * 256 if small[10] & 7 == 7 else 13)
    endless = small[:first] + comment + small[first:]
    webp = bytearray(encoded(noise(), "WEBP", exif=b"II*\0\x08\0\0\0\0\0"))
    at = webp.index(b"VP8X") + 12
    webp[at : at + 6] = (16382).to_bytes(3, "little") * 2
    jpeg = bytearray(encoded(noise(), "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 65000, 65000)
    text = b"tEXt" + b"key\0" + b"x" * (1 << 20)
    texts = (struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))) * 20
    many = png_claiming(8, 8)
    return {
        "png": png_claiming(30_000, 30_000),
        "png-just-above": png_claiming(MAX_PIXELS // 4000 + 1, 4000),
        "png-max": png_claiming(2**31 - 1, 2**31 - 1),
        "png-empty": png_claiming(0, 100),
        "png-text": many[:33] + texts + many[33:],
        "gif": bytes(gif),
        "gif-endless": endless,
        "webp": bytes(webp),
        "jpeg": bytes(jpeg),
    }


_MEASURE = """
import resource, sys, time, warnings
warnings.simplefilter("error")
from pathlib import Path
from vitrail.errors import DataError
from vitrail.images import open_image, open_raw
from PIL import Image
Image.init()

# Processor time, not wall time: a busy machine must not turn this red.
def peak():  # VmHWM of this process in kB
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])

for name in sys.argv[1:]:
    before, start = peak(), time.process_time()
    try:
        open_image(Path(name))
    except DataError as error:
        print(f"{Path(name).name}|{time.process_time() - start:.4f}|{peak() - before}|{error}")
"""


def test_bombs_are_refused_on_the_header_alone_fast_and_in_little_memory(tmp_path: Path) -> None:
    wanted = bombs()
    for name, data in wanted.items():
        (tmp_path / name).write_bytes(data)
    paths = [str(tmp_path / name) for name in wanted]
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, *paths], capture_output=True, text=True, check=True
    )
    rows = {line.split("|")[0]: line.split("|")[1:] for line in done.stdout.splitlines()}
    assert set(rows) == set(wanted), done.stderr
    for name, (seconds, kilobytes, message) in rows.items():
        assert float(seconds) <= 0.1, name
        assert int(kilobytes) <= 20_000, name
        assert len(message) < 400, name


def test_the_cap_itself_is_allowed_and_can_be_moved() -> None:
    data = png_claiming(MAX_PIXELS // 4000, 4000)
    assert read_header(data).pixels == MAX_PIXELS
    with pytest.raises(DataError, match=r"40x30 pixels \(0.0012 megapixels\); allowed are 0.001199"):
        open_image(encoded(noise(), "PNG"), max_pixels=1199)
    assert open_image(encoded(noise(), "PNG"), max_pixels=1200).size == (40, 30)


@pytest.mark.parametrize("format", FORMATS)
def test_a_truncated_file_is_one_line(format: str) -> None:
    data = encoded(noise(200, 200), format)
    for cut in (0, 1, 5, 11, 20, 40, 200, len(data) // 2, len(data) - 40):
        with pytest.raises(DataError) as caught:
            open_image(data[:cut])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("format", FORMATS)
def test_flipped_bytes_never_crash_or_hang(format: str) -> None:
    data = encoded(noise(24, 24), format)
    random = np.random.default_rng(7)
    messages: list[str] = []
    for _ in range(250):
        broken = bytearray(data)
        for position in random.integers(0, len(data), random.integers(1, 8)):
            broken[position] = random.integers(0, 256)
        start = time.process_time()
        try:
            assert open_image(bytes(broken)).mode == "RGB"
        except VitrailError as error:
            messages.append(str(error))
        assert time.process_time() - start < 1.0
    assert len(messages) > 5
    assert all("\n" not in message and len(message) < 500 for message in messages)


@settings(max_examples=150, deadline=1000)
@given(
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", b"GIF89a"]),
    st.binary(max_size=200),
)
def test_any_bytes_give_a_picture_or_one_line(start: bytes, rest: bytes) -> None:
    message = ""
    try:
        open_image(start + rest)
    except DataError as error:
        message = str(error)
    assert "\n" not in message


@pytest.mark.parametrize("format", ["TIFF", "BMP", "ICO", "PPM", "TGA", "PDF", "EPS"])
def test_other_formats_are_refused_by_content(format: str, tmp_path: Path) -> None:
    path = tmp_path / "innocent.png"
    path.write_bytes(encoded(noise(), format))
    with pytest.raises(DataError, match="allowed are PNG, JPEG, WebP and GIF"):
        open_image(path)


def test_what_is_no_file_is_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for bad in (
        tmp_path / "missing.png",
        tmp_path,
        tmp_path / "pipe",
        Path("/dev/zero"),
        "a\0b",
        "x\n" * 300,
    ):
        with pytest.raises(InputError) as caught:
            open_image(bad)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400


# -- grid ----------------------------------------------------------------------------------------------------


def test_grid_places_every_picture() -> None:
    colours = [(i * 40, 255 - i * 40, 7) for i in range(5)]
    sheet = grid([Image.new("RGB", (10, 10), c) for c in colours], pad=2)
    assert sheet.size == (3 * 12 + 2, 2 * 12 + 2)
    for i, colour in enumerate(colours):
        assert sheet.getpixel((2 + i % 3 * 12 + 5, 2 + i // 3 * 12 + 5)) == colour
    assert sheet.getpixel((2 + 2 * 12 + 5, 2 + 12 + 5)) == (255, 255, 255)


@pytest.mark.parametrize(
    "label", ["a cat sitting in a garden", "一只猫坐在花园里", "", "\n\x07", "W" * 900, "🐈" * 50]
)
def test_labels_draw_something_and_stay_in_their_cell(label: str) -> None:
    pictures = [Image.new("RGB", (128, 128), "white")] * 2
    sheet = np.asarray(grid(pictures, columns=2, labels=[label, ""], pad=4))
    ink = np.argwhere((sheet < 128).all(axis=2))
    if label.strip() and label.isprintable():
        assert len(ink) > 0
    if len(ink):
        assert ink[:, 0].min() >= 132
        assert ink[:, 1].max() < 4 + 128 + 4


def test_grid_refuses_nonsense() -> None:
    with pytest.raises(InputError, match="no picture"):
        grid([])
    with pytest.raises(InputError, match="1 labels were given for 2"):
        grid([noise()] * 2, labels=["a"])
    with pytest.raises(InputError, match="columns 0"):
        grid([noise()], columns=0)
    with pytest.raises(InputError, match="too large"):
        grid([Image.new("RGB", (4000, 4000))] * 4)
