"""What a server costs: ``python benchmarks/server.py``; the last line is JSON.

``overhead_ratio``: time of a picture over HTTP (asked, followed, kept in the gallery, fetched) over that of
the same call in this process, which saves it as a file too; the median of pairs that take turns.
``overhead_draw_ratio``: of a picture over HTTP by one request that waits for it; ``overhead_unsaved_ratio``:
of the first against a call in this process that saves nothing. ``busy_ratio``: a picture
over HTTP beside a program that keeps one core busy, over one without it. ``batching_ratio``: pictures a
second of 64 clients at once over those of one client that waits for each. ``first_page_s``: from the start of
``vitrail studio`` until Create can be pressed in a headless Chromium that runs already, the median of several
starts; ``first_picture_s``: from the first click on a warm server until the picture is on the screen, the
slowest of three pages (both null without a browser; ``..._http_s`` are the same asked over HTTP). ``p99_ms``:
other addresses of the server while the 64 clients' pictures are made.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx

from vitrail.schema import PictureDone, TextToImageRequest
from vitrail.serving.client import Client
from vitrail.serving.save import Destination

CLIENTS = 64
_REST = 0.1  # seconds between two pictures: threads that have just computed spin on for a while
PROMPTS = ("a red apple", "a cat sitting in a garden", "a blue heart", "a yellow star", "a green tree")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", type=int, default=40, help="pictures that are timed each way")
    parser.add_argument("--starts", type=int, default=5, help="starts of the studio")
    parser.add_argument("--alone", type=int, default=16, help="pictures of the one client that waits")
    options = parser.parse_args()
    found: dict[str, object] = {"cores": os.cpu_count(), "load_before": round(os.getloadavg()[0], 1)}
    with tempfile.TemporaryDirectory() as folder:
        found |= in_browser(Path(folder) / "browser", options.starts)
        print(f"in a browser {found}", flush=True)
        found["first_page_http_s"] = round(first_page(Path(folder) / "starts", options.starts), 2)
        print(f"first page {found['first_page_http_s']} s", flush=True)
        with server("serve", Path(folder) / "work") as (address, _), Client(address) as client:
            wait_until_warm(client)
            firsts = [over_http(client, seed) for seed in range(3)]
            found["first_picture_http_s"] = round(max(firsts), 2)
            print(f"first pictures {[round(one, 2) for one in firsts]} s", flush=True)
            found |= overhead(client, Path(folder) / "direct", options.pairs)
            print(f"overhead {found['overhead_ratio']}", flush=True)
            found["busy_ratio"] = beside_a_program(client)
            print(f"beside a busy program {found['busy_ratio']}", flush=True)
            found |= batching(client, address, options.alone)
    found["load_after"] = round(os.getloadavg()[0], 1)
    print(json.dumps(found))


@contextlib.contextmanager
def server(command: str, folder: Path, *more: str) -> Iterator[tuple[str, float]]:
    """A server of its own process; its address, and when it began."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = [sys.executable, "-m", "vitrail", command, "--port", str(port), "--folder", str(folder)]
    began = time.perf_counter()
    process = subprocess.Popen([*arguments, *more], stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}", began
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def in_browser(folder: Path, starts: int) -> dict[str, object]:
    """Seconds to the first page and to the first picture as a person sees them; None without a browser."""
    chromium = shutil.which("chromium")
    if chromium is None or importlib.util.find_spec("playwright") is None:
        return {"first_page_s": None, "first_picture_s": None}
    from playwright.sync_api import sync_playwright

    pages, pictures = [], []
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=flags)
        browser.new_page().goto("about:blank")
        for number in range(starts):
            with server("studio", folder / str(number), "--no-browser") as (address, began):
                page = browser.new_context().new_page()
                # As the studio itself does, which opens the page once it listens: a browser that is
                # refused first waits for seconds.
                host, port = address.removeprefix("http://").split(":")
                while True:
                    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 5):
                        break
                    time.sleep(0.005)
                page.goto(address)
                page.wait_for_selector("#go:enabled")
                pages.append(time.perf_counter() - began)
                page.close()
                if number + 1 < starts:
                    continue
                with Client(address) as client:
                    wait_until_warm(client)
                for prompt in PROMPTS[:3]:
                    page = browser.new_context().new_page()
                    page.goto(address)
                    page.wait_for_selector("#model option", state="attached")
                    page.fill("#prompt", prompt)
                    began = time.perf_counter()
                    page.click("#go")
                    page.wait_for_function("() => document.querySelector('#stage img.result')?.complete")
                    pictures.append(time.perf_counter() - began)
                    page.close()
        browser.close()
    return {
        "first_page_s": round(statistics.median(pages), 2),
        "first_picture_s": round(max(pictures), 2),
    }


def first_page(folder: Path, starts: int) -> float:
    """Median seconds from the start of ``vitrail studio``, with its worker, to a page that can be used."""
    times = []
    for number in range(starts):
        with (
            server("studio", folder / str(number), "--no-browser") as (address, began),
            httpx.Client(base_url=address, trust_env=False, timeout=60) as http,
        ):
            while True:
                with contextlib.suppress(httpx.TransportError):
                    page = http.get("/")
                    break
                time.sleep(0.005)
            for path in re.findall(r'(?:src|href)="(/studio/[^"]+)"', page.text):
                assert http.get(path).status_code == 200, path
            assert http.get("/api/studio/form").status_code == 200
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def request(seed: int) -> TextToImageRequest:
    return TextToImageRequest(prompt=PROMPTS[seed % len(PROMPTS)], seed=seed)


def wait_until_warm(client: Client) -> None:
    until = time.monotonic() + 120
    while True:
        with contextlib.suppress(Exception):
            client.wait(client.submit(request(0)).id, timeout=120)
            return
        if time.monotonic() > until:
            raise SystemExit("the server does not answer")
        time.sleep(0.1)


def over_http(client: Client, seed: int) -> float:
    """Seconds from the request to the picture's bytes."""
    began = time.perf_counter()
    job = client.submit(request(seed))
    picture = None
    for event in client.events(job.id):
        if event.type == "picture":
            picture = event.picture
    assert picture is not None, client.job(job.id)
    assert client.file(picture)
    return time.perf_counter() - began


def overhead(client: Client, folder: Path, pairs: int) -> dict[str, object]:
    """Pictures in this process and over HTTP by turns, so that the machine's other work meets both.

    In random order: a process that draws twice running finds its weights in the cores' caches.
    """
    import vitrail

    place = Destination(folder)
    direct: list[float] = []
    unsaved: list[float] = []
    served: list[float] = []
    drawn: list[float] = []
    with vitrail.Engine() as engine:

        def here(seed: int, place: Destination | None) -> float:
            began = time.perf_counter()
            events = list(engine.events(engine.submit(request(seed), place)))
            assert any(isinstance(event, PictureDone) for event in events)
            return time.perf_counter() - began

        def at_once(seed: int) -> float:
            began = time.perf_counter()
            assert client.draw(request(seed))
            return time.perf_counter() - began

        here(0, place)
        ways = [
            (unsaved, lambda seed: here(seed, None)),
            (direct, lambda seed: here(seed, place)),
            (served, lambda seed: over_http(client, seed)),
            (drawn, at_once),
        ]
        order = random.Random(0)
        for seed in range(100, 100 + pairs):
            for times, draw in order.sample(ways, len(ways)):
                time.sleep(_REST)
                times.append(draw(seed))
    return {
        "overhead_ratio": round(_median_ratio(served, direct), 3),
        "overhead_draw_ratio": round(_median_ratio(drawn, direct), 3),
        "overhead_unsaved_ratio": round(_median_ratio(served, unsaved), 3),
        "direct_s": round(statistics.median(direct), 3),
        "served_s": round(statistics.median(served), 3),
    }


def beside_a_program(client: Client, count: int = 8) -> float:
    """How many times as long a picture takes, as the median, while another program computes."""
    quiet = [over_http(client, seed) for seed in range(count)]
    program = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        busy = [over_http(client, seed) for seed in range(count)]
    finally:
        program.kill()
        program.wait()
    return round(statistics.median(busy) / statistics.median(quiet), 2)


def _median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def batching(client: Client, address: str, count: int) -> dict[str, object]:
    """64 clients at once against one that waits; in both cases four others look at the server's pages."""

    def draw(seed: int) -> None:
        with Client(address, timeout=120) as mine:
            job = mine.wait(mine.submit(request(seed)).id)
            assert job.state == "succeeded", job

    with looking(address):
        began = time.perf_counter()
        for seed in range(200, 200 + count):
            client.wait(client.submit(request(seed)).id)
        alone = count / (time.perf_counter() - began)
    drawing = [threading.Thread(target=draw, args=(300 + seed,)) for seed in range(CLIENTS)]
    with looking(address) as times:
        began = time.perf_counter()
        for thread in drawing:
            thread.start()
        for thread in drawing:
            thread.join()
        together = CLIENTS / (time.perf_counter() - began)
    return {
        "batching_ratio": round(together / alone, 2),
        "alone_per_s": round(alone, 2),
        "together_per_s": round(together, 2),
        "p99_ms": round(1000 * statistics.quantiles(times, n=100)[98]),
        "asked": len(times),
    }


@contextlib.contextmanager
def looking(address: str) -> Iterator[list[float]]:
    """Four clients that look at the server's pages ten times a second; how long each answer took."""
    times: list[float] = []
    done = threading.Event()
    paths = ("/api/jobs?limit=40", "/api/pictures?limit=30", "/health", "/sdapi/v1/progress", "/api/models")

    def ask() -> None:
        with httpx.Client(base_url=address, trust_env=False, timeout=60) as http:
            turn = 0
            while not done.is_set():
                before = time.perf_counter()
                assert http.get(paths[turn % len(paths)]).status_code == 200
                times.append(time.perf_counter() - before)
                turn += 1
                time.sleep(0.1)

    asking = [threading.Thread(target=ask) for _ in range(4)]
    for thread in asking:
        thread.start()
    try:
        yield times
    finally:
        done.set()
        for thread in asking:
            thread.join()


if __name__ == "__main__":
    main()
