"""The transformer over codes: causality, conditions, the cache, minGPT's names, windows on a real network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitrail.errors import CheckpointError, InputError
from vitrail.models.token_readers import CachedReader, MaskedReader, RecomputingReader, from_mingpt
from vitrail.models.token_transformer import Conditions, TokenTransformer
from vitrail.recipe.priors import TokenTransformerConfig
from vitrail.runtime import cpu_generator
from vitrail.samplers.tokens import UNKNOWN, sample_autoregressive, sample_maskgit, windowed

SMALL: dict[str, Any] = {"codes": 13, "rows": 3, "columns": 4, "width": 32, "depth": 2, "heads": 4}
TEXT: dict[str, Any] = {"text": True, "text_width": 16, "vocabulary": 50, "word_width": 8, "styles": 3}


def network(mode: str = "causal", **changes: Any) -> TokenTransformer:
    """A small network whose every weight matters: nothing is left at zero."""
    torch.manual_seed(0)
    made = TokenTransformer(TokenTransformerConfig.model_validate(SMALL | {"mode": mode} | changes))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return made.eval().requires_grad_(False)


def words(count: int = 2, length: int = 5, seed: int = 1) -> Conditions:
    """Texts of different lengths, so that some words are padding."""
    generator = cpu_generator(seed)
    mask = torch.arange(length) < torch.arange(length, length - count, -1)[:, None]
    return Conditions(
        torch.randn(count, length, 16, generator=generator),
        mask,
        torch.randint(0, 50, (count, length), generator=generator) * mask,
        torch.arange(count) % 4,
    )


def codes(count: int = 2, seed: int = 2) -> Tensor:
    return torch.randint(0, 13, (count, 12), generator=cpu_generator(seed))


CAUSAL: list[tuple[dict[str, Any], Conditions]] = [
    ({}, Conditions()),
    (TEXT, words()),
    ({"styles": 3}, Conditions(styles=torch.tensor([1, 0]))),
    ({"prefix": 5, "prefix_codes": 7}, Conditions(prefix=torch.tensor([[1, 2, 3, 4, 5], [6, 5, 4, 3, 2]]))),
    (TEXT | {"prefix": 2}, words()._replace(prefix=torch.tensor([[1, 2], [3, 4]]))),
    ({"block": "gpt", "prefix": 1}, Conditions()),
    ({"block": "gpt", "prefix": 1, "styles": 5, "table": 20}, Conditions(styles=torch.tensor([1, 5]))),
    ({"block": "gpt", "prefix": 12, "positions": 40}, Conditions(prefix=codes(seed=5))),
]


@pytest.mark.parametrize(("changes", "conditions"), CAUSAL)
def test_a_later_code_changes_no_earlier_logits(changes: dict[str, Any], conditions: Conditions) -> None:
    model, given = network(**changes), codes()
    told = model(given, conditions)
    assert told.shape == (2, 12, model.outputs)
    for place in range(12):
        other = given.clone()
        other[:, place] = (other[:, place] + 1) % 13
        changed = model(other, conditions)
        assert torch.equal(changed[:, : place + 1], told[:, : place + 1])
        if place < 11:  # and every later one does depend on it
            assert ((changed - told)[:, place + 1 :].abs().amax(-1) > 1e-6).all()


@pytest.mark.parametrize(("changes", "conditions"), CAUSAL)
def test_the_cache_tells_what_a_whole_pass_tells(changes: dict[str, Any], conditions: Conditions) -> None:
    """Begin and advance, in plain and in quick steps, against one pass over everything: float32 rounding."""
    model, given = network(**changes), codes()
    whole = model(given, conditions)
    for start in (0, 5):
        cache, first = model.begin(given[:, :start], conditions)
        reader = CachedReader(model, conditions)
        quick = reader.begin(given[:, :start])
        assert torch.allclose(first, whole[:, start], atol=1e-5)
        for index in range(start, 11):
            plain = model.advance(given[:, index], cache, index)
            assert torch.allclose(plain, whole[:, index + 1], atol=1e-5)
            quick = reader.advance(given[:, index])
            assert torch.allclose(quick, whole[:, index + 1, :13], atol=1e-5)
        assert cache.length <= cache.capacity
        assert quick.shape == (2, 13)  # only codes that the tokenizer has


@pytest.mark.parametrize(("changes", "conditions"), CAUSAL)
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_the_cache_draws_the_codes_that_recomputing_draws(
    changes: dict[str, Any], conditions: Conditions, guidance: float
) -> None:
    if guidance != 1.0:  # the unwanted side: the two conditions in the other order
        flipped = conditions.rows(torch.tensor([1, 0]))
        pairs = zip(conditions, flipped, strict=True)
        conditions = Conditions(*(None if a is None or b is None else torch.cat([a, b]) for a, b in pairs))
        if all(part is None for part in conditions):
            pytest.skip("nothing to be guided by")
    model = network(**changes)
    drawn = [
        sample_autoregressive(
            reader(model, conditions),
            torch.full((2, 3, 4), UNKNOWN),
            [cpu_generator(seed) for seed in (3, 4)],
            top_k=6,
            temperature=0.9,
            guidance=guidance,
        )
        for reader in (CachedReader, RecomputingReader)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert len(set(drawn[0].flatten().tolist())) > 3


def test_the_sliding_window_is_that_of_taming() -> None:
    """Each place against one pass over its window alone, with its condition codes cut as the window is."""
    model = network(block="gpt", prefix=12, positions=40)
    other = torch.randint(0, 13, (1, 5, 6), generator=cpu_generator(8))
    drawn = sample_autoregressive(
        CachedReader(model, Conditions(prefix=other[:, :3, :4].flatten(1))),
        torch.full((1, 5, 6), UNKNOWN),
        [cpu_generator(0)],
        temperature=0.0,
        prefix=other,
    )
    for row in range(5):
        for column in range(6):
            top, left = min(max(row - 1, 0), 2), min(max(column - 2, 0), 2)
            window = (slice(None), slice(top, top + 3), slice(left, left + 4))
            told = model(drawn[window].flatten(1), Conditions(prefix=other[window].flatten(1)))
            place = (row - top) * 4 + column - left
            assert int(told[0, place].argmax()) == int(drawn[0, row, column])


def test_padding_of_the_words_is_not_seen() -> None:
    for mode in ("causal", "masked"):
        model, told = network(mode, **TEXT), words()
        assert told.states is not None
        assert told.ids is not None
        assert told.mask is not None
        noise = torch.where(told.mask[:, :, None], told.states, torch.randn_like(told.states))
        first = model(codes(), told)
        assert torch.allclose(model(codes(), told._replace(states=noise)), first, atol=1e-5)
        # A prompt alone, without the padding that its longer neighbour needs: the same up to rounding.
        alone = Conditions(told.states[1:, :4], told.mask[1:, :4], told.ids[1:, :4], None)
        alone = alone._replace(styles=torch.tensor([1]))
        assert torch.allclose(model(codes()[1:], alone)[0], first[1], atol=1e-5)


@pytest.mark.parametrize("mode", ["causal", "masked"])
def test_every_condition_reaches_the_logits(mode: str) -> None:
    model = network(mode, **TEXT, prefix=2)
    told = words()._replace(prefix=torch.tensor([[1, 2], [3, 4]]))
    first = model(codes(), told)
    assert told.states is not None
    assert told.ids is not None
    for change in (
        {"states": told.states + 1},
        {"ids": (told.ids + 1) % 50},
        {"styles": torch.tensor([2, 2])},
        {"prefix": torch.tensor([[5, 2], [3, 5]])},
    ):
        assert ((model(codes(), told._replace(**change)) - first).abs().amax((1, 2)) > 1e-4).all()


def test_a_masked_model_sees_both_ways_and_only_what_is_known() -> None:
    model = network("masked")
    given = codes(1)
    given[0, 5] = model.unknown
    told = model(given, Conditions())
    for place in (0, 4, 6, 11):
        other = given.clone()
        other[0, place] = (other[0, place] + 1) % 13
        assert float((model(other, Conditions())[0, 5] - told[0, 5]).abs().max()) > 1e-6
    reader = MaskedReader(model, Conditions())
    grid = torch.where(given == model.unknown, UNKNOWN, given).view(1, 3, 4)
    assert torch.equal(reader(grid).flatten(1, 2), told)
    with pytest.raises(InputError, match="not read code after code"):
        model.begin(given[:, :2], Conditions())


def test_a_masked_model_draws_pictures_larger_than_its_own() -> None:
    model = network("masked", **TEXT)
    reader = windowed(MaskedReader(model, words()), 3, 4)
    drawn = sample_maskgit(
        reader, torch.full((2, 5, 9), UNKNOWN), [cpu_generator(i) for i in (1, 2)], steps=6
    )
    assert drawn.shape == (2, 5, 9)
    assert int(drawn.min()) >= 0
    assert int(drawn.max()) < 13


def test_missing_conditions_are_named() -> None:
    with pytest.raises(InputError, match="reads text"):
        network(**TEXT)(codes(), Conditions())
    with pytest.raises(InputError, match="reads 2 codes of another picture"):
        network(prefix=2)(codes(), Conditions())
    gpt = network(block="gpt", prefix=1, styles=5)
    with pytest.raises(InputError, match="one of its classes"):
        gpt(codes(), Conditions(styles=torch.tensor([0, 1])))
    with pytest.raises(InputError, match="12 condition codes, not 3"):
        network(block="gpt", prefix=12)(codes(), Conditions(prefix=codes()[:, :3]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 5}, "not divisible by heads"),
        ({"table": 20}, "are for block gpt"),
        ({"block": "gpt", "prefix": 1, "mode": "masked"}, "block gpt is causal"),
        ({"block": "gpt"}, "at least one condition code"),
        ({"block": "gpt", "prefix": 1, "table": 5}, "table 5 is smaller than the 13"),
        ({"block": "gpt", "prefix": 1, "positions": 5}, "fewer than prefix 1"),
    ],
)
def test_shapes_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenTransformerConfig.model_validate(SMALL | {"mode": "causal"} | changes)


class PlainGPT(nn.Module):
    """minGPT as published (Karpathy, MIT), written from its equations, with its names of weights."""

    def __init__(self, vocabulary: int, length: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.tok_emb = nn.Embedding(vocabulary, width)
        self.pos_emb = nn.Parameter(torch.randn(1, length, width) * 0.1)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "ln1": nn.LayerNorm(width),
                    "ln2": nn.LayerNorm(width),
                    "attn": nn.ModuleDict(
                        {name: nn.Linear(width, width) for name in ("key", "query", "value", "proj")}
                    ),
                    "mlp": nn.Sequential(
                        nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(0.1)
                    ),
                }
            )
            for _ in range(depth)
        )
        self.ln_f = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tok_emb(ids) + self.pos_emb[:, : ids.shape[1]]
        for block in self.blocks:
            h = block["ln1"](x)  # type: ignore[index]
            attn = block["attn"]  # type: ignore[index]
            query, key, value = (
                attn[name](h).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                for name in ("query", "key", "value")
            )
            out = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
            x = x + attn["proj"](out.transpose(1, 2).flatten(2))
            x = x + block["mlp"](block["ln2"](x))  # type: ignore[index]
        return self.head(self.ln_f(x))  # type: ignore[no-any-return]


def test_mingpt_weights_tell_the_same_logits() -> None:
    torch.manual_seed(3)
    plain = PlainGPT(20, 40, 32, 2, 4).eval()
    state = dict(plain.state_dict())
    for number in range(2):
        state[f"blocks.{number}.attn.mask"] = torch.ones(1, 1, 40, 40)
    model = network(block="gpt", prefix=12, positions=40, table=20)
    model.load_state_dict(from_mingpt(state), strict=True)
    condition, given = codes(seed=7), codes()
    # taming-transformers: the condition first, the last code never read, logits from the condition's end on.
    wanted = plain(torch.cat([condition, given[:, :-1]], dim=1))[:, 11:]
    assert torch.allclose(model(given, Conditions(prefix=condition)), wanted, atol=1e-5)
    with pytest.raises(CheckpointError, match=r"'lm_head\.weight' is not one of a minGPT"):
        from_mingpt({"lm_head.weight": torch.zeros(1)})
    del state["blocks.1.attn.key.weight"]
    with pytest.raises(CheckpointError, match="lacks its key"):
        from_mingpt(state)


def test_the_size_that_ships_has_room_for_its_tokenizer() -> None:
    """float16 weights of the largest shape that is meant to ship, beside 10 MB of tokenizer: within 60 MB."""
    config = TokenTransformerConfig(codes=2048, text=True, vocabulary=30522, styles=7)
    count = sum(parameter.numel() for parameter in TokenTransformer(config).parameters())
    assert 2 * count < 50e6
