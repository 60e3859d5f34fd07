"""The networks whose features compare sets of pictures, each under its own name.

Inception with torch-fidelity's weights is what published numbers are measured with. Only those weights, known by
their sha256, give `fid`, `rfid`, `kid`, `inception_score`, `precision` and `recall`. Other weights of that layout,
and VGG16's features, give numbers that are named after them.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tesserae.data.batches import to_bytes, to_unit
from tesserae.errors import TesseraeError
from tesserae.models.perceptual import LPIPS, Backbone

KEY = "evaluation.inception_weights"
COMPARABLE = 10_000  # pictures below which a distance depends on their number too much to compare with published ones
PUBLISHED = "6726825d"  # the first digits of the sha256 of the weights that published numbers are measured with
INCEPTION_FILE = f"weights-inception-2015-12-05-{PUBLISHED}.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
_REMEDY = f"fetch {INCEPTION_URL}, or set the key to \"\""
VGG_SIDE = 64  # pixels a side that VGG reads: more take longer and hardly change ranks
PLAIN = {"frechet": "fid", "frechet_reconstructions": "rfid", "kernel": "kid", "score": "inception_score",
         "precision": "precision", "recall": "recall"}


@dataclass(frozen=True)
class FeatureNetwork:
    """Pictures -> features.

    name: "inception", "inception_custom" or "vgg16", for names of numbers. weights: hex digits of what it computes
    with. protocol: the network and how it reads pictures, for a protocol's record. description: a sentence for the
    reader of a report.
    extract: bytes (B,3,H,W) on `device` -> features (B,D) float32 and logits (B,C) or None.
    """

    name: str
    weights: str
    protocol: str
    description: str
    device: torch.device
    extract: Callable[[Tensor], tuple[Tensor, Tensor | None]]

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B,3,H,W), uint8 or floats in [-1,1], on any device -> features (B,D) on the network's."""
        return self.both(images)[0]

    @torch.no_grad()
    def both(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features, and the logits of Inception's classes without their bias where it has them."""
        pixels = images.to(self.device)
        with torch.autocast(self.device.type, enabled=False):
            return self.extract(pixels if pixels.dtype == torch.uint8 else to_bytes(pixels))

    @property
    def published(self) -> bool:
        """Whether published numbers are measured with it."""
        return self.name == "inception"

    def named(self, measure: str, pictures: int = COMPARABLE) -> str:
        """The name of a number: "frechet" -> "fid" where it compares with published ones, else "frechet_vgg16".

        It does with the published weights and at least COMPARABLE `pictures` on either side; of fewer it is
        "frechet_inception".
        """
        if self.published and pictures >= COMPARABLE:
            return PLAIN[measure]
        kind, _, ending = measure.partition("_")
        return "_".join(filter(None, (kind, self.name, ending)))


def feature_network(weights: str | Path | None = None, device: torch.device | str = "cpu",
                    backbone: Backbone | None = None) -> FeatureNetwork:
    """What sets of pictures are compared by: Inception where its weights are, else VGG16.

    weights: a file of torch-fidelity's layout, which params.yaml names; without one, INCEPTION_FILE where it lies in
    torch's cache. backbone: VGG16's, loaded where it is not given. Raises TesseraeError where the named file is
    missing, damaged or of another layout. A file in the cache that is not the published one is not used, and
    `description` says so.
    """
    device = torch.device(device)
    if weights:
        return _inception(Path(weights), device)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    shown = _shown(cached)
    why = f"the Inception weights are not at {shown}"
    if cached.is_file():
        if _sha256(cached).startswith(PUBLISHED):
            return _inception(cached, device)
        why = f"{shown} is not the published file (its sha256 does not begin with {PUBLISHED}): delete it"
    return _vgg16(device, backbone, why)


def set_features(images: Iterable[Tensor], network: FeatureNetwork) -> tuple[Tensor, Tensor | None]:
    """Features (N,D) and logits (N,C) or None of a whole set, batch by batch; float32, on the network's device."""
    parts = [network.both(batch) for batch in images]
    features = torch.cat([features for features, _ in parts])
    return features, None if parts[0][1] is None else torch.cat([logits for _, logits in parts])


@torch.no_grad()
def vgg_features(images: Tensor, backbone: Backbone) -> Tensor:
    """Images (B,3,H,W) in [-1,1] -> the mean over positions of VGG16's last activations (B,512)."""
    return backbone(images)[-1].float().mean((2, 3))


def at_most(images: Tensor, side: int = VGG_SIDE) -> Tensor:
    """Images (B,C,H,W), made smaller where their longer side is more than `side` pixels."""
    scale = side / max(images.shape[-2:])
    if scale >= 1:
        return images
    size = [max(1, round(own * scale)) for own in images.shape[-2:]]
    return F.interpolate(images.float(), size=size, mode="bilinear", antialias=True, align_corners=False)


def _vgg16(device: torch.device, backbone: Backbone | None, why: str) -> FeatureNetwork:
    backbone = LPIPS.load("vgg").backbone if backbone is None else backbone
    weights = ""
    if isinstance(backbone, nn.Module):
        weights = _fingerprint(backbone)
        backbone = backbone.to(device)
    description = (f"Sets of pictures are compared by VGG16's features, and no FID is computed, for {why}. "
            f"For FID fetch {INCEPTION_URL} to there, or name the file in {KEY}.")
    protocol = (f"VGG16 (ImageNet), mean over positions of the last activations, 512; pictures of at most {VGG_SIDE} "
             "pixels a side, larger ones resized with antialiasing")

    def extract(pixels: Tensor) -> tuple[Tensor, None]:
        return vgg_features(at_most(to_unit(pixels)), backbone), None

    return FeatureNetwork("vgg16", weights, protocol, description, device, extract)


def _inception(path: Path, device: torch.device) -> FeatureNetwork:
    state, digest = _state(path), _sha256(path)
    network = _built(state, path).to(device)
    published = digest.startswith(PUBLISHED)
    protocol = ("Inception v3 of torch-fidelity, pool features, 2048; pictures resized to 299 pixels a side as "
             f"TensorFlow 1 does; weights sha256 {digest[:8]}")
    description = f"Sets of pictures are compared by Inception's features with the published weights, {path.name}."
    if not published:
        description = (f"Sets of pictures are compared by Inception's features with the weights {path.name}, and no "
                       f"FID is computed, for their sha256 begins with {digest[:8]}, that of the published ones with "
                       f"{PUBLISHED}.")

    def extract(pixels: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = network(pixels)
        return features, logits

    name = "inception" if published else "inception_custom"
    return FeatureNetwork(name, digest, protocol, description, device, extract)


def _state(path: Path) -> dict:
    """The file's tensors; nothing in it is run."""
    if not path.is_file():
        raise TesseraeError(f"{KEY} names {path}, and no file is there: {_REMEDY}.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a pickle, a zip file, an end of file: there are many
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise TesseraeError(f"{KEY} names {path}, which is damaged or no file of weights ({reason}): {_REMEDY}."
                            ) from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise _misshapen(path, "it holds no tensors by name")
    return state


def _built(state: dict, path: Path) -> nn.Module:
    from torch_fidelity import FeatureExtractorInceptionV3  # here, for it takes seconds to import

    with tempfile.TemporaryDirectory() as folder:  # it unpickles whatever it is given: so it is given tensors alone
        safe = Path(folder) / "weights.pth"
        torch.save(state, safe)
        try:
            return FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], str(safe))
        except RuntimeError as error:
            lines = str(error).split("\n")
            raise _misshapen(path, " ".join(lines[min(1, len(lines) - 1)].split())[:160]) from None


def _misshapen(path: Path, reason: str) -> TesseraeError:
    return TesseraeError(f"{KEY} names {path}, whose weights are not laid out as Inception's of torch-fidelity "
                         f"({reason}): {_REMEDY}.")


def _shown(path: Path) -> str:
    """Without the name of the home folder, for reports that others read."""
    return f"~/{path.relative_to(Path.home())}" if path.is_relative_to(Path.home()) else str(path)


def _fingerprint(network: nn.Module) -> str:
    """Hex digits that change with any weight."""
    digest = hashlib.sha256()
    for parameter in network.parameters():
        digest.update(parameter.detach().float().cpu().contiguous().numpy())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
