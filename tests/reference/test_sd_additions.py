"""LoRAs, textual inversions and ControlNets in whole pictures: the same latents as diffusers' pipelines."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from sd_compare import NEGATIVE, PROMPT, SCALE, SIZE, TOLERANCE, noise, picture, pipeline, relative, sigmas_of
from sd_tiny import _spoken, make_folder, make_unet
from torch import Tensor

from vitrail.backends.model import Control
from vitrail.backends.sd.open import open_stable_diffusion
from vitrail.errors import ArtifactError, InputError
from vitrail.samplers import SAMPLERS, with_paired_guidance

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = 4
PIPELINES = {"sd1": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("sd")
    return {family: make_folder(home / family, family) for family in PIPELINES}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """vitrail's folder of models, in the layout of ComfyUI."""
    monkeypatch.setenv("VITRAIL_HOME", str(tmp_path))
    monkeypatch.delenv("VITRAIL_MODEL_FOLDERS", raising=False)
    for name in ("loras", "embeddings", "controlnet"):
        (tmp_path / "models" / name).mkdir(parents=True)
    return tmp_path / "models"


def ours(
    model: Any, sigmas: Tensor, prompt: str, controls: Sequence[Control] = (), negative: str = NEGATIVE
) -> Tensor:
    """vitrail's loop; the latent in DDPM's scale."""
    bound = model.bind(model.read(prompt, negative), SIZE, SIZE, "float32", controls=controls)
    denoiser = with_paired_guidance(bound.pair, bound.cond, SCALE, path=model.path)

    def advance(step: int, steps: int, _: Tensor) -> None:
        bound.step = step + 1

    bound.steps = len(sigmas) - 1
    start = model.path.start(noise(), float(sigmas[0]))
    found: Tensor = SAMPLERS["euler"].function(
        denoiser, start, sigmas, path=model.path, noise=None, callback=advance
    )
    return found


def theirs(pipe: Any, prompt: str = PROMPT, **more: Any) -> Tensor:
    found: Tensor = pipe(
        prompt,
        negative_prompt=NEGATIVE,
        guidance_scale=SCALE,
        num_inference_steps=STEPS,
        width=SIZE,
        height=SIZE,
        latents=noise(),
        output_type="latent",
        **more,
    ).images
    return found


# --- LoRA ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_loras_of_a_prompt(family: str, folders: dict[str, Path], home: Path) -> None:
    """Two LoRAs of two dialects in the prompt; the pipeline is changed by their definition."""
    model = open_stable_diffusion(folders[family])
    pipe = copy.deepcopy(pipeline(PIPELINES[family], folders[family], "euler"))
    plain = theirs(pipe)
    generator = torch.Generator().manual_seed(4)
    files: dict[str, dict[str, Tensor]] = {"ink": {}, "wash": {}}
    for name, module in pipe.unet.named_modules():
        if name.endswith(("to_q", "to_v", "net.2", "conv1")):
            shape = module.weight.shape
            for file, factor in (("ink", 0.7), ("wash", -0.5)):
                down = torch.randn(2, *shape[1:], generator=generator) * 0.1
                up = torch.randn(shape[0], 2, *[1] * (len(shape) - 2), generator=generator) * 0.1
                if file == "ink":
                    files[file][f"lora_unet_{name.replace('.', '_')}.lora_down.weight"] = down
                    files[file][f"lora_unet_{name.replace('.', '_')}.lora_up.weight"] = up
                    files[file][f"lora_unet_{name.replace('.', '_')}.alpha"] = torch.tensor(1.0)
                else:
                    files[file][f"unet.{name}.lora_A.weight"] = down
                    files[file][f"unet.{name}.lora_B.weight"] = up
                scale = factor * (0.5 if file == "ink" else 1.0)
                module.weight += scale * (up.flatten(1) @ down.flatten(1)).reshape(shape)
    for file, tensors in files.items():
        save_file(tensors, home / "loras" / f"{file}.safetensors")
    wanted = theirs(pipe)
    sigmas = sigmas_of(pipe.scheduler)
    assert relative(plain, wanted) > 0.01
    assert relative(ours(model, sigmas, f"<lora:ink:0.7>{PROMPT}<lora:wash:-0.5>"), wanted) <= TOLERANCE
    assert relative(ours(model, sigmas, PROMPT), plain) <= TOLERANCE  # and out again
    view = model.adding(loras=[("ink", 0.7), ("wash", -0.5)])
    assert relative(ours(view, sigmas, PROMPT), wanted) <= TOLERANCE
    with pytest.raises(InputError, match="there is ink"):
        model.read("<lora:inky:1>")


def test_a_lora_of_another_family_is_refused(folders: dict[str, Path], home: Path) -> None:
    name = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    tensors = {f"{name}.lora_A.weight": torch.ones(2, 2048), f"{name}.lora_B.weight": torch.ones(64, 2)}
    save_file(tensors, home / "loras" / "xl.safetensors")
    with pytest.raises(ArtifactError, match="for SDXL"):
        open_stable_diffusion(folders["sd1"]).read("<lora:xl:1>")


# --- textual inversion --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("count", [1, 3])
def test_embeddings_of_a_prompt(family: str, count: int, folders: dict[str, Path], home: Path) -> None:
    generator = torch.Generator().manual_seed(6)
    pipe = copy.deepcopy(pipeline(PIPELINES[family], folders[family], "euler"))
    first, second = (torch.randn(count, 128, generator=generator) * 0.3 for _ in range(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe.load_textual_inversion(
            {"zzz": first}, token="zzz", text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer
        )
        if family == "sdxl":
            pipe.load_textual_inversion(
                {"zzz": second}, token="zzz", text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2
            )
    tensors = {"emb_params": first} if family == "sd1" else {"clip_l": first, "clip_g": second}
    save_file(tensors, home / "embeddings" / "zzz.safetensors")
    model = open_stable_diffusion(folders[family])
    prompt = "a photo of zzz in the garden"
    wanted = theirs(pipe, prompt)
    sigmas = sigmas_of(pipe.scheduler)
    got = ours(model, sigmas, prompt)
    assert relative(got, wanted) <= TOLERANCE
    (home / "embeddings" / "zzz.safetensors").unlink()
    assert relative(ours(open_stable_diffusion(folders[family]), sigmas, prompt), wanted) > 0.01


# --- ControlNet ---------------------------------------------------------------------------------------------


def _controlnet(family: str, seed: int) -> Any:
    from diffusers import ControlNetModel

    torch.manual_seed(seed)
    made = ControlNetModel.from_unet(make_unet(family), conditioning_embedding_out_channels=(8, 16, 24, 32))
    return _spoken(made, 0.06)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_controlnets(family: str, folders: dict[str, Path], home: Path) -> None:
    """Two ControlNets, each with its strength and its share of the steps."""
    import diffusers

    networks = [_controlnet(family, seed) for seed in (1, 2)]
    for name, network in zip(("canny", "depth"), networks, strict=True):
        network.save_pretrained(home / "controlnet" / name)
    base = pipeline(PIPELINES[family], folders[family], "euler")
    kind = PIPELINES[family].replace("Pipeline", "ControlNetPipeline")
    pipe = getattr(diffusers, kind)(**base.components, controlnet=networks)
    pipe.set_progress_bar_config(disable=True)
    pictures = [picture(1), picture(2)]
    model = open_stable_diffusion(folders[family])
    wanted = theirs(
        pipe,
        image=pictures,
        controlnet_conditioning_scale=[0.8, 1.5],
        control_guidance_start=[0.0, 0.5],
        control_guidance_end=[0.75, 1.0],
    )
    sigmas = sigmas_of(pipe.scheduler)
    controls = [
        Control("canny", pictures[0], 0.8, (0.0, 0.75)),
        Control("depth", pictures[1], 1.5, (0.5, 1.0)),
    ]
    assert relative(ours(model, sigmas, PROMPT, controls), wanted) <= TOLERANCE
    for weaker in (controls[:1], [controls[0], Control("depth", pictures[1], 1.5)], []):
        assert relative(ours(model, sigmas, PROMPT, weaker), wanted) > 0.01
    with pytest.raises(InputError, match="there is canny"):
        ours(model, sigmas, PROMPT, [Control("cany", pictures[0])])
