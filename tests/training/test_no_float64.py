"""Nothing asks a device for float64, which Apple's MPS has not: both trainings, encoding, evaluation, sampling.

The device is a stand-in, see tests/standin.py.
"""


import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tests.standin import DEVICE, NoFloat64, on_device
from tests.training.test_train_transformer import CHANGES, K, tiny_vqgan, toy_maps
from tests.training.test_train_vqgan import QUICK, load_once, prepared

from tesserae import load_params
from tesserae.data.paired import PairedMaps
from tesserae.data.pictures import Pictures
from tesserae.data.views import Viewed, view_of
from tesserae.encoding import encode_pieces
from tesserae.evaluation.code_patches import nearest_patches
from tesserae.evaluation.codebook import code_colours, nearest_code_distances, principal_components, usage_statistics
from tesserae.evaluation.distributions import (
    SetStatistics,
    frechet,
    inception_score,
    kernel_distance,
    precision_recall,
)
from tesserae.models.perceptual import LPIPS
from tesserae.models.transformer import LatentTransformer, TransformerConfig
from tesserae.params import check_params
from tesserae.sampling.autoregressive import SampleOptions, sample
from tesserae.training.transformer import TransformerTask
from tesserae.training.vqgan import VQGANTask


class OnStandIn(Accelerator):
    """Accelerate's view of a machine with the stand-in device."""

    device = DEVICE


@pytest.fixture(scope="module")
def values(pytestconfig):
    return load_params(pytestconfig.rootpath / "tests/plain.yaml").model_dump()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    prepared(folder / "prepared")
    return {split: Pictures.load(folder / "prepared", split) for split in ("train", "validation")}


def test_the_stand_in_notices():
    """On tensors that came there, on what is made there, in backward passes; not on what has left."""
    with NoFloat64():
        x = torch.arange(3.0).to(DEVICE).requires_grad_()
        y = (x.square() + torch.ones(3, device=x.device)).sum()
        y.backward()
        assert (x.device, x.grad.device, y.cpu().device) == (DEVICE, DEVICE, torch.device("cpu"))
        assert y.cpu().double() == 8
        assert (x.cpu() + 1).detach().numpy().tolist() == [1, 2, 3]
        for asks in (y.double, lambda: x.grad.to(torch.float64), lambda: torch.tensor(np.ones(2), device=x.device),
                     lambda: torch.from_numpy(np.ones(2)).to(DEVICE), lambda: x.mean(dtype=torch.float64),
                     lambda: np.asarray(x.grad)):
            with pytest.raises(TypeError):
                asks()


@pytest.mark.parametrize("changes", [
    {}, {"quantizer": "ema", "optimiser": "adam"}, {"quantizer": "simvq"}, {"quantizer": "fsq", "codebook_dim": 2},
    {"quantizer": "lfq", "discriminator": "features", "disc_layers": 2},
    {"quantizer": "gumbel", "gan_loss": "vanilla"},
], ids=lambda changes: changes.get("quantizer", "nearest"))
def test_a_vqgan_learns_and_is_judged(values, pictures, monkeypatch, changes):
    """With LPIPS, a discriminator, a start from data and revival."""
    monkeypatch.setattr(LPIPS, "load", load_once)
    block = {**values["vqgan"]["image"], **QUICK, "perceptual_start": 0, "disc_start": 0, "revive_after": 1,
             **changes}
    if changes.get("quantizer", "nearest") not in ("nearest", "ema"):
        block |= {"codebook_init": "auto", "revive_after": "auto"}
    block |= {name: "auto" for name in ("codebook_weight", "commitment_weight", "entropy_weight", "kl_weight",
                                        "temperature_start", "temperature_end", "codebook_lr")}
    block = check_params(values | {"vqgan": {"image": block}}).vqgan["image"]
    shown = []
    with NoFloat64() as mode:
        task = VQGANTask(block, 0, pictures["train"], pictures["validation"], OnStandIn(cpu=True),
                         lambda picture, step: shown.append(picture))
        assert on_device(task.model.encoder.conv_in.weight)
        assert on_device(task.batch(0))
        task.set_rate(1.0, 0.5)
        for step in range(2):
            terms = task.step(step)
            assert all(map(on_device, terms.values()))
        measures = task.summary() | task.evaluate(1)
        task.sample(1)
        state = task.state()
        task.load_state(json_like(state))
        task.step(2)
    assert {"perplexity", "lpips", "usage"} <= measures.keys()
    assert len(shown) == 1
    assert mode.came > 20
    assert mode.left > 10


def json_like(state):
    """A state as it comes out of a file: on the CPU."""
    if isinstance(state, torch.Tensor):
        return state.cpu()
    if isinstance(state, dict):
        return {key: json_like(value) for key, value in state.items()}
    return [json_like(value) for value in state] if isinstance(state, list) else state


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_a_transformer_learns_is_judged_and_samples(values, optimiser):
    block = check_params(values | {"transformer": {"class": {
        **values["transformer"]["class"], **CHANGES, "optimiser": optimiser}}}).transformer["class"]
    shown = []
    with NoFloat64() as mode:
        task = TransformerTask(block, 0, PairedMaps(toy_maps()), PairedMaps(toy_maps(20, seed=1)),
                               {"image": tiny_vqgan()}, OnStandIn(cpu=True),
                               lambda picture, step: shown.append(picture))
        task.set_rate(1.0, 0.0)
        for step in range(2):
            assert all(map(on_device, task.step(step).values()))
        assert task.evaluate(1)["nll"] > 0
        task.sample(1)
        task.load_state(json_like(task.state()))
        task.step(2)
    assert len(shown) == 1
    assert mode.left > 5


def test_a_set_is_encoded_and_its_codebook_looked_at(pictures, tmp_path):
    train = pictures["train"]
    with NoFloat64() as mode:
        model = tiny_vqgan().eval().to(DEVICE)
        encode_pieces(model, train, 16, tmp_path, OnStandIn(cpu=True))
        images = view_of(model.config).network_input(view_of(model.config).raw(train, range(8)).to(DEVICE))
        codes = model.encode(images)
        assert on_device(codes)
        assert usage_statistics(torch.bincount(codes.flatten(), minlength=K))["usage"] > 0
        assert nearest_code_distances(model.codebook).shape == (K,)
        assert code_colours(model.codebook).shape == (K, 3)
        principal_components(model.codebook)
        maps = torch.cat([model.encode(images[n:n + 1]) for n in range(8)]).cpu()
        found = nearest_patches(model, Viewed(train, view_of(model.config)), maps, [0, 1], 3, 4, torch.arange(8))
    assert found.distance.shape == (2, 3)
    assert mode.left > 5


def test_samples_are_drawn_and_compared_as_sets():
    torch.manual_seed(0)
    with NoFloat64() as mode:
        model = LatentTransformer(TransformerConfig(codebook_size=K, max_tokens=4, n_layer=1, n_head=2, n_embd=16))
        prefix = torch.zeros(3, 1, dtype=torch.int64).to(DEVICE)
        assert sample(model.eval().to(DEVICE), prefix, (2, 2), SampleOptions(top_k=5, top_p=0.9)).shape == (3, 2, 2)
        features, reference = (torch.randn(12, 6).to(DEVICE) for _ in range(2))
        assert frechet(SetStatistics.of(features), SetStatistics.of(reference)) > 0
        kernel_distance(features, reference)
        precision_recall(features, reference)
        inception_score(features)
    assert mode.came > 5
