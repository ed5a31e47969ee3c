"""Files and folders that are not what they seem: one clear line each, at once, and nothing run."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sd_tiny import components, make_folder, make_single, make_vocabulary, open_clip, single_tensors
from torch import Tensor

from vitrail.backends.sd import networks
from vitrail.backends.sd.open import is_stable_diffusion, open_autoencoder, open_stable_diffusion
from vitrail.errors import ArtifactError, MissingExtraError

pytestmark = pytest.mark.filterwarnings("ignore")
SECONDS = 20  # of a shared core; most take a tenth


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_vocabulary(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return single_tensors("sd1")


def refused(path: Path, words: Path | None = None, **more: Any) -> str:
    """The one line that a file or folder is refused with."""
    begun = time.monotonic()
    with pytest.raises(ArtifactError) as caught:
        open_stable_diffusion(path, tokenizer=words, **more)
    assert time.monotonic() - begun < SECONDS
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    assert str(path) in message or path.name in message
    return message


# --- single files -------------------------------------------------------------------------------------------

U, V, T = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def without(prefix: str) -> Change:
    return lambda given: {name: value for name, value in given.items() if not name.startswith(prefix)}


def renamed(old: str, new: str) -> Change:
    return lambda given: {new + n.removeprefix(old): v for n, v in given.items() if n.startswith(old)}


def plus(**more: Any) -> Change:
    return lambda given: given | {name.replace("__", "."): torch.zeros(shape) for name, shape in more.items()}


def swapped(name: str, shape: tuple[int, ...]) -> Change:
    return lambda given: given | {name: torch.zeros(shape)}


WRONG: dict[str, tuple[Change, str]] = {
    "a LoRA": (lambda _: {"lora_unet_mid_block.lora_up.weight": torch.zeros(4, 4)}, "is a LoRA"),
    "a VAE": (renamed(V, ""), "is an autoencoder alone; give it with --vae"),
    "a text encoder": (renamed(T, ""), "is a text encoder alone"),
    "a ControlNet": (renamed(U, "control_model."), "is a ControlNet"),
    "an inversion": (lambda _: {"emb_params": torch.zeros(2, 128)}, "is a textual inversion"),
    "SD3": (lambda _: {U + "joint_blocks.0.x": torch.zeros(1)}, "is Stable Diffusion 3"),
    "FLUX": (lambda _: {U + "double_blocks.0.x": torch.zeros(1)}, "is FLUX"),
    "something": (lambda _: {"weight": torch.zeros(1)}, "holds no Stable Diffusion"),
    "no VAE": (without(V), "has no autoencoder; give one with --vae"),
    "no text": (without(T), "has no text encoder"),
    "a missing weight": (
        without(U + "output_blocks.4.0.in_layers.2.bias"),
        "1 missing (up_blocks.1.resnets.1",
    ),
    "a missing block": (without(U + "middle_block"), "middle of its U-Net"),
    "an unknown weight": (plus(model__diffusion_model__extra=(3,)), "1 not known (extra)"),
    "another shape": (swapped(U + "out.2.bias", (5,)), "1 of another shape (conv_out.bias: (5,) for (4,))"),
    "a depth model": (swapped(U + "input_blocks.0.0.weight", (32, 5, 3, 3)), "is a depth model"),
    "upscaling": (swapped(U + "input_blocks.0.0.weight", (32, 7, 3, 3)), "is an upscaling model"),
    "whole numbers": (
        lambda given: given | {U + "out.2.bias": torch.zeros(4, dtype=torch.int64)},
        "holds torch.int64",
    ),
    "NaN": (lambda given: given | {U + "out.2.bias": torch.full((4,), float("nan"))}, "holds NaN"),
    "nothing in it": (swapped(U + "input_blocks.0.0.weight", (0, 4, 3, 3)), "has the shape (0, 4, 3, 3)"),
    "huge numbers": (
        swapped(U + "transformer_blocks.99999999999.norm1.bias", (3,)),
        "1 not known",
    ),
    "a short vocabulary": (
        swapped(T + "text_model.embeddings.token_embedding.weight", (20, 128)),
        "do not belong together",
    ),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_files_of_something_else(case: str, tmp_path: Path, words: Path, tensors: dict[str, Tensor]) -> None:
    change, reason = WRONG[case]
    save_file(
        {name: value.contiguous() for name, value in change(dict(tensors)).items()},
        tmp_path / "m.safetensors",
    )
    assert reason in refused(tmp_path / "m.safetensors", words)


def test_damaged_files(tmp_path: Path, words: Path) -> None:
    whole = make_single(tmp_path / "m.safetensors").read_bytes()
    bad = {
        "cut.safetensors": whole[: len(whole) // 2],
        "head.safetensors": whole[:100],
        "empty.safetensors": b"",
        "long.safetensors": (1 << 40).to_bytes(8, "little") + whole[8:],
        "beyond.safetensors": whole[:8] + whole[8:].replace(b'"data_offsets":[', b'"data_offsets":[9', 1),
        "noise.safetensors": os.urandom(4096),
        "noise.ckpt": os.urandom(4096),
        "text.ckpt": b"import os\n" * 40,
        "empty.ckpt": b"",
    }
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
        refused(tmp_path / name, words)
    refused(tmp_path / "not there.safetensors", words)
    refused(tmp_path, words)


class _Bomb:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


def test_a_checkpoint_with_a_program_in_it(tmp_path: Path, words: Path, tensors: dict[str, Tensor]) -> None:
    canary = tmp_path / "canary"
    torch.save({"state_dict": dict(tensors), "callbacks": _Bomb(canary)}, tmp_path / "bomb.ckpt")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(_Bomb(canary)))
    for name in ("bomb.ckpt", "plain.ckpt"):
        refused(tmp_path / name, words)
    assert not canary.exists()


# --- folders ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("folder") / "whole")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of a whole folder whose settings may be changed; its weights are links."""
    for path in whole.rglob("*"):
        target = tmp_path / "m" / path.relative_to(whole)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and path.suffix == ".json":
            target.write_bytes(path.read_bytes())
        elif path.is_file():
            target.symlink_to(path)
    return tmp_path / "m"


def setting(path: Path, **changed: Any) -> None:
    given = json.loads(path.read_text())
    path.write_text(json.dumps(given | changed))


UNET: dict[str, tuple[dict[str, Any], str]] = {
    "many layers": ({"layers_per_block": 10**9}, "at most 8"),
    "many blocks": ({"block_out_channels": [32] * 1000}, "at most 8"),
    "wide": ({"block_out_channels": [10**9, 64, 64]}, "at most 65536"),
    "another width": ({"block_out_channels": [64, 64, 64]}, "do not fit its settings"),
    "no groups": ({"norm_num_groups": 0}, "cannot be built"),
    "another block": (
        {"down_block_types": ["Evil", "DownBlock2D", "DownBlock2D"]},
        "sets down_block_types to Evil",
    ),
    "another class": ({"_class_name": "UNet3DConditionModel"}, "only UNet2DConditionModel"),
    "an unknown setting": ({"class_embed_type": "timestep"}, "which is not known here"),
    "words": ({"cross_attention_dim": "many"}, "sets cross_attention_dim to many"),
    "no channels": ({"out_channels": None}, "output channels"),
    "a list": ({"layers_per_block": {"a": 1}}, "at most 8"),
    "depth": ({"in_channels": 5}, "is a depth model"),
}


@pytest.mark.parametrize("case", list(UNET))
def test_settings_that_lie(case: str, folder: Path) -> None:
    changed, reason = UNET[case]
    setting(folder / "unet" / "config.json", **changed)
    assert reason in refused(folder)


@pytest.mark.parametrize("changed", [{"shift_factor": [64]}, {"scaling_factor": 0}, {"scaling_factor": "1"}])
def test_scales_that_lie(changed: dict[str, Any], folder: Path) -> None:
    setting(folder / "vae" / "config.json", **changed)
    refused(folder)


def test_leftovers_of_training_in_the_settings(folder: Path) -> None:
    """What the class itself does not know is passed over, as diffusers does."""
    setting(folder / "unet" / "config.json", decay=0.9999, optimization_step=37000, use_ema_warmup=False)
    open_stable_diffusion(folder)


def test_folders_of_something_else(folder: Path) -> None:
    index, scheduler = folder / "model_index.json", folder / "scheduler" / "scheduler_config.json"
    setting(index, _class_name="StableDiffusion3Pipeline")
    assert "is a StableDiffusion3Pipeline" in refused(folder)
    setting(index, _class_name=["no", "name"])
    refused(folder)
    setting(index, _class_name="StableDiffusionPipeline")
    for changed, reason in (
        ({"_class_name": "EDMEulerScheduler"}, "only variance-preserving"),
        ({"_class_name": "X", "prediction_type": "flow"}, "known are epsilon"),
        ({"prediction_type": "epsilon", "beta_start": 5}, "has betas"),
        ({"beta_start": 0.001, "num_train_timesteps": 10**12}, "has betas"),
        ({"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"}, "has betas"),
    ):
        setting(scheduler, **changed)
        assert reason in refused(folder)


def test_folders_that_lack_a_part(folder: Path) -> None:
    for part, reason in (
        ("scheduler/scheduler_config.json", "is missing"),
        ("unet/diffusion_pytorch_model.safetensors", "has no weights"),
        ("vae/config.json", "is missing"),
        ("tokenizer/vocab.json", "has neither vocab.json"),
    ):
        path = folder / part
        kept = path.read_bytes()
        path.unlink()
        assert reason in refused(folder)
        path.write_bytes(kept)
    open_stable_diffusion(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("vocab.json", b"[1, 2]"),
        ("vocab.json", b'{"a": "b"}'),
        ("vocab.json", b'{"a": 99999999999}'),
        ("vocab.json", b"{" * 5000),
        ("vocab.json", b"\xff\xfe\x00"),
        ("merges.txt", b"#version\na b c\n"),
        ("merges.txt", b"#version\nqq zz\n"),
        ("tokenizer_config.json", b'{"pad_token": "<never>"}'),
    ],
)
def test_tokenizers_that_lie(name: str, content: bytes, folder: Path) -> None:
    path = folder / "tokenizer" / name
    path.unlink()
    path.write_bytes(content)
    refused(folder)


def test_a_folder_with_code(folder: Path) -> None:
    """It would not run; but who downloads code with a model should know."""
    (folder / "unet" / "modeling_evil.py").write_text("raise SystemExit('run')\n")
    assert "could carry code" in refused(folder)


def test_weights_of_another_checkpoint(folder: Path) -> None:
    file = folder / "text_encoder" / "model.safetensors"
    given = load_file(file)
    file.unlink()
    given.pop(next(name for name in given if name.endswith("encoder.layers.1.mlp.fc1.bias")))
    save_file(given, file)
    assert "1 missing" in refused(folder)


def test_pieces(folder: Path, tmp_path: Path) -> None:
    """Large weights come in numbered pieces; all of them must be there."""
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    given = sorted(load_file(file).items())
    file.unlink()
    first = folder / "unet" / "diffusion_pytorch_model-00001-of-00002.safetensors"
    second = folder / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors"
    save_file(dict(given[:100]), first)
    assert "has 1 of 2 pieces" in refused(folder)
    save_file(dict(given[100:]), second)
    open_stable_diffusion(folder)
    for name in ("diffusion_pytorch_model.fp16-{}-of-00002", "diffusion_pytorch_model-{}-of-00002.fp16"):
        first = first.rename(first.with_name(name.format("00001") + ".safetensors"))
        second = second.rename(second.with_name(name.format("00002") + ".safetensors"))
        open_stable_diffusion(folder)
    save_file(dict(given[99:]), second)
    assert "in another of its files too" in refused(folder)


# --- around it ----------------------------------------------------------------------------------------------


def test_an_autoencoder_that_does_not_fit(tmp_path: Path, words: Path) -> None:
    from diffusers import AutoencoderKL

    file = make_single(tmp_path / "m.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "none.safetensors")
    with pytest.raises(ArtifactError, match="holds no autoencoder"):
        open_autoencoder(tmp_path / "none.safetensors")
    with pytest.raises(ArtifactError, match="holds no autoencoder"):
        open_stable_diffusion(file, tokenizer=words, vae=tmp_path / "none.safetensors")
    AutoencoderKL(block_out_channels=(32,), norm_num_groups=32, latent_channels=8).save_pretrained(
        tmp_path / "8"
    )
    for path, given in ((file, words), (make_folder(tmp_path / "m"), None)):
        with pytest.raises(ArtifactError, match="channels"):
            open_stable_diffusion(path, tokenizer=given, vae=tmp_path / "8")
    with pytest.raises(ArtifactError, match="choose one of the same family"):
        open_stable_diffusion(file, tokenizer=words).adding(autoencoder=open_autoencoder(tmp_path / "8"))


def test_open_clip_of_odd_rows(tmp_path: Path, words: Path) -> None:
    given = single_tensors("sd2")
    name = next(name for name in given if name.endswith("in_proj_weight"))
    given[name] = given[name][:-1]
    save_file(given, tmp_path / "m.safetensors")
    assert "is damaged" in refused(tmp_path / "m.safetensors", words)
    assert "logit_scale" in open_clip(components("sd2")["text_encoder"])


@pytest.mark.parametrize("missing", ["diffusers", "transformers"])
def test_a_missing_extra_is_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(
        MissingExtraError, match=rf"{missing} is not installed; run: pip install 'vitrail\[sd\]'"
    ):
        networks.library(missing)


def test_what_looks_like_a_model(tmp_path: Path, whole: Path) -> None:
    (tmp_path / "a.ckpt").touch()
    (tmp_path / "a.txt").touch()
    assert is_stable_diffusion(whole)
    assert is_stable_diffusion(tmp_path / "a.ckpt")
    assert not is_stable_diffusion(tmp_path / "a.txt")
    assert not is_stable_diffusion(tmp_path)


def test_nothing_heavy_is_imported_with_the_package() -> None:
    heavy = "{'diffusers', 'transformers'} & set(sys.modules)"
    program = f"import sys, vitrail.backends.sd.open; sys.exit(bool({heavy}))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
