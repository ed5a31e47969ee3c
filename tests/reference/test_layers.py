"""The layers against torch's and diffusers' own."""

from __future__ import annotations

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch.nn import functional

from vitrail.models.layers import Attention, modulate, timestep_features


def test_timestep_features_are_those_of_diffusers() -> None:
    t = torch.linspace(0, 1, 11)
    reference = get_timestep_embedding(t * 1000, 256, flip_sin_to_cos=True, downscale_freq_shift=0)
    # float32 rounding of angles up to 1000 radians: 1000 * 2**-24 = 6e-5
    torch.testing.assert_close(timestep_features(t, 256), reference, atol=2e-4, rtol=0)


def test_attention_is_torchs_fused_one_with_normalised_queries_and_keys() -> None:
    torch.manual_seed(0)
    layer = Attention(32, 4)
    torch.nn.init.normal_(layer.query_norm.weight)
    torch.nn.init.normal_(layer.key_norm.weight)
    x = torch.randn(3, 7, 32)
    mask = torch.rand(3, 7) < 0.7
    mask[:, 0] = True
    query, key, value = (
        part.view(3, 7, 4, 8).transpose(1, 2)
        for part in functional.linear(x, *layer.qkv.parameters()).chunk(3, -1)
    )
    query = functional.rms_norm(query, (8,), layer.query_norm.weight, 1e-6)
    key = functional.rms_norm(key, (8,), layer.key_norm.weight, 1e-6)
    fused = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])
    expected = layer.out(fused.transpose(1, 2).reshape(3, 7, 32))
    # two orders of float32 summation over 8 and 32 terms
    torch.testing.assert_close(layer(x, mask), expected, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(layer(x), expected, atol=1e-3), "the mask must matter"


def test_modulate_is_one_plus_scale_times_x_plus_shift() -> None:
    x, shift, scale = torch.randn(2, 5, 3), torch.randn(2, 3), torch.randn(2, 3)
    result = modulate(x, shift, scale)
    for picture in range(2):
        for token in range(5):
            expected = x[picture, token] * (1 + scale[picture]) + shift[picture]
            torch.testing.assert_close(result[picture, token], expected)
