"""The native API over the durable engine: jobs, events taken up again, pictures, errors, figures."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

pytest.importorskip("dbos", reason="needs the extra server")
from http_server import Served

from vitrail.errors import QueueFullError, StorageError
from vitrail.provenance.metadata import read
from vitrail.serving import http_jobs, http_stream

WAIT = {"Prefer": "wait", "Accept": "image/*"}
TINY = {"kind": "text_to_image", "prompt": "a red apple", "model": "tiny", "seed": 5}


def picture(size: tuple[int, int] = (16, 16), colour: str = "red") -> str:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def events(server: Served, id: str, after: int | None = None) -> list[dict[str, Any]]:
    headers = {} if after is None else {"Last-Event-ID": str(after)}
    found = []
    with server.http.stream("GET", f"/api/jobs/{id}/events", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        number = kind = ""
        for line in answer.iter_lines():
            if line.startswith("id: "):
                number = line[4:]
            elif line.startswith("event: "):
                kind = line[7:]
            elif line.startswith("data: "):
                event = json.loads(line[6:])
                assert (str(event["seq"]), event["type"]) == (number, kind)
                found.append(event)
    return found


def test_a_picture_from_words_to_file(art_server: Served) -> None:
    http = art_server.http
    answer = http.post("/api/jobs", json={**TINY, "n": 2})
    assert answer.status_code == 202
    job = answer.json()
    assert job["status"] == job["state"] == "queued"
    assert answer.headers["location"] == job["poll_url"] == f"/api/jobs/{job['id']}"
    told = events(art_server, job["id"])
    assert told[-1]["job"]["state"] == "succeeded"
    assert [event["seq"] for event in told] == sorted({event["seq"] for event in told})
    done = http.get(job["poll_url"]).json()
    assert [made["seed"] for made in done["pictures"]] == [5, 6]
    for made in done["pictures"]:
        file = http.get(f"/api/pictures/{made['id']}/file")
        assert file.headers["content-type"] == "image/png"
        assert file.headers["x-content-type-options"] == "nosniff"
        record = read(file.content).record
        assert record is not None
        assert (record.seed, record.request.prompt) == (made["seed"], "a red apple")
        again = http.get(f"/api/pictures/{made['id']}/file", headers={"If-None-Match": file.headers["etag"]})
        assert again.status_code == 304
        small = http.get(f"/api/pictures/{made['id']}/thumbnail?side=16")
        assert small.headers["content-type"] == "image/webp"
        assert max(Image.open(io.BytesIO(small.content)).size) == 16


def test_one_request_is_enough_for_a_picture(art_server: Served) -> None:
    http = art_server.http
    headers = {"Prefer": "respond-async, wait=50"}
    answer = http.post("/api/jobs", json={**TINY, "n": 2}, headers=headers)
    assert (answer.status_code, answer.headers["preference-applied"]) == (200, "wait")
    job = answer.json()
    assert job["state"] == "succeeded"
    assert job == http.get(answer.headers["location"]).json()
    drawn = http.post("/api/jobs", json={**TINY, "n": 2}, headers={**headers, "Accept": "image/*"})
    assert (drawn.status_code, drawn.headers["content-type"]) == (200, "image/png")
    record = read(drawn.content).record
    assert record is not None
    assert record.seed == 5  # the first one of them
    assert drawn.content == http.get(drawn.headers["content-location"]).content
    assert http.get(drawn.headers["location"]).json()["state"] == "succeeded"
    kept = {"Idempotency-Key": "once", "Prefer": "wait", "Accept": "image/*"}
    first = http.post("/api/jobs", json=TINY, headers=kept)
    assert http.post("/api/jobs", json=TINY, headers=kept).content == first.content
    picture = first.headers["content-location"].removesuffix("/file")
    assert http.delete(picture, headers={"Content-Type": "application/json"}).status_code == 200
    assert http.post("/api/jobs", json=TINY, headers=kept).status_code == 404


def test_nothing_waits_for_a_client_that_hung_up(tmp_path: Path) -> None:
    def waits() -> bool:
        return any(thread.name == "vitrail-stream" for thread in threading.enumerate())

    with Served(tmp_path) as server:  # nobody works here
        with pytest.raises(httpx.ReadTimeout):
            server.http.post("/api/jobs", json={**TINY, "model": "default"}, headers=WAIT, timeout=0.5)
        assert waits()
        until = time.monotonic() + 20  # the 50 seconds that were asked for are not over by then
        while waits() and time.monotonic() < until:
            time.sleep(0.1)
        assert not waits()


@pytest.mark.parametrize(
    ("prefer", "waits"),
    [
        *[
            ("wait", 50.0),
            ("WAIT", 50.0),
            ("wait=7", 7.0),
            ('wait = "7"', 7.0),
            ("a;b, wait=900000000; c", 50.0),
        ],
        *[("", None), ("nowait", None), ("wait=soon", None), ("a; wait=7", None), ("await", None)],
    ],
)
def test_a_wish_to_wait_is_read_as_rfc_7240_has_it(prefer: str, waits: float | None) -> None:
    assert http_jobs._patience(prefer) == waits


async def _full(*_: Any, **__: Any) -> AsyncIterator[None]:
    raise QueueFullError("so many wait already")
    yield


def test_who_waits_in_vain_has_a_job_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = {"Prefer": "wait=1", "Accept": "image/png"}
    with Served(tmp_path) as server:  # nobody works here
        began = time.monotonic()
        answer = server.http.post("/api/jobs", json={**TINY, "model": "default"}, headers=headers)
        assert (answer.status_code, answer.json()["state"]) == (202, "queued")
        assert 0.9 < time.monotonic() - began < 10
        monkeypatch.setattr(http_stream.Streams, "follow", _full)
        again = server.http.post("/api/jobs", json={**TINY, "model": "default"}, headers=headers)
        assert (again.status_code, again.json()["state"]) == (202, "queued")
        monkeypatch.undo()
        threading.Timer(0.5, lambda: server.engine.cancel(server.engine.jobs()[-1].id)).start()
        gone = server.http.post("/api/jobs", json={**TINY, "model": "default"}, headers=WAIT)
        assert (gone.status_code, gone.json()["error"]["code"]) == (409, "NoPicture")
        assert server.http.get(gone.headers["location"]).json()["state"] == "cancelled"
        assert "without a picture" in gone.json()["error"]["message"]


def test_events_go_on_after_the_last_one_that_was_seen(art_server: Served) -> None:
    job = art_server.http.post("/api/jobs", json={**TINY, "n": 3}).json()
    whole = events(art_server, job["id"])
    middle = whole[len(whole) // 2]["seq"]
    kept = ("state", "picture")
    for seen in (0, middle, whole[-1]["seq"]):
        began = time.monotonic()
        rest = events(art_server, job["id"], seen)
        assert time.monotonic() - began < 2
        wanted = [event["seq"] for event in whole if event["seq"] > seen and event["type"] in kept]
        assert [event["seq"] for event in rest if event["type"] in kept] == wanted


def test_twenty_broken_streams_attach_again_within_two_seconds(art_server: Served) -> None:
    # Q9 without a browser: the page's own test reloads it twenty times.
    job = art_server.http.post("/api/jobs", json={**TINY, "n": 40, "steps": 60}).json()
    seen, slowest = 0, 0.0
    for _ in range(20):
        began = time.monotonic()
        headers = {"Last-Event-ID": str(seen)}
        with art_server.http.stream("GET", f"/api/jobs/{job['id']}/events", headers=headers) as answer:
            for line in answer.iter_lines():
                if line.startswith("id: "):
                    assert int(line[4:]) > seen
                    seen = int(line[4:])
                    break
        slowest = max(slowest, time.monotonic() - began)
        if art_server.http.get(f"/api/jobs/{job['id']}").json()["state"] == "succeeded":
            pytest.fail("the job ended before the streams were broken twenty times")
    art_server.http.post(f"/api/jobs/{job['id']}/cancel", json={})
    assert art_server.wait(job["id"])["state"] == "cancelled"
    assert slowest < 2


def test_a_retry_with_the_same_key_is_the_same_job(art_server: Served) -> None:
    headers = {"Idempotency-Key": "one-and-the-same"}
    first = art_server.http.post("/api/jobs", json=TINY, headers=headers)
    again = art_server.http.post("/api/jobs", json=TINY, headers=headers)
    other = art_server.http.post("/api/jobs", json=TINY)
    assert first.json()["id"] == again.json()["id"] != other.json()["id"]
    changed = art_server.http.post("/api/jobs", json={**TINY, "seed": 6}, headers=headers)
    assert changed.status_code == 400
    assert "fresh key" in changed.json()["error"]["message"]
    for answer in (first, other):
        assert art_server.wait(answer.json()["id"])["state"] == "succeeded"


def test_a_file_travels_in_the_request(art_server: Served) -> None:
    body = {"kind": "edit", "prompt": "a red apple", "model": "tiny", "strength": 0.5, "seed": 1}
    given = {"name": "../../etc/passwd", "data": picture()}
    answer = art_server.http.post("/api/jobs", json={**body, "picture": given})
    assert answer.status_code == 202, answer.text
    request = answer.json()["request"]
    assert request["picture"]["name"] == "passwd"
    assert "data" not in request["picture"]
    job = art_server.wait(answer.json()["id"])
    assert job["state"] == "succeeded", job
    assert (job["pictures"][0]["width"], job["pictures"][0]["height"]) == (16, 16)


def test_a_job_that_fails_says_why(art_server: Served) -> None:
    body = {**TINY, "width": 48, "height": 16}
    job = art_server.wait(art_server.http.post("/api/jobs", json=body).json()["id"])
    assert job["state"] == "failed"
    assert job["error"]["code"] == "InputError"
    assert "size 48x16 is not possible" in job["error"]["message"]


def test_the_gallery_is_searched_marked_and_cleared(art_server: Served) -> None:
    http = art_server.http
    job = art_server.wait(http.post("/api/jobs", json={**TINY, "prompt": "a zebra", "n": 3}).json()["id"])
    ids = [made["id"] for made in job["pictures"]]
    found = http.get("/api/pictures", params={"query": "zebra"}).json()
    assert {one["id"] for one in found["pictures"]} == set(ids)
    pages = []
    before: str | None = None
    while True:
        params = {"job": job["id"], "limit": 2} | ({"before": before} if before else {})
        page = http.get("/api/pictures", params=params).json()
        pages.append([one["id"] for one in page["pictures"]])
        before = page["next"]
        if before is None:
            break
    assert [len(page) for page in pages] == [2, 1]
    assert {id for page in pages for id in page} == set(ids)
    assert http.post(f"/api/pictures/{ids[0]}/favourite", json={"favourite": True}).json()["favourite"]
    marked = http.get("/api/pictures", params={"favourite": True, "job": job["id"]}).json()
    assert [one["id"] for one in marked["pictures"]] == ids[:1]
    assert marked["pictures"][0]["record"]["request"]["prompt"] == "a zebra"
    json_type = {"Content-Type": "application/json"}
    assert http.delete(f"/api/pictures/{ids[0]}", headers=json_type).json() == {"deleted": ids[0]}
    for address in ("", "/file", "/thumbnail"):
        assert http.get(f"/api/pictures/{ids[0]}{address}").status_code == 404
    assert http.delete(f"/api/pictures/{ids[0]}", headers=json_type).status_code == 404


def test_what_is_not_there_is_not_done(art_server: Served) -> None:
    for method, path in (
        ("GET", "/api/jobs/nothing"),
        ("GET", "/api/jobs/nothing/events"),
        ("GET", "/api/jobs/nothing/preview"),
        ("POST", "/api/jobs/nothing/cancel"),
        ("POST", "/api/jobs/nothing/move"),
        ("GET", "/api/pictures/nothing"),
        ("GET", "/nothing"),
    ):
        answer = art_server.http.request(method, path, json={} if method == "POST" else None)
        assert answer.status_code == 404, (path, answer.text)
        assert answer.json()["error"]["code"] in ("UnknownJobError", "NotFound")


def test_waiting_jobs_are_moved_listed_and_cancelled(tmp_path: Path) -> None:
    with Served(tmp_path) as server:
        http = server.http
        body = {"prompt": "a red apple"}
        ids = [http.post("/api/jobs", json=body).json()["id"] for _ in range(5)]
        moved = http.post(f"/api/jobs/{ids[4]}/move", json={"before": ids[1]})
        assert moved.json()["position"] == 1
        order = [ids[0], ids[4], ids[1], ids[2], ids[3]]
        assert [job["id"] for job in http.get("/api/jobs").json()["jobs"]] == order
        first = http.get("/api/jobs", params={"limit": 2}).json()
        second = http.get("/api/jobs", params={"limit": 3, "after": first["next"]}).json()
        assert [job["id"] for job in first["jobs"] + second["jobs"]] == order
        assert second["next"] is None
        assert http.post(f"/api/jobs/{ids[0]}/cancel", json={}).json()["state"] == "cancelled"
        waiting = http.get("/api/jobs", params={"state": "queued"}).json()["jobs"]
        assert [job["id"] for job in waiting] == order[1:]
        assert http.get("/api/jobs", params={"state": "sleeping"}).status_code == 422


def test_a_full_queue_says_when_to_ask_again(tmp_path: Path) -> None:
    with Served(tmp_path, engine={"queue_limit": 3}) as server:
        answers = [server.http.post("/api/jobs", json={"prompt": "an apple"}) for _ in range(5)]
        assert [answer.status_code for answer in answers] == [202, 202, 202, 429, 429]
        assert answers[3].headers["retry-after"].isdigit()
        assert answers[3].json()["error"]["code"] == "QueueFullError"
        sd = server.http.post("/sdapi/v1/txt2img", json={"prompt": "an apple"})
        assert sd.status_code == 429
        assert {"error", "detail", "body", "errors"} == sd.json().keys()
        openai = server.http.post("/v1/images/generations", json={"prompt": "an apple"})
        assert openai.json()["error"]["code"] == "rate_limit_exceeded"
        first = answers[0].json()["id"]
        server.http.post(f"/api/jobs/{first}/cancel", json={})
        assert server.http.post("/api/jobs", json={"prompt": "an apple"}).status_code == 202


def test_a_full_disk_is_507_and_tells_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Served(tmp_path) as server:

        def full(*_: object, **__: object) -> None:
            raise StorageError(f"the disk of {tmp_path}/vitrail.sqlite is full")

        monkeypatch.setattr(server.engine, "submit", full)
        answer = server.http.post("/api/jobs", json={"prompt": "an apple"})
        assert answer.status_code == 507
        assert str(tmp_path) not in answer.text
        assert server.http.get("/api/jobs").status_code == 200
        monkeypatch.undo()
        assert server.http.post("/api/jobs", json={"prompt": "an apple"}).status_code == 202


def test_health_readiness_and_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Served(tmp_path) as server:
        http = server.http
        assert http.get("/health").json()["status"] == "ok"
        assert http.get("/ready").json()["status"] == "ready"
        for _ in range(3):
            http.post("/api/jobs", json={"prompt": "an apple"})
        http.get("/nowhere/1")
        http.get("/nowhere/2")
        text = http.get("/metrics").text
        assert 'vitrail_jobs{state="queued"} 3.0' in text
        assert 'vitrail_requests_total{method="POST",route="/api/jobs",status="202"} 3.0' in text
        assert 'route="other",status="404"} 2.0' in text
        assert "vitrail_pictures 0.0" in text
        assert "nowhere" not in text

        def gone(*_: object, **__: object) -> None:
            raise StorageError("the database refused")

        for state in ("cancelled", "failed", "succeeded"):
            assert f'vitrail_jobs_ended_total{{state="{state}"}} 0.0' in text
        first = http.get("/api/jobs").json()["jobs"][0]["id"]
        http.post(f"/api/jobs/{first}/cancel", json={})
        text = http.get("/metrics").text
        assert 'vitrail_jobs{state="queued"} 2.0' in text
        assert 'vitrail_jobs_ended_total{state="cancelled"} 1.0' in text
        monkeypatch.setattr(server.engine, "jobs", gone)
        assert http.get("/ready").status_code == 503
        assert http.get("/health").status_code == 200


def test_figures_are_read_from_an_index_alone(tmp_path: Path) -> None:
    with Served(tmp_path) as server, server.engine.database.read() as connection:
        plan = "EXPLAIN QUERY PLAN SELECT state, count(*) FROM jobs GROUP BY state"
        rows = connection.exec_driver_sql(plan).all()
        assert [row[-1] for row in rows] == ["SCAN jobs USING COVERING INDEX jobs_waiting"]


def test_a_server_whose_workers_are_dead_is_not_ready(tmp_path: Path) -> None:
    with Served(tmp_path, engine={"workers": 1, "started": False}) as server:
        answer = server.http.get("/ready")
        assert answer.status_code == 503
        assert "no worker lives" in answer.json()["error"]["message"]
        assert server.http.get("/health").status_code == 200
        server.engine.start()
        until = time.monotonic() + 60
        while server.http.get("/ready").status_code != 200:
            assert time.monotonic() < until
            time.sleep(0.1)


def test_messages_are_chinese_where_they_are_asked_for(tmp_path: Path) -> None:
    with Served(tmp_path) as server:
        chinese = {"Accept-Language": "zh-CN,zh;q=0.9"}
        body = {"prompt": "一只猫", "steps": 0}
        answer = server.http.post("/api/jobs", json=body, headers=chinese).json()
        assert any("一" <= character <= "鿿" for character in answer["error"]["message"])


def test_the_document_has_an_example_for_every_body_and_its_references_hold(tmp_path: Path) -> None:
    with Served(tmp_path) as server:
        document = server.http.get("/openapi.json").json()
        text = json.dumps(document)
        for name in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
            assert name in document["components"]["schemas"], name
        kinds = document["components"]["schemas"]["JobRequest"]["discriminator"]["mapping"]
        assert {"text_to_image", "edit", "inpaint", "upscale", "repair", "walk"} <= kinds.keys()
        examples = document["paths"]["/api/jobs"]["post"]["requestBody"]["content"]["application/json"]
        for example in examples["examples"].values():
            answer = server.http.post("/api/jobs", json=example["value"])
            assert answer.status_code == 202, answer.text
        for path, item in document["paths"].items():
            for method, operation in item.items():
                assert operation.get("description"), (method, path)


def test_a_watcher_more_than_there_may_be_is_told_to_wait(tmp_path: Path) -> None:
    from vitrail.serving.http_stream import Streams

    with Served(tmp_path) as server:
        streams = Streams(server.engine, most=0)
        import asyncio

        async def ask() -> None:
            async for _ in streams.follow("x"):
                pass

        with pytest.raises(QueueFullError):
            asyncio.run(ask())


def test_the_page_shows_every_route_in_both_languages_and_nothing_foreign(tmp_path: Path) -> None:
    with Served(tmp_path) as server:
        document = server.http.get("/openapi.json").json()
        pages = {}
        for path, language in (("/", "en"), ("/docs", "de"), ("/docs", "zh-CN,zh;q=0.9")):
            answer = server.http.get(path, headers={"Accept-Language": language})
            assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
            policy = answer.headers["content-security-policy"]
            style = re.findall("<style>(.*?)</style>", answer.text, re.DOTALL)
            digest = base64.b64encode(hashlib.sha256(style[0].encode()).digest()).decode()
            assert len(style) == 1
            assert f"style-src 'sha256-{digest}'" in policy
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            for word in ("<script", "javascript:", " style=", " on", " src="):
                assert not re.search(f"<[^>]*{word}" if word[0] == " " else word, answer.text), word
            addresses = re.findall(r"https?://[^/\s<\"']+", answer.text)
            assert set(addresses) == {server.url}
            pages[path, language[:2]] = answer.text
        assert pages["/", "en"] == pages["/docs", "de"]
        chinese = pages["/docs", "zh"]
        for path, item in document["paths"].items():
            for method in item:
                assert f"<b>{method.upper()}</b> {path}</h3>" in pages["/", "en"], (method, path)
                said = chinese.split(f"<b>{method.upper()}</b> {path}</h3><p>")[1].split("</p>")[0]
                assert any("一" <= letter <= "鿿" for letter in said), (method, path, said)
