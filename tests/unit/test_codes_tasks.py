"""Reconstruct, compress, vary, inpaint, walk and the codebook's sheet, with tiny real models."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vitrail import codes_schema, schema
from vitrail.codes_schema import (
    DecodeRequest,
    InpaintRequest,
    Margins,
    ReconstructRequest,
    VaryRequest,
    WalkRequest,
)
from vitrail.errors import ArtifactError, CancelledError, DataError, InputError
from vitrail.images import to_pil, to_tensor
from vitrail.request_fields import FileRef
from vitrail.samplers.tokens import windowed, windows_read
from vitrail.schema import Done, ImageRecord, PictureDone, Progress
from vitrail.store import vtl
from vitrail.tasks import compress as compressing
from vitrail.tasks import tokenizers
from vitrail.tasks.codebook import codebook_sheet
from vitrail.tasks.compress import compress, encode, read_codes
from vitrail.tasks.context import Context
from vitrail.tasks.core import TASKS, Loader
from vitrail.tasks.inpaint import filled, soft_edge
from vitrail.tasks.prior_coding import load_prior_coder, order_of
from vitrail.tasks.priors import load_prior, read_words, room
from vitrail.tasks.token_generation import conditions_of
from vitrail.tasks.tokenizers import decode_codes, encode_pixels, load_tokenizer
from vitrail.tasks.vary import forgotten
from vitrail.tasks.walk import between, places


@pytest.fixture(scope="module")
def loader() -> Loader:
    return Loader()


@pytest.fixture
def context() -> Context:
    return Context()


def picture(width: int = 48, height: int = 48, seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def png(image: Image.Image, name: str = "cat.png") -> FileRef:
    target = io.BytesIO()
    image.save(target, "PNG")
    return FileRef.of(name, target.getvalue())


def run(request: schema.Request, loader: Loader, context: Context) -> tuple[list[PictureDone], Done]:
    *made, done = list(TASKS[request.kind](request, loader, context))
    assert isinstance(done, Done)
    assert all(isinstance(event, PictureDone) for event in made)
    return made, done


def pixels(event: PictureDone) -> np.ndarray[Any, Any]:
    return np.asarray(event.picture).astype(int)


# -- tokenizer alone -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(48, 48), (50, 61), (7, 3), (1, 1)])
def test_a_picture_of_any_size_is_reconstructed(
    loader: Loader, context: Context, tiny_tokenizer_model: Path, size: tuple[int, int]
) -> None:
    image = picture(*size)
    request = ReconstructRequest(picture=png(image), model=str(tiny_tokenizer_model))
    [event], _ = run(request, loader, context)
    assert event.picture.size == size
    # The reference: the network itself on the picture padded by its last pixels.
    network = load_tokenizer(loader, request.model).network
    padded = np.pad(np.asarray(image), ((0, -size[1] % 8), (0, -size[0] % 8), (0, 0)), mode="edge")
    with torch.inference_mode():
        wanted = network.decode_codes(network.encode(to_tensor([Image.fromarray(padded)])).codes)
    assert np.array_equal(pixels(event), np.asarray(to_pil(wanted[0, :, : size[1], : size[0]])[0]))


def test_compare_shows_before_after_and_difference(
    loader: Loader, context: Context, tiny_tokenizer_model: Path
) -> None:
    request = ReconstructRequest(picture=png(picture()), compare=True, model=str(tiny_tokenizer_model))
    [event], _ = run(request, loader, context)
    assert event.picture.width > 3 * 48
    assert np.array_equal(pixels(event)[4:52, 4:52], np.asarray(picture()))


def test_the_record_names_the_file_and_no_path(
    loader: Loader, context: Context, tiny_tokenizer_model: Path
) -> None:
    request = ReconstructRequest(
        picture=FileRef.of("/home/me/secret/cat.png", png(picture()).data), model=str(tiny_tokenizer_model)
    )
    [event], _ = run(request, loader, context)
    text = event.record.to_json()
    assert "secret" not in text
    assert str(tiny_tokenizer_model) not in text
    record = ImageRecord.from_json(text)
    assert isinstance(record.request, ReconstructRequest)
    assert record.request.picture.name == "cat.png"
    assert record.request.picture.sha256 == request.picture.sha256
    assert record.model_name == "tiny-tokenizer"
    with pytest.raises(InputError, match="made by vitrail reconstruct of a file that its record does not"):
        record.again()
    with pytest.raises(InputError, match=r"content of cat\.png is not in the request"):
        run(record.request.model_copy(update={"model": str(tiny_tokenizer_model)}), loader, context)


def test_large_pictures_go_in_tiles_that_meet_without_a_seam(
    loader: Loader, context: Context, tiny_tokenizer_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(loader, str(tiny_tokenizer_model))
    image = to_tensor([picture(400, 330)])[0]
    codes = encode_pixels(tokenizer, image, context)
    whole = decode_codes(tokenizer, codes, context)
    monkeypatch.setattr(tokenizers, "WHOLE", 64 * 64)
    monkeypatch.setattr(tokenizers, "TILE", 128)
    assert encode_pixels(tokenizer, image, context).shape == codes.shape
    tiled = decode_codes(tokenizer, codes, context)
    assert tiled.shape == whole.shape
    # Group norms see the tile and not the picture, so tiles differ a little; a seam would be a step between
    # neighbours at a multiple of 128 that the whole picture does not have.
    steps = (tiled - whole).diff(dim=2).abs().mean(dim=(0, 1))
    assert steps[127::128].mean() < 1.5 * steps.mean() + 1e-4


def test_a_tiles_fade_sums_to_one(loader: Loader, context: Context, tiny_tokenizer_model: Path) -> None:
    tokenizer = load_tokenizer(loader, str(tiny_tokenizer_model))
    weights = torch.zeros(200 * 8)
    for tile in tokenizers._tiles(tokenizer, 1, 200 * 100):
        if tile.bottom == 1 and tile.right <= 200:
            weights[tile.left * 8 : tile.right * 8] += tokenizers._fade(tile.left, tile.right, 20_000, 8)
    assert torch.allclose(weights[: 128 * 8], torch.ones(128 * 8), atol=1e-6)


# -- files of codes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(48, 48), (100, 37), (5, 5)])
@pytest.mark.parametrize("model", ["tiny_tokenizer_model", "tiny_prior", "tiny_causal_prior"])
def test_codes_come_back_exactly_from_a_vtl_file(
    loader: Loader, context: Context, request: pytest.FixtureRequest, model: str, size: tuple[int, int]
) -> None:
    name = str(request.getfixturevalue(model))
    file = encode(picture(*size), name, loader, context)
    made = compress(file, name, loader, context)
    again = read_codes(made.data, name, loader, context)
    assert np.array_equal(again.codes, file.codes)
    assert (again.width, again.height) == size
    assert made.bits_per_pixel == 8 * len(made.data) / (size[0] * size[1])
    assert len(made.data) == min(made.tried.values())
    assert ("prior" in made.tried) == (model != "tiny_tokenizer_model")
    decoded, _ = run(DecodeRequest(picture=FileRef.of("a.vtl", made.data), model=name), loader, context)
    same, _ = run(ReconstructRequest(picture=png(picture(*size)), model=name), loader, context)
    assert np.array_equal(pixels(decoded[0]), pixels(same[0]))


@pytest.mark.parametrize("model", ["tiny_prior", "tiny_causal_prior"])
def test_the_prior_writes_codes_at_the_cost_that_it_gives_them(
    loader: Loader, context: Context, request: pytest.FixtureRequest, model: str
) -> None:
    """Against the network's own float32 probabilities, taken the plain way: one pass or all codes at once."""
    name = str(request.getfixturevalue(model))
    coder = load_prior_coder(loader, name)
    assert coder is not None
    codes = np.random.default_rng(0).integers(0, 64, (6, 6))
    prior = load_prior(loader, name)
    network = prior.model.network
    conditions = conditions_of(prior.model, read_words(prior, "", None), 1, guided=False)
    passes = 16
    size = 8 * (len(coder.write(codes, context, passes)) - 1)
    flat = torch.from_numpy(codes).flatten()[None]
    with torch.inference_mode():
        if network.config.mode == "causal":
            told = network(flat, conditions).log_softmax(-1)[0]
            nats = told.gather(1, flat[0, :, None]).sum()
        else:
            nats = torch.zeros(())
            order, done = torch.from_numpy(order_of(6, 6)), 0
            known = torch.full_like(flat, network.unknown)
            for step in range(1, passes + 1):
                rest = int(36 * np.cos(np.pi / 2 * step / passes) + 1e-9) if step < passes else 0
                now = order[done : max(36 - rest, min(done + 1, 36))]
                told = network(known, conditions).log_softmax(-1)[0]
                nats = nats + told[now, flat[0, now]].sum()
                known[0, now] = flat[0, now]
                done += len(now)
    bits = -float(nats) / np.log(2.0)
    assert bits - 1 < size < bits + 36 * 0.05 + 48


def test_the_prior_reads_the_same_whatever_the_number_of_threads(
    loader: Loader, context: Context, tiny_prior: Path
) -> None:
    coder = load_prior_coder(loader, str(tiny_prior))
    assert coder is not None
    codes = np.random.default_rng(0).integers(0, 64, (9, 13))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        data = coder.write(codes, context)
        torch.set_num_threads(2)
        assert np.array_equal(coder.read(data, 9, 13, context), codes)
    finally:
        torch.set_num_threads(threads)


def test_the_prior_is_computed_in_float64_throughout(
    loader: Loader, context: Context, tiny_prior: Path
) -> None:
    """Shaking every weight by 1e-14 of itself, as another machine's sums would, changes no table."""
    coder = load_prior_coder(loader, str(tiny_prior))
    assert coder is not None
    codes = np.random.default_rng(1).integers(0, 64, (6, 6))
    data = coder.write(codes, context)
    before = {name: value.clone() for name, value in coder.network.state_dict().items()}
    try:
        for scale, same in ((1e-14, True), (1e-2, False)):  # the second is the control
            with torch.no_grad():
                for name, parameter in coder.network.named_parameters():
                    parameter.copy_(before[name] * (1 + scale * torch.randn(parameter.shape).double()))
            try:
                got = np.array_equal(coder.read(data, 6, 6, context), codes)
            except DataError:
                got = False
            assert got is same
    finally:
        coder.network.load_state_dict(before)


def test_a_prior_that_is_not_the_same_twice_costs_bits_and_no_picture(
    loader: Loader, context: Context, tiny_prior: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = str(tiny_prior)
    file = encode(picture(), name, loader, context)

    class Fickle:
        name, sha256 = "fickle", "ab" * 32

        def write(self, codes: Any, context: Context) -> bytes:
            return b"x"  # far the smallest

        def read(self, data: bytes, rows: int, columns: int, context: Context) -> Any:
            return file.codes + 1

    monkeypatch.setattr(compressing, "load_prior_coder", lambda loader, name: Fickle())
    made = compress(file, name, loader, context)
    assert made.method in ("static", "context")
    assert made.tried["prior"] < len(made.data)
    assert np.array_equal(read_codes(made.data, name, loader, context).codes, file.codes)


def test_another_model_is_told_apart(
    loader: Loader, context: Context, tiny_tokenizer_model: Path, tmp_path: Path, make_tokenizer: Any
) -> None:
    other = str(make_tokenizer(tmp_path / "other", seed=1))
    file = encode(picture(), other, loader, context)
    for data in (vtl.pack_npz(file), compress(file, other, loader, context).data):
        with pytest.raises(DataError, match=r"x\.vtl was made with another model \(SHA-256 [0-9a-f]{12}"):
            read_codes(data, str(tiny_tokenizer_model), loader, context, "x.vtl")


def test_a_file_written_with_a_prior_asks_for_it(
    loader: Loader, context: Context, tiny_prior: Path, tiny_tokenizer_model: Path
) -> None:
    tokenizer = load_tokenizer(loader, str(tiny_prior))
    codes = np.zeros((6, 6), dtype=np.int64)
    data = vtl.pack(
        "prior", 48, 48, codes, b"\x10", tokenizer_sha256=tokenizer.sha256, prior_sha256="cd" * 32
    )
    with pytest.raises(DataError, match="made with another model"):
        read_codes(data, str(tiny_prior), loader, context)
    with pytest.raises(DataError, match="tiny-tokenizer is a tokenizer alone"):
        read_codes(data, str(tiny_tokenizer_model), loader, context)


def test_several_codes_a_place_are_written_too(
    loader: Loader, context: Context, tmp_path: Path, make_tokenizer: Any
) -> None:
    name = str(make_tokenizer(tmp_path / "residual", stages=3))
    file = encode(picture(50, 40), name, loader, context)
    assert file.codes.shape == (5, 7, 3)
    made = compress(file, name, loader, context)
    assert np.array_equal(read_codes(made.data, name, loader, context).codes, file.codes)
    assert np.array_equal(vtl.unpack_npz(vtl.pack_npz(file)).codes, file.codes)


# -- drawing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["tiny_prior", "tiny_causal_prior"])
@pytest.mark.parametrize("size", [(48, 48), (90, 70), (20, 30)])
def test_variations_keep_the_codes_that_are_not_forgotten(
    loader: Loader, context: Context, request: pytest.FixtureRequest, model: str, size: tuple[int, int]
) -> None:
    name = str(request.getfixturevalue(model))
    told: list[Progress] = []
    context.report = lambda event: told.append(event)  # type: ignore[arg-type, return-value]
    given: dict[str, Any] = {"picture": png(picture(*size)), "amount": 0.4, "steps": 3, "model": name}
    made, _ = run(VaryRequest(**given, n=2, seed=5), loader, context)
    assert [event.record.seed for event in made] == [5, 6]
    assert all(event.picture.size == size for event in made)
    assert not np.array_equal(pixels(made[0]), pixels(made[1]))
    assert told[-1].step == told[-1].steps
    again, _ = run(VaryRequest(**given, seed=6), Loader(), Context())
    assert np.array_equal(pixels(made[1]), pixels(again[0]))  # a picture depends on its own seed alone


def test_a_large_picture_is_drawn_in_at_a_size_that_the_prior_sees(
    loader: Loader, context: Context, tiny_prior: Path
) -> None:
    prior = load_prior(loader, str(tiny_prior))
    side = prior.model.size[0]

    def all_codes(width: int, height: int) -> Tensor:
        return torch.ones(-(-height // 8), -(-width // 8), dtype=torch.bool)

    for same in ((1, 1), (side, side), (2 * side, 2 * side), (5 * side, side)):
        assert room(prior, all_codes, same) == same
    width, height = room(prior, all_codes, (20 * side, 10 * side))
    assert 1.9 < width / height < 2.1
    assert width * height < 9 * side * side
    large, given = picture(20 * side, 10 * side), {"steps": 2, "seed": 3, "model": str(tiny_prior)}
    [varied], done = run(VaryRequest(picture=png(large), **given), loader, context)
    assert varied.picture.size == large.size
    assert f"drawn at {width}x{height} and enlarged" in done.hints[0]
    mask = Image.new("L", large.size)
    mask.paste(255, (0, 0, 10 * side, 10 * side))
    painted, done = run(InpaintRequest(picture=png(large), mask=png(mask), **given), loader, context)
    assert "and enlarged" in done.hints[0]
    kept = np.asarray(large).astype(int)
    assert np.array_equal(pixels(painted[0])[:, 10 * side + 5 :], kept[:, 10 * side + 5 :])
    small = Image.new("L", large.size)
    small.paste(255, (8, 8, 24, 24))
    _, done = run(InpaintRequest(picture=png(large), mask=png(small), **given), loader, context)
    assert done.hints == (), "a small hole in a large picture is painted at the picture's own size"


def test_windows_that_know_everything_are_not_read_and_change_nothing() -> None:
    read: list[int] = []

    def model(codes: Tensor) -> Tensor:
        read.append(1)
        return (codes[..., None] * torch.arange(5.0)).sin() + codes.float().mean((1, 2))[:, None, None, None]

    known = torch.arange(144).reshape(1, 12, 12) % 5
    known[0, 1, 1] = known[0, 2, 4] = -1
    told = windowed(model, 4, 4)(known)
    assert len(read) == windows_read(known[0] == -1, 4, 4) == 5
    known[0, 11] = -1  # more windows are read; those that saw the two places say the same of them
    again = windowed(model, 4, 4)(known)
    assert torch.equal(told[0, 1, 1], again[0, 1, 1])
    assert torch.equal(told[0, 2, 4], again[0, 2, 4])


def test_nothing_forgotten_is_the_reconstruction(loader: Loader, context: Context, tiny_prior: Path) -> None:
    name = str(tiny_prior)
    [varied], _ = run(VaryRequest(picture=png(picture()), amount=0.0, seed=1, model=name), loader, context)
    [plain], _ = run(ReconstructRequest(picture=png(picture()), model=name), loader, context)
    assert np.array_equal(pixels(varied), pixels(plain))


@pytest.mark.parametrize("amount", [0.0, 0.25, 1.0])
def test_the_share_that_is_forgotten_is_exact(amount: float) -> None:
    mask = forgotten((16, 16), amount, 3)
    assert int(mask.sum()) == round(amount * 256)
    assert torch.equal(mask, forgotten((16, 16), amount, 3))


def test_what_is_forgotten_hangs_together() -> None:
    """More neighbours of one kind than single places drawn independently would have (2 p (1-p) differ)."""
    masks = torch.stack([forgotten((16, 16), 0.3, seed) for seed in range(20)]).float()
    assert masks.diff(dim=1).abs().mean() < 0.6 * 2 * 0.3 * 0.7


def test_words_reach_the_picture_where_the_model_reads_them(
    loader: Loader, context: Context, tiny_prior: Path, tiny_causal_prior: Path
) -> None:
    given: dict[str, Any] = {"picture": png(picture()), "amount": 1.0, "seed": 1, "steps": 4}
    pictures = [
        pixels(run(VaryRequest(**given, prompt=words, model=str(tiny_prior)), loader, context)[0][0])
        for words in ("", "red cat", "red cat")
    ]
    assert not np.array_equal(pictures[0], pictures[1])
    assert np.array_equal(pictures[1], pictures[2])
    with pytest.raises(InputError, match="model tiny-causal reads no words"):
        run(VaryRequest(**given, prompt="red", model=str(tiny_causal_prior)), loader, context)
    with pytest.raises(InputError, match="has no styles"):
        run(VaryRequest(**given, style="noto", model=str(tiny_prior)), loader, context)


def test_a_tokenizer_alone_draws_nothing(
    loader: Loader, context: Context, tiny_tokenizer_model: Path
) -> None:
    with pytest.raises(ArtifactError, match="tokenizer alone and draws nothing"):
        run(VaryRequest(picture=png(picture()), model=str(tiny_tokenizer_model)), loader, context)


def test_a_model_without_codes_is_named(loader: Loader, context: Context, tiny_model: Path) -> None:
    with pytest.raises(ArtifactError, match="is of kind shell_dit and has no codes"):
        run(ReconstructRequest(picture=png(picture()), model=str(tiny_model)), loader, context)


def test_cancelling_stops_within_a_pass(loader: Loader, tiny_prior: Path) -> None:
    context = Context()

    def stop(event: schema.Event) -> None:
        context.cancelled.set()

    context.report = stop
    with pytest.raises(CancelledError):
        run(
            VaryRequest(picture=png(picture()), amount=1.0, steps=20, seed=1, model=str(tiny_prior)),
            loader,
            context,
        )


def mask_of(box: tuple[int, int, int, int], size: tuple[int, int] = (48, 48)) -> FileRef:
    mask = Image.new("L", size)
    mask.paste(255, box)
    return png(mask, "mask.png")


@pytest.mark.parametrize("feather", [0, 3])
def test_inpainting_keeps_known_pixels_to_the_byte(
    loader: Loader, context: Context, tiny_prior: Path, feather: int
) -> None:
    image = picture(52, 45)
    request = InpaintRequest(
        picture=png(image),
        mask=mask_of((16, 12, 30, 24), (52, 45)),
        feather=feather,
        seed=2,
        steps=3,
        model=str(tiny_prior),
    )
    [event], done = run(request, loader, context)
    difference = np.abs(pixels(event) - np.asarray(image)).max(axis=2)
    near = np.zeros((45, 52), dtype=bool)
    near[12 - feather : 24 + feather, 16 - feather : 30 + feather] = True
    assert difference[~near].max() == 0
    assert difference[12:24, 16:30].mean() > 3
    assert done.hints == ()


def test_what_is_under_the_mask_does_not_reach_the_result(
    loader: Loader, context: Context, tiny_prior: Path
) -> None:
    first = picture()
    second = first.copy()
    second.paste((255, 0, 0), (16, 16, 32, 32))
    made = [
        pixels(
            run(
                InpaintRequest(
                    picture=png(image),
                    mask=mask_of((16, 16, 32, 32)),
                    seed=2,
                    steps=3,
                    model=str(tiny_prior),
                ),
                loader,
                context,
            )[0][0]
        )
        for image in (first, second)
    ]
    assert np.array_equal(made[0], made[1])


def test_outpainting_grows_the_picture(loader: Loader, context: Context, tiny_prior: Path) -> None:
    image = picture()
    request = InpaintRequest(
        picture=png(image),
        expand=Margins(left=16, bottom=5),
        feather=0,
        seed=2,
        steps=3,
        model=str(tiny_prior),
    )
    [event], _ = run(request, loader, context)
    assert event.picture.size == (64, 53)
    assert np.array_equal(pixels(event)[:48, 16:], np.asarray(image))


def test_a_mask_of_another_size_is_resized_or_refused(
    loader: Loader, context: Context, tiny_prior: Path
) -> None:
    given: dict[str, Any] = {"picture": png(picture()), "seed": 1, "steps": 1, "model": str(tiny_prior)}
    _, done = run(InpaintRequest(mask=mask_of((20, 20, 60, 60), (96, 96)), **given), loader, context)
    assert done.hints == ("the mask was resized from 96x96 to the picture's size",)
    with pytest.raises(InputError, match="the mask has 96x48 pixels and the picture 48x48"):
        run(InpaintRequest(mask=mask_of((0, 0, 9, 9), (96, 48)), **given), loader, context)
    with pytest.raises(InputError, match="the mask has no white pixel"):
        run(InpaintRequest(mask=mask_of((0, 0, 0, 0)), **given), loader, context)
    with pytest.raises(DataError, match=r"mask\.png"):
        run(InpaintRequest(mask=FileRef.of("mask.png", b"no picture"), **given), loader, context)


def test_filling_takes_the_surroundings() -> None:
    image = torch.full((3, 20, 31), 0.25)
    mask = torch.zeros(20, 31, dtype=torch.bool)
    mask[5:15, 8:20] = True
    noisy = torch.where(mask, torch.randn(3, 20, 31), image)
    assert torch.allclose(filled(noisy, mask), image, atol=1e-6)
    assert torch.equal(filled(noisy, torch.ones_like(mask)), torch.zeros_like(noisy))
    ramp = torch.linspace(-1, 1, 31).expand(3, 20, 31)
    assert (filled(ramp, mask) - ramp).abs().max() < 0.5
    assert torch.equal(filled(ramp, mask)[:, ~mask], ramp[:, ~mask])


def test_the_soft_edge_falls_evenly() -> None:
    mask = torch.zeros(1, 12, dtype=torch.bool)
    mask[0, 5] = True
    weights = soft_edge(mask, 3)[0]
    assert torch.allclose(weights[5:], torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0, 0.0, 0.0]))
    assert torch.equal(soft_edge(mask, 0)[0], mask[0].float())


# -- walks ---------------------------------------------------------------------------------------------------


def test_a_walk_begins_and_ends_at_its_stops(
    loader: Loader, context: Context, tiny_tokenizer_model: Path
) -> None:
    name = str(tiny_tokenizer_model)
    stops = [png(picture(seed=seed)) for seed in range(3)]
    request = schema.parse(
        WalkRequest, {"stops": [{"picture": stop} for stop in stops], "frames": 5, "model": name, "seed": 1}
    )
    made, _ = run(request, loader, context)
    assert len(made) == 5
    for frame, stop in ((0, 0), (2, 1), (4, 2)):
        [again], _ = run(ReconstructRequest(picture=stops[stop], model=name), loader, context)
        assert np.abs(pixels(made[frame]) - pixels(again)).max() <= 1
    ends = np.abs(pixels(made[0]) - pixels(made[2])).mean()
    assert 0 < np.abs(pixels(made[0]) - pixels(made[1])).mean() < ends
    assert {event.record.request.kind for event in made} == {"walk"}


def test_pictures_of_other_sizes_are_cut_to_the_first(
    loader: Loader, context: Context, tiny_tokenizer_model: Path
) -> None:
    request = schema.parse(
        WalkRequest,
        {
            "stops": [{"picture": png(picture(48, 40))}, {"picture": png(picture(100, 30, 1))}],
            "frames": 2,
            "model": str(tiny_tokenizer_model),
        },
    )
    made, _ = run(request, loader, context)
    assert {event.picture.size for event in made} == {(48, 40)}


def test_a_walk_between_words_draws_them(loader: Loader, context: Context, tiny_prior: Path) -> None:
    request = schema.parse(
        WalkRequest,
        {
            "stops": [{"prompt": "cat"}, {"prompt": "dog"}],
            "frames": 3,
            "seed": 4,
            "loop": True,
            "curve": "slerp",
            "model": str(tiny_prior),
        },
    )
    made, _ = run(request, loader, context)
    assert {event.picture.size for event in made} == {(48, 48)}
    assert not np.array_equal(pixels(made[0]), pixels(made[1]))
    resolved = made[0].record.request
    assert isinstance(resolved, codes_schema.ResolvedWalk)
    assert [stop.seed for stop in resolved.stops] == [4, 5]
    again, _ = run(request, Loader(), context)
    assert np.array_equal(pixels(made[2]), pixels(again[2]))


def test_a_sum_is_arithmetic_on_latents(loader: Loader, context: Context, tiny_tokenizer_model: Path) -> None:
    name = str(tiny_tokenizer_model)
    stops = [{"picture": png(picture(seed=seed))} for seed in range(3)]
    [plain], _ = run(ReconstructRequest(picture=stops[0]["picture"], model=name), loader, context)
    given: dict[str, Any] = {"model": name, "seed": 1}
    request = schema.parse(
        WalkRequest, {"stops": [stops[0], stops[1], stops[1]], "weights": (1, 1, -1), **given}
    )
    [back], _ = run(request, loader, context)
    assert np.abs(pixels(back) - pixels(plain)).max() <= 1
    request = schema.parse(WalkRequest, {"stops": stops, "weights": (1, 1, -1), **given})
    [other], _ = run(request, loader, context)
    assert np.abs(pixels(other) - pixels(plain)).max() > 5
    with pytest.raises(InputError, match="3 stops"):
        schema.parse(WalkRequest, {"stops": stops, "weights": (1, 1), **given})


def test_places_are_even_and_a_loop_shows_no_stop_twice() -> None:
    assert places(3, 5, False) == [(0, 0.0), (0, 0.5), (1, 0.0), (1, 0.5), (1, 1.0)]
    assert places(3, 4, True) == [(0, 0.0), (0, 0.5), (1, 0.0), (1, 0.5)]


def test_an_arc_keeps_its_length_and_turns_evenly() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 8, 3, 3, generator=generator, dtype=torch.float64)
    first, second = (part / part.norm(dim=0) for part in (first, second))
    whole = (first * second).sum(0).acos()
    for share in (0.0, 0.3, 1.0):
        middle = between(first, second, share, "slerp")
        assert torch.allclose(middle.norm(dim=0), torch.ones(3, 3, dtype=torch.float64))
        assert torch.allclose((first * middle).sum(0).clamp(-1, 1).acos(), share * whole, atol=1e-6)
    straight: Tensor = between(first, first, 0.4, "slerp")
    assert torch.allclose(straight, first)


# -- codebook ------------------------------------------------------------------------------------------------


def test_the_codebook_sheet_shows_the_most_used_codes(
    loader: Loader, context: Context, tiny_tokenizer_model: Path
) -> None:
    made = codebook_sheet(str(tiny_tokenizer_model), loader, context, count=10)
    usage = load_tokenizer(loader, str(tiny_tokenizer_model)).network.quantize.usage.double()
    shares = usage / usage.sum()
    assert (made.shown, made.codes, made.source) == (10, 64, "training")
    assert made.perplexity == pytest.approx(float((-(shares * shares.log()).sum()).exp()), rel=1e-6)
    counted = codebook_sheet(
        str(tiny_tokenizer_model), loader, context, count=70, pictures=[picture(seed=s) for s in range(3)]
    )
    codes = [encode(picture(seed=s), str(tiny_tokenizer_model), loader, context).codes for s in range(3)]
    assert counted.shown == 64
    assert counted.used == len(np.unique(np.stack(codes)))
    with pytest.raises(InputError, match="no picture"):
        codebook_sheet(str(tiny_tokenizer_model), loader, context, pictures=[])
