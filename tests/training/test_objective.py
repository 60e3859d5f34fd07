"""The objective in one walk: every gradient and lambda equal those of plain autograd, in float64."""

import copy
import math

import pytest
import torch
from torch import nn

from tesserae.models.discriminator import FeatureDiscriminator, PatchDiscriminator
from tesserae.models.vqgan import VQGAN, VQGANConfig
from tesserae.training.objective import (
    Weights,
    adaptive_weight,
    disc_accuracy,
    discriminator_backward,
    discriminator_loss,
    generator_backward,
    generator_loss,
    reconstruction_loss,
)

torch.set_num_threads(1)


class Features(nn.Module):
    """A distance in the place of LPIPS, smooth and of any type: (B,3,H,W) twice -> (B,)."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1).requires_grad_(False)

    def forward(self, x, y):
        return (self.conv(x).tanh() - self.conv(y).tanh()).square().mean((1, 2, 3))


class Layers(nn.Module):
    """A frozen network in the place of VGG, smooth and of any type: images -> a map for each of four layers."""

    widths = (4, 5, 6, 7)

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, stride=1 + (n > 0), padding=1)
                                   for n, (i, o) in enumerate(zip((3, *self.widths), self.widths)))
        self.requires_grad_(False)
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        taps, x = [], images
        for conv in self.convs:
            taps.append(x := conv(x).tanh())
        return taps


class LayersDistance(nn.Module):
    """A distance on the features of `Layers`, with LPIPS's interface."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, x, y):
        return self.distance(self.backbone(x), self.backbone(y))

    def distance(self, real, made):
        return sum((a - b).square().mean((1, 2, 3)) for a, b in zip(real, made))


def parts(patch=1, quantizer="nearest", classes=0, refine=0):
    """A VQGAN with what judges it, and pictures, or one-hot maps of `classes`."""
    torch.manual_seed(0)
    channels = classes or 3
    model = VQGAN(VQGANConfig(channels=8, channel_mult=(1, 2), res_blocks=1, patch=patch, z_channels=8,
                              codebook_size=16, codebook_dim=4, quantizer=quantizer, refine=refine,
                              in_channels=channels, out_channels=channels, colours=tuple(range(classes)))).double()
    if quantizer == "nearest":
        nn.init.normal_(model.quantizer.codebook, std=0.5)
    discriminator = PatchDiscriminator(3, 8, 2).double()
    images = torch.rand(3, 3, 16, 16).double() * 2 - 1
    if classes:
        images = torch.eye(classes).double()[torch.randint(classes, (3, 16, 16))].permute(0, 3, 1, 2).contiguous()
    return model, discriminator, Features().double(), images


def judged_by(discriminator, images):
    """D's logits, a list of maps, of images."""
    if isinstance(discriminator, FeatureDiscriminator):
        return discriminator(discriminator.backbone(images))
    return [discriminator(images)]


def plain(model, discriminator, lpips, x, weights):
    """Both losses with autograd alone, term by term as the paper writes them."""
    x_hat, quantized = model(x)
    difference = x - x_hat
    pixel = {"l1": lambda: difference.abs().mean(), "l2": lambda: difference.square().mean(),
             "cross_entropy": lambda: -(x * x_hat.log_softmax(1)).sum(1).mean()}[weights.pixel_loss]()
    rec = weights.pixel_weight * pixel
    if lpips is not None:
        judged = slice(0, round(weights.perceptual_fraction * len(x)))
        rec = rec + weights.perceptual_weight * lpips(x[judged], x_hat[judged]).mean()
    loss = (rec + weights.codebook_weight * quantized.codebook_loss
            + weights.commitment_weight * quantized.commitment_loss)
    for weight, term in ((weights.entropy_weight, quantized.entropy_loss), (weights.kl_weight, quantized.kl_loss)):
        loss = loss if term is None else loss + weight * term
    factor = torch.zeros(())
    if discriminator is not None:
        each = judged_by(discriminator, x_hat)
        gan = sum(-logits.mean() if weights.gan_loss == "hinge" else -logits.sigmoid().log().mean()
                  for logits in each) / len(each)
        last = model.decoder.conv_out.weight
        norms = [torch.autograd.grad(term, last, retain_graph=True)[0].norm() for term in (rec, gan)]
        factor = weights.gan_weight * (norms[0] / (norms[1] + 1e-6)).clamp(0, 1e4).detach()
        loss = loss + factor * gan
    loss.backward()
    return x_hat.detach(), factor


def plain_discriminator(discriminator, x, x_hat, kind):
    pairs = list(zip(judged_by(discriminator, x), judged_by(discriminator, x_hat)))
    if kind == "hinge":
        loss = sum(0.5 * ((1 - real).clamp_min(0).mean() + (1 + fake).clamp_min(0).mean()) for real, fake in pairs)
    else:
        loss = sum(-0.5 * (real.sigmoid().log().mean() + (1 - fake.sigmoid()).log().mean()) for real, fake in pairs)
    loss = loss / len(pairs)
    loss.backward()
    return loss


def assert_same_gradients(a, b):
    for (name, mine), other in zip(a.named_parameters(), b.parameters(), strict=True):
        assert (mine.grad is None) == (other.grad is None), name
        if mine.grad is not None:
            # lambda's two norms are taken in float32
            atol = 1e-6 * other.grad.abs().max().item() + 1e-12
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-6, atol=atol, msg=name)


@pytest.mark.parametrize("kind", ["hinge", "vanilla"])
@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("pixel_loss", ["l1", "l2"])
@pytest.mark.parametrize(("refine", "share"), [(0, 1.0), (3, 2 / 3)])
def test_every_gradient_and_lambda(kind, patch, pixel_loss, refine, share):
    model, discriminator, lpips, x = parts(patch, refine=refine)
    weights = Weights(pixel_loss=pixel_loss, pixel_weight=0.7, perceptual_weight=1.3, perceptual_fraction=share,
                      codebook_weight=0.9, commitment_weight=0.4, gan_loss=kind, gan_weight=0.8)
    other, other_discriminator = copy.deepcopy(model), copy.deepcopy(discriminator)
    x_hat, factor = plain(other, other_discriminator, lpips, x, weights)
    other_discriminator.zero_grad()
    plain_loss = plain_discriminator(other_discriminator, x, x_hat, kind)

    terms, made = generator_backward(model, x, weights, lpips, discriminator)
    terms |= discriminator_backward(discriminator, made["real"], made["fake"], kind)
    torch.testing.assert_close(made["x_hat"], x_hat)
    assert terms["lambda"].item() == pytest.approx(factor.item(), rel=1e-5)
    assert terms["lambda"] > 0
    assert terms["disc"].item() == pytest.approx(plain_loss.item(), rel=1e-9)
    assert_same_gradients(model, other)
    assert_same_gradients(discriminator, other_discriminator)
    assert all(not value.requires_grad for value in terms.values())


def parts_on_features(layers=2):
    """As `parts`, but that D judges features of the network that the distance is taken on."""
    model, _, _, x = parts()
    backbone = Layers().double()
    return model, FeatureDiscriminator(backbone, 6, layers).double(), LayersDistance(backbone), x


@pytest.mark.parametrize("kind", ["hinge", "vanilla"])
@pytest.mark.parametrize(("perceptual", "share"), [(True, 1.0), (True, 2 / 3), (False, 1.0)])
def test_every_gradient_and_lambda_with_features_shared(kind, perceptual, share):
    """Computed once for D and the distance, where there is one yet, which may judge fewer pictures than D."""
    model, discriminator, lpips, x = parts_on_features()
    weights = Weights(pixel_weight=0.7, perceptual_weight=1.3, perceptual_fraction=share, codebook_weight=0.9,
                      commitment_weight=0.4, gan_loss=kind, gan_weight=0.8)
    lpips = lpips if perceptual else None
    other, other_discriminator = copy.deepcopy(model), copy.deepcopy(discriminator)
    x_hat, factor = plain(other, other_discriminator, lpips, x, weights)
    other_discriminator.zero_grad()
    plain_loss = plain_discriminator(other_discriminator, x, x_hat, kind)

    discriminator.backbone.calls = 0
    terms, made = generator_backward(model, x, weights, lpips, discriminator)
    terms |= discriminator_backward(discriminator, made["real"], made["fake"], kind)
    assert discriminator.backbone.calls == 2  # for x and for x_hat
    assert terms["lambda"].item() == pytest.approx(factor.item(), rel=1e-5)
    assert terms["lambda"] > 0
    assert terms["disc"].item() == pytest.approx(plain_loss.item(), rel=1e-9)
    assert ("perceptual" in terms) == perceptual
    assert_same_gradients(model, other)
    assert_same_gradients(discriminator, other_discriminator)
    assert all(not value.requires_grad for value in terms.values())
    assert all(parameter.grad is None for parameter in discriminator.backbone.parameters())


@pytest.mark.parametrize("patch", [1, 2])
def test_every_gradient_of_classes(patch):
    """Cross-entropy over one-hot maps, without a discriminator or LPIPS."""
    model, _, _, x = parts(patch, classes=5)
    weights = Weights(pixel_loss="cross_entropy", pixel_weight=0.7, perceptual_weight=0.0, codebook_weight=0.9,
                      commitment_weight=0.4, gan_loss="none")
    other = copy.deepcopy(model)
    plain(other, None, None, x, weights)
    terms, made = generator_backward(model, x, weights, None, None)
    assert_same_gradients(model, other)
    assert made["x_hat"].shape == x.shape
    assert terms["rec"].item() == pytest.approx(0.7 * terms["pixel"].item())
    assert {"perceptual", "gan", "lambda"}.isdisjoint(terms)


@pytest.mark.parametrize("quantizer", ["nearest", "gumbel", "lfq"])
def test_before_the_discriminator_joins(quantizer):
    model, _, lpips, x = parts(quantizer=quantizer)
    model.train(quantizer == "lfq")  # Gumbel noise would differ between the two; LFQ has losses in training
    if quantizer != "nearest":
        model.float()
        lpips, x = lpips.float(), x.float()
    other = copy.deepcopy(model)
    plain(other, None, lpips, x, Weights())
    terms, made = generator_backward(model, x, Weights(), lpips, None)
    for (name, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6, msg=name)
    assert "lambda" not in terms
    assert "fake" not in made


def test_generator_step_leaves_the_discriminator_alone():
    model, discriminator, lpips, x = parts()
    generator_backward(model, x, Weights(), lpips, discriminator)
    assert all(parameter.grad is None for parameter in discriminator.parameters())
    assert not any(parameter.grad is not None for parameter in lpips.parameters())


def test_discriminator_step_leaves_the_generator_alone():
    model, discriminator, lpips, x = parts()
    _, made = generator_backward(model, x, Weights(), lpips, discriminator)
    before = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    discriminator_backward(discriminator, made["real"], made["fake"], "hinge")
    after = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def gradients(weights):
    model, _, lpips, x = parts()
    generator_backward(model, x, weights, lpips, None)
    return model.quantizer.codebook.grad, model.pre_quant.weight.grad


def test_beta_multiplies_the_commitment_term():
    """The known trap: the reference's first quantizer has beta at the other term."""
    none = {"pixel_weight": 0.0, "perceptual_weight": 0.0}
    codes, encoder = gradients(Weights(**none, codebook_weight=1.0, commitment_weight=0.25))
    more_codes, more_encoder = gradients(Weights(**none, codebook_weight=1.0, commitment_weight=0.5))
    torch.testing.assert_close(more_encoder, 2 * encoder)
    torch.testing.assert_close(more_codes, codes)
    double_codes, same_encoder = gradients(Weights(**none, codebook_weight=2.0, commitment_weight=0.25))
    torch.testing.assert_close(double_codes, 2 * codes)
    torch.testing.assert_close(same_encoder, encoder)


def test_losses_by_hand():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.0, 3.0])
    assert generator_loss("hinge", fake).item() == pytest.approx(-1 / 3)
    # real: 0, 0.5, 2; fake: 0, 1, 4
    assert discriminator_loss("hinge", real, fake).item() == pytest.approx((2.5 / 3 + 5 / 3) / 2)

    def sigmoid(value):
        return 1 / (1 + math.exp(-value))

    generated = -sum(math.log(sigmoid(value)) for value in fake.tolist()) / 3
    assert generator_loss("vanilla", fake).item() == pytest.approx(generated, rel=1e-5)
    pairs = zip(real.tolist(), fake.tolist(), strict=True)
    told = -sum(math.log(sigmoid(r)) + math.log(1 - sigmoid(f)) for r, f in pairs) / 6
    assert discriminator_loss("vanilla", real, fake).item() == pytest.approx(told, rel=1e-5)


def test_an_undecided_discriminator():
    zero = torch.zeros(4)
    assert discriminator_loss("hinge", zero, zero).item() == 1
    assert discriminator_loss("vanilla", zero, zero).item() == pytest.approx(math.log(2))


def test_heads_weigh_alike_whatever_their_size():
    real, fake = [torch.ones(2, 1, 4, 4), torch.zeros(2, 1, 1, 1)], [-torch.ones(2, 1, 4, 4), torch.zeros(2, 1, 1, 1)]
    assert discriminator_loss("hinge", real, fake).item() == pytest.approx((0 + 1) / 2)
    assert generator_loss("hinge", fake).item() == pytest.approx((1 + 0) / 2)
    assert disc_accuracy(real, fake).item() == pytest.approx((1 + 0.5) / 2)


def test_the_share_disc_accuracy():
    real, fake = torch.tensor([2.0, 0.5, -1.0, 3.0]), torch.tensor([-2.0, 1.0, 3.0, 4.0])
    assert disc_accuracy(real, fake).item() == pytest.approx((3 / 4 + 1 / 4) / 2)
    for same in (-0.3, 0.0, 0.7):  # whoever says the same of all is right about half
        assert disc_accuracy(torch.full((4,), same), torch.full((4,), same)).item() == 0.5


def test_lambda_by_hand_and_within_its_bounds():
    assert adaptive_weight(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0])).item() == pytest.approx(2.5)
    assert adaptive_weight(torch.ones(3), torch.zeros(3)).item() == 1e4
    assert adaptive_weight(torch.zeros(3), torch.ones(3)).item() == 0
    assert adaptive_weight(torch.zeros(3), torch.zeros(3)).item() == 0


@pytest.mark.parametrize(("pixel_loss", "value"), [("l1", 0.5), ("l2", 0.25)])
def test_pixel_losses(pixel_loss, value):
    x = torch.zeros(2, 3, 4, 4)
    found = reconstruction_loss(x, x + 0.5, Weights(pixel_loss=pixel_loss, pixel_weight=3.0), None)
    assert found["pixel"].item() == pytest.approx(value)
    assert found["rec"].item() == pytest.approx(3 * value)
    assert "perceptual" not in found


def test_cross_entropy_by_hand():
    x = torch.eye(2)[torch.tensor([[0, 1]])].permute(0, 2, 1)[:, :, None]  # (1,2,1,2): of either class
    logits = torch.tensor([[0.0, 0.0], [math.log(3), math.log(3)]]).view(1, 2, 1, 2)  # 1/4 and 3/4 everywhere
    found = reconstruction_loss(x, logits, Weights(pixel_loss="cross_entropy", perceptual_weight=0.0), None)
    assert found["pixel"].item() == pytest.approx(-(math.log(1 / 4) + math.log(3 / 4)) / 2)


def test_cross_entropy_is_over_the_pixels_of_a_class():
    """Void has no channel set: neither the loss nor a gradient knows what is painted there."""
    x = torch.eye(3)[torch.randint(3, (2, 4, 4), generator=torch.Generator().manual_seed(0))].permute(0, 3, 1, 2)
    x = x.contiguous()
    x[0, :, :, :3] = 0
    logits = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), requires_grad=True)
    weights = Weights(pixel_loss="cross_entropy", perceptual_weight=0.0)
    found = reconstruction_loss(x, logits, weights, None)["pixel"]
    each = -(x * logits.log_softmax(1)).sum(1)
    assert found.item() == pytest.approx((each.sum() / (32 - 12)).item(), rel=1e-6)
    gradient, = torch.autograd.grad(found, logits)
    assert gradient[0, :, :, :3].abs().max() == 0
    assert gradient[1].abs().min() > 0


def test_a_batch_of_void_alone_has_no_loss():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    weights = Weights(pixel_loss="cross_entropy", perceptual_weight=0.0)
    found = reconstruction_loss(torch.zeros(1, 3, 4, 4), logits, weights, None)["pixel"]
    assert found.item() == 0
    assert torch.autograd.grad(found, logits)[0].abs().max() == 0


@pytest.mark.parametrize(("share", "judged"), [(1.0, 8), (0.5, 4), (0.25, 2), (0.01, 1)])
def test_lpips_judges_a_share_of_the_batch(share, judged):
    """The mean of those it judges: so its weight does not fall with the share."""
    x, seen = torch.zeros(8, 3, 4, 4), []

    def lpips(real, made):
        seen.append(len(made))
        return made.abs().mean((1, 2, 3))

    x_hat = (x + torch.arange(1.0, 9)[:, None, None, None]).requires_grad_()
    weights = Weights(pixel_weight=0.0, perceptual_weight=2.0, perceptual_fraction=share)
    found = reconstruction_loss(x, x_hat, weights, lpips)
    assert seen == [judged]
    assert found["rec"].item() == pytest.approx(2 * (1 + judged) / 2)
    gradient, = torch.autograd.grad(found["rec"], x_hat)
    assert (gradient[:judged] > 0).all()
    assert not gradient[judged:].any()


@pytest.mark.parametrize("made_of", [parts, parts_on_features])
def test_mixed_precision_stays_near_full_precision(made_of):
    model, discriminator, lpips, x = made_of()
    for part in (model, discriminator, lpips):
        part.float()
    x = x.float()
    other, other_discriminator = copy.deepcopy(model), copy.deepcopy(discriminator)
    terms, _ = generator_backward(model, x, Weights(), lpips, discriminator)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, made = generator_backward(other, x, Weights(), lpips, other_discriminator)
        discriminator_backward(other_discriminator, made["real"], made["fake"], "hinge")
    assert mixed["rec"].item() == pytest.approx(terms["rec"].item(), rel=0.02)
    assert mixed["lambda"].item() == pytest.approx(terms["lambda"].item(), rel=0.1)
    for network in (other, other_discriminator):
        for parameter in network.parameters():
            assert parameter.grad.dtype == torch.float32
            assert torch.isfinite(parameter.grad).all()
