"""The page's own routes over the guarded server: folders, trainings, reports, codes, models, settings."""

from __future__ import annotations

import io
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from studio_server import serve_studio

from vitrail.serving.long_work import STOPPED_MODEL
from vitrail.store import artifacts
from vitrail.studio.looking import Look
from vitrail.studio.runs import MAX_POINTS

JSON = {"content-type": "application/json"}
BYTES = {"content-type": "application/octet-stream"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("studio")


@pytest.fixture(scope="module")
def served(home: Path) -> Iterator[Any]:
    """No worker: these routes need none."""
    (home / "allowed" / "cats").mkdir(parents=True)
    (home / "outside").mkdir()
    with serve_studio(home, workers=0, roots=(home / "allowed",)) as server:
        yield server


def _png(colour: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (80, 80), colour).save(out, "PNG")
    return out.getvalue()


def test_only_folders_below_the_roots_may_be_named(served: Any, home: Path) -> None:
    (home / "allowed" / "away").symlink_to(home / "outside")
    good = served.http.post("/api/studio/folders/path", json={"folder": f"{home}/allowed/cats"})
    assert good.json() == {"path": str(home / "allowed" / "cats")}
    refused = [
        f"{home}/outside",
        f"{home}/allowed/../outside",
        f"{home}/allowed/away",
        f"{home}/nothing",
        f"{home}/allowed/nothing",
        "/",
        "~",
        "..",
        "a\0b",
    ]
    for name in refused:
        for route in ("folders/path", "inspections"):
            answer = served.http.post(f"/api/studio/{route}", json={"folder": name})
            assert answer.status_code in (400, 422), name
    lines = {
        served.http.post("/api/studio/folders/path", json={"folder": name}).json()["error"]["message"]
        for name in (f"{home}/outside", f"{home}/nothing")
    }
    assert len(lines) == 1  # what is there and what is not read alike


def test_uploads_get_names_of_the_servers_own_and_are_looked_through(served: Any, home: Path) -> None:
    folder = served.http.post("/api/studio/folders", json={"name": "../../my cats"}).json()["id"]

    def add(name: str, data: bytes) -> Any:
        place = f"/api/studio/folders/{folder}/files"
        return served.http.post(place, params={"name": name}, content=data, headers=BYTES)

    before = {path for path in home.rglob("*") if "uploads" not in path.parts}
    for i, name in enumerate(("a/one.png", "../../../two.png", "..\\three.png", "/etc/four.png")):
        assert add(name, _png(("red", "green", "blue", "white")[i])).status_code == 201
    assert add("a/one.txt", b"a red square").status_code == 201
    assert add("five.png", b"<svg onload=alert(1)>").status_code == 400
    assert add("six.txt", b"\xff\xfe").status_code == 400
    assert {path for path in home.rglob("*") if "uploads" not in path.parts} == before
    look = served.http.post("/api/studio/inspections", json={"folder": folder}).json()
    for _ in range(200):
        look = served.http.get(f"/api/studio/inspections/{look['id']}").json()
        if look["report"] or look["error"]:
            break
        time.sleep(0.05)
    report = look["report"]
    assert (report["pictures"], report["captions"]["found"], report["unusable"]) == (4, 1, 0)
    sheet = served.http.get(f"/api/studio/inspections/{look['id']}/sheet")
    assert Image.open(io.BytesIO(sheet.content)).format == "WEBP"
    assert served.http.get("/api/studio/folders").json()["folders"][0]["pictures"] == 4


@pytest.mark.parametrize("end", ["", "killed", "stopped"])
def test_a_decoder_that_dies_costs_one_look_through_a_folder(
    end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one.png").write_bytes(_png())
    look = Look("a", tmp_path)
    start = subprocess.Popen

    def started(*arguments: Any, **more: Any) -> Any:
        process = start(*arguments, **more)
        if end == "killed":
            process.kill()
        return process

    monkeypatch.setattr(subprocess, "Popen", started)
    if end == "stopped":
        look.stop()
    look.run()
    told = {"": None, "killed": "the look through the folder failed; the server's log says why"}
    assert look.error == told.get(end, end)
    assert (look.report is None) == bool(end)


def test_a_run_tells_its_figures_as_means_and_shows_only_its_samples(served: Any, home: Path) -> None:
    run = home / "work" / "runs" / "my run"
    (run / "samples").mkdir(parents=True)
    (run / "recipe.toml").write_text(
        'kind = "vae"\n[optim]\nuntil_images = 4000\n[data]\nsource = "/a/b/c"\n'
    )
    lines = [json.dumps({"images": i, "step": i, "loss/main": float(i)}) for i in range(1, 2001)]
    (run / "metrics.jsonl").write_text("\n".join(lines) + '\n{"images": 2001, "lo')  # cut short by a kill
    (run / "samples" / "images-000000000010.png").write_bytes(_png())
    (run / "samples" / "away.png").symlink_to(home / "vitrail.sqlite")
    short = served.http.get("/api/studio/runs").json()[0]
    assert (short["name"], short["images"], short["share"], short["state"]) == (
        "my run",
        2000,
        0.5,
        "stopped",
    )
    assert short["source"] == "c"
    found = served.http.get(f"/api/studio/runs/{short['id']}").json()
    points = found["figures"]["loss/main"]
    assert len(points) <= MAX_POINTS
    assert points[0] == [5, 3.0]  # the mean of 1 to 5
    assert found["samples"] == ["images-000000000010"]
    place = f"/api/studio/runs/{short['id']}/samples"
    assert served.http.get(f"{place}/images-000000000010").content == _png()
    for name in ("away", "..%2f..%2frecipe", "%2e%2e"):
        assert served.http.get(f"{place}/{name}").status_code >= 400
    assert served.http.get("/api/studio/runs/..").status_code == 404
    assert served.http.post(f"/api/studio/runs/{short['id']}/keep", json={}).status_code == 400


def test_codes_are_counted_and_drawn_once(served: Any, home: Path) -> None:
    found = served.http.get("/api/studio/codebook", params={"model": "vqgan"}).json()
    assert found["codes"] == 2048
    assert found["shares"] == sorted(found["shares"], reverse=True)
    assert 0.5 < sum(found["shares"]) <= 1.0001
    sheet = served.http.get("/api/studio/codebook/sheet", params={"model": "vqgan"})
    tiles = Image.open(io.BytesIO(sheet.content))
    assert tiles.width == found["columns"] * found["tile"]
    assert len(tiles.getcolors(1 << 24) or []) > 100  # drawings, not one flat colour
    began = time.monotonic()
    assert served.http.get("/api/studio/codebook", params={"model": "vqgan"}).json() == found
    assert time.monotonic() - began < 1
    for name in ("../vqgan", "/etc", str(home), "default"):
        assert served.http.get("/api/studio/codebook", params={"model": name}).status_code == 400


def test_shipped_models_are_not_removed_and_unknown_ones_not_fetched(served: Any) -> None:
    rows = {row["name"]: row for row in served.http.get("/api/studio/models").json()}
    assert rows["default"]["draws"]
    assert rows["vqgan"]["tokenizer"]
    assert [64, 64] in rows["default"]["sizes"]
    assert rows["migan"]["licence"] == "MIT"
    assert all(rows[name]["licence"] and rows[name]["sources"] for name in ("default", "vqgan", "migan"))
    for route, name in (
        ("remove", "default"),
        ("remove", "../default"),
        ("pull", "nothing"),
        ("pull", "../x"),
    ):
        answer = served.http.post(f"/api/studio/models/{route}", json={"name": name})
        assert answer.status_code == 400, (route, name)


def test_votes_become_scores_and_csv(served: Any, home: Path) -> None:
    with serve_studio(home / "fresh", workers=0) as fresh:  # where nothing was kept before
        assert fresh.http.get("/api/studio/scores").json() == []
        assert fresh.http.get("/api/studio/reports").json()["reports"] == []
        assert fresh.http.get("/api/studio/runs").json() == []
        _vote(fresh)


def _vote(served: Any) -> None:
    vote = {
        "left": "a" * 32,
        "right": "b" * 32,
        "left_name": "default",
        "right_name": "vqgan",
        "winner": "left",
    }
    assert served.http.post("/api/studio/votes", json=vote).json() == {"votes": 1}
    assert served.http.post("/api/studio/votes", json={**vote, "winner": "both"}).status_code == 422
    other = {**vote, "left_name": "noto", "right_name": "twemoji", "by": "style"}  # has scores of its own
    assert served.http.post("/api/studio/votes", json=other).json() == {"votes": 2}
    found = served.http.get("/api/studio/scores", params={"by": "style"}).json()
    assert [row["name"] for row in found] == ["noto", "twemoji"]
    names = [row["name"] for row in served.http.get("/api/studio/scores").json()]
    assert names == ["default", "vqgan"]
    answer = served.http.get("/api/studio/scores.csv")
    assert answer.headers["content-type"].startswith("text/csv")
    assert answer.text.startswith("name,strength,low95,high95,wins,votes")


def test_errors_come_in_the_readers_language(served: Any) -> None:
    line = {"text": "steps 0 is out of range; allowed 1 to 200"}
    assert "超出范围" in served.http.post("/api/studio/chinese", json=line).json()["text"]
    odd = {"text": "a line without a translation"}
    assert served.http.post("/api/studio/chinese", json=odd).json() == odd


def test_a_finished_model_is_kept_once_and_listed(
    tmp_path: Path, make_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITRAIL_HOME", str(tmp_path / "home"))
    run = tmp_path / "work" / "runs" / "mine"
    run.mkdir(parents=True)
    (run / "recipe.toml").write_text('kind = "text_to_image"\n')
    make_model(run / "model")
    with serve_studio(tmp_path, workers=0) as server:
        (row,) = server.http.get("/api/studio/runs").json()
        assert (row["state"], row["share"], row["model"]) == ("finished", 1.0, True)
        names = [server.http.post(f"/api/studio/runs/{row['id']}/keep", json={}).json()["name"] for _ in "12"]
        assert names == ["mine", "mine"]
        listed = {one["name"]: one for one in server.http.get("/api/studio/models").json()}
        assert listed["mine"]["draws"]
        assert server.http.post("/api/jobs", json={"prompt": "x", "model": "mine"}).status_code == 202
        assert server.http.post("/api/studio/models/remove", json={"name": "mine"}).status_code == 200
        # One that was stopped goes by how far it was; the finished one beside it is another model.
        (run / "model").rename(run / STOPPED_MODEL)
        (run / "checkpoints" / "images-000000000640").mkdir(parents=True)
        (row,) = server.http.get("/api/studio/runs").json()
        assert (row["state"], server.http.get(f"/api/studio/runs/{row['id']}").json()["use"]) == (
            "stopped",
            "create",
        )
        kept = server.http.post(f"/api/studio/runs/{row['id']}/keep", json={}).json()
        assert kept == {"name": "mine-at-640"}
        assert artifacts.load(artifacts.available()["mine-at-640"]).manifest.name == "mine-at-640"
        assert "mine" not in {one["name"] for one in server.http.get("/api/studio/models").json()}
