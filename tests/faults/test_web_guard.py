"""Who may ask the server: every route against foreign hosts, pages and bodies."""

from __future__ import annotations

import http.client
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("dbos", reason="needs the extra server")
sys.path.insert(0, str(Path(__file__).parent.parent / "surface"))
from http_server import Served, routes_of

from vitrail.errors import InputError
from vitrail.serving.http import make_app
from vitrail.serving.http_hosts import check_bind
from vitrail.studio.page import CSP, add_studio
from vitrail.studio.places import Places

TOKEN = "a-token-of-tests-0123456789"
CHANGES = ("POST", "PUT", "PATCH", "DELETE")
#: What real clients of A1111 send without a body and without a type; a foreign page would say Origin.
BARE = {
    ("POST", f"/sdapi/v1/{name}")
    for name in (
        *("interrupt", "skip", "refresh-checkpoints", "refresh-loras", "refresh-vae", "refresh-embeddings"),
        *("unload-checkpoint", "reload-checkpoint"),
    )
}
FORMS = {("POST", "/v1/images/edits"), ("POST", "/v1/images/variations")}
BYTES = "/api/studio/"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("guard")
    places = Places(folder / "studio")
    with Served(folder, page_policy=CSP, add=lambda app: add_studio(app, places)) as served:
        yield served


@pytest.fixture(scope="module")
def routes(server: Served) -> list[tuple[str, str]]:
    found = routes_of(server.app.app)
    assert len(found) > 40
    assert {("POST", "/api/jobs"), ("POST", "/sdapi/v1/txt2img"), ("POST", "/v1/images/edits")} <= set(found)
    assert any(path.startswith("/api/studio/") for _, path in found)
    return found


def ask(server: Served, method: str, path: str, headers: dict[str, str], content: bytes = b"{}") -> int:
    """The status of an answer to exactly these headers."""
    given = {"Host": f"127.0.0.1:{server.port}", **headers}
    if method in CHANGES:
        given["Content-Length"] = str(len(content))
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in given.items():
            connection.putheader(name, value)
        connection.endheaders(content if method in CHANGES else None)
        return connection.getresponse().status
    finally:
        connection.close()


JSON = {"Content-Type": "application/json"}
FOREIGN: dict[str, dict[str, str]] = {
    "foreign host": {**JSON, "Host": "evil.example"},
    "rebound name with our port": {**JSON, "Host": "127.0.0.1.evil.example:7860"},
    "address of another machine": {**JSON, "Host": "10.1.2.3"},
    "two names in a host": {**JSON, "Host": "127.0.0.1@evil.example"},
    "foreign origin": {**JSON, "Origin": "https://evil.example"},
    "null origin": {**JSON, "Origin": "null"},
    "origin of another port": {**JSON, "Origin": "http://127.0.0.1:1"},
    "origin that begins like ours": {**JSON, "Origin": "http://127.0.0.1.evil.example"},
    "a page elsewhere, by its browser": {**JSON, "Sec-Fetch-Site": "cross-site"},
}
BODIES: dict[str, dict[str, str]] = {
    "no type": {},
    "text": {"Content-Type": "text/plain"},
    "a form": {"Content-Type": "application/x-www-form-urlencoded"},
    "a form with files": {"Content-Type": "multipart/form-data; boundary=x"},
    "json in a text's clothes": {"Content-Type": "text/plain; application/json"},
}


@pytest.mark.parametrize("name", FOREIGN)
def test_strangers_are_refused_on_every_route(
    server: Served, routes: list[tuple[str, str]], name: str
) -> None:
    for method, path in [*routes, ("GET", "/"), ("GET", "/studio/main.js"), ("GET", "/openapi.json")]:
        if (name, path) == ("a page elsewhere, by its browser", "/"):
            continue  # a link to the page is followed
        assert ask(server, method, path, FOREIGN[name]) in (400, 403), (name, method, path)


@pytest.mark.parametrize("name", BODIES)
def test_bodies_that_a_form_can_send_are_refused(
    server: Served, routes: list[tuple[str, str]], name: str
) -> None:
    count = 0
    for method, path in routes:
        if method not in CHANGES or (name == "a form with files" and (method, path) in FORMS):
            continue
        content = b"" if name == "no type" and (method, path) in BARE else b"{}"
        status = ask(server, method, path, BODIES[name], content)
        if name == "no type" and (method, path) in BARE:
            assert status == 200
            assert ask(server, method, path, {"Origin": "https://evil.example"}, b"") == 403
        else:
            assert status in (400, 403, 415), (name, method, path, status)
            count += 1
    assert count >= 15


def test_bytes_are_taken_by_the_studio_alone(server: Served, routes: list[tuple[str, str]]) -> None:
    for method, path in routes:
        if method in CHANGES and not path.startswith(BYTES):
            assert ask(server, method, path, {"Content-Type": "application/octet-stream"}) == 415, path


def test_there_are_no_web_sockets(server: Served, routes: list[tuple[str, str]]) -> None:
    headers = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Version": "13",
        "Origin": "https://evil.example",
    }
    for _, path in [*routes, ("GET", "/")]:
        assert ask(server, "GET", path, headers) in (400, 403), path


def test_control_without_the_guard_strangers_are_served(server: Served, tmp_path: Path) -> None:
    with Served(tmp_path, wrap=lambda app: app.app) as bare:
        assert ask(bare, "GET", "/api/jobs", FOREIGN["foreign host"]) == 200
        assert ask(bare, "POST", "/api/jobs", FOREIGN["foreign origin"], b'{"prompt":"x"}') == 202
        assert ask(bare, "POST", "/api/jobs", BODIES["text"], b'{"prompt":"x"}') == 202


def test_our_own_page_is_served(server: Served) -> None:
    own = {**JSON, "Origin": server.url, "Sec-Fetch-Site": "same-origin"}
    assert ask(server, "GET", "/api/jobs", own) == 200
    assert ask(server, "POST", "/api/jobs", own, b'{"prompt":"an apple"}') == 202
    assert ask(server, "GET", "/", {"Sec-Fetch-Site": "none"}) == 200
    local = {**JSON, "Host": f"localhost:{server.port}", "Origin": f"http://localhost:{server.port}"}
    assert ask(server, "GET", "/api/jobs", local) == 200


def test_get_changes_nothing(server: Served, routes: list[tuple[str, str]]) -> None:
    job = server.http.post("/api/jobs", json={"prompt": "an apple"}).json()

    def state() -> Any:
        rows = [server.gallery.count(), server.http.get("/sdapi/v1/options").json()]
        return rows, [(one.id, one.state, one.position) for one in server.engine.jobs(limit=1000)]

    before = state()
    assert any(row[0] == job["id"] for row in before[1])
    tried = 0
    for method, path in routes:
        if method in ("GET", "DELETE"):
            continue
        there = path.replace("0123456789abcdef", job["id"])
        for verb in ("GET", "HEAD", "OPTIONS"):
            status = ask(server, verb, f"{there}?before=null&favourite=true&prompt=x", {})
            assert status in (200, 404, 405), (verb, there, status)
        tried += 1
    for method, path in routes:
        if method == "GET" and not path.endswith("/events"):
            ask(server, "GET", path.replace("0123456789abcdef", job["id"]), {})
    assert tried >= 15
    assert state() == before
    server.http.post("/api/jobs", json={"prompt": "an apple"})
    assert state() != before, "and a change would have been seen"


def test_every_answer_says_how_it_may_be_shown(server: Served, routes: list[tuple[str, str]]) -> None:
    for method, path in [*routes, ("GET", "/"), ("GET", "/studio/main.js"), ("GET", "/nowhere")]:
        if path.endswith("/events"):
            continue
        body = {} if method in CHANGES else None
        answer = server.http.request(method, path, json=body)
        assert answer.headers["x-content-type-options"] == "nosniff", path
        policy = answer.headers["content-security-policy"]
        assert "unsafe-inline" not in policy or path.startswith("/api/studio/"), path
        assert "default-src 'none'" in policy or "default-src 'self'" in policy, path
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers.get("access-control-allow-origin") is None
        kind = answer.headers.get("content-type", "")
        assert "svg" not in kind or path.startswith("/studio/")
        assert "html" not in kind or path in ("/", "/docs"), (path, kind)


def test_a_page_that_is_allowed_may_ask(tmp_path: Path) -> None:
    with Served(tmp_path, origins=["https://page.example"]) as server:
        own = {"Origin": "https://page.example"}
        answer = server.http.get("/api/jobs", headers=own)
        assert answer.headers["access-control-allow-origin"] == "https://page.example"
        ahead = {**own, "Access-Control-Request-Method": "POST"}
        assert server.http.options("/api/jobs", headers=ahead).status_code == 200
        assert server.http.get("/api/jobs", headers={"Origin": "https://other.example"}).status_code == 403


# -- the token -----------------------------------------------------------------------------------------------


def test_without_the_token_nothing_is_served(tmp_path: Path) -> None:
    places = Places(tmp_path / "studio")
    with Served(tmp_path, token=TOKEN, page_policy=CSP, add=lambda app: add_studio(app, places)) as server:
        wrong: list[dict[str, str]] = [
            {},
            {"Authorization": "Bearer "},
            {"Authorization": f"Bearer {TOKEN}x"},
            {"Authorization": f"Bearer {TOKEN[:-1]}"},
            {"Authorization": "Basic !!!"},
            {"Cookie": f"vitrail_token={TOKEN[:-1]}"},
            {"Cookie": "vitrail_token="},
        ]
        for method, path in [*routes_of(server.app.app), ("GET", "/"), ("GET", "/studio/main.js")]:
            if path in ("/health", "/ready"):
                continue
            for headers in wrong if path == "/api/jobs" else wrong[:2]:
                assert ask(server, method, path, {**JSON, **headers}) == 401, (path, headers)
        assert server.http.get("/api/jobs").status_code == 200  # Bearer
        assert httpx.get(f"{server.url}/api/jobs", auth=("me", TOKEN), trust_env=False).status_code == 200
        assert httpx.get(f"{server.url}/health", trust_env=False).status_code == 200
        with httpx.Client(base_url=server.url, trust_env=False) as browser:
            assert browser.get("/", params={"token": "wrong"}).status_code in (303, 401)
            assert browser.get("/api/jobs").status_code == 401
            entered = browser.get("/", params={"token": TOKEN})
            assert (entered.status_code, entered.headers["location"]) == (303, "/")
            cookie = entered.headers["set-cookie"]
            assert TOKEN not in cookie
            assert "HttpOnly" in cookie
            assert "SameSite=strict" in cookie
            assert browser.get("/api/jobs").status_code == 200
            assert browser.get("/").status_code == 200


def test_a_token_must_be_long(tmp_path: Path) -> None:
    with Served(tmp_path) as server, pytest.raises(InputError, match="at least 16"):
        make_app(server.engine, server.gallery, token="short")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]", "192.168.1.5", "art.example", "127.0.0.1.nip.io"])
def test_beyond_this_machine_a_token_is_needed(host: str) -> None:
    with pytest.raises(InputError, match="--token"):
        check_bind(host, None)
    with pytest.raises(InputError, match="--token"):
        check_bind(host, "")
    check_bind(host, TOKEN)


@pytest.mark.parametrize("command", ["serve", "studio"])
def test_the_commands_refuse_to_start_so(command: str, tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "vitrail", command, "--host", "0.0.0.0", "--folder", str(tmp_path)]
    found = subprocess.run(arguments, capture_output=True, text=True, timeout=60, env={"PATH": "/usr/bin"})
    assert found.returncode == 2
    assert found.stderr.count("\n") == 1
    assert "--token" in found.stderr
    assert list(tmp_path.iterdir()) == []


def test_loopback_needs_none() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "[::1]"):
        check_bind(host, None)


def test_beyond_this_machine_addresses_are_hosts_and_names_are_given(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"token": TOKEN, "addresses": True, "hosts": ["art.example"]}
    with Served(tmp_path, **settings) as server:
        for host, status in (
            ("192.168.1.5:7860", 200),
            ("[fe80::1]:7860", 200),
            ("art.example", 200),
            ("ART.example.:7860", 200),
            ("evil.example", 403),
            ("192.168.1.5.evil.example", 403),
            ("3232235781x", 403),
        ):
            assert server.http.get("/api/jobs", headers={"Host": host}).status_code == status, host
