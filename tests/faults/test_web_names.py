"""Names from strangers: 300 ways to lead out of a folder, 40 addresses to be fetched; nothing is opened."""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from PIL import Image

pytest.importorskip("dbos", reason="needs the extra server")
sys.path.insert(0, str(Path(__file__).parent.parent / "surface"))
from http_server import routes_of
from web_call import Answer, Call, call_all
from web_watch import connected, opened, outside

import vitrail
from vitrail.serving.durable import DurableEngine
from vitrail.serving.http import Server, make_app
from vitrail.studio.page import CSP, add_studio
from vitrail.studio.places import Places

CANARY = "canary-7f3a"
OWN = Path(vitrail.__file__).parent  # shipped models, and its own source where an error is described


def png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 16)).save(out, "PNG")
    return out.getvalue()


PNG = base64.b64encode(png()).decode()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, make_model: Any) -> Iterator[tuple[Server, Path, Path]]:
    """A server whose folders lie beside others that hold a model and a picture which nobody may reach."""
    root = tmp_path_factory.mktemp("world")
    secret = root / "secret"
    make_model(secret / CANARY)
    (secret / f"{CANARY}.safetensors").write_bytes(b"secret")
    (secret / f"{CANARY}.png").write_bytes(png())
    (root / "home" / "models" / "loras").mkdir(parents=True)
    (root / "home" / "models" / "loras" / "mine.safetensors").write_bytes(b"mine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITRAIL_HOME", str(root / "home"))
        patch.chdir(secret)  # so that a plain name is a path as well
        with DurableEngine(str(root / "served"), workers=0, device="cpu", queue_limit=100_000) as engine:
            places = Places(root / "served" / "studio", roots=())
            settings: dict[str, Any] = {"page_policy": CSP, "add": lambda app: add_studio(app, places)}
            yield make_app(engine, engine.gallery, **settings), root / "served", secret


def traversals(secret: Path) -> list[str]:
    """300 strings that would name what lies in ``secret`` if they were taken for paths."""
    targets = [CANARY, f"{CANARY}.png", f"{CANARY}.safetensors"]
    ups = [
        "../",
        "../../secret/",
        "..\\",
        "....//",
        "..%2f",
        "%2e%2e/",
        "..;/",
        "./",
        ".\\",
        "x/../",
        "~/../",
    ]
    plain = [f"{up * count}{target}" for target in targets for up in ups for count in (1, 2, 4)]
    whole = [
        f"{before}{secret}/{target}{after}"
        for target in targets
        for before in ("", "file://", "file:", "//", "/./", "/proc/self/root", "\\\\?\\", "C:")
        for after in ("", "/", "/.", "%00", "\u202e", " ", "#x", "?x")
    ]
    known = [
        *(
            "/etc/passwd",
            "/etc/hostname",
            "/proc/self/environ",
            "/proc/self/cwd",
            "..",
            ".",
            "/",
            "~",
            "~root",
        ),
        *(
            "C:\\Windows\\win.ini",
            "\\\\host\\share\\x",
            "CON",
            "nul",
            "aux.png",
            "..%c0%af..%c0%afetc/passwd",
        ),
        *(
            "..%252f..%252fetc%252fpasswd",
            "／etc／passwd",
            "‥/‥/etc/passwd",
            "a" * 300 + "/../x",
            "-rf",
            "--",
        ),
    ]
    found = list(dict.fromkeys([*targets, *plain, *whole, *known]))
    for target, number in itertools.product(targets, range(100)):
        found.append(f"{'../' * (number % 8)}{number}/../{target}")
    return list(dict.fromkeys(found))[:300]


def calls_of(name: str, routes: list[tuple[str, str]]) -> Iterator[tuple[str, Call]]:
    """Every route and field that takes a name, asked with ``name``."""
    inside = quote(name, safe="")
    for method, path in routes:
        if "0123456789abcdef" in path:
            body = b"" if method == "GET" else json.dumps({"before": None, "favourite": True}).encode()
            yield path, Call(method, path.replace("0123456789abcdef", inside), body)
    job = "0123456789abcdef"
    yield "move before", Call("POST", f"/api/jobs/{job}/move", json.dumps({"before": name}).encode())
    for field in ("query", "model", "kind", "style", "job", "before"):
        yield f"pictures {field}", Call("GET", f"/api/pictures?{field}={inside}")
    yield "jobs after", Call("GET", f"/api/jobs?after={inside}")
    words: dict[str, Any] = {"kind": "text_to_image", "prompt": "an apple"}
    picture = {"name": "x.png", "data": PNG}
    for field, value in (
        ("model", name),
        ("lora", [{"name": name}]),
        ("lora", [name]),
        ("control", [{"name": name, "picture": picture}]),
        ("vae", name),
        ("embedding", [name]),
        ("hires_upscaler", name),
        ("style", name),
    ):
        yield f"native {field}", Call("POST", "/api/jobs", json.dumps({**words, field: value}).encode())
    for kind, more in (("upscale", {}), ("repair", {"mask": picture}), ("vary", {}), ("reconstruct", {})):
        body = {"kind": kind, "picture": picture, "model": name, **more}
        yield f"native {kind}", Call("POST", "/api/jobs", json.dumps(body).encode())
    for long in (
        {"kind": "train", "data": name},
        {"kind": "train", "recipe": f"folder = {json.dumps('/' + name)}"},
        {"kind": "train", "recipe": "x = 1", "changes": [f"data.folder=/{name}"]},
        {"kind": "train", "recipe": "x = 1", "run": f"../{name}"},
        {"kind": "evaluate", "pictures": name},
        {"kind": "evaluate", "pictures": "emoji", "against": name},
        {"kind": "evaluate", "model": name},
        {"kind": "evaluate", "pictures": "emoji", "name": f"../{name}"},
        {"kind": "inspect", "pictures": name},
        {"kind": "codebook", "model": name},
        {"kind": "codebook", "model": "default", "pictures": name},
        {"kind": "pull_model", "name": name},
    ):
        what = [key for key in long if key != "kind"][-1]
        yield f"long {long['kind']} {what}", Call("POST", "/api/jobs", json.dumps(long).encode())
    sd: dict[str, Any] = {"prompt": "an apple"}
    unit = {"image": PNG, "model": name}
    for field, value in (
        ("override_settings", {"sd_model_checkpoint": name}),
        ("sampler_name", name),
        ("scheduler", name),
        ("alwayson_scripts", {"ControlNet": {"args": [{**unit, "module": name}]}}),
    ):
        yield f"a1111 {field}", Call("POST", "/sdapi/v1/txt2img", json.dumps({**sd, field: value}).encode())
    hires = {**sd, "enable_hr": True, "hr_upscaler": name}
    yield "a1111 hires", Call("POST", "/sdapi/v1/txt2img", json.dumps(hires).encode())
    settings = json.dumps({"sd_model_checkpoint": name}).encode()
    yield "a1111 options", Call("POST", "/sdapi/v1/options", settings)
    larger = json.dumps({"image": PNG, "upscaler_1": name}).encode()
    yield "a1111 upscaler", Call("POST", "/sdapi/v1/extra-single-image", larger)
    chosen = json.dumps({"prompt": "an apple", "model": name}).encode()
    yield "openai model", Call("POST", "/v1/images/generations", chosen)


def expected(place: str) -> set[int]:
    """What may come back: a filter finds nothing; a name that is not there is refused."""
    if place.startswith("pictures ") or place == "jobs after":
        return {200, 400, 404, 422}
    return {400, 404, 405, 422}


def test_300_traversals_reach_nothing(world: tuple[Server, Path, Path]) -> None:
    app, served, secret = world
    names = traversals(secret)
    assert len(names) == 300
    routes = routes_of(app.app)
    asked = [(place, name, call) for name in names for place, call in calls_of(name, routes)]
    # A name in a style or a hires upscaler that means interpolation is served, not opened; none here is.
    places = {place for place, _, _ in asked}
    assert len(places) > 35, places
    with opened() as paths:
        answers = call_all(app, [call for _, _, call in asked])
    assert outside(paths, served, secret.parent / "home", OWN) == []
    for (place, name, _), answer in zip(asked, answers, strict=True):
        if place == "native style":  # a word of the schema; which there are the model says when it draws
            continue
        assert answer.status in expected(place) or _same_name(name, place), (place, name, answer)
        assert b"secret" not in answer.body.replace(name.encode("utf-8", "replace"), b""), (place, name)
    assert not any(CANARY in json.dumps(job.request.get("model", "")) for job in _jobs(app))


def _same_name(name: str, place: str) -> bool:
    """An address that the client's own library makes shorter is another address: ``.`` and ``..`` alone."""
    return name.strip("./") == "" and "{" not in place


def _jobs(app: Server) -> list[Any]:
    answer = call_all(app, [Call("GET", "/api/jobs?limit=500")])[0]
    return [type("J", (), {"request": job["request"]}) for job in json.loads(answer.body)["jobs"]]


def test_control_a_name_taken_for_a_path_is_seen(world: tuple[Server, Path, Path]) -> None:
    _, served, secret = world
    with opened() as paths:
        for name in traversals(secret):
            try:
                (served / name).read_bytes()
            except (OSError, ValueError):
                continue
    assert len(outside(paths, served)) > 50


def test_a_file_is_kept_under_no_name_of_its_sender(world: tuple[Server, Path, Path]) -> None:
    app, served, secret = world
    names = traversals(secret)
    bodies = [{"kind": "edit", "prompt": "x", "picture": {"name": name, "data": PNG}} for name in names]
    before = sorted(os.listdir(secret.parent))
    with opened() as paths:
        calls = [Call("POST", "/api/jobs", json.dumps(body).encode()) for body in bodies]
        answers = call_all(app, calls, at_once=2)  # each waits for the disk
    assert outside(paths, served, secret.parent / "home", OWN) == []
    assert sorted(os.listdir(secret.parent)) == before
    for name, answer in zip(names, answers, strict=True):
        assert answer.status == 202, (name, answer)
        kept = json.loads(answer.body)["request"]["picture"]["name"]
        assert not {"/", "\\", "\0"} & set(kept), (name, kept)


# -- addresses -----------------------------------------------------------------------------------------------

ADDRESSES = [
    "http://127.0.0.1/",
    "http://127.0.0.1:22/",
    "http://localhost/admin",
    "http://0.0.0.0/",
    "http://0/",
    "http://[::1]/",
    "http://[::]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[0:0:0:0:0:ffff:7f00:1]/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0177.0.0.1/",
    "http://127.1/",
    "http://127.0.1/",
    "http://169.254.169.254/latest/meta-data/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://metadata.google.internal/",
    "http://100.100.100.200/latest/meta-data/",
    "http://192.168.0.1/",
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://localtest.me/",
    "http://127.0.0.1.nip.io/",
    "http://user:pass@127.0.0.1/",
    "http://example.com@127.0.0.1/",
    "http://127.0.0.1#@example.com/",
    "http://127.0.0.1\\@example.com/",
    "https://127.0.0.1/a.png",
    "HTTP://127.0.0.1/a.png",
    "  http://127.0.0.1/a.png",
    "//127.0.0.1/a.png",
    "\\\\127.0.0.1\\share\\a.png",
    "ftp://127.0.0.1/a.png",
    "file:///etc/passwd",
    "gopher://127.0.0.1:6379/_INFO",
    "dict://127.0.0.1:11211/stat",
    "ldap://127.0.0.1/",
    "jar:http://127.0.0.1!/a.png",
    "s3://bucket/a.png",
    "data:text/html;base64,PHNjcmlwdD4=",
]


def picture_calls(address: str) -> Iterator[Call]:
    """Every field that takes a picture, given ``address``."""

    def post(path: str, body: dict[str, Any]) -> Call:
        return Call("POST", path, json.dumps(body).encode())

    file = {"name": "a.png", "data": address}
    yield post("/api/jobs", {"kind": "edit", "prompt": "x", "picture": file})
    yield post("/api/jobs", {"kind": "edit", "prompt": "x", "picture": address})
    yield post("/api/jobs", {"kind": "repair", "picture": {"name": "a.png", "data": PNG}, "mask": file})
    yield post("/api/jobs", {"kind": "decode", "picture": file})
    yield post("/api/jobs", {"kind": "walk", "stops": [{"picture": file}, {"prompt": "x"}]})
    yield post("/sdapi/v1/img2img", {"prompt": "x", "init_images": [address]})
    yield post("/sdapi/v1/img2img", {"prompt": "x", "init_images": [PNG], "mask": address})
    yield post("/sdapi/v1/png-info", {"image": address})
    yield post("/sdapi/v1/extra-single-image", {"image": address})
    form = b"".join(
        f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in (("prompt", "x"), ("image", address), ("image[]", address))
    )
    for path in ("edits", "variations"):
        yield Call("POST", f"/v1/images/{path}", form + b"--x--\r\n", "multipart/form-data; boundary=x")
    yield post("/v1/images/generations", {"prompt": "x", "model": address})


def test_forty_addresses_are_not_connected_to(world: tuple[Server, Path, Path]) -> None:
    app, served, secret = world
    assert len(ADDRESSES) == 40
    calls = [call for address in ADDRESSES for call in picture_calls(address)]
    with connected() as places, opened() as paths:
        answers: list[Answer] = call_all(app, calls)
    assert places == []
    assert outside(paths, served, secret.parent / "home", OWN) == []
    for call, answer in zip(calls, answers, strict=True):
        assert 400 <= answer.status < 500, (call, answer)


def test_control_a_connection_is_seen() -> None:
    import urllib.request

    with connected() as places:
        for address in ADDRESSES[:2]:
            with pytest.raises(OSError, match=r"."):
                urllib.request.urlopen(address, timeout=0.2)
    assert places
