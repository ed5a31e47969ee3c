"""The folder of the pictures on a disk that fills up, is read only or has no inodes, or is deleted."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import light_hands
import pytest

pytest.importorskip("dbos", reason="needs the extra server")
sys.path.insert(0, str(Path(__file__).parent.parent / "surface"))
from http_server import Served

WAIT = 60.0
OPTIONS = "size=2m,nr_inodes=60"


def mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("only root can mount a small file system")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", OPTIONS, "none", str(folder))
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def server(disk: Path, fast_folder: Path) -> Iterator[Served]:
    settings = {"pictures": str(disk / "art"), "workers": 1, "hands": light_hands.COMMAND, "batch": 1}
    with Served(fast_folder, engine=settings) as served:
        yield served


def draw(server: Served, seed: int) -> dict[str, object]:
    asked = {"prompt": "draw", "seed": seed, "steps": 2}
    return server.wait(server.http.post("/api/jobs", json=asked).json()["id"], WAIT)


def fill(disk: Path, how: str) -> list[Path]:
    """Make it refuse every new file; what is returned is to be removed."""
    made: list[Path] = []
    if how == "full":
        made.append(disk / "ballast")
        with contextlib.suppress(OSError), open(made[0], "wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
    elif how == "inodes":
        with contextlib.suppress(OSError):
            for number in range(1000):
                (disk / f"ballast{number}").touch()
                made.append(disk / f"ballast{number}")
    else:
        mount("-o", "remount,ro", str(disk))
    return made


def empty(disk: Path, how: str, made: list[Path]) -> None:
    for path in made:
        path.unlink()
    if how == "read only":
        mount("-o", f"remount,rw,{OPTIONS}", str(disk))


@pytest.mark.parametrize("how", ["full", "inodes", "read only"])
def test_a_disk_that_takes_no_pictures_fails_that_job_and_shows_the_others(
    server: Served, disk: Path, how: str
) -> None:
    first = draw(server, 1)["pictures"][0]["id"]  # type: ignore[index]
    made = fill(disk, how)
    failed = draw(server, 2)
    assert failed["state"] == "failed"
    error = failed["error"]
    assert isinstance(error, dict)
    assert error["code"] == "StorageError"
    assert "\n" not in error["message"]
    assert str(disk) not in error["message"]
    for path in (f"/api/pictures/{first}", f"/api/pictures/{first}/file", "/api/pictures", "/api/jobs"):
        assert server.http.get(path).status_code == 200, path
    # One that was never asked for before is made, and only not kept.
    thumbnail = server.http.get(f"/api/pictures/{first}/thumbnail")
    assert thumbnail.status_code == 200
    assert thumbnail.content[8:12] == b"WEBP"
    empty(disk, how, made)
    assert draw(server, 3)["state"] == "succeeded"
    report = server.gallery.check()
    assert (report.whole, report.pictures) == (True, 2)


def test_a_deleted_folder_is_made_again_and_what_was_in_it_is_said_to_be_gone(
    server: Served, disk: Path
) -> None:
    first = draw(server, 1)["pictures"][0]["id"]  # type: ignore[index]
    shutil.rmtree(disk / "art")
    for what in ("file", "thumbnail"):
        answer = server.http.get(f"/api/pictures/{first}/{what}")
        assert answer.status_code == 404
        assert "vitrail gallery check --repair" in answer.json()["error"]["message"]
    assert draw(server, 2)["state"] == "succeeded"
    assert not server.gallery.check().whole
    assert server.gallery.check(repair=True).whole
    shown = server.http.get("/api/pictures").json()["pictures"]
    assert [one["seed"] for one in shown] == [2]
    assert (
        server.http.delete(f"/api/pictures/{first}", headers={"Content-Type": "application/json"}).status_code
        == 200
    )
