"""Blocks of encoder and decoder: their formulas, shapes and where attention sits."""

import pytest
import torch
import torch.nn.functional as F

from tesserae.models.layers import Attention, Downsample, Level, Middle, ResidualBlock, Upsample, norm

torch.set_num_threads(1)


@pytest.mark.parametrize(("channels", "groups"), [(128, 32), (32, 32), (48, 24), (20, 20), (50, 25), (37, 1)])
def test_groups_divide_the_channels(channels, groups):
    groups_found = norm(channels).num_groups
    assert channels % groups_found == 0
    assert groups_found == groups


def test_residual_block_keeps_its_input_where_it_adds_nothing():
    block = ResidualBlock(32, 32)
    torch.nn.init.zeros_(block.conv2.weight)
    torch.nn.init.zeros_(block.conv2.bias)
    x = torch.randn(2, 32, 5, 7)
    assert torch.equal(block(x), x)


def test_residual_block_changes_width():
    block = ResidualBlock(32, 64)
    assert block(torch.randn(2, 32, 5, 7)).shape == (2, 64, 5, 7)
    assert block.shortcut.kernel_size == (1, 1)


def test_dropout_acts_in_training_alone():
    block = ResidualBlock(32, 32, dropout=0.5)
    x = torch.randn(2, 32, 6, 6)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


def test_attention_is_softmax_of_scaled_products():
    torch.manual_seed(0)
    layer = Attention(32)
    x = torch.randn(2, 32, 3, 5)
    q, k, v = layer.qkv(layer.norm(x)).flatten(2).chunk(3, dim=1)  # (2,32,15) each
    weights = torch.softmax(q.transpose(1, 2) @ k / 32**0.5, dim=-1)  # (2,15,15)
    expected = x + layer.out((v @ weights.transpose(1, 2)).reshape(x.shape))
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_attention_does_not_know_places():
    torch.manual_seed(0)
    layer, x = Attention(32), torch.randn(1, 32, 4, 4)
    order = torch.randperm(16)
    moved = x.flatten(2)[:, :, order].reshape(x.shape)
    expected = layer(x).flatten(2)[:, :, order]
    torch.testing.assert_close(layer(moved).flatten(2), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (6, 10), (2, 2)])
def test_down_and_up(size):
    x = torch.randn(1, 4, *size)
    assert Downsample(4)(x).shape == (1, 4, size[0] // 2, size[1] // 2)
    assert Upsample(4)(x).shape == (1, 4, size[0] * 2, size[1] * 2)


def test_downsampling_pads_right_and_below():
    layer = Downsample(1)
    torch.nn.init.zeros_(layer.conv.bias)
    with torch.no_grad():
        layer.conv.weight.copy_(torch.ones(1, 1, 3, 3))
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    # windows start at rows and columns 0 and 2; the last one sees a row or column of zeros
    assert torch.equal(layer(x)[0, 0], torch.stack([
        torch.stack([x[0, 0, :3, :3].sum(), x[0, 0, :3, 2:].sum()]),
        torch.stack([x[0, 0, 2:, :3].sum(), x[0, 0, 2:, 2:].sum()])]))


def test_upsampling_repeats_pixels_before_the_convolution():
    layer = Upsample(2)
    x = torch.randn(1, 2, 3, 3)
    repeated = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(layer(x), F.conv2d(repeated, layer.conv.weight, layer.conv.bias, padding=1))


@pytest.mark.parametrize("attention", [True, False])
def test_attention_only_where_asked(attention):
    for part, count in ((Level(32, 64, 3, attention, 0.0), 3), (Middle(32, attention, 0.0), 1)):
        found = sum(isinstance(module, Attention) for module in part.modules())
        assert found == (count if attention else 0)
        assert part(torch.randn(1, 32, 4, 4)).shape[2:] == (4, 4)
