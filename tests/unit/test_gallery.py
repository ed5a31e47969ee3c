"""The gallery: what is put in comes out, is found by its words, and survives a crash at every point."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vitrail.errors import InputError, StorageError, VitrailError
from vitrail.provenance import metadata
from vitrail.schema import MAX_SEED, ImageRecord, SamplingDefaults, TextToImageRequest
from vitrail.store import gallery_check
from vitrail.store.gallery import Gallery, Picture, picture_id
from vitrail.store.gallery_tables import words_of

HERE = Path(__file__).parent


def record(prompt: str = "a cat", seed: int = 7, model: str = "tiny", **values: Any) -> ImageRecord:
    understood = values.pop("understood_as", None)
    request = TextToImageRequest(prompt=prompt, seed=seed, **values).resolve(SamplingDefaults())
    return ImageRecord(
        request=request,
        seed=seed,
        model_name=model,
        model_sha256="ab" * 32,
        created=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        understood_as=understood,
    )


def encoded(about: ImageRecord, side: int = 24) -> bytes:
    picture = Image.new("RGB", (side, side + 8), (about.seed % 256, 90, 20))
    return metadata.encode(picture, "png", about)


def read_record(data: bytes) -> ImageRecord | None:
    return metadata.read(data).record


def add(gallery: Gallery, prompt: str = "a cat", job: str = "job", index: int = 0, **values: Any) -> Picture:
    about = record(prompt, **values)
    return gallery.add(encoded(about), ".png", about, id=picture_id(job, index), job=job)


def prompts(gallery: Gallery, query: str | None = None, **values: Any) -> list[str]:
    return [picture.prompt for picture in gallery.page(query=query, **values).pictures]


@pytest.fixture(params=["sqlite", "postgresql"])
def gallery(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Gallery]:
    url = None if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    opened = Gallery(tmp_path / "pictures here", url)
    yield opened
    opened.close()


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Gallery]:
    opened = Gallery(tmp_path / "gallery")
    yield opened
    opened.close()


def file_of(gallery: Gallery, picture: Picture) -> Path:
    assert gallery.folder.local is not None
    return gallery.folder.local / gallery_check.file_name(picture.id, picture.suffix)


# -- in and out ----------------------------------------------------------------------------------------------


def test_round_trip(gallery: Gallery) -> None:
    about = record("一只猫坐在花园里", seed=99, style="noto", understood_as="a cat sitting in a garden")
    data = encoded(about)
    added = gallery.add(data, ".png", about, id=picture_id("j", 0), job="j")
    assert added == gallery.get(added.id)
    assert gallery.open(added.id) == data
    assert added.record == about
    shown = (added.job, added.kind, added.model, added.style, added.prompt, added.seed, added.suffix)
    assert shown == ("j", "text_to_image", "tiny", "noto", "一只猫坐在花园里", 99, ".png")
    assert (added.width, added.height, added.bytes) == (24, 32, len(data))
    assert added.sha256 == hashlib.sha256(data).hexdigest()
    assert added.created == about.created
    assert added.media_type == "image/png"
    assert not added.favourite
    assert not added.lost
    assert gallery.count() == 1
    assert read_record(gallery.open(added.id)) == about


def test_the_largest_seed(gallery: Gallery) -> None:
    assert add(gallery, seed=MAX_SEED).seed == MAX_SEED


def test_an_id_says_nothing_and_comes_again() -> None:
    assert picture_id("job", 1) == picture_id("job", 1) != picture_id("job", 2)
    assert len({picture_id(job, i) for job in ("a", "b", "a 1") for i in range(20)}) == 60


def test_adding_twice_keeps_the_first(gallery: Gallery) -> None:
    first = add(gallery, "the first")
    again = add(gallery, "the second")
    assert again == first
    assert gallery.count() == 1
    assert hashlib.sha256(gallery.open(first.id)).hexdigest() == first.sha256


def test_adding_at_once_keeps_one_whole(gallery: Gallery) -> None:
    """Eight at once with one id, and different bytes: the file is the one that the record describes."""
    barrier = threading.Barrier(8)

    def work(number: int) -> None:
        barrier.wait()
        for index in range(4):
            add(gallery, f"by {number}", index=index)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert gallery.count() == 4
    for picture in gallery.page().pictures:
        assert hashlib.sha256(gallery.open(picture.id)).hexdigest() == picture.sha256
    assert gallery.check().whole


@pytest.mark.parametrize("id", ["", "../../etc/passwd", "a" * 7, "A" * 20, "a" * 65, "aaaaaaaa\n", "\0" * 9])
def test_only_ids_of_our_own(local: Gallery, id: str) -> None:
    about = record()
    with pytest.raises(InputError, match="letters and digits"):
        local.add(encoded(about), ".png", about, id=id, job="j")
    for look in (local.get, local.open, local.delete, local.thumbnail):
        with pytest.raises(InputError, match="no such picture"):
            look(id)
    with pytest.raises(InputError, match="no such picture"):
        local.set_favourite(id, True)
    with pytest.raises(InputError, match="begin again"):
        local.page(before=id)
    with pytest.raises(InputError, match=r"\.png"):
        local.add(encoded(about), ".exe", about, id="a" * 8, job="j")


# -- finding -------------------------------------------------------------------------------------------------


def test_search_in_both_languages(gallery: Gallery) -> None:
    for index, (prompt, understood) in enumerate(
        [
            ("a red cat in the garden", None),
            ("Two CATS, sleeping", None),
            ("一只红色的猫坐在花园里", "a red cat sitting in a garden"),
            ("花园里的狗", "a dog in the garden"),
            ("naïve café", None),
            ("园花", None),
        ]
    ):
        add(gallery, prompt, index=index, understood_as=understood)
    both = ["一只红色的猫坐在花园里", "a red cat in the garden"]
    assert prompts(gallery, "red cat") == both
    assert prompts(gallery, "cat red GARDEN") == both
    assert prompts(gallery, "cats") == ["Two CATS, sleeping"]
    assert prompts(gallery, "ca gard") == both
    assert prompts(gallery, "sleep") == ["Two CATS, sleeping"]
    assert prompts(gallery, "猫") == ["一只红色的猫坐在花园里"]
    assert prompts(gallery, "花园") == ["花园里的狗", "一只红色的猫坐在花园里"]
    assert prompts(gallery, "花园里") == ["花园里的狗", "一只红色的猫坐在花园里"]
    assert prompts(gallery, "猫 garden") == ["一只红色的猫坐在花园里"]
    assert prompts(gallery, "猫花园") == []
    assert prompts(gallery, "NAÏVE") == ["naïve café"]
    assert prompts(gallery, "elephant") == []
    assert prompts(gallery, "  ") == prompts(gallery)
    assert prompts(gallery, "!?") == []


@pytest.mark.parametrize(
    "query",
    [
        '"',
        "cat*",
        "a AND b",
        "NOT",
        "(",
        "cat & dog | !",
        "words:cat",
        "-cat",
        "'; --",
        "\0",
        "\ud800",
        "cat\\",
        ":*",
    ],
)
def test_no_query_breaks_the_search(gallery: Gallery, query: str) -> None:
    add(gallery, "cat")
    assert prompts(gallery, query) in ([], ["cat"])
    assert prompts(gallery, model=query) == []
    assert gallery.count() == 1


def test_words_are_cut_the_same_way_everywhere() -> None:
    assert words_of("A cat") == "a cat"
    assert words_of("猫坐着") == "猫 坐 着 猫坐 坐着"
    assert words_of("ＡＢＣ") == "abc"
    assert words_of("cat猫dog") == "cat 猫 dog"
    assert words_of("!!") == ""
    assert len(words_of(" ".join(str(i) for i in range(9000))).split()) == 4000


def test_paging_meets_every_picture_once(gallery: Gallery) -> None:
    for index in range(23):
        add(gallery, f"cat {index}" if index % 2 else f"dog {index}", index=index)
    for query, wanted in ((None, range(22, -1, -1)), ("cat", range(21, 0, -2))):
        seen: list[str] = []
        before = None
        while True:
            page = gallery.page(query=query, limit=5, before=before)
            seen += [picture.prompt.split()[1] for picture in page.pictures]
            if page.next is None:
                break
            assert page.next == page.pictures[-1].id
            before = page.next
        assert seen == [str(number) for number in wanted]
    # What comes in between two looks moves nothing.
    first = gallery.page(limit=5)
    add(gallery, "new", index=99)
    second = gallery.page(limit=5, before=first.next)
    assert [picture.prompt for picture in second.pictures] == [
        "cat 17",
        "dog 16",
        "cat 15",
        "dog 14",
        "cat 13",
    ]


@pytest.mark.parametrize("limit", [0, -1, 501, 10**30])
def test_page_limits(local: Gallery, limit: int) -> None:
    with pytest.raises(InputError, match="1 to 500"):
        local.page(limit=limit)


def test_filters(gallery: Gallery) -> None:
    a = add(gallery, "one", index=0, style="noto")
    add(gallery, "two", index=1, model="other")
    add(gallery, "three", job="second", index=0, style="noto")
    assert prompts(gallery, style="noto") == ["three", "one"]
    assert prompts(gallery, model="other") == ["two"]
    assert prompts(gallery, job="second") == ["three"]
    assert prompts(gallery, kind="text_to_image", style="noto", job="job") == ["one"]
    assert prompts(gallery, kind="vary") == []
    assert prompts(gallery, favourite=True) == []
    assert gallery.set_favourite(a.id, True).favourite
    assert prompts(gallery, favourite=True) == ["one"]
    assert prompts(gallery, "one", favourite=True) == ["one"]
    assert prompts(gallery, style="noto", favourite=True) == ["one"]
    assert prompts(gallery, model="other", favourite=True) == []
    assert prompts(gallery, "!", style="noto", favourite=True) == []
    assert prompts(gallery, favourite=False) == ["three", "two"]
    assert not gallery.set_favourite(a.id, False).favourite


def test_delete_leaves_nothing(gallery: Gallery) -> None:
    kept, gone = add(gallery, "cat kept", index=0), add(gallery, "cat gone", index=1)
    gallery.thumbnail(gone.id)
    gallery.thumbnail(gone.id, 64)
    gallery.delete(gone.id)
    assert prompts(gallery) == prompts(gallery, "cat") == ["cat kept"]
    with pytest.raises(InputError, match="no such picture"):
        gallery.thumbnail(gone.id)
    assert gallery.folder.local is not None
    assert [path for path in gallery.folder.local.rglob("*") if gone.id in path.name] == []
    assert gallery.check().whole
    assert gallery.open(kept.id)


# -- thumbnails ----------------------------------------------------------------------------------------------


def test_thumbnails(local: Gallery) -> None:
    about = record()
    wide = Image.linear_gradient("L").resize((600, 300)).convert("RGB")
    picture = local.add(metadata.encode(wide, "png", about), ".png", about, id="a" * 16, job="j")
    with Image.open(io.BytesIO(local.thumbnail(picture.id, 200))) as small:
        assert (small.format, small.size) == ("WEBP", (200, 100))
        expected = wide.resize((200, 100), Image.Resampling.LANCZOS).tobytes()
        assert max(abs(a - b) for a, b in zip(small.convert("RGB").tobytes(), expected, strict=True)) <= 8
    kept = local.thumbnail(picture.id, 200)
    file_of(local, picture).unlink()
    assert local.thumbnail(picture.id, 200) == kept  # it was kept
    with pytest.raises(StorageError, match="gone"):
        local.thumbnail(picture.id, 100)
    for side in (15, 1025):
        with pytest.raises(InputError, match="16 to 1024"):
            local.thumbnail(picture.id, side)


@pytest.mark.parametrize("keep", [10, 60, 100])
def test_a_damaged_file_has_no_thumbnail(local: Gallery, keep: int) -> None:
    picture = add(local)
    path = file_of(local, picture)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StorageError, match="damaged"):
        local.thumbnail(picture.id)


# -- crashes and repair --------------------------------------------------------------------------------------

CRASH = """
import os, sys
from test_gallery import *
gallery = Gallery(sys.argv[1], sys.argv[2] or None)
add(gallery, "whole", index=0)
write = gallery.folder.write
def die(name, data):
    if sys.argv[3] == "after":
        write(name, data)
    os.kill(os.getpid(), 9)
gallery.folder.write = die
add(gallery, "cut off", index=1)
"""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_between_file_and_record(gallery: Gallery, moment: str) -> None:
    """A crash leaves no record without a file; what it left can be made again, or recorded by a repair."""
    url = "" if gallery.database.sqlite else postgres_address(gallery)
    killed = subprocess.run(
        [sys.executable, "-c", CRASH, str(gallery.folder.local), url, moment],
        env=os.environ | {"PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"},
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -9, killed.stderr
    assert prompts(gallery) == ["whole"]
    report = gallery.check()
    left = [picture_id("job", 1)] if moment == "after" else []
    assert (report.unknown, report.missing, report.damaged, report.whole) == (left, [], [], not left)
    report = gallery.check(repair=True, read_record=read_record)
    assert report.restored == left
    assert report.whole
    assert gallery.check().whole
    if left:
        assert gallery.get(left[0]).record == record("cut off")
        assert prompts(gallery, "cut") == ["cut off"]
    assert add(gallery, "cut off", index=1).record == record("cut off")


def postgres_address(gallery: Gallery) -> str:
    return gallery.database._engine.url.render_as_string(hide_password=False)


def test_check_and_repair_both_ways(gallery: Gallery) -> None:
    pictures = [add(gallery, f"cat {index}", index=index, seed=index) for index in range(6)]
    gallery.set_favourite(pictures[1].id, True)
    assert gallery.check() == gallery_check.Report(pictures=6)
    file_of(gallery, pictures[1]).unlink()
    content = bytearray(file_of(gallery, pictures[2]).read_bytes())
    content[len(content) // 2] ^= 1
    file_of(gallery, pictures[2]).write_bytes(content)
    assert gallery.folder.local is not None
    (gallery.folder.local / "pictures" / "notes.txt").write_text("mine")
    stray = record("a stray", seed=77)
    gallery.folder.write(gallery_check.file_name("ff" * 16, ".png"), encoded(stray))
    gallery.folder.write(gallery_check.file_name("ee" * 16, ".png"), b"not a picture")
    told: list[tuple[int, int]] = []
    report = gallery.check(progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (6, 6)
    assert report.missing == [pictures[1].id]
    assert report.damaged == [pictures[2].id]
    assert sorted(report.unknown) == ["ee" * 16, "ff" * 16, "pictures/notes.txt"]
    assert not report.whole
    assert gallery.count() == 6  # a look changes nothing
    report = gallery.check(repair=True, read_record=read_record)
    assert (report.restored, report.marked) == (["ff" * 16], [pictures[1].id])
    assert gallery.get("ff" * 16).record == stray
    assert gallery.get(pictures[1].id).lost
    assert (gallery.folder.local / "pictures" / "notes.txt").read_text() == "mine"
    assert prompts(gallery) == ["a stray", "cat 5", "cat 4", "cat 3", "cat 2", "cat 0"]
    assert prompts(gallery, lost=True) == ["cat 1"]
    assert gallery.count() == 6
    # Made again, it is where it was, with its mark.
    again = add(gallery, "cat 1", index=1, seed=1)
    assert (again.lost, again.favourite) == (False, True)
    assert prompts(gallery, "cat") == ["cat 5", "cat 4", "cat 3", "cat 2", "cat 1", "cat 0"]
    left = gallery.check(repair=True, read_record=read_record)
    assert (left.missing, left.damaged) == ([], [pictures[2].id])


def test_a_lost_file_that_comes_back_is_shown_again(local: Gallery) -> None:
    picture = add(local)
    path = file_of(local, picture)
    path.rename(path.with_name("aside"))
    local.check(repair=True)
    assert local.get(picture.id).lost
    path.with_name("aside").rename(path)
    assert local.check(repair=True).whole
    assert not local.get(picture.id).lost


def test_repair_beside_others_at_work(gallery: Gallery) -> None:
    """Repairs while pictures come and go lose none of them and record none twice."""
    stop = threading.Event()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for index in range(2, 400):
                add(gallery, f"cat {index}", index=index)
                if index % 2:
                    gallery.delete(picture_id("job", index - 1))
                if stop.is_set():
                    break
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    reports = [gallery.check(repair=True, read_record=read_record) for _ in range(6)]
    stop.set()
    thread.join()
    assert errors == []
    assert all(report.damaged == [] for report in reports)
    assert gallery.check(repair=True, read_record=read_record).whole
    assert all(not picture.lost for picture in gallery.page(limit=500).pictures)


def test_what_comes_and_goes_during_a_check_is_not_reported(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(3):
        add(gallery, index=index)
    read, names = gallery.folder.read, gallery.folder.names

    def delete_then_read(name: str) -> bytes | None:
        if gallery.count() == 3:  # the records have been read, no file yet
            gallery.delete(picture_id("job", 2))
        return read(name)

    def add_then_list(below: str) -> Iterator[str]:
        if below == "pictures":
            add(gallery, index=9)
        return names(below)

    monkeypatch.setattr(gallery.folder, "read", delete_then_read)
    monkeypatch.setattr(gallery.folder, "names", add_then_list)
    report = gallery.check(repair=True, read_record=read_record)
    assert (report.missing, report.unknown, report.whole) == ([], [], True)
    assert gallery.count() == 3


def test_what_a_killed_process_left_is_tidied(local: Gallery) -> None:
    picture = add(local)
    folder = file_of(local, picture).parent
    stale = folder / f".x.png.vitrail-{2**22 + 1}-0123456789ab.part"
    fresh = folder / f".y.png.vitrail-{2**22 + 1}-0123456789ab.part"
    for path in (stale, fresh):
        path.write_bytes(b"half")
    os.utime(stale, (1e9, 1e9))
    assert local.check(repair=True).whole
    assert not stale.exists()
    assert fresh.exists()  # a process of another machine may be writing it


# -- where the disk is somewhere else ------------------------------------------------------------------------


def test_an_object_store(tmp_path: Path) -> None:
    """The same through fsspec: its store in memory stands for one of S3's kind."""
    pytest.importorskip("fsspec")
    place = f"memory://bucket-{os.getpid()}/pictures"
    gallery = Gallery(place, f"sqlite:///{tmp_path}/records.sqlite")
    pictures = [add(gallery, f"cat {index}", index=index, seed=index) for index in range(3)]
    assert read_record(gallery.open(pictures[0].id)) == pictures[0].record
    assert gallery.thumbnail(pictures[1].id) == gallery.thumbnail(pictures[1].id)
    assert gallery.folder.size(gallery_check.file_name(pictures[0].id, ".png")) == pictures[0].bytes
    assert gallery.folder.size("pictures/nothing.png") is None
    assert gallery.check().whole
    gallery.folder.remove(gallery_check.file_name(pictures[0].id, ".png"))
    gallery.folder.remove(gallery_check.file_name(pictures[0].id, ".png"))
    gallery.folder.write(gallery_check.file_name("ff" * 16, ".png"), encoded(record("stray")))
    report = gallery.check(repair=True, read_record=read_record)
    assert (report.missing, report.restored) == ([pictures[0].id], ["ff" * 16])
    with pytest.raises(StorageError, match="gone"):
        gallery.open(pictures[0].id)
    gallery.delete(pictures[1].id)
    assert pictures[1].id not in " ".join(gallery.folder.names("pictures"))
    assert list(gallery.folder.names("thumbs")) == []
    gallery.close()


def test_an_object_store_needs_a_database() -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(InputError, match="--database"):
        Gallery("memory://nowhere")


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("nonsense://x", "cannot be opened"),
        ("s3://x/y", r"^s3fs is not installed; run: pip install 'vitrail\[s3\]'$"),
        ("gs://x/y", "cannot be opened: .*gcsfs"),
    ],
)
def test_a_store_that_cannot_be_opened(
    place: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fsspec")
    for client in ("s3fs", "gcsfs"):
        monkeypatch.setitem(sys.modules, client, None)  # as where it is not installed
    with pytest.raises(VitrailError, match=said) as caught:
        Gallery(place, f"sqlite:///{tmp_path}/records.sqlite")
    assert "\n" not in str(caught.value)


def test_the_extra_that_a_missing_client_names_brings_it() -> None:
    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert any(one.startswith("s3fs") for one in extras["optional-dependencies"]["s3"])
