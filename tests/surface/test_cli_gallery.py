"""``vitrail gallery`` from the command line, on a gallery of a few pictures."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from PIL import Image

from vitrail.cli import main
from vitrail.provenance import metadata
from vitrail.schema import ImageRecord, SamplingDefaults, TextToImageRequest
from vitrail.store.gallery import Gallery, Picture, picture_id

PROMPTS = ("a red cat", "一只猫坐在花园里", "a dog at night\nand a cat")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    return tmp_path / "home"


@pytest.fixture
def pictures(home: Path) -> list[Picture]:
    gallery = Gallery(home)
    made = []
    for index, prompt in enumerate(PROMPTS):
        style = "noto" if index == 0 else None
        request = TextToImageRequest(prompt=prompt, seed=index, style=style).resolve(SamplingDefaults())
        record = ImageRecord(
            request=request,
            seed=index,
            model_name="tiny" if index < 2 else "other",
            model_sha256="ab" * 32,
            created=datetime(2026, 1, 2, 3, 4, index, tzinfo=UTC),
            understood_as="a cat sitting in a garden" if index == 1 else None,
            hints=("it draws no gardens",) if index == 1 else (),
        )
        data = metadata.encode(Image.new("RGB", (16, 24), (index, 0, 0)), "png", record)
        made.append(gallery.add(data, ".png", record, id=picture_id("job", index), job="job"))
    gallery.set_favourite(made[1].id, True)
    gallery.close()
    return made


def run(
    capsys: pytest.CaptureFixture[str], home: Path, *arguments: str, code: int = 0
) -> tuple[list[str], str]:
    assert main(["gallery", *arguments, "--folder", str(home)]) == code
    written = capsys.readouterr()
    return written.out.splitlines(), written.err


def ids(lines: list[str]) -> list[str]:
    return [line.split()[0] for line in lines]


def test_search(capsys: pytest.CaptureFixture[str], home: Path, pictures: list[Picture]) -> None:
    first, second, third = (picture.id for picture in pictures)
    assert ids(run(capsys, home, "search")[0]) == [third, second, first]
    assert ids(run(capsys, home, "search", "cat")[0]) == [third, second, first]
    assert ids(run(capsys, home, "search", "red", "cat")[0]) == [first]
    assert ids(run(capsys, home, "search", "花园")[0]) == [second]
    assert ids(run(capsys, home, "search", "--model", "other")[0]) == [third]
    assert ids(run(capsys, home, "search", "--style", "noto")[0]) == [first]
    assert ids(run(capsys, home, "search", "--favourites")[0]) == [second]
    assert ids(run(capsys, home, "search", "--limit", "2")[0]) == [third, second]
    assert run(capsys, home, "search", "elephant")[0] == []
    assert run(capsys, home, "search", "--lost")[0] == []
    line = run(capsys, home, "search", "dog")[0][0]
    assert "other" in line
    assert "a dog at night and a cat" in line
    rows = [json.loads(line) for line in run(capsys, home, "search", "--json")[0]]
    assert [row["id"] for row in rows] == [third, second, first]
    assert rows[1]["prompt"] == PROMPTS[1]
    assert rows[1]["favourite"] is True


def test_show(capsys: pytest.CaptureFixture[str], home: Path, pictures: list[Picture]) -> None:
    text = "\n".join(run(capsys, home, "show", pictures[1].id)[0])
    for part in (PROMPTS[1], "a cat sitting in a garden", "16x24", "tiny", pictures[1].sha256, "no gardens"):
        assert part in text
    chinese = "\n".join(run(capsys, home, "show", pictures[1].id, "--lang", "zh")[0])
    assert "提示词" in chinese
    (line,) = run(capsys, home, "show", pictures[1].id, "--json")[0]
    assert ImageRecord.from_json(json.dumps(json.loads(line)["record"])) == pictures[1].record
    assert "no such picture" in run(capsys, home, "show", "f" * 32, code=2)[1]
    assert "id is missing" in run(capsys, home, "show", code=2)[1]


def test_check_and_repair(capsys: pytest.CaptureFixture[str], home: Path, pictures: list[Picture]) -> None:
    lines, _ = run(capsys, home, "check")
    assert lines == ["3 pictures checked; nothing is wrong"]
    gone, damaged, stray = (home / "pictures" / picture.id[:2] / f"{picture.id}.png" for picture in pictures)
    gone.unlink()
    damaged.write_bytes(damaged.read_bytes()[:-7] + b"1234567")
    other = "ff" * 16
    (home / "pictures" / "ff").mkdir(exist_ok=True)
    (home / "pictures" / "ff" / f"{other}.png").write_bytes(stray.read_bytes())
    lines, _ = run(capsys, home, "check", code=1)
    assert f"file is gone: {pictures[0].id}" in lines
    assert f"file is damaged: {pictures[1].id}" in lines
    assert f"file without a record: {other}" in lines
    assert "vitrail gallery repair" in lines[-1]
    found = json.loads(run(capsys, home, "check", "--json", code=1)[0][0])
    assert found["missing"] == [pictures[0].id]
    lines, _ = run(capsys, home, "repair", code=1)  # what is damaged stays so
    assert f"recorded again: {other}" in lines
    assert f"marked as lost: {pictures[0].id}" in lines
    assert ids(run(capsys, home, "search", "--lost")[0]) == [pictures[0].id]
    assert ids(run(capsys, home, "search")[0]) == [other, pictures[2].id, pictures[1].id]
    lines, _ = run(capsys, home, "check", "--lang", "zh", code=1)
    assert lines[-1].startswith("已核对 4 张图片")


def test_export(
    capsys: pytest.CaptureFixture[str], home: Path, pictures: list[Picture], tmp_path: Path
) -> None:
    target = tmp_path / "out"
    lines, _ = run(capsys, home, "export", "cat", "-o", str(target))
    assert len(lines) == 3
    for line, picture in zip(lines, reversed(pictures), strict=True):
        path = Path(line)
        assert path.parent == target
        assert hashlib.sha256(path.read_bytes()).hexdigest() == picture.sha256
        assert metadata.read(path.read_bytes()).record == picture.record
    assert run(capsys, home, "export", "cat", "-o", str(target))[0] == []  # they are there
    (home / "pictures" / pictures[0].id[:2] / f"{pictures[0].id}.png").unlink()
    lines, err = run(capsys, home, "export", "-o", str(tmp_path / "more"), code=1)
    assert len(lines) == 2
    assert "left out" in err
    assert "-o FOLDER" in run(capsys, home, "export", code=2)[1]


def test_where_there_is_no_gallery(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    for name in ("search", "check", "repair"):
        _, err = run(capsys, home, name, code=2)
        assert "there is no gallery in" in err
    assert not home.exists()  # a slip of the pen makes none
    assert "没有图库" in run(capsys, home, "search", "--lang", "zh", code=2)[1]


def test_records_in_postgresql(capsys: pytest.CaptureFixture[str], home: Path, postgres_url: str) -> None:
    Gallery(home, postgres_url).close()
    assert run(capsys, home, "check", "--database", postgres_url)[0] == [
        "0 pictures checked; nothing is wrong"
    ]
    assert "not supported" in run(capsys, home, "check", "--database", "mysql://x@y/z", code=2)[1]
