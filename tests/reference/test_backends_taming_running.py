"""taming-transformers' files at work: drawing with them, and what else lies in them."""

from __future__ import annotations

import collections
import importlib.util
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import taming_reference as reference
import torch
from PIL import Image
from taming_files import (
    FOLLOWING,
    SHAPE,
    TOLERANCE,
    far,
    lightning,
    loaded,
    net2net,
    pictures,
    refused,
    section,
)

from vitrail.backends.convert import convert, write
from vitrail.chinese import in_chinese
from vitrail.diffusion_fields import ControlUse
from vitrail.errors import ArtifactError, InputError
from vitrail.request_fields import FileRef
from vitrail.schema import PictureDone, TextToImageRequest
from vitrail.tasks.codes_before import codes_before, place_codes
from vitrail.tasks.context import Context
from vitrail.tasks.loading import Loader, TokenModel
from vitrail.tasks.text_to_image import text_to_image

# -- drawing with them ---------------------------------------------------------------------------------------


def png(side: int, seed: int = 4) -> bytes:
    noise = torch.randint(256, (side, side, 3), generator=torch.Generator().manual_seed(seed))
    file = io.BytesIO()
    Image.fromarray(noise.numpy().astype("uint8")).save(file, "PNG")
    return file.getvalue()


def drawn(folder: Path, **fields: Any) -> list[Image.Image]:
    request = TextToImageRequest(prompt="anything", model=str(folder), seed=3, **fields)
    events = text_to_image(request, Loader(), Context(device=torch.device("cpu")))
    return [event.picture for event in events if isinstance(event, PictureDone)]


def test_places_are_coordstages() -> None:
    for rows, columns, patch, codes in (
        (16, 16, 16, 1024),
        (16, 32, 16, 1024),
        (8, 8, 4, 96),
        (20, 9, 4, 96),
    ):
        assert torch.equal(
            place_codes(rows, columns, patch, codes), reference.places(rows, columns, patch, codes)
        )


def test_a_model_of_places_draws_wide_pictures(tmp_path: Path) -> None:
    model, weights, _ = net2net("coordinates")
    write(convert(lightning(tmp_path / "net.ckpt", weights, model)), tmp_path / "out")
    loaded_model = Loader().text_to_image(str(tmp_path / "out"))
    assert isinstance(loaded_model, TokenModel)
    before = codes_before(loaded_model, (), (8, 10))
    assert before is not None
    assert torch.equal(before, reference.places(8, 10, 4, 96))
    [picture] = drawn(tmp_path / "out", width=40, height=32)
    assert picture.size == (40, 32)


@pytest.mark.parametrize("name", ["picture", "itself", "smaller"])
def test_a_model_that_follows_a_picture_is_given_one(tmp_path: Path, name: str) -> None:
    model, weights, prefix = net2net(name)
    write(convert(lightning(tmp_path / "net.ckpt", weights, model)), tmp_path / "out")
    loaded_model = Loader().text_to_image(str(tmp_path / "out"))
    assert isinstance(loaded_model, TokenModel)
    side = 32 if prefix == 64 else 16
    file = FileRef.of("depth.png", png(side))
    use = ControlUse(name="condition", picture=file)
    # The codes are those that the other program's condition stage gives.
    part = "cond_stage_model." if name in FOLLOWING else "first_stage_model."
    stage = {key.removeprefix(part): value for key, value in weights.items() if key.startswith(part)}
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(png(side))))).permute(2, 0, 1)[None]
    _, codes = reference.vqgan(stage, pixels / 127.5 - 1, SHAPE["ch_mult"], 1)
    found = codes_before(loaded_model, [use], (8, 8))
    assert found is not None
    assert torch.equal(found, codes[0])
    [picture] = drawn(tmp_path / "out", control=(use,))
    [other] = drawn(
        tmp_path / "out",
        control=(ControlUse(name="condition", picture=FileRef.of("b.png", png(side, 5))),),
    )
    assert picture.tobytes() != other.tobytes()
    with pytest.raises(InputError, match="give it as the one control condition") as caught:
        drawn(tmp_path / "out")
    assert "依照另一张图片作画" in (in_chinese(str(caught.value)) or "")
    if name == "smaller":
        with pytest.raises(InputError, match="leave width and height out"):
            drawn(tmp_path / "out", control=(use,), width=40, height=32)


def test_a_model_that_follows_nothing_refuses_a_picture(tmp_path: Path) -> None:
    model, weights, _ = net2net("start")
    write(convert(lightning(tmp_path / "net.ckpt", weights, model)), tmp_path / "out")
    use = ControlUse(name="condition", picture=FileRef.of("a.png", png(32)))
    with pytest.raises(InputError, match="follows no picture"):
        drawn(tmp_path / "out", control=(use,))


# -- what else lies in such files ----------------------------------------------------------------------------


def test_averages_metadata_and_objects_of_other_libraries_are_left_behind(tmp_path: Path) -> None:
    """LDM's LitEma, Lightning's callbacks, and omegaconf's objects in hyper_parameters."""
    weights = reference.random_vqgan(**SHAPE)
    whole = dict(weights)
    whole |= {f"model_ema.{name.replace('.', '')}": value * 2 for name, value in weights.items()}
    whole["model_ema.decay"], whole["model_ema.num_updates"] = torch.tensor(0.9999), torch.tensor(7)
    whole["loss.logvar"] = torch.zeros(())
    foreign = tmp_path / "foreign.py"
    foreign.write_text(
        "import enum\n"
        "class DictConfig:\n    pass\n"
        "class ModelCheckpoint:\n    pass\n"
        "class Mode(enum.Enum):\n    MIN = 'min'\n"
    )
    spec = importlib.util.spec_from_file_location("omegaconf_dictconfig", foreign)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["omegaconf_dictconfig"] = module
    try:
        spec.loader.exec_module(module)
        config = module.DictConfig()
        config.__dict__ |= {"_content": {"lr": 1e-6, "mode": module.Mode.MIN}, "_parent": config}
        content = {
            "epoch": 3,
            "hyper_parameters": {"config": config, "path": Path("/elsewhere"), "kinds": {1, 2}},
            "callbacks": {module.ModelCheckpoint: {"best": torch.tensor(0.5), "rate": np.float64(0.1)}},
            "loops": {"fit_loop": collections.defaultdict(dict, {"state": {}})},
            "state_dict": whole,
        }
        path = tmp_path / "last.ckpt"
        torch.save(content, path)
    finally:
        del sys.modules["omegaconf_dictconfig"]
    interface = section("ldm.models.autoencoder.VQModelInterface", monitor="val/rec_loss", use_ema=True)
    path.with_suffix(".yaml").write_text(json.dumps({"model": interface}))
    source = convert(path)
    assert any(line.startswith(f"{len(weights) + 2} of model_ema.*") for line in source.model.left)
    network = loaded(source, tmp_path / "out")
    picture, codes = reference.vqgan(weights, pictures(), SHAPE["ch_mult"], 1)
    assert torch.equal(network(pictures()).latent.codes, codes)
    assert far(network(pictures()).x, picture) < TOLERANCE


USED = torch.tensor([90, 3, 17, 40, 41, 5, 77, 12])


def test_a_remapped_codebook_reconstructs_as_the_whole_one(tmp_path: Path) -> None:
    weights = reference.random_vqgan(**SHAPE)
    path = lightning(tmp_path / "a.ckpt", weights | {"quantize.used": USED}, section(remap="used.npy"))
    source = convert(path)
    assert any("8 used codes" in line for line in source.model.left)
    picture, codes = reference.vqgan(weights, pictures(), SHAPE["ch_mult"], 1)
    network = loaded(source, tmp_path / "out")
    assert torch.equal(network(pictures()).latent.codes, codes)
    assert far(network(pictures()).x, picture) < TOLERANCE


def test_a_transformer_over_a_remapped_codebook_draws_its_codes(tmp_path: Path) -> None:
    model, weights, _ = net2net("start")
    weights["first_stage_model.quantize.used"] = USED
    source = convert(lightning(tmp_path / "net.ckpt", weights, model))
    tokenizer = loaded(source, tmp_path / "out", "tokenizer")
    assert torch.equal(
        tokenizer.quantize.embedding.weight, weights["first_stage_model.quantize.embedding.weight"][USED]
    )
    [picture] = drawn(tmp_path / "out")
    assert picture.size == (32, 32)
    weights["first_stage_model.quantize.used"] = torch.tensor([3, 96])
    assert "names code 96 of 96" in refused(lightning(tmp_path / "net.ckpt", weights, model))


def test_yaml_with_aliases_is_read_and_bombs_and_tags_are_not(tmp_path: Path) -> None:
    weights = reference.random_vqgan(**SHAPE)
    path = lightning(tmp_path / "a.ckpt", weights, None)
    text = (
        "sizes: &sizes {embed_dim: 8}\n"
        "model:\n  target: taming.models.vqgan.VQModel\n  params:\n    <<: *sizes\n    n_embed: 96\n"
        "    ddconfig: &dd {double_z: false, z_channels: 8, resolution: 32, in_channels: 3, out_ch: 3,\n"
        "      ch: 32, ch_mult: [1, 1, 2], num_res_blocks: 1, attn_resolutions: [8], dropout: 0.0}\n"
        "    lossconfig: {target: taming.modules.losses.DummyLoss, again: *dd}\n"
    )
    path.with_suffix(".yaml").write_text(text)
    network = loaded(convert(path), tmp_path / "out")
    picture, _ = reference.vqgan(weights, pictures(), SHAPE["ch_mult"], 1)
    assert far(network(pictures()).x, picture) < TOLERANCE
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
    )
    for yaml, words in (
        (bomb + text, "more than 50000 values"),
        ("loop: &loop [*loop]\n" + text, "alias"),
        (text + "run: !!python/object/apply:os.system ['touch canary']\n", "python/object"),
        (text + "run: !!python/name:os.system\n", "python/name"),
    ):
        path.with_suffix(".yaml").write_text(yaml)
        with pytest.raises(ArtifactError, match=words):
            convert(path)
    assert not Path("canary").exists()
