"""Requests to AUTOMATIC1111's interface as programs send them that were written without this server in mind.

The bodies and headers are those of SillyTavern, Open WebUI, LibreChat, sd-backend-client, aaa1111 and
plug-ins of paint programs, read from their sources or seen on the wire; what each answer must hold is what
they read of it.
"""

from __future__ import annotations

import base64
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

pytest.importorskip("dbos", reason="needs the extra server")
sys.path.insert(0, str(Path(__file__).parent))
from http_server import Served

from vitrail.serving.dialects.a1111_requests import Img2Img, Txt2Img, drawn_over, from_words
from vitrail.serving.http_models import ModelInfo

TINY = {"sd_model_checkpoint": "tiny"}
SMALL = {"width": 32, "height": 32, "steps": 2, "override_settings": TINY}
STABLE = ModelInfo(name="sd", kind="stable_diffusion")
TOKEN = "a-token-of-tests-0123456789"


def base64_of(picture: Image.Image) -> str:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


RED = base64_of(Image.new("RGB", (32, 32), (200, 30, 30)))


def opened(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def drawn(server: Served, body: dict[str, Any], route: str = "txt2img") -> tuple[list[str], dict[str, Any]]:
    answer = server.http.post(f"/sdapi/v1/{route}", json={**SMALL, **body})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    return found["images"], json.loads(found["info"])


#: What A1111 tells of a picture, and of which type; sd-backend-client refuses an answer with another one.
INFO: dict[str, type | tuple[type, ...]] = {
    "prompt": str,
    "all_prompts": list,
    "negative_prompt": str,
    "all_negative_prompts": list,
    "seed": int,
    "all_seeds": list,
    "subseed": int,
    "all_subseeds": list,
    "subseed_strength": (int, float),
    "width": int,
    "height": int,
    "sampler_name": str,
    "cfg_scale": (int, float),
    "steps": int,
    "batch_size": int,
    "restore_faces": bool,
    "sd_model_name": str,
    "sd_model_hash": str,
    "seed_resize_from_w": int,
    "seed_resize_from_h": int,
    "denoising_strength": (int, float),
    "extra_generation_params": dict,
    "index_of_first_image": int,
    "infotexts": list,
    "styles": list,
    "job_timestamp": str,
    "clip_skip": int,
    "is_using_inpainting_conditioning": bool,
    "version": str,
}


def test_fields_that_are_null_are_as_good_as_left_out(art_server: Served) -> None:
    # Typed clients (aaa1111, those made from the interface's own document) send every field that they know.
    names = [name for name in Txt2Img.model_fields if name not in (*SMALL, "prompt")]
    images, info = drawn(art_server, {"prompt": "x", **dict.fromkeys(names)})
    assert opened(images[0]).size == (32, 32)
    for name, kind in INFO.items():
        assert isinstance(info[name], kind), (name, info[name])
    names = [name for name in Img2Img.model_fields if name not in (*SMALL, "prompt", "init_images")]
    drawn(art_server, {"prompt": "x", "init_images": [RED], **dict.fromkeys(names)}, "img2img")
    body = {"image": RED, "upscaling_resize": None, "upscaler_1": None, "resize_mode": None}
    assert art_server.http.post("/sdapi/v1/extra-single-image", json=body).status_code == 200


def test_numbers_as_scripts_work_them_out(art_server: Served) -> None:
    # 0.75 * 43 pixels, a seed from a text field, a switch that is a number, a sampler by its place.
    body = {"width": 32.25, "height": "32", "seed": "7", "steps": 2.0, "tiling": 0, "sampler_index": 0}
    images, info = drawn(art_server, {"prompt": "x", **body})
    assert opened(images[0]).size == (32, 32)
    assert (info["seed"], info["width"], info["steps"]) == (7, 32, 2)


def test_sillytavern_draws(art_server: Served) -> None:
    auth = {"Authorization": "Basic Og=="}  # ":" in base64, whether or not there is anything to say
    ask = art_server.http
    assert ask.get("/sdapi/v1/options", headers=auth).json()["sd_model_checkpoint"]
    assert all(row["title"] for row in ask.get("/sdapi/v1/sd-models", headers=auth).json())
    for name in ("samplers", "schedulers", "upscalers", "latent-upscale-modes"):
        assert all(row["name"] for row in ask.get(f"/sdapi/v1/{name}", headers=auth).json()), name
    body = {
        **{"url": art_server.url, "auth": "", "prompt": "x", "negative_prompt": "", "seed": 3},
        **{"sampler_name": "DDIM", "scheduler": "karras", "cfg_scale": 7, "restore_faces": False},
        **{"enable_hr": False, "hr_upscaler": "Latent", "hr_scale": 2, "hr_additional_modules": []},
        **{"denoising_strength": 0.7, "hr_second_pass_steps": 0, "clip_skip": 1, "do_not_save_grid": True},
        "override_settings": {**TINY, "sd_vae": "Automatic", "CLIP_stop_at_last_layers": 1},
        **{"override_settings_restore_afterwards": True, "save_images": True, "send_images": True},
    }
    answer = ask.post("/sdapi/v1/txt2img", json={**SMALL, **body}, headers=auth).json()
    assert opened(answer["images"][0]).size == (32, 32)
    stop = ask.build_request("POST", "/sdapi/v1/interrupt", headers=auth)
    assert ask.send(stop).status_code == 200


def test_open_webui_gives_all_options_back(art_server: Served) -> None:
    options = art_server.http.get("/sdapi/v1/options").json()
    try:
        titles = [row["title"] for row in art_server.http.get("/sdapi/v1/sd-models").json()]
        options["sd_model_checkpoint"] = next(title for title in titles if title.startswith("tiny"))
        assert art_server.http.post("/sdapi/v1/options", json=options).status_code == 200
        body = {"prompt": "x", "batch_size": 1, "width": 32, "height": 32, "steps": 2}
        answer = art_server.http.post("/sdapi/v1/txt2img", json=body).json()
        assert json.loads(answer["info"])["sd_model_name"] == "tiny"
    finally:
        art_server.http.post("/sdapi/v1/options", json={"sd_model_checkpoint": "default"})


@pytest.mark.parametrize(
    "name", ["unload-checkpoint", "reload-checkpoint", "refresh-vae", "refresh-embeddings"]
)
def test_what_there_is_nothing_to_do_for_is_done(art_server: Served, name: str) -> None:
    ask = art_server.http
    assert ask.send(ask.build_request("POST", f"/sdapi/v1/{name}")).status_code == 200  # no body, no type
    assert ask.post(f"/sdapi/v1/{name}", json={}).status_code == 200


def test_lists_that_are_empty(art_server: Served) -> None:
    for name in ("script-info", "extensions", "hypernetworks", "face-restorers"):
        assert art_server.http.get(f"/sdapi/v1/{name}").json() == []


def test_several_pictures_are_enlarged_at_once(art_server: Served) -> None:
    files = [{"data": RED, "name": "a.png"}, {"data": f"data:image/png;base64,{RED}", "name": ""}]
    body = {
        **{"resize_mode": 0, "show_extras_results": True, "gfpgan_visibility": 0, "upscaling_resize": 2},
        **{"upscaler_1": "Lanczos", "upscaler_2": "None", "upscale_first": False, "imageList": files},
    }
    answer = art_server.http.post("/sdapi/v1/extra-batch-images", json=body)
    assert answer.status_code == 200, answer.text
    assert [opened(image).size for image in answer.json()["images"]] == [(64, 64)] * 2
    assert answer.json()["html_info"] == ""
    body["imageList"] = [files[0], {"data": "AAAA", "name": "b"}]
    assert art_server.http.post("/sdapi/v1/extra-batch-images", json=body).status_code == 400


@pytest.mark.parametrize(
    "prefix", ["", "data:image/png;base64,", "data:image/x-png;charset=utf-8;base64,", "data:;base64,"]
)
def test_pictures_come_with_any_prefix(art_server: Served, prefix: str) -> None:
    answer = art_server.http.post("/sdapi/v1/png-info", json={"image": prefix + RED})
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"info": "", "items": {}, "parameters": {}}


def test_scripts_that_are_not_run_are_told(art_server: Served) -> None:
    refused = art_server.http.post("/sdapi/v1/txt2img", json={**SMALL, "script_name": "X/Y/Z plot"})
    assert refused.status_code == 400
    assert "script_name" in refused.json()["detail"]
    body = {
        "prompt": "x",
        "script_name": "None",
        "script_args": [],
        "alwayson_scripts": {"ADetailer": {"args": [True, {"ad_model": "face"}]}, "Sampler": {"args": []}},
    }
    _, info = drawn(art_server, body)
    assert info["extra_generation_params"] == {"Scripts left out": "ADetailer"}


def test_the_token_in_the_ways_of_its_clients(tmp_path: Path) -> None:
    def basic(text: str) -> str:
        return f"Basic {base64.b64encode(text.encode()).decode()}"

    with Served(tmp_path, token=TOKEN) as server:
        ask = server.http
        ask.headers.pop("Authorization")
        for right in (basic(f"user:{TOKEN}"), basic(f":{TOKEN}"), basic(TOKEN), f"bearer {TOKEN}"):
            assert ask.get("/sdapi/v1/options", headers={"Authorization": right}).status_code == 200, right
        for wrong in (basic(f"{TOKEN}:user"), basic("user:"), "Basic", TOKEN, ""):
            answer = ask.get("/sdapi/v1/options", headers={"Authorization": wrong})
            assert answer.status_code == 401, wrong
            assert answer.json()["detail"] == "the token is missing or wrong"


# -- ControlNet's extension ----------------------------------------------------------------------------------


def test_controlnet_is_found(art_server: Served) -> None:
    ask = art_server.http
    assert isinstance(ask.get("/controlnet/version").json()["version"], int)
    assert ask.get("/controlnet/model_list?update=true").json() == {"model_list": ["None"]}
    modules = ask.get("/controlnet/module_list?alias_names=false").json()
    assert modules["module_list"] == list(modules["module_detail"]) == ["none"]
    kinds = ask.get("/controlnet/control_types").json()["control_types"]
    assert kinds["All"]["default_option"] == "none"
    assert ask.get("/controlnet/settings").json()["control_net_unit_count"] >= 1
    missing = ask.post("/controlnet/detect", json={"controlnet_module": "canny"})
    assert missing.status_code == 404
    assert missing.json().keys() == {"error", "detail", "body", "errors"}


def test_units_in_the_spellings_of_their_clients() -> None:
    shape = base64_of(Image.new("RGB", (8, 8), "white"))
    units = [
        {"input_image": shape, "model": "canny", "module": "None", "guidance": 0.5},
        {"image": {"image": shape, "mask": None}, "model": "depth [abc]", "weight": "0.25"},
        {"image": [shape, shape], "model": "pose"},
        {"enabled": False, "image": shape, "model": "off"},
        {"image": "", "module": "none", "model": "None", "enabled": True},  # a unit that nobody filled in
    ]
    body = Txt2Img(prompt="x", alwayson_scripts={"controlnet": {"args": units}})
    request, _ = from_words(body, STABLE)
    assert [(one.name, one.strength, one.end) for one in request.control] == [
        ("canny", 1.0, 0.5),
        ("depth", 0.25, 1.0),
        ("pose", 1.0, 1.0),
    ]


def test_a_unit_without_a_picture_uses_the_one_that_is_drawn_over() -> None:
    scripts = {"controlnet": {"args": [{"model": "tile", "module": "none"}]}}
    over = Img2Img(prompt="x", init_images=[RED], width=32, height=32, alwayson_scripts=scripts)
    request, _ = drawn_over(over, STABLE)
    assert [(one.name, len(one.picture.data)) for one in request.control] == [
        ("tile", len(base64.b64decode(RED)))
    ]
    with pytest.raises(ValueError, match="needs an image"):
        from_words(Txt2Img(prompt="x", alwayson_scripts=scripts), STABLE)


def test_masks_of_paint_programs(art_server: Served) -> None:
    # Photoshop's plug-in: a mask as RGBA, all of it opaque, white where it is to be drawn anew.
    mask = Image.new("RGBA", (32, 32), (0, 0, 0, 255))
    ImageDraw.Draw(mask).rectangle((16, 0, 31, 31), fill=(255, 255, 255, 255))
    body = {
        **{"prompt": "x", "init_images": [f"data:image/png;base64,{RED}"], "mask": base64_of(mask)},
        **{"mask_blur": 0, "inpainting_fill": 1, "inpaint_full_res": 0, "denoising_strength": 1.0},
        **{"inpainting_mask_invert": False, "seed": 1, "resize_mode": 0, "image_cfg_scale": 1.5},
    }
    images, _ = drawn(art_server, body, "img2img")
    change = np.abs(np.asarray(opened(images[0]).convert("RGB")).astype(int) - (200, 30, 30)).max(axis=2)
    assert change[:, :16].max() == 0
    assert change[:, 16:].mean() > 2
