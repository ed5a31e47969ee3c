"""Labels that can be read: in the person's words where a font has them, else in English, never as boxes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from vitrail import fonts
from vitrail.data import font_source
from vitrail.data.packages import Package
from vitrail.errors import DataError, InputError
from vitrail.images import grid


@pytest.fixture(autouse=True)
def _look_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("VITRAIL_DATA", str(tmp_path))
    fonts.forget_fonts()
    yield
    fonts.forget_fonts()


@pytest.fixture
def without_fonts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine on which no font has Chinese."""
    monkeypatch.setattr(fonts, "USUAL_NAMES", ("no-such-font-anywhere.ttf",))
    monkeypatch.setattr(fonts, "LATIN_NAMES", ())
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))


def same(*sheets: Image.Image) -> bool:
    return all(np.array_equal(np.asarray(sheets[0]), np.asarray(sheet)) for sheet in sheets[1:])


PICTURES = [Image.new("RGB", (128, 128), "white")] * 2


@pytest.mark.usefixtures("without_fonts")
def test_without_a_chinese_font_the_substitute_is_written() -> None:
    assert fonts.chinese_font_file() is None
    assert not fonts.can_draw("一只猫")
    assert fonts.can_draw("a cat, 50 % (noto)")
    labels = ["一只猫坐在花园里 (noto)", "a dog"]
    sheet = grid(PICTURES, labels=labels, substitutes=["a cat sitting in a garden (noto)", "never shown"])
    assert same(sheet, grid(PICTURES, labels=["a cat sitting in a garden (noto)", "a dog"]))


@pytest.mark.usefixtures("without_fonts")
def test_without_a_substitute_what_can_be_drawn_is_kept() -> None:
    assert same(grid(PICTURES, labels=["夜景", "猫 (noto)"]), grid(PICTURES, labels=["#1", "(noto)"]))
    assert same(
        grid(PICTURES, labels=["夜景", "猫"], substitutes=["", "犬"]), grid(PICTURES, labels=["#1", "#2"])
    )


@pytest.mark.usefixtures("without_fonts")
def test_accents_are_dropped_where_no_font_has_them() -> None:
    assert not fonts.can_draw("château")
    assert same(grid(PICTURES, labels=["un château", "Ｃａｔ"]), grid(PICTURES, labels=["un chateau", "Cat"]))


def test_substitutes_are_one_a_picture() -> None:
    with pytest.raises(InputError, match="1 substitutes for 2"):
        grid(PICTURES, labels=["a", "b"], substitutes=["a"])


@pytest.mark.usefixtures("without_fonts")
def test_a_font_that_lacks_chinese_is_passed_over_and_a_damaged_one_too(tmp_path: Path) -> None:
    fonts.font_folder().mkdir()
    (fonts.font_folder() / "broken.ttf").write_bytes(b"no font")
    assert fonts.chinese_font_file() is None


@pytest.mark.usefixtures("without_fonts")
def test_the_persons_own_font_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any real font will do here once Chinese letters are no longer asked of it."""
    latin = next(Path(PIL.__file__).parent.parent.glob("matplotlib/mpl-data/fonts/ttf/DejaVuSans.ttf"), None)
    if latin is None:
        pytest.skip("no font file at hand")
    fonts.font_folder().mkdir()
    assert not fonts.can_draw("⨀")  # Pillow's own has no circled dot operator, DejaVu has
    shutil.copy(latin, fonts.font_folder() / "own.ttf")
    monkeypatch.setattr(fonts, "_SAMPLE", "⨀")
    fonts.forget_fonts()
    assert fonts.chinese_font_file() == str(fonts.font_folder() / "own.ttf")
    assert fonts.can_draw("⨀ a cat")
    assert not fonts.can_draw("⨀ 猫")
    assert not same(grid(PICTURES, labels=["⨀", ""]), grid(PICTURES, labels=["#1", ""]))


def test_the_font_of_the_pinned_package_is_laid_where_labels_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib
    import io
    import tarfile

    def archive(*names: str) -> Path:
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w:gz") as tar:
            for name in names:
                member = tarfile.TarInfo(name)
                member.size = 4
                tar.addfile(member, io.BytesIO(b"font"))
        digest = hashlib.sha256(data.getvalue()).hexdigest()
        package = Package(font_source.FONT_PACKAGE.name, "5.3.0", digest, "OFL-1.1", "x")
        monkeypatch.setattr(font_source, "FONT_PACKAGE", package)
        cache = tmp_path / "packages"
        cache.mkdir(exist_ok=True)
        (cache / package.filename).write_bytes(data.getvalue())
        return cache

    with pytest.raises(DataError, match="lacks the font"):
        font_source.build_font(cache=archive("package/LICENSE"))
    path = font_source.build_font(cache=archive(font_source._FILE, font_source._LICENCE, "package/other"))
    assert path.parent == fonts.font_folder()
    assert sorted(entry.name for entry in path.parent.iterdir()) == [
        "NotoSansSC-LICENSE.txt",
        "NotoSansSC-Regular.woff2",
    ]
