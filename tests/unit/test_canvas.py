"""The canvas learns pictures from sentences, and the network that it sketches for starts unchanged."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vitrail.errors import InputError
from vitrail.models.canvas import Sketch
from vitrail.models.shell_dit import ShellDiT
from vitrail.models.token_readers import MaskedReader
from vitrail.models.token_transformer import Conditions, TokenTransformer
from vitrail.recipe import ShellDiTConfig, parse_recipe
from vitrail.recipe.priors import TokenTransformerConfig

FIELDS: dict[str, object] = {
    "image_size": 16, "patch": 2, "shell_width": 16, "shell_blocks": 1, "width": 32, "depth": 2, "heads": 2,
    "text_width": 24, "vocabulary": 50, "word_width": 8, "styles": 3,
}  # fmt: skip


def network(**changes: object) -> ShellDiT:
    torch.manual_seed(0)
    return ShellDiT(ShellDiTConfig.model_validate(FIELDS | {"canvas_width": 64, "canvas_depth": 1} | changes))


def words(count: int, length: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(count, length, 24, generator=generator)
    mask = torch.arange(length) < torch.randint(1, length + 1, (count, 1), generator=generator)
    return states, mask, torch.randint(0, 50, (count, length), generator=generator)


def call(model: ShellDiT, count: int = 4) -> Tensor:
    states, mask, ids = words(count)
    x = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    return model(x, torch.full((count,), 0.9), states, mask, ids, torch.arange(count) % 4)


def test_a_network_that_gains_a_canvas_draws_what_it_drew() -> None:
    torch.manual_seed(3)
    plain, sketched = network(canvas_width=0), network()
    own = plain.state_dict()
    for value in own.values():
        value.normal_(std=0.2)
    missing, unexpected = sketched.load_state_dict(own, strict=False)
    assert not unexpected
    assert all(name.startswith("canvas") for name in missing)
    torch.testing.assert_close(call(sketched), call(plain))


def test_the_sketch_reaches_tokens_condition_and_picture() -> None:
    for name in ("canvas_tokens", "canvas_condition", "canvas_share"):
        model = network()
        torch.nn.init.normal_(model.head.weight, std=0.1)  # zero at the start: nothing would be seen
        for layer in (model.modulation, model.final):
            torch.nn.init.normal_(layer.weight, std=0.1)
        before = call(model)
        torch.nn.init.normal_(getattr(model, name).weight, std=0.5)
        assert float((call(model) - before).detach().abs().max()) > 1e-3, name


def test_the_denoiser_leaves_the_canvas_alone() -> None:
    model = network()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    call(model).square().mean().backward()
    assert model.canvas is not None
    assert all(parameter.grad is None for parameter in model.canvas.parameters())
    assert model.canvas_tokens.weight.grad is not None


def test_words_beyond_the_mask_are_not_seen() -> None:
    model = network()
    states, mask, _ = words(6)
    styles = torch.zeros(6, dtype=torch.long)
    other = torch.where(mask[:, :, None], states, torch.full_like(states, 7.0))
    torch.testing.assert_close(
        model.draw_canvas(states, mask, styles), model.draw_canvas(other, mask, styles)
    )


def test_it_learns_pictures_and_their_styles_by_heart() -> None:
    model = network(canvas_channels=64)
    states, mask, _ = words(8)
    styles = torch.arange(8) % 2 + 1
    pictures = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(4)).clamp(-1, 1)
    assert model.canvas is not None
    optimizer = torch.optim.Adam(model.canvas.parameters(), lr=3e-3)
    for _ in range(300):
        loss = (model.draw_canvas(states, mask, styles) - pictures).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert float((model.draw_canvas(states, mask, styles) - pictures).square().mean()) < 0.02
        swapped = (model.draw_canvas(states, mask, 3 - styles) - pictures).square().mean()
    assert float(swapped) > 0.1  # another style, another picture


def test_places_are_where_they_belong() -> None:
    model = network()
    values = torch.zeros(1, model.grid**2, 3 * 4 * 4)
    values[0, 1] = 1.0  # the second place of the first row: pixels 4 to 7 of rows 0 to 3
    picture = model._picture(values)
    assert float(picture[0, :, :4, 4:8].min()) == 1.0
    assert float(picture.sum()) == 3 * 16


def test_a_token_model_gains_a_canvas_unchanged_and_then_listens_to_it() -> None:
    fields = {
        "mode": "masked", "codes": 12, "rows": 3, "columns": 3, "width": 32, "depth": 1, "heads": 2,
        "text": True, "text_width": 24, "vocabulary": 50, "word_width": 8, "styles": 3,
    }  # fmt: skip
    torch.manual_seed(0)
    plain = TokenTransformer(TokenTransformerConfig.model_validate(fields))
    sketched = TokenTransformer(
        TokenTransformerConfig.model_validate(fields | {"canvas_width": 48, "canvas_depth": 1})
    )
    own = plain.state_dict()
    for value in own.values():
        value.normal_(std=0.2)
    sketched.load_state_dict(own, strict=False)
    conditions = Conditions(*words(4), torch.tensor([0, 1, 2, 3]))
    codes = torch.full((4, 9), sketched.unknown)
    torch.testing.assert_close(sketched(codes, conditions), plain(codes, conditions))
    torch.nn.init.ones_(sketched.canvas_share.bias)
    added = sketched(codes, conditions) - plain(codes, conditions)
    torch.testing.assert_close(added, sketched.draw_canvas(conditions).values, atol=1e-5, rtol=1e-4)
    for name in ("canvas_tokens", "canvas_condition"):
        before = sketched(codes, conditions)
        torch.nn.init.normal_(getattr(sketched, name).weight, std=0.5)
        assert float((sketched(codes, conditions) - before).detach().abs().max()) > 1e-3, name


def test_a_sketch_is_drawn_once_for_all_passes_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TokenTransformerConfig(
        mode="masked", codes=12, rows=3, columns=3, width=32, depth=1, heads=2, text=True, text_width=24,
        vocabulary=50, word_width=8, styles=3, canvas_width=48, canvas_depth=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = TokenTransformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    conditions = Conditions(*words(4), torch.tensor([0, 1, 2, 3]))
    states = [torch.full((rows, 3, 3), -1) for rows in (4, 4, 2, 4, 2)]
    states[1][:, 0] = 5
    with torch.no_grad():
        expected = [
            model(torch.where(codes < 0, model.unknown, codes).flatten(1), conditions.rows(slice(len(codes))))
            for codes in states
        ]
    calls = 0
    sketch = model.sketch

    def counted(given: Conditions) -> Sketch | None:
        nonlocal calls
        calls += 1
        return sketch(given)

    monkeypatch.setattr(model, "sketch", counted)
    reader = MaskedReader(model, conditions)
    with torch.no_grad():
        for codes, logits in zip(states, expected, strict=True):
            assert torch.equal(reader(codes).flatten(1, 2), logits)
    assert calls == 2  # one for four rows, one for two


def test_a_causal_model_cannot_have_one() -> None:
    with pytest.raises(ValueError, match="masked"):
        TokenTransformerConfig(mode="causal", text=True, canvas_width=64)


def test_a_network_without_one_says_so() -> None:
    with pytest.raises(ValueError, match="canvas_width"):
        network(canvas_width=0).draw_canvas(*words(1)[:2], torch.zeros(1, dtype=torch.long))
    recipe = {"kind": "text_to_image", "name": "x", "data": {"source": "emoji"}, "optim": {"until_images": 8}}
    parse_recipe(recipe)
    with pytest.raises(InputError, match="canvas_width"):
        parse_recipe(recipe | {"objective": {"trains": "canvas"}})
