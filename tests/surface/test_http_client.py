"""The typed client against a real server, and through connections that break."""

from __future__ import annotations

import contextlib
import io
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("dbos", reason="needs the extra server")
from http_server import Served

import vitrail
from vitrail.edit_schema import EditRequest
from vitrail.errors import InputError, QueueFullError, UnknownJobError
from vitrail.provenance.metadata import read
from vitrail.request_fields import FileRef
from vitrail.schema import TextToImageRequest
from vitrail.serving.client import Client, ServerError

TINY = TextToImageRequest(prompt="a red apple", model="tiny", seed=5)


@pytest.fixture
def client(art_server: Served) -> Iterator[Client]:
    with vitrail.Client(art_server.url) as found:
        yield found


def test_from_words_to_a_file(client: Client) -> None:
    job = client.submit(TINY.model_copy(update={"n": 2}))
    events = list(client.events(job.id))
    assert events[-1].job.state == "succeeded"
    assert len({event.seq for event in events}) == len(events)
    done = client.wait(job.id)
    assert [made.seed for made in done.pictures] == [5, 6]
    assert Image.open(io.BytesIO(client.file(done.pictures[0].id))).format == "PNG"
    assert Image.open(io.BytesIO(client.thumbnail(done.pictures[0].id, 16))).format == "WEBP"
    assert done.pictures[0].id in {row["id"] for row in client.pictures("apple", job=job.id)}
    assert job.id in {one.id for one in client.jobs()}
    assert "tiny" in {row["name"] for row in client.models()}


def test_one_call_draws_a_picture_however_long_it_takes(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setitem(client._http.event_hooks, "request", [lambda request: asked.append(request.url.path)])
    drawn = client.draw(TINY)
    assert asked == ["/api/jobs"]
    record = read(drawn).record
    assert record is not None
    assert record.seed == 5
    monkeypatch.setattr("vitrail.serving.client._PATIENCE", 0)  # it takes longer than one request may
    pictures = [Image.open(io.BytesIO(data)).tobytes() for data in (drawn, client.draw(TINY))]
    assert pictures[0] == pictures[1]
    assert len(asked) > 2
    with pytest.raises(InputError, match="no model of this name"):
        client.draw(TINY.model_copy(update={"model": "nothing"}))
    with Served(tmp_path) as server, Client(server.url) as other:
        threading.Timer(0.5, lambda: server.engine.cancel(server.engine.jobs()[0].id)).start()
        with pytest.raises(ServerError, match="without a picture"):
            other.draw(TINY.model_copy(update={"model": "default"}))


def test_a_file_travels_and_settings_that_were_not_given_do_not(client: Client) -> None:
    out = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(out, "PNG")
    given = FileRef.of("photo.png", out.getvalue())
    request = EditRequest(prompt="a heart", model="tiny", picture=given, strength=0.5)
    job = client.wait(client.submit(request).id, timeout=60)
    assert job.state == "succeeded", job
    assert job.request["picture"]["sha256"] == given.sha256
    bare = given.model_copy(update={"data": b""})
    with pytest.raises(InputError, match="no content"):
        client.submit(request.model_copy(update={"picture": bare}))


def test_the_same_key_is_the_same_job(client: Client) -> None:
    assert client.submit(TINY, key="client-key").id == client.submit(TINY, key="client-key").id


def test_errors_are_those_of_an_engine(client: Client, tmp_path: Path) -> None:
    with pytest.raises(UnknownJobError):
        client.job("nothing")
    with pytest.raises(UnknownJobError):
        list(client.events("nothing"))
    with pytest.raises(InputError, match="no model of this name"):
        client.submit(TINY.model_copy(update={"model": "nothing"}))
    with Served(tmp_path, engine={"queue_limit": 1}) as server, Client(server.url) as other:
        first, request = other.submit(TextToImageRequest(prompt="x")), TextToImageRequest(prompt="y")
        with pytest.raises(QueueFullError):
            other.submit(request)
        with pytest.raises(ServerError, match="goes on"):
            other.wait(first.id, timeout=0.2)
        assert other.cancel(first.id).state == "cancelled"
    with pytest.raises(InputError, match="http://"):
        Client("127.0.0.1:7860")


def test_the_token_is_brought(tmp_path: Path) -> None:
    token = "a-token-of-tests-0123456789"
    with Served(tmp_path, token=token) as server:
        with Client(server.url, token) as client:
            assert client.jobs() == []
        with Client(server.url) as client, pytest.raises(ServerError, match="token"):
            client.jobs()


def test_a_stream_that_breaks_is_taken_up_again(client: Client, art_server: Served) -> None:
    """Through a relay that cuts every connection after some bytes: no event is lost, none comes twice."""
    job = client.submit(TINY.model_copy(update={"n": 12, "steps": 20}))
    whole = list(client.events(job.id))
    cuts = 0
    with socket.create_server(("127.0.0.1", 0)) as relay:
        relay.settimeout(20)

        def carry() -> None:
            nonlocal cuts
            while True:
                try:
                    near, _ = relay.accept()
                except OSError:
                    return
                far = socket.create_connection(("127.0.0.1", art_server.port))
                with near, far, contextlib.suppress(OSError):  # one that is kept open is cut here, too
                    near.settimeout(5)
                    far.settimeout(5)
                    far.sendall(near.recv(65536))
                    left = 6000
                    while left > 0 and (data := far.recv(min(left, 4096))):
                        near.sendall(data)
                        left -= len(data)
                    cuts += left <= 0

        thread = threading.Thread(target=carry, daemon=True)
        thread.start()
        with Client(f"http://127.0.0.1:{relay.getsockname()[1]}") as shaky:
            # The relay names another port, which is this machine all the same.
            found = list(shaky.events(job.id))
    kept = [(event.seq, event.type) for event in whole if event.type in ("state", "picture")]
    assert [(event.seq, event.type) for event in found if event.type in ("state", "picture")] == kept
    assert cuts >= 1


def test_waiting_uses_one_connection_again_and_again(tmp_path: Path) -> None:
    seen: list[Any] = []

    def noting(app: Any) -> Any:
        async def noted(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                seen.append(scope["client"])
            await app(scope, receive, send)

        return noted

    with Served(tmp_path, wrap=noting) as server, Client(server.url) as client:
        for _ in range(5):
            job = client.submit(TextToImageRequest(prompt="x"))
            client.cancel(job.id)
            assert client.wait(job.id).state == "cancelled"
    assert len(seen) == 15
    assert len(set(seen)) == 1


def test_a_server_that_is_not_there() -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(ServerError, match="reached"):
        client.jobs()


def test_the_client_needs_no_torch() -> None:
    code = "import vitrail, sys; vitrail.Client('http://127.0.0.1:1').close(); print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
