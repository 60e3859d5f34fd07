"""Everything that measures computes where the network lies, and makes no tensor that grows with the sets.

The stand-in for a device is torch's FakeTensorMode: tensors that know their device and shape and hold no numbers,
on "cuda" where there is none. As on a real one, an operation on tensors of two devices fails.
"""

import ast
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tesserae.data.views import view_of
from tesserae.evaluation import codebook, condition_fidelity, distributions, features, images, likelihood, neighbours
from tesserae.evaluation.streams import Images, joined, of_codes, of_tensor
from tesserae.models.perceptual import LPIPS
from tesserae.models.transformer import LatentTransformer, TransformerConfig
from tesserae.models.vqgan import VQGAN, VQGANConfig

ROOT = Path(__file__).parents[2]
HEAVY = ("aten.convolution", "aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm", "aten._cdist_forward",
         "aten._euclidean_dist", "aten.eq.Tensor")


class Watch(TorchDispatchMode):
    """Within it: on which devices heavy operations compute, and how many elements the largest tensor has."""

    def __init__(self):
        super().__init__()
        self.devices, self.largest = set(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes() // tensor.element_size()
                                   if tensor.device.type == "cpu" else tensor.numel())
                if str(function).startswith(HEAVY):
                    self.devices.add(tensor.device.type)
        return out


@pytest.fixture
def gpu(monkeypatch):
    """A stand-in for a GPU, and networks to put there. What looks at numbers first is left out: there are none."""
    def decode(self, indices):
        return self.decode_latents(self.quantizer.lookup(indices)).float()

    monkeypatch.setattr(VQGAN, "decode", decode)
    config = VQGANConfig(channels=16, channel_mult=(1, 2), patch=4, res_blocks=1, z_channels=16, codebook_size=24,
                         codebook_dim=4)
    networks = {"vqgan": VQGAN(config).eval(), "alex": LPIPS("alex"), "vgg": LPIPS("vgg")}
    for network in networks.values():
        network.requires_grad_(False)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield SimpleNamespace(device=torch.device("cuda"), **networks)


def decoded(gpu):
    """Forty maps, decoded on the device."""
    return of_codes(gpu.vqgan.to(gpu.device), torch.zeros(40, 8, 8, dtype=torch.int64))


def test_codes_are_decoded_where_the_vqgan_is(gpu):
    with Watch() as watch:
        batches = list(decoded(gpu))
    assert {batch.device.type for batch in batches} == watch.devices == {"cuda"}
    assert sum(map(len, batches)) == 40


@pytest.mark.parametrize("where", [torch.device("cpu"), torch.device("cuda")])
def test_features_are_computed_where_the_network_is(gpu, where, monkeypatch):
    """Wherever the pictures are."""
    monkeypatch.setattr(features, "_fingerprint", lambda network: "")  # of numbers, and there are none
    network = features.feature_network(None, gpu.device, gpu.vgg.backbone)
    with Watch() as watch:
        found, _ = features.set_features(torch.zeros(9, 3, 96, 96, device=where).split(4), network)
    assert found.shape == (9, 512)
    assert found.device.type == "cuda"
    assert watch.devices == {"cuda"}


def test_neighbours_are_found_where_lpips_is(gpu):
    pictures, embed = decoded(gpu), neighbours.lpips_vectors(gpu.alex.to(gpu.device))
    with Watch() as watch:
        found = neighbours.nearest(pictures.some(range(5)), pictures, embed, 2)
    assert found.distances.shape == (5, 2)
    assert found.distances.device.type == "cpu"
    assert watch.devices == {"cuda"}


def test_codes_are_compared_where_they_are(gpu):
    maps = torch.zeros(7, 16, dtype=torch.int64, device=gpu.device)
    with Watch() as watch:
        found = neighbours.code_overlap(maps, torch.zeros(30, 16, dtype=torch.int32), at_once=100)
    assert found.device.type == "cpu"
    assert watch.devices == {"cuda"}


def test_reconstructions_are_measured_where_the_model_is(gpu):
    model, lpips = gpu.vqgan.to(gpu.device), gpu.vgg.to(gpu.device)
    x = view_of(model.config).network_input(torch.zeros(4, 3, 64, 64, dtype=torch.uint8).to(gpu.device))
    with Watch() as watch:
        found = images.picture_metrics(model.decode_latents(model.latents(x)), x, lpips)
    assert {values.device.type for values in found.values()} == watch.devices == {"cuda"}


def test_lpips_to_the_true_pictures_is_computed_where_it_is(gpu):
    groups = torch.arange(6)
    made, real = torch.zeros(6, 3, 64, 64), torch.zeros(6, 3, 64, 64, dtype=torch.uint8)
    with pytest.MonkeyPatch.context() as patch, Watch() as watch:
        patch.setattr(condition_fidelity, "another_of", lambda groups: groups.roll(1))
        found = condition_fidelity.lpips_to_true_and_other(made, real, gpu.alex.to(gpu.device), groups, 4, gpu.device)
    assert {values.device.type for values in found.values()} == {"cpu"}
    assert watch.devices == {"cuda"}


def test_distances_of_codes_are_computed_where_the_codebook_is(gpu):
    with Watch() as watch:
        found = codebook.nearest_code_distances(torch.zeros(50, 4, device=gpu.device), rows=20)
    assert found.device.type == "cpu"
    assert watch.devices == {"cuda"}


# ---- memory ------------------------------------------------------------------------------------------------


def growth(measure, small, large):
    """The largest tensor that is made, for a small set and for a large one."""
    sizes = []
    for count in (small, large):
        with Watch() as watch:
            measure(count)
        sizes.append(watch.largest)
    return sizes


def test_neighbours_in_bounded_memory(monkeypatch):
    """Vectors of a block of the bank, and no more: not those of all queries, nor of the whole bank."""
    monkeypatch.setattr(neighbours, "BLOCK", 40 * 3 * 64 * 64)

    def measure(count):
        pictures = Images(count, lambda numbers: numbers[:, None, None, None] * torch.ones(1, 3, 64, 64) / 1e4)
        neighbours.nearest(pictures, pictures, neighbours.pixel_vectors)

    small, large = growth(measure, 96, 480)
    assert small == large <= 40 * 3 * 64 * 64


def test_code_overlap_in_bounded_memory():
    def measure(count):
        maps = torch.arange(count)[:, None].expand(-1, 16) % 7
        neighbours.code_overlap(maps, maps, at_once=1 << 12)

    small, large = growth(measure, 100, 600)
    assert small <= 1 << 13
    assert large <= 600 * 16  # the maps themselves, and no matrix of N x M


@pytest.mark.parametrize("measure", [distributions.kernel_distance, distributions.precision_recall])
def test_distances_between_sets_in_bounded_memory(monkeypatch, measure):
    monkeypatch.setattr(distributions, "BLOCK", 1 << 12)
    monkeypatch.setattr(distributions, "RESAMPLES", 4)
    monkeypatch.setattr(distributions, "resampled_counts", lambda count: torch.ones(4, count, dtype=torch.float64))

    def run(count):
        measure(torch.randn(count, 2, generator=torch.Generator().manual_seed(0)), torch.ones(count, 2))

    small, large = growth(run, 100, 800)
    assert small <= 1 << 13
    assert large <= max(1 << 13, 800 * 10)  # never 800 x 800


def test_likelihoods_in_bounded_memory(monkeypatch):
    model = LatentTransformer(TransformerConfig(codebook_size=512, prefix_vocab=1, max_tokens=16, n_layer=1, n_head=1,
                                                n_embd=8, conditions=({"kind": "start"},), window=(4, 4))).eval()
    codes = torch.zeros(48, 4, 4, dtype=torch.int64)
    whole = likelihood.likelihood(model, torch.zeros(48, 1, dtype=torch.int64), codes)
    monkeypatch.setattr(likelihood, "LOGITS", 3 * 16 * 512)
    with Watch() as watch:
        parts = likelihood.likelihood(model, torch.zeros(48, 1, dtype=torch.int64), codes)
    torch.testing.assert_close(parts.nll, whole.nll)
    assert watch.largest <= 4 * 16 * 512


def test_joined_sets_give_the_pictures_that_are_asked_for():
    first, second = (of_tensor(torch.full((count, 3, 2, 2), value)) for count, value in ((3, 0.1), (4, 0.2)))
    both = joined(first, second)
    assert len(both) == 7
    found = both[[6, 0, 3, 2]][:, 0, 0, 0]
    torch.testing.assert_close(found, torch.tensor([0.2, 0.1, 0.2, 0.1]))
    assert len(both.some([5, 1])[[1]]) == 1


# ---- notebooks ---------------------------------------------------------------------------------------------


def loads(tree):
    """Calls in a notebook's code that load a network, and whether the result is put on a device."""
    placed = {id(call.func.value) for call in ast.walk(tree)
              if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "to"}
    moved = {target.id for node in ast.walk(tree) if isinstance(node, ast.Assign)
             and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Attribute)
             and node.value.func.attr == "to" for target in node.targets if isinstance(target, ast.Name)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name.endswith((".from_pretrained", "LPIPS.load")):
            held = [target.id for each in ast.walk(tree) if isinstance(each, ast.Assign) for target in ast.walk(each)
                    if isinstance(target, ast.Name) and isinstance(target.ctx, ast.Store)
                    and any(inner is node for inner in ast.walk(each.value))]
            yield ast.unparse(node), id(node) in placed or bool(set(held) & moved)
        elif name == "feature_network":
            yield ast.unparse(node), len(node.args) == 2


@pytest.mark.parametrize("number", ["02", "03", "04"])
def test_notebooks_put_every_network_that_they_load_on_the_device(number):
    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    found = dict(loads(ast.parse(code)))
    assert found
    assert [call for call, placed in found.items() if not placed] == []


def test_a_bad_file_of_weights_is_said_before_the_training():
    cells = json.loads((ROOT / "notebooks/02_train_vqgan.ipynb").read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert 0 < code.index("feature_network(stage.inception_weights") < code.index("train_vqgan(stage)")
