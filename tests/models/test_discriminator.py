"""The discriminators: PatchGAN's shapes, one logit a patch; heads on features that another network computes."""

import pytest
import torch
from torch import nn

from tesserae.models.discriminator import FeatureDiscriminator, PatchDiscriminator
from tesserae.models.perceptual import Backbone

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


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return Backbone("vgg").requires_grad_(False)


def features_of(backbone, count=3, size=32):
    return backbone(torch.rand(count, 3, size, size) * 2 - 1)


@pytest.mark.parametrize(("layers", "sides"), [(1, [16]), (3, [16, 8, 4]), (4, [16, 8, 4, 2])])
def test_a_head_for_each_layer_from_the_second_on(backbone, layers, sides):
    logits = FeatureDiscriminator(backbone, 8, layers)(features_of(backbone))
    assert [tuple(head.shape) for head in logits] == [(3, 1, side, side) for side in sides]
    assert all(head.abs().max() < 0.5 for head in logits)  # undecided at first


def test_the_frozen_network_is_no_part_of_it(backbone):
    network = FeatureDiscriminator(backbone, 8, 2)
    # of the layers with 128 and 256 channels: 1x1 to 8, 3x3, 1x1 to the logit, each with its bias
    each = [(width + 1) * 8 + (8 * 9 + 1) * 8 + 8 + 1 for width in (128, 256)]
    assert sum(parameter.numel() for parameter in network.parameters()) == sum(each)
    assert sum(tensor.numel() for tensor in network.state_dict().values()) == sum(each)
    before = backbone.convs[0].weight.dtype
    network.double()
    assert backbone.convs[0].weight.dtype == before
    assert network.backbone is backbone


def test_a_logit_is_of_its_own_picture_and_not_of_its_features_scale(backbone):
    """So several processes judge as one does, and layers of large numbers weigh no more."""
    network = FeatureDiscriminator(backbone, 8, 3)
    features = features_of(backbone)
    for whole, alone, scaled in zip(network(features), network([layer[1:2] for layer in features]),
                                    network([1000 * layer for layer in features])):
        torch.testing.assert_close(whole[1:2], alone, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(whole, scaled, rtol=1e-3, atol=1e-5)
    flat = network([torch.zeros_like(layer) for layer in features])  # where no feature answers
    assert all(torch.isfinite(head).all() for head in flat)


def test_it_learns_within_tens_of_steps(backbone):
    """Sharp squares from blurred ones, by Adam at the rate of the default run."""
    torch.manual_seed(0)
    network = FeatureDiscriminator(backbone, 16, 2)
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3, betas=(0.5, 0.9))
    for _ in range(30):
        pictures = nn.functional.interpolate(torch.rand(4, 3, 8, 8) * 2 - 1, scale_factor=4)
        blurred = nn.functional.avg_pool2d(pictures, 5, stride=1, padding=2)
        with torch.no_grad():
            sharp, soft = backbone(pictures), backbone(blurred)
        real, fake = network(sharp), network(soft)
        loss = sum((1 - r).relu().mean() + (1 + f).relu().mean() for r, f in zip(real, fake)) / 4
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.5  # 1 at first, and for one that knows nothing
    assert all(r.mean() > f.mean() for r, f in zip(real, fake))


def test_more_layers_than_there_are_is_refused(backbone):
    with pytest.raises(ValueError, match="layers = 5 must be at most 4"):
        FeatureDiscriminator(backbone, 8, 5)
