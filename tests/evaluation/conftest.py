"""Small pictures and a small untrained VQGAN."""

import io

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tesserae.data.pictures import Pictures
from tesserae.models.vqgan import VQGAN, VQGANConfig


def as_pictures(images: np.ndarray) -> Pictures:
    """(N,H,W,3) uint8 -> a split that holds them."""
    def png(pixels):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "png")
        return {"bytes": buffer.getvalue(), "path": None}

    features = datasets.Features({"image": datasets.Image(), "path": datasets.Value("string")})
    rows = {"image": [png(pixels) for pixels in images], "path": [str(n) for n in range(len(images))]}
    return Pictures(datasets.Dataset.from_dict(rows, features=features))


@pytest.fixture(scope="session")
def pictures() -> Pictures:
    """Twenty-one pictures of 32 pixels a side: smooth, all different."""
    coarse = np.random.default_rng(0).integers(0, 256, (21, 5, 5, 3), dtype=np.uint8)
    return as_pictures(np.stack([np.asarray(Image.fromarray(each).resize((32, 32))) for each in coarse]))


@pytest.fixture(scope="session")
def vqgan() -> VQGAN:
    """Untrained, f = 8, 24 codes, which start from encoded noise, so that many are used."""
    torch.manual_seed(0)
    config = VQGANConfig(channels=16, channel_mult=(1, 2), patch=4, res_blocks=1, z_channels=16,
                         codebook_size=24, codebook_dim=4)
    model = VQGAN(config).eval()
    with torch.no_grad():
        noise = F.interpolate(torch.rand(32, 3, 5, 5) * 2 - 1, 32, mode="bicubic")
        model.quantizer.start(model.latents(noise), torch.Generator().manual_seed(0))
    return model
