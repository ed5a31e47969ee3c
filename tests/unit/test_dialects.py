"""Settings as other programs write them, from the texts that they write; wild ones never crash."""

from __future__ import annotations

import io
import json
import zlib
from typing import Any

import pytest
from clock import quickest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from vitrail.provenance.dialects import PictureSettings, recognise
from vitrail.provenance.metadata import read

PICTURE = Image.new("RGB", (32, 24), "teal")

COMFY = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 2**64 - 1,
            "steps": 25,
            "cfg": 6.5,
            "sampler_name": "dpmpp_2m",
            "scheduler": "karras",
            "denoise": 1.0,
            "model": ["10", 0],
            "positive": ["11", 0],
            "negative": ["7", 0],
            "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 640, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": ["12", 0], "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "bad hands", "clip": ["4", 1]}},
    "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "x", "images": ["8", 0]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "10": {"class_type": "LoraLoader", "inputs": {"lora_name": "l", "model": ["4", 0], "clip": ["4", 1]}},
    "11": {
        "class_type": "ControlNetApply",
        "inputs": {"strength": 1.0, "conditioning": ["6", 0], "image": ["9", 0]},
    },
    "12": {"class_type": "PrimitiveString", "inputs": {"value": "一只猫"}},
}
FLUX = {
    "1": {
        "class_type": "SamplerCustomAdvanced",
        "inputs": {
            "noise": ["2", 0],
            "guider": ["3", 0],
            "sampler": ["4", 0],
            "sigmas": ["5", 0],
            "latent_image": ["6", 0],
        },
    },
    "2": {"class_type": "RandomNoise", "inputs": {"noise_seed": 11}},
    "3": {
        "class_type": "CFGGuider",
        "inputs": {"cfg": 3.0, "model": ["7", 0], "positive": ["8", 0], "negative": ["9", 0]},
    },
    "4": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
    "5": {
        "class_type": "BasicScheduler",
        "inputs": {"scheduler": "simple", "steps": 8, "denoise": 1.0, "model": ["7", 0]},
    },
    "6": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 1024, "height": 768}},
    "7": {"class_type": "UNETLoader", "inputs": {"unet_name": "flux.safetensors"}},
    "8": {"class_type": "CLIPTextEncode", "inputs": {"text": "good"}},
    "9": {"class_type": "CLIPTextEncode", "inputs": {"text": "bad"}},
}

EFFICIENT = {  # a loader that holds the words itself, and a second sampler that refines
    "1": {
        "class_type": "Efficient Loader",
        "inputs": {
            "ckpt_name": "sd15.safetensors",
            "positive": "a boat",
            "negative": "fog",
            "empty_latent_width": 768,
            "empty_latent_height": 512,
        },
    },
    "2": {
        "class_type": "KSampler (Efficient)",
        "inputs": {
            "seed": 5,
            "steps": 20,
            "cfg": 7.0,
            "model": ["1", 0],
            "positive": ["1", 1],
            "negative": ["1", 2],
            "latent_image": ["1", 3],
        },
    },
    "3": {"class_type": "SamplerUpscaler", "inputs": {"latent": ["2", 3]}},
}
PAGE = {  # what the page keeps, with a reroute, a muted sampler and both forms of links
    "nodes": [
        {"id": 3, "type": "KSampler", "widgets_values": [9, "randomize", 25, 6.5, "dpmpp_2m", "karras", 0.75],
         "inputs": [{"name": "model", "link": 1}, {"name": "positive", "link": 2},
                    {"name": "negative", "link": 3}, {"name": "latent_image", "link": 4},
                    {"name": "seed", "link": None, "widget": {"name": "seed"}}]},
        {"id": 13, "type": "KSampler", "mode": 4, "widgets_values": [1, "fixed", 1, 1, "euler", "normal", 1],
         "inputs": [{"name": "model", "link": 1}, {"name": "positive", "link": 3},
                    {"name": "negative", "link": 2}, {"name": "latent_image", "link": 4},
                    {"name": "a", "link": 4}, {"name": "b", "link": 4}]},
        {"id": 4, "type": "CheckpointLoaderSimple", "widgets_values": ["sd15.safetensors"]},
        {"id": 5, "type": "EmptyLatentImage", "widgets_values": {"width": 512, "height": 640}},
        {"id": 6, "type": "CLIPTextEncode", "widgets_values": [""], "inputs": [{"name": "text", "link": 6}]},
        {"id": 7, "type": "CLIPTextEncode", "widgets_values": ["bad hands"]},
        {"id": 8, "type": "Reroute", "inputs": [{"name": "", "link": 5}]},
        {"id": 9, "type": "PrimitiveString", "widgets_values": ["一只猫"]},
    ],
    "links": [[1, 4, 0, 3, 0, "MODEL"], [2, 8, 0, 3, 1, "CONDITIONING"], [3, 7, 0, 3, 2, "CONDITIONING"],
              [4, 5, 0, 3, 3, "LATENT"], {"id": 5, "origin_id": 6}, [6, 9, 0, 6, 1, "STRING"]],
}  # fmt: skip

EXAMPLES: list[tuple[dict[str, str], dict[str, Any]]] = [
    (
        {"prompt": json.dumps(COMFY), "workflow": "{}"},
        {
            "program": "comfyui",
            "prompt": "一只猫",
            "negative_prompt": "bad hands",
            "seed": 2**64 - 1,
            "steps": 25,
            "cfg_scale": 6.5,
            "sampler": "dpmpp_2m",
            "schedule": "karras",
            "width": 512,
            "height": 640,
            "model": "sd15.safetensors",
        },
    ),
    (
        {"prompt": json.dumps(FLUX)},
        {
            "program": "comfyui",
            "prompt": "good",
            "negative_prompt": "bad",
            "seed": 11,
            "steps": 8,
            "cfg_scale": 3.0,
            "sampler": "euler",
            "width": 1024,
            "height": 768,
            "model": "flux.safetensors",
        },
    ),
    ({"workflow": json.dumps({"nodes": [], "links": []})}, {"program": "comfyui", "prompt": ""}),
    (
        {
            "invokeai_metadata": json.dumps(
                {
                    "generation_mode": "txt2img",
                    "positive_prompt": "a fox",
                    "negative_prompt": "blur",
                    "width": 512,
                    "height": 512,
                    "seed": 42,
                    "cfg_scale": 7.5,
                    "steps": 30,
                    "scheduler": "euler",
                    "model": {"key": "k", "hash": "blake3:1", "name": "dreamshaper", "base": "sd-1"},
                    "app_version": "5.0.0",
                }
            )
        },
        {"program": "invokeai", "prompt": "a fox", "sampler": "euler", "seed": 42, "model": "dreamshaper"},
    ),
    (
        {
            "sd-metadata": json.dumps(
                {
                    "model_weights": "sd-1.5",
                    "image": {
                        "prompt": [{"prompt": "a fox", "weight": 1.0}],
                        "steps": 50,
                        "seed": 3,
                        "sampler": "k_lms",
                    },
                }
            )
        },
        {"program": "invokeai", "prompt": "a fox", "sampler": "k_lms", "steps": 50, "model": "sd-1.5"},
    ),
    (
        {
            "fooocus_scheme": "fooocus",
            "parameters": json.dumps(
                {
                    "prompt": "a house",
                    "negative_prompt": "",
                    "steps": 30,
                    "resolution": "(1152, 896)",
                    "guidance_scale": 4.0,
                    "base_model": "juggernaut",
                    "base_model_hash": "aeb7e9e689",
                    "sampler": "dpmpp_2m_sde_gpu",
                    "scheduler": "karras",
                    "seed": "123",
                    "performance": "Speed",
                    "version": "Fooocus v2.5.5",
                }
            ),
        },
        {
            "program": "fooocus",
            "width": 1152,
            "height": 896,
            "seed": 123,
            "model": "juggernaut",
            "cfg_scale": 4.0,
        },
    ),
    (
        {
            "fooocus_scheme": "a1111",
            "parameters": "a house\nSteps: 30, Sampler: x, Seed: 1, Version: Fooocus v2.5.5",
        },
        {"program": "fooocus", "prompt": "a house", "steps": 30},
    ),
    (
        {
            "parameters": json.dumps(
                {
                    "sui_image_params": {
                        "prompt": "a cat",
                        "negativeprompt": "dog",
                        "model": "OfficialStableDiffusion/sd_xl_base_1.0",
                        "seed": 1,
                        "steps": 20,
                        "cfgscale": 7.0,
                        "width": 1024,
                        "height": 768,
                        "comfyuisampler": "euler",
                        "swarm_version": "0.9.3.1",
                    },
                    "sui_extra_data": {"date": "2025-01-25"},
                }
            )
        },
        {
            "program": "swarmui",
            "prompt": "a cat",
            "negative_prompt": "dog",
            "cfg_scale": 7.0,
            "sampler": "euler",
        },
    ),
    (
        {
            "parameters": "A field\nNegative prompt: Blue sky\nSteps: 30, CFG scale: 5.000000, "
            "Guidance: 3.500000, Eta: 0.000000, Seed: 197583933, Size: 512x512, "
            "Model: v1-5.safetensors, RNG: cuda, Sampler: dpm++2mv2 karras, Version: stable-diffusion.cpp"
        },
        {
            "program": "stable-diffusion.cpp",
            "negative_prompt": "Blue sky",
            "sampler": "dpm++2mv2",
            "schedule": "Karras",
            "cfg_scale": 5.0,
            "seed": 197583933,
        },
    ),
    (
        {
            "Software": "NovelAI",
            "Title": "AI generated image",
            "Description": "1girl, garden",
            "Source": "Stable Diffusion XL 7BCCAA2C",
            "Comment": json.dumps(
                {
                    "prompt": "1girl, garden",
                    "steps": 28,
                    "height": 1216,
                    "width": 832,
                    "scale": 5.0,
                    "uc": "lowres",
                    "seed": 3,
                    "sampler": "k_euler",
                    "noise_schedule": "karras",
                }
            ),
        },
        {
            "program": "novelai",
            "prompt": "1girl, garden",
            "negative_prompt": "lowres",
            "width": 832,
            "sampler": "k_euler",
            "schedule": "karras",
            "model": "Stable Diffusion XL 7BCCAA2C",
        },
    ),
    (
        {"prompt": json.dumps(EFFICIENT)},
        {
            "program": "comfyui",
            "prompt": "a boat",
            "negative_prompt": "fog",
            "width": 768,
            "seed": 5,
            "model": "sd15.safetensors",
        },
    ),
    (
        {"workflow": json.dumps(PAGE)},
        {
            "program": "comfyui",
            "prompt": "一只猫",
            "negative_prompt": "bad hands",
            "seed": 9,
            "steps": 25,
            "cfg_scale": 6.5,
            "sampler": "dpmpp_2m",
            "schedule": "karras",
            "width": 512,
            "height": 640,
            "model": "sd15.safetensors",
            "denoising_strength": 0.75,
        },
    ),
    ({"parameters": "only words, no settings"}, {"program": "a1111", "prompt": "only words, no settings"}),
]


@pytest.mark.parametrize(("texts", "expected"), EXAMPLES)
@pytest.mark.parametrize("chunk", ["text", "compressed", "international"])
def test_other_programs_are_recognised(texts: dict[str, str], expected: dict[str, Any], chunk: str) -> None:
    chunks = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        if chunk == "international":
            chunks.add_itxt(key, text, zip=True)
        else:
            chunks.add_text(key, text, zip=chunk == "compressed")
    target = io.BytesIO()
    PICTURE.save(target, "PNG", pnginfo=chunks)
    info = read(target.getvalue())
    assert info.problems == []
    assert info.settings is not None
    assert {name: getattr(info.settings, name) for name in expected} == expected


@pytest.mark.parametrize("order", ["utf-16-le", "utf-16-be", "utf-16", "ascii", "raw"])
@pytest.mark.parametrize("prompt", ["a cat", "一只猫坐在花园里" * 20])
def test_user_comments_in_every_encoding(order: str, prompt: str) -> None:
    text = f"{prompt}\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 5, Size: 64x64, Version: v1"
    if order == "ascii":
        comment = b"ASCII\0\0\0" + text.encode()
    elif order == "raw":
        comment = text.encode()
    else:
        comment = b"UNICODE\0" + text.encode(order)
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = comment
    target = io.BytesIO()
    PICTURE.save(target, "JPEG", exif=exif)
    found = read(target.getvalue()).settings
    assert found is not None
    assert (found.prompt, found.seed) == (prompt, 5)


@pytest.mark.parametrize(
    ("encoding", "prompt"), [("utf-8", "一只猫"), ("utf-8", "café"), ("latin-1", "café")]
)
def test_text_chunks_of_either_encoding(encoding: str, prompt: str) -> None:
    """stable-diffusion.cpp writes UTF-8 into tEXt, where the standard has Latin-1."""
    target = io.BytesIO()
    PICTURE.save(target, "PNG")
    data = target.getvalue()
    content = b"parameters\0" + f"{prompt}\nSteps: 1, Seed: 2, Size: 8x8".encode(encoding)
    chunk = b"tEXt" + content
    chunk = len(content).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    found = read(data[:33] + chunk + data[33:]).settings
    assert found is not None
    assert (found.prompt, found.seed) == (prompt, 2)


def test_comfyui_in_webp_and_fooocus_in_jpeg() -> None:
    exif = Image.Exif()
    exif[0x0110] = "prompt:" + json.dumps(COMFY)
    target = io.BytesIO()
    PICTURE.save(target, "WEBP", exif=exif)
    found = read(target.getvalue()).settings
    assert found is not None
    assert (found.program, found.prompt) == ("comfyui", "一只猫")
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = EXAMPLES[6][0]["parameters"]
    exif.get_ifd(0x8769)[0x927C] = "a1111"
    target = io.BytesIO()
    PICTURE.save(target, "JPEG", exif=exif)
    found = read(target.getvalue()).settings
    assert found is not None
    assert (found.program, found.steps) == ("fooocus", 30)


KEYS = [
    "1",
    "2",
    "inputs",
    "class_type",
    "positive",
    "model",
    "image",
    "prompt",
    "sui_image_params",
    "base_model",
]
KEYS += ["seed", "steps", "resolution", "nodes"]
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
WILD = st.recursive(
    SCALAR | st.sampled_from(["1", "2", "KSampler"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["parameters", "prompt", "workflow", "invokeai_metadata", "sd-metadata"]), WILD)
def test_wild_json_never_crashes(key: str, value: Any) -> None:
    found = recognise({key: json.dumps(value)})
    assert found is None or isinstance(found, PictureSettings)


def graph(links: dict[int, int]) -> str:
    nodes = {
        str(a): {"class_type": "KSampler", "inputs": {"positive": [str(b), 0]}} for a, b in links.items()
    }
    return json.dumps(nodes)


HOSTILE = {
    "open-braces": "{" * 100_000,
    "open-brackets": "[" * 100_000,
    "nested": '{"1": ' * 5000,
    "empty": "",
    "nothing": "{}",
    "null": "null",
    "infinite-seed": '{"1": {"class_type": "KSampler", "inputs": {"seed": 1e400}}}',
    "huge-number": '{"a": ' + "9" * 5000 + "}",
    "long-chain": graph({i: i + 1 for i in range(20_000)}),
    "loop": graph({1: 2, 2: 1}),
}


@pytest.mark.parametrize("name", list(HOSTILE))
@pytest.mark.parametrize("key", ["parameters", "prompt", "invokeai_metadata"])
def test_deep_looping_and_huge_json_take_no_time(key: str, name: str) -> None:
    assert quickest(lambda: recognise({key: HOSTILE[name]}), 1.0) < 1.0
