"""The patch discriminator: the shapes of PatchGAN, one logit a patch."""

import pytest
import torch
from torch import nn

from tesserae.models.discriminator import PatchDiscriminator

torch.set_num_threads(1)


@pytest.mark.parametrize(("channels", "layers", "widths"), [
    (64, 3, [3, 64, 128, 256, 512, 1]), (32, 2, [3, 32, 64, 128, 1]),
    (16, 5, [3, 16, 32, 64, 128, 128, 128, 1]),
])
def test_widths_double_up_to_eight_times(channels, layers, widths):
    convs = [layer for layer in PatchDiscriminator(3, channels, layers).net if isinstance(layer, nn.Conv2d)]
    assert [convs[0].in_channels, *(conv.out_channels for conv in convs)] == widths
    assert [conv.stride[0] for conv in convs] == [2] * layers + [1, 1]
    assert {conv.kernel_size for conv in convs} == {(4, 4)}
    assert [conv.bias is not None for conv in convs] == [True] + [False] * layers + [True]


@pytest.mark.parametrize(("in_channels", "millions"), [(6, 2.769), (3, 2.766)])
def test_size_of_the_published_one(in_channels, millions):
    """The PatchGAN of pix2pix prints "2.769 M"; it sees two pictures at once, hence six channels."""
    network = PatchDiscriminator(in_channels)
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 3) == millions


@pytest.mark.parametrize(("size", "logits"), [(256, 30), (64, 6), (32, 2)])
def test_logits_of_patches(size, logits):
    assert PatchDiscriminator(3, 8)(torch.randn(1, 3, size, size)).shape == (1, 1, logits, logits)


def test_a_logit_sees_a_patch_of_70_pixels():
    network = PatchDiscriminator(3, 8).eval()
    images = torch.zeros(1, 3, 256, 256, requires_grad=True)
    network(images)[0, 0, 15, 15].backward()
    rows = images.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert (rows[-1] - rows[0] + 1).item() == 70


def test_first_weights():
    torch.manual_seed(0)
    network = PatchDiscriminator()
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 10_000:
            assert abs(layer.weight.std().item() - 0.02) < 1e-3
        if isinstance(layer, nn.BatchNorm2d):
            assert abs(layer.weight.mean().item() - 1) < 0.01
            assert layer.bias.abs().max() == 0
