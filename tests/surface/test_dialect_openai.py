"""OpenAI's images interface, asked by the real ``openai`` client."""

from __future__ import annotations

import base64
import io
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image, ImageDraw

pytest.importorskip("dbos", reason="needs the extra server")
pytest.importorskip("openai", reason="needs the extra dev")
import openai
from http_server import Served

from vitrail.provenance.metadata import read


@pytest.fixture(scope="module")
def client(art_server: Served) -> Any:
    with openai.OpenAI(base_url=f"{art_server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def picture(data: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data)))


def file(image: Image.Image, name: str = "image.png") -> tuple[str, bytes, str]:
    out = io.BytesIO()
    image.save(out, "PNG")
    return name, out.getvalue(), "image/png"


def pixels(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.asarray(image.convert("RGB")).astype(int)


def test_generations(client: Any) -> None:
    made = client.images.generate(model="tiny", prompt="a red apple", n=2, size="64x64")
    assert [picture(one.b64_json).size for one in made.data] == [(64, 64)] * 2
    assert (made.size, made.output_format, made.background) == ("64x64", "png", "opaque")
    first, second = (pixels(picture(one.b64_json)) for one in made.data)
    assert np.abs(first - second).max() > 0
    record = read(base64.b64decode(made.data[0].b64_json)).record
    assert record is not None
    assert record.request.prompt == "a red apple"


def test_the_models_of_openai_mean_the_default_one(client: Any) -> None:
    made = client.images.generate(model="gpt-image-1", prompt="a red apple", size="1024x1024", quality="low")
    assert picture(made.data[0].b64_json).size == (1024, 1024)
    record = read(base64.b64decode(made.data[0].b64_json)).record
    assert record is not None
    assert record.model_name == "default"


def test_formats_and_addresses(client: Any, art_server: Served) -> None:
    for format, name in (("jpeg", "JPEG"), ("webp", "WEBP")):
        sizes = []
        for compression in (20, 95):
            made = client.images.generate(
                model="tiny",
                prompt="a red apple",
                size="64x64",
                output_format=format,
                output_compression=compression,
                extra_body={"style": "noto"},
            )
            assert picture(made.data[0].b64_json).format == name
            sizes.append(len(made.data[0].b64_json))
        assert sizes[0] < sizes[1]
    made = client.images.generate(model="tiny", prompt="a red apple", response_format="url")
    assert made.data[0].b64_json is None
    assert made.data[0].url.startswith(art_server.url)
    assert Image.open(io.BytesIO(httpx.get(made.data[0].url, trust_env=False).content)).format == "PNG"
    made = client.images.generate(
        model="tiny",
        prompt="a red apple",
        response_format="url",
        extra_headers={"X-Forwarded-Proto": "https"},  # of a proxy that ends TLS
    )
    assert made.data[0].url.startswith(art_server.url.replace("http://", "https://"))


def test_streaming_with_partial_images(client: Any) -> None:
    stream = client.images.generate(
        model="tiny", prompt="a red apple", size="64x64", stream=True, partial_images=2
    )
    events = list(stream)
    kinds = [event.type for event in events]
    assert kinds[-1] == "image_generation.completed"
    assert set(kinds[:-1]) <= {"image_generation.partial_image"}
    assert [event.partial_image_index for event in events[:-1]] == list(range(len(events) - 1))
    for event in events:
        assert picture(event.b64_json).format == "PNG"
    assert picture(events[-1].b64_json).size == (64, 64)
    assert events[-1].usage.total_tokens == 0


def drawn_among_others(server: Served) -> list[str]:
    """The kinds of the events of a picture that is streamed while two dozen others are drawn."""
    body = {"prompt": "a red apple"}
    with ThreadPoolExecutor(8) as others:
        asked = [
            others.submit(server.http.post, "/v1/images/generations", json={**body, "n": 3}) for _ in range(8)
        ]
        while len(server.http.get("/api/jobs?state=queued&limit=20").json()["jobs"]) < 5:
            if any(one.done() for one in asked):  # a pass began with most of them
                break
            time.sleep(0.01)
        body |= {"stream": True, "partial_images": 3}
        with server.http.stream("POST", "/v1/images/generations", json=body) as answer:
            kinds = [line[7:] for line in answer.iter_lines() if line.startswith("event: ")]
        assert all(one.result().status_code == 200 for one in asked)
    return kinds


def test_a_long_drawing_streams_its_partial_images(art_server: Served) -> None:
    # A picture that is there in a moment has none to show; that it is one of many is a matter of moments.
    for _ in range(4):
        kinds = drawn_among_others(art_server)
        assert kinds[-1] == "image_generation.completed"
        if "image_generation.partial_image" in kinds:
            break
    assert 1 <= kinds.count("image_generation.partial_image") <= 3


def test_edits_paint_what_is_transparent(client: Any) -> None:
    source = Image.new("RGB", (64, 64), (200, 30, 30))
    mask = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    ImageDraw.Draw(mask).rectangle((0, 0, 31, 63), fill=(0, 0, 0, 0))
    made = client.images.edit(
        model="tiny", image=file(source), mask=file(mask, "mask.png"), prompt="a blue heart"
    )
    change = np.abs(pixels(picture(made.data[0].b64_json)) - pixels(source)).max(axis=2)
    assert change[:, 40:].max() == 0, "what is opaque is kept"
    assert change[:, :28].mean() > 2, "what is transparent is drawn anew"
    several = client.images.edit(model="tiny", image=[file(source)], prompt="a blue heart", size="32x32")
    assert picture(several.data[0].b64_json).size == (32, 32)
    holed = source.convert("RGBA")
    holed.putalpha(mask.getchannel("A"))
    own = client.images.edit(model="tiny", image=file(holed), prompt="a blue heart")
    change = np.abs(pixels(picture(own.data[0].b64_json)) - pixels(source)).max(axis=2)
    assert change[:, 40:].max() == 0, "transparency of the picture itself is a mask too"
    stream = client.images.edit(model="tiny", image=file(source), prompt="a blue heart", stream=True)
    assert [event.type for event in stream][-1] == "image_edit.completed"


def test_variations(client: Any) -> None:
    source = Image.new("RGB", (64, 64), "red")
    with pytest.warns(DeprecationWarning, match="deprecated"):
        made = client.images.create_variation(image=file(source), n=2, size="256x256")
    assert [picture(one.b64_json).size for one in made.data] == [(256, 256)] * 2


def test_large_pictures_do_not_keep_their_client_waiting(client: Any) -> None:
    # 64 pixels a side are the token model's own; through its windows 1,024 would take a quarter of an hour.
    source = Image.new("RGB", (1024, 768), (200, 30, 30))
    ImageDraw.Draw(source).ellipse((200, 200, 800, 700), fill=(30, 30, 200))
    quick = client.with_options(timeout=60)
    with pytest.warns(DeprecationWarning, match="deprecated"):
        made = quick.images.create_variation(image=file(source), n=2)
    assert [picture(one.b64_json).size for one in made.data] == [(1024, 768)] * 2
    assert made.size == "1024x768"
    first = pixels(picture(made.data[0].b64_json))
    assert np.abs(first - pixels(source)).mean() < 60, "it is still about the same picture"
    mask = Image.new("RGBA", source.size, (0, 0, 0, 255))
    ImageDraw.Draw(mask).rectangle((0, 0, 511, 767), fill=(0, 0, 0, 0))
    over = quick.images.edit(
        model="vqgan", image=file(source), mask=file(mask, "mask.png"), prompt="a red apple", n=2
    )
    for one in over.data:
        change = np.abs(pixels(picture(one.b64_json)) - pixels(source)).max(axis=2)
        assert change.shape == (768, 1024)
        assert change[:, 530:].max() == 0, "what is opaque is kept to the bit"
        assert change[:, :480].mean() > 2


def test_models(client: Any) -> None:
    assert {"default", "tiny", "vqgan"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nothing")


def test_refusals_are_the_clients_own_errors(client: Any) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.images.generate(model="nothing", prompt="x")
    assert missing.value.body["type"] == "invalid_request_error"
    for settings in (
        {"n": 11},
        {"size": "9x9"},
        {"size": "99999x10"},
        {"background": "transparent"},
        {"partial_images": 4},
    ):
        with pytest.raises((openai.BadRequestError, openai.UnprocessableEntityError)) as caught:
            client.images.generate(prompt="x", **settings)
        assert caught.value.body["message"]
    image = file(Image.new("RGB", (32, 32)))
    with pytest.raises(openai.BadRequestError, match="transparency"):
        client.images.edit(image=image, mask=image, prompt="x")
    mask = file(Image.new("RGBA", (16, 16)))
    with pytest.raises(openai.BadRequestError, match="another size"):
        client.images.edit(image=image, mask=mask, prompt="x")


def test_the_token_is_the_api_key(tmp_path: Any) -> None:
    token = "a-token-of-tests-0123456789"
    with Served(tmp_path, token=token) as server:
        for key, fails in ((token, False), ("wrong", True)):
            with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client:
                if fails:
                    with pytest.raises(openai.AuthenticationError):
                        client.models.list()
                else:
                    assert list(client.models.list())
