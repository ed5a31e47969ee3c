"""Sets of pictures, the suite and its floors, costs, and the page that people read."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import io
import json
import re
import time
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.errors import DataError, InputError
from vitrail.evaluation.catalogue import CATALOGUE, PAIR_METRICS, SET_METRICS, label_of
from vitrail.evaluation.efficiency import count_flops, measure_cost
from vitrail.evaluation.features import PixelSpace
from vitrail.evaluation.image_sets import ImageSet, Shot, pair_up
from vitrail.evaluation.report import as_json, write_report
from vitrail.evaluation.report_page import POLICY, SCRIPT, opened_in
from vitrail.evaluation.suite import Evaluation, choose, evaluate_pairs, evaluate_sets
from vitrail.evaluation.verdict import verdict
from vitrail.provenance.metadata import encode
from vitrail.schema import ImageRecord, SamplingDefaults, TextToImageRequest

Array = np.ndarray[Any, Any]


def picture(seed: int, side: int = 32) -> Array:
    generator = np.random.default_rng(seed)
    base = generator.integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(base).resize((side, side), Image.Resampling.BICUBIC))


def softer(array: Array) -> Array:
    return np.asarray(Image.fromarray(array).resize((8, 8)).resize(array.shape[1::-1]))


def folder(path: Path, arrays: dict[str, Array]) -> Path:
    for name, array in arrays.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path / name)
    return path


# -- sets of pictures ----------------------------------------------------------------------------------------


def test_a_folder_is_read_in_order_and_as_bytes(tmp_path: Path) -> None:
    arrays = {f"{i}.png": picture(i, 16 + i) for i in range(5)}
    images = ImageSet.from_folder(folder(tmp_path / "a", arrays))
    assert images.keys == ("0.png", "1.png", "2.png", "3.png", "4.png")
    for i in range(5):
        np.testing.assert_array_equal(images.pixels(i), arrays[f"{i}.png"])
    assert images.sizes == {f"{16 + i}x{16 + i}": 1 for i in range(5)}
    assert [len(batch) for batch in images.batches(4)] == [1] * 5  # one size a batch
    x = images.tensor(3)
    assert x.shape == (1, 3, 19, 19)
    torch.testing.assert_close(
        (x + 1) * 127.5, torch.from_numpy(arrays["3.png"].copy()).permute(2, 0, 1)[None].float()
    )
    assert ImageSet.from_folder(tmp_path / "a", limit=2).keys == ("0.png", "2.png")
    with pytest.raises(InputError, match="at least 2"):
        ImageSet.from_folder(folder(tmp_path / "b", {"one.png": picture(0)}))
    with pytest.raises(InputError, match="does not exist"):
        ImageSet.from_folder(tmp_path / "none")


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    root = folder(tmp_path, {"a.png": picture(0), "b.png": picture(1)})
    (root / "b.png").write_bytes((root / "b.png").read_bytes()[:200])
    with pytest.raises(DataError, match=r"b\.png"):
        ImageSet.from_folder(root).pixels(1)


def test_from_tensor_rounds_like_a_file_and_counts_what_is_no_number() -> None:
    x = torch.tensor([-1.0, 1.0, 0.0, 2.0]).view(4, 1, 1, 1).expand(4, 3, 2, 2).clone()
    x[2] = float("nan")
    images = ImageSet.from_tensor("x", x, shots=[Shot("p", i) for i in range(4)])
    assert [int(images.pixels(i)[0, 0, 0]) for i in range(3)] == [0, 255, 255]
    assert images.failed == 1
    assert images.shots == (Shot("p", 0), Shot("p", 1), Shot("p", 3))


def record(prompt: str, seed: int) -> ImageRecord:
    request = TextToImageRequest(prompt=prompt, seed=seed, n=1).resolve(SamplingDefaults(width=32, height=32))
    return ImageRecord(
        request=request,
        index=0,
        seed=seed,
        model_name="tiny",
        model_sha256="0" * 64,
        created=datetime(2026, 1, 1, tzinfo=UTC),
    )


def test_pictures_of_vitrail_bring_prompt_and_seed_and_their_sheets_are_left_out(tmp_path: Path) -> None:
    for prompt, seed in (("a cat", 1), ("a cat", 2), ("a dog", 1)):
        data = encode(Image.fromarray(picture(seed)), "png", record(prompt, seed))
        (tmp_path / f"000{seed}-{prompt[-3:]}-seed{seed}.png").write_bytes(data)
    sheet = encode(Image.fromarray(picture(9)), "png")
    (tmp_path / "0009-cat-grid.png").write_bytes(sheet)
    images = ImageSet.from_folder(tmp_path)
    assert len(images) == 3
    assert images.shots is not None
    cats = [shot for shot, key in zip(images.shots, images.keys, strict=True) if shot and "cat" in key]
    assert [shot.seed for shot in cats] == [1, 2]
    assert len({shot.prompt for shot in cats}) == 1
    # Somebody else's picture of a grid is a picture.
    other = folder(tmp_path / "other", {"power-grid.png": picture(1), "b.png": picture(2)})
    assert len(ImageSet.from_folder(other)) == 2


def test_pairs_are_found_by_name_whatever_the_ending(tmp_path: Path) -> None:
    ours = ImageSet.from_folder(
        folder(tmp_path / "a", {"x/1.png": picture(1), "2.png": picture(2), "5.png": picture(5)})
    )
    real = ImageSet.from_folder(
        folder(tmp_path / "b", {"x/1.jpg": picture(1), "2.webp": picture(2), "1.png": picture(3)})
    )
    pairs = pair_up(ours, real)
    assert pairs.pictures.keys == ("2.png", "x/1.png")
    assert pairs.originals.keys == ("2.webp", "x/1.jpg")
    assert sorted(pairs.unmatched) == ["1", "5"]
    larger = ImageSet.from_folder(folder(tmp_path / "c", {"2.png": picture(2, 40), "5.png": picture(5)}))
    with pytest.raises(DataError, match="2 is 32x32 in a and 40x40 in c"):
        pair_up(ours, larger)
    with pytest.raises(InputError, match="0 pictures of a and d"):
        pair_up(
            ours, ImageSet.from_folder(folder(tmp_path / "d", {"8.png": picture(8), "9.png": picture(9)}))
        )


# -- the suite -----------------------------------------------------------------------------------------------


def as_set(arrays: list[Array], name: str = "set", shots: list[Shot] | None = None) -> ImageSet:
    return ImageSet.from_arrays(name, arrays, shots=shots)


@pytest.fixture(scope="module")
def sets() -> Evaluation:
    real = as_set([picture(i) for i in range(60)], "real")
    shots = [Shot(f"prompt {i // 2}", i % 2) for i in range(24)]
    ours = as_set([softer(picture(100 + i)) for i in range(24)], "ours", shots)
    return evaluate_sets(ours, real, space=PixelSpace(4))


@pytest.fixture(scope="module")
def pairs() -> Evaluation:
    real = as_set([picture(i) for i in range(16)], "real")
    ours = as_set([softer(picture(i)) for i in range(16)], "ours")
    return evaluate_pairs(ours, real, ("psnr", "ssim", "ms_ssim", "frechet", "blank"), space=PixelSpace(4))


def test_every_metric_of_sets_has_n_interval_and_floor(sets: Evaluation) -> None:
    assert set(sets.results) == set(SET_METRICS)
    assert sets.skipped == {}
    for name, result in sets.results.items():
        assert result.ci95 is not None, name
        assert result.n > 1
        assert result.interval
        if not name.startswith("seed"):
            assert result.floor is not None, name
    halves = sets.results["kernel"].floor
    assert halves is not None
    assert (halves.kind, halves.n) == ("halves", 24)
    assert halves.matched is not None
    # Real against real is about 0, and softened pictures of the same source are near it in layout.
    assert abs(halves.value) < 0.02
    assert sets.results["sharpness"].value < sets.results["sharpness"].floor.value  # type: ignore[union-attr]


def test_pairs_stand_between_themselves_and_unrelated_pictures(pairs: Evaluation) -> None:
    for name in ("psnr", "ssim", "ms_ssim"):
        result = pairs.results[name]
        assert result.floor is not None
        assert result.floor.chance is not None
        assert result.floor.chance < result.value < result.floor.value
        assert result.each is not None
        assert len(result.each) == 16
    frechet = pairs.results["frechet"]
    assert frechet.floor is not None
    assert frechet.floor.value == 0


def test_what_cannot_be_measured_is_named_with_its_reason() -> None:
    ours = as_set([picture(i) for i in range(6)])
    found = evaluate_sets(ours, None)
    assert set(found.results) == {"sharpness", "blank"}
    assert found.skipped["vendi"] == "its network is not there"
    assert "to compare with" in found.skipped["blurry"]
    said = [line for sentence in verdict(found) for line in sentence.words]
    assert any("to compare with" in line for line in said)
    assert not [line for line in [*said, *found.skipped.values()] if "--" in line]  # the studio has no flags


def test_choose_refuses_unknown_names_and_those_of_the_other_kind() -> None:
    assert choose(["psnr,ssim", "psnr"], "pairs") == ("psnr", "ssim")
    assert choose([], "sets") == SET_METRICS
    assert choose([], "pairs") == PAIR_METRICS
    with pytest.raises(InputError, match="'fid' is unknown"):
        choose(["fid"], "sets")
    with pytest.raises(InputError, match="add --paired"):
        choose(["psnr"], "sets")


def test_verdicts_say_what_is_wrong() -> None:
    real = as_set([picture(i) for i in range(60)], "real")
    same = evaluate_sets(as_set([picture(1000 + i) for i in range(60)]), real, space=PixelSpace(2))
    assert any("cannot be told from" in s.words.en for s in verdict(same))
    ramp = np.repeat(np.arange(32, dtype=np.uint8)[None, :, None] * 6 + 30, 32, 0).repeat(3, 2)
    collapsed = as_set([ramp] * 30 + [np.zeros((32, 32, 3), np.uint8)])
    said = " ".join(s.words.en for s in verdict(evaluate_sets(collapsed, real, space=PixelSpace(2))))
    for words in ("1 of 31 pictures are blank", "can be told from", "kinds", "less varied", "blurrier"):
        assert words in said


# -- the page ------------------------------------------------------------------------------------------------


class _Page(HTMLParser):
    """Collects tags, addresses and whether every tag is closed."""

    VOID = frozenset({"meta", "input", "img", "line", "rect", "circle"})

    def __init__(self) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.open: list[str] = []
        self.policy = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        for name, value in attrs:
            if name in ("src", "href", "action", "srcset", "data"):
                self.addresses.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)
        values = dict(attrs)
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"] or ""
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


HOSTILE = "\"><script>alert(1)</script><img src=http://evil/ onerror='x'>\u202e.png"


def read_page(evaluation: Evaluation, out: Path) -> tuple[str, _Page]:
    data, page = write_report(evaluation, out)
    json.loads(data.read_text(encoding="utf-8"))
    text = page.read_text(encoding="utf-8")
    parsed = _Page()
    parsed.feed(text)
    assert parsed.open == []
    return text, parsed


@pytest.mark.parametrize("kind", ["sets", "pairs"])
def test_the_page_needs_nothing_else_and_runs_only_its_own_script(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    text, parsed = read_page(request.getfixturevalue(kind), tmp_path)
    assert all(address.startswith("data:image/webp;base64,") for address in parsed.addresses)
    assert len(parsed.addresses) > 20
    assert parsed.handlers == []
    assert parsed.tags["script"] == 1
    script = re.search(r"<script>(.*)</script>", text, re.DOTALL)
    assert script is not None
    assert script[1] == SCRIPT
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in parsed.policy == POLICY
    assert "default-src 'none'" in parsed.policy
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text
    assert parsed.tags["svg"] >= 2
    if kind == "pairs":
        assert text.count('type="range"') == 12


def test_pictures_in_the_page_are_the_pictures(pairs: Evaluation, tmp_path: Path) -> None:
    _, parsed = read_page(pairs, tmp_path)
    first = base64.b64decode(parsed.addresses[0].partition(",")[2])
    psnr = pairs.results["psnr"].each
    assert psnr is not None
    shown = np.asarray(Image.open(io.BytesIO(first)).convert("RGB"))
    np.testing.assert_array_equal(shown, pairs.pictures.pixels(int(psnr.argmin())))  # the worst comes first


def test_every_text_is_there_in_both_languages(sets: Evaluation, tmp_path: Path) -> None:
    for language in ("en", "zh"):
        text = write_report(sets, tmp_path / language, language=language)[1].read_text(encoding="utf-8")
        assert f'<html lang="{language}">' in text
        assert text.count('lang="en">') == text.count('lang="zh">') + (1 if language == "en" else -1)
        for name in sets.results:
            for words in (*CATALOGUE[name].meaning, *label_of(name, "Pixels")):
                assert html.escape(words) in text


def test_a_page_opens_in_either_language_afterwards(sets: Evaluation, tmp_path: Path) -> None:
    about = {**sets.about, "model": '<input type="radio" name="language" id="en" checked>'}
    named = dataclasses.replace(sets, about=about)
    pages = {
        language: write_report(named, tmp_path / language, language=language)[1].read_bytes()
        for language in ("en", "zh")
    }
    assert pages["en"] != pages["zh"]
    assert opened_in(pages["en"], "zh") == pages["zh"] == opened_in(pages["zh"], "zh")
    assert opened_in(pages["zh"], "en") == pages["en"]


def test_the_frechet_distance_is_named_after_its_features(sets: Evaluation, tmp_path: Path) -> None:
    text = write_report(sets, tmp_path)[1].read_text(encoding="utf-8")
    assert "FD-Pixels" in text
    assert "EffNet" not in text


def test_hostile_names_are_only_text(tmp_path: Path) -> None:
    keys = [HOSTILE, *(f"{i}" for i in range(11))]
    arrays = [picture(i) for i in range(12)]
    ours = ImageSet.from_arrays(HOSTILE, arrays, keys=keys)
    found = evaluate_sets(ours, ImageSet.from_arrays("b" + HOSTILE, arrays, keys=keys), space=PixelSpace(2))
    found.about = {"model": HOSTILE, HOSTILE: HOSTILE}
    found.skipped["lpips"] = HOSTILE
    found.unmatched = (HOSTILE,)
    text, parsed = read_page(found, tmp_path)
    assert parsed.tags["script"] == 1
    assert parsed.handlers == []
    assert not any("evil" in address for address in parsed.addresses)
    assert "\u202e" not in text
    paired = evaluate_pairs(ours, ours, ("psnr",))
    _, parsed = read_page(paired, tmp_path)
    assert parsed.tags["script"] == 1
    assert parsed.handlers == []


def test_the_json_holds_every_figure_and_no_infinity(pairs: Evaluation, sets: Evaluation) -> None:
    for evaluation in (pairs, sets):
        data = json.loads(json.dumps(as_json(evaluation), allow_nan=False))
        assert data["kind"] == evaluation.kind
        for name, result in evaluation.results.items():
            assert data["metrics"][name]["value"] == result.value
            assert data["metrics"][name]["n"] == result.n
            assert len(data["metrics"][name]["ci95"]) == 2
            assert data["metrics"][name]["interval"]
    assert len(as_json(pairs)["each"]["psnr"]) == 16
    assert as_json(sets)["reference"]["n"] == 60


# -- costs ---------------------------------------------------------------------------------------------------


def test_flops_of_known_operations() -> None:
    a, b = torch.randn(7, 11), torch.randn(11, 5)
    assert count_flops(lambda: a @ b) == 2 * 7 * 11 * 5
    convolution = torch.nn.Conv2d(3, 8, 3, padding=1, bias=False)
    assert count_flops(lambda: convolution(torch.zeros(1, 3, 10, 12))) == 2 * 8 * 3 * 9 * 10 * 12


def test_cost_of_a_function_that_waits_and_holds_memory() -> None:
    def run() -> None:
        held = torch.ones(30 * 2**20)  # 120 MiB
        time.sleep(0.02)
        del held

    before = measure_cost(lambda: None, repeats=1)["peak_memory_mib"].value
    results = measure_cost(run, repeats=4, pictures=2)
    assert results["peak_memory_mib"].value >= before + 20
    latency = results["latency_s"]
    assert 0.01 <= latency.value < 5
    assert latency.n == 4
    assert latency.ci95 is not None
    assert "gflops" not in results  # nothing that is counted
    with pytest.raises(InputError, match="repeats 0"):
        measure_cost(run, repeats=0)
