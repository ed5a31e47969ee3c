"""``vitrail evaluate`` as a person runs it: two folders, an autoencoder, a model that draws, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.cli import main
from vitrail.commands import evaluate
from vitrail.data import fashion_mnist, feature_weights
from vitrail.data.classes import ClassSet
from vitrail.data.fashion_mnist import FASHION_CLASSES
from vitrail.errors import DataError
from vitrail.models.registry import build
from vitrail.recipe.autoencoders import KLAutoencoderConfig
from vitrail.recipe.gan import DCGANConfig
from vitrail.store import artifacts


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, networks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VITRAIL_DATA", str(networks))
    monkeypatch.setenv("VITRAIL_HOME", str(tmp_path / "home"))


def pictures(folder: Path, count: int, seed: int, side: int = 16, ending: str = "png") -> Path:
    folder.mkdir()
    generator = np.random.default_rng(seed)
    for i in range(count):
        base = Image.fromarray(generator.integers(0, 255, (4, 4, 3), dtype=np.uint8))
        base.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{i:02d}.{ending}")
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[str, str]:
    found = main(["evaluate", *arguments])
    out, err = capsys.readouterr()
    assert found == code, err
    return out, err


def report(folder: Path) -> dict[str, Any]:
    assert (folder / "report.html").stat().st_size > 5000
    data: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return data


def test_two_folders_as_sets(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pictures(tmp_path / "made", 12, 0)
    pictures(tmp_path / "real", 26, 1)
    out, err = run(capsys, "made", "--against", "real")
    lines = out.splitlines()
    assert lines[-2:] == ["out/evaluate-made/report.json", "out/evaluate-made/report.html"]
    assert lines[0].startswith("frechet ")
    assert "n=12" in lines[0]
    assert "not measured: seed_variety" in err
    data = report(Path("out/evaluate-made"))
    assert (data["kind"], data["pictures"]["n"], data["reference"]["n"]) == ("sets", 12, 26)
    assert set(data["metrics"]) >= {
        "frechet",
        "kernel",
        "precision",
        "recall",
        "density",
        "coverage",
        "vendi",
    }
    assert data["metrics"]["kernel"]["floor"]["kind"] == "halves"
    assert data["about"]["versions"]["vitrail"] != "unknown"


def test_two_folders_as_pairs_in_chinese(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pictures(tmp_path / "made", 5, 0, ending="webp")
    pictures(tmp_path / "real", 7, 0)
    out, err = run(capsys, "made", "--against", "real", "--paired", "-o", "here", "--lang", "zh")
    assert out.splitlines()[0].startswith("lpips ")
    assert "最差的一张是" in err
    data = report(Path("here"))
    assert data["kind"] == "pairs"
    assert set(data["metrics"]) == {"lpips", "psnr", "ssim", "ms_ssim", "frechet", "blank"}
    assert data["unmatched"] == ["05", "06"]
    assert '<html lang="zh">' in Path("here/report.html").read_text(encoding="utf-8")


def test_only_the_metrics_asked_for_and_json_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pictures(tmp_path / "made", 4, 0)
    out, _ = run(capsys, "made", "--metrics", "sharpness,blank", "--json")
    assert list(json.loads(out)["metrics"]) == ["sharpness", "blank"]
    assert not Path("out").exists()


def test_a_tokenizer_reconstructs_and_its_codes_are_counted(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_tokenizer_model: Path
) -> None:
    pictures(tmp_path / "real", 3, 0, side=28)  # no multiple of the 8 pixels of a code
    out, _ = run(capsys, "real", "--model", str(tiny_tokenizer_model), "-o", "here", "--device", "cpu")
    data = report(Path("here"))
    assert data["kind"] == "pairs"
    assert data["metrics"]["codes_used"]["settings"]["codebook_size"] == 64
    assert data["metrics"]["codes_used"]["settings"]["codes_a_picture"] == 16
    assert 0 < data["metrics"]["codes_used"]["value"] <= 1
    assert data["metrics"]["gflops"]["value"] > 0
    assert data["metrics"]["latency_s"]["n"] == 5
    assert data["about"]["kind"] == "vq_autoencoder"
    assert "codes_used" in out


def test_an_autoencoder_without_codes_is_judged_alike(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    network = {"architecture": "lean", "downsample": 4, "widths": (16,), "z_channels": 8, "double_z": True}
    config = KLAutoencoderConfig.model_validate({"network": network, "embed_dim": 4})
    artifacts.save(
        tmp_path / "kl",
        kind="kl_autoencoder",
        name="tiny-kl",
        config=config.model_dump(mode="json", exclude={"kind"}),
        tensors=build("kl_autoencoder", config).state_dict(),
        licence="Apache-2.0",
    )
    pictures(tmp_path / "real", 3, 0, side=18)
    run(capsys, "real", "--model", "kl", "--metrics", "psnr,ssim", "-o", "here")
    data = report(Path("here"))
    assert set(data["metrics"]) == {"psnr", "ssim", "latency_s", "peak_memory_mib", "gflops"}
    assert data["pictures"]["sizes"] == {"18x18": 3}


def test_a_model_that_draws_is_judged_on_prompts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_model: Path
) -> None:
    Path("prompts.txt").write_text("a cat\n\na dog\na red cat\na garden\na cat\n", encoding="utf-8")
    pictures(tmp_path / "real", 14, 1)
    arguments = ["--model", str(tiny_model), "--prompts", "prompts.txt", "--against", "real", "-o", "here"]
    out, _ = run(capsys, *arguments, "--seeds", "3", "--steps", "2")
    data = report(Path("here"))
    assert (data["kind"], data["pictures"]["n"]) == ("sets", 12)  # four different prompts, three seeds
    assert set(data["metrics"]) >= {"seed_variety", "seed_spread", "frechet", "latency_s", "gflops"}
    assert data["metrics"]["seed_spread"]["n"] == 3
    assert data["about"]["settings"] == {"steps": 2}
    assert data["skipped"] == {}
    kept = [path for path in Path("here/pictures").iterdir() if "grid" not in path.name]
    assert len(kept) == 12
    # What was kept can be judged again as a folder: prompts and seeds are in the files.
    run(capsys, "here/pictures", "--against", "real", "--metrics", "seed_variety,frechet", "-o", "again")
    again = report(Path("again"))["metrics"]
    for name in ("seed_variety", "frechet"):
        assert again[name]["value"] == pytest.approx(data["metrics"][name]["value"], rel=1e-9)
    # A second run would mix its pictures with these.
    _, err = run(capsys, *arguments, code=2)
    assert "earlier evaluation" in err
    assert out


def test_a_damaged_picture_is_told_before_anything_is_drawn(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_model: Path
) -> None:
    Path("prompts.txt").write_text("a cat\na dog\n", encoding="utf-8")
    whole = (pictures(tmp_path / "real", 3, 1) / "02.png").read_bytes()
    (tmp_path / "real" / "02.png").write_bytes(whole[:-30])
    arguments = ["--model", str(tiny_model), "--prompts", "prompts.txt", "--against", "real", "-o", "here"]
    _, err = run(capsys, *arguments, code=1)
    assert "02.png cannot be decoded" in err
    assert not Path("here/pictures").exists()


def test_a_gan_is_judged_on_its_classes_against_a_built_set(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DCGANConfig(image_size=16, channels=1, classes=3, latent=4, width=4, class_width=4)
    torch.manual_seed(0)
    generator = build("dcgan", config.model_dump(exclude={"kind"}))
    artifacts.save(
        tmp_path / "gan",
        kind="dcgan",
        name="gan",
        config=config.model_dump(exclude={"kind"}),
        tensors=generator.state_dict(),
        licence="CC0-1.0",
    )
    _, err = run(capsys, "--model", "gan", "--against", "fashion-mnist", code=1)
    assert "vitrail data build fashion-mnist" in err
    draw = np.random.default_rng(0)
    shown = draw.integers(0, 256, (30, 16, 16, 3), dtype=np.uint8)
    small = ClassSet(lambda rows: shown[rows], np.arange(30) % 3, FASHION_CLASSES)
    monkeypatch.setattr(fashion_mnist, "fashion_set", lambda split: {"test": small}[split])
    arguments = ["--against", "fashion-mnist", "--limit", "10", "--metrics", "frechet,seed_variety"]
    run(capsys, "--model", "gan", *arguments, "--seeds", "4", "-o", "here")
    data = report(Path("here"))
    assert data["pictures"]["n"] == 12  # three classes, four seeds, and no file of prompts
    assert data["about"]["prompts"] == "3 of its classes"
    assert data["metrics"]["frechet"]["n"] == 12
    assert data["reference"]["n"] == 10


def test_without_the_networks_the_rest_is_measured(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise DataError("cannot fetch it: no network")

    monkeypatch.setattr(feature_weights, "build_networks", offline)
    monkeypatch.setenv("VITRAIL_DATA", str(tmp_path / "nothing"))
    pictures(tmp_path / "made", 3, 0)
    pictures(tmp_path / "real", 3, 0)
    out, err = run(capsys, "made", "--against", "real", "--paired")
    assert "psnr" in out
    assert "not measured: lpips: cannot fetch it: no network" in err
    _, err = run(capsys, "made", "--against", "real", "--paired", "--metrics", "lpips", code=1)
    assert err == "vitrail: cannot fetch it: no network\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing to judge; write: vitrail evaluate my_pictures/ --against real/"),
        (["nowhere"], "nowhere does not exist"),
        (["made", "--paired"], "give their folder with --against"),
        (["made", "--prompts", "x.txt"], "--prompts are for a model"),
        (["made", "--metrics", "fid"], "metric 'fid' is unknown; there are frechet,"),
        (["made", "--metrics", "psnr"], "add --paired"),
        (["made", "--limit", "1"], "limit 1 is out of range"),
        (["--model", "nobody"], "no model nobody"),
    ],
)
def test_mistakes_are_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], said: str
) -> None:
    pictures(tmp_path / "made", 2, 0)
    assert main(["evaluate", *arguments]) != 0
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_every_flag_has_help_in_both_languages(capsys: pytest.CaptureFixture[str]) -> None:
    pages = {}
    for language in ("en", "zh"):
        assert main(["evaluate", "--help", "--lang", language]) == 0
        pages[language] = capsys.readouterr().out
    for name in evaluate.Options.__dataclass_fields__:
        if name != "folder":
            assert f"--{name.replace('_', '-')}" in pages["en"]
            assert f"--{name.replace('_', '-')}" in pages["zh"]
    assert "评测图片或模型" in pages["zh"]
