"""A project small enough to run a notebook in: params.yaml, a prepared set of noise, untrained models."""

import io
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from ruamel.yaml import YAML
from tests.plain import plain_values

from tesserae.models.transformer import LatentTransformer, TransformerConfig
from tesserae.models.vqgan import VQGAN, VQGANConfig

REPOSITORY = Path(__file__).parents[2]
PLAIN = REPOSITORY / "tests" / "plain.yaml"
CLASSES = ["dark", "light"]
CODES = 16


def make_project(folder: Path, transformer: bool = True) -> Path:
    """Write it into `folder`: 32-pixel pictures of two classes, f = 8, K = 16."""
    (folder / "dvc.yaml").touch()
    yaml = YAML(typ="safe", pure=True)
    values = plain_values()
    values["prepare"]["image_size"] = 32
    values["codebook"]["image"].update(batch_size=8, dictionary=4, patches=2, num_images=3)
    with (folder / "params.yaml").open("w") as file:
        yaml.dump(values, file)
    _prepared(folder / "prepared")
    torch.manual_seed(0)
    config = VQGANConfig(channels=16, channel_mult=(1, 2), patch=4, res_blocks=1, z_channels=16, codebook_size=CODES,
                         codebook_dim=4)
    vqgan = VQGAN(config)
    with torch.no_grad():  # codes of a real encoder's size, so that several are used
        vqgan.quantizer.start(vqgan.latents(torch.rand(8, 3, 32, 32) * 2 - 1), torch.Generator().manual_seed(0))
    vqgan.save_pretrained(folder / "models" / "vqgan-image")
    if transformer:
        small = TransformerConfig(codebook_size=CODES, prefix_vocab=2, max_tokens=16, n_layer=1, n_head=2, n_embd=16,
                                  conditions=({"kind": "class", "vocab": 2},), window=(4, 4))
        LatentTransformer(small).save_pretrained(folder / "models" / "transformer-class")
    return folder


def _prepared(folder: Path) -> None:
    generator = np.random.default_rng(0)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES),
                                  "path": datasets.Value("string"), "sha": datasets.Value("string")})

    def split(count: int) -> datasets.Dataset:
        labels = [number % 2 for number in range(count)]
        pictures = [_png(generator.integers(100 * label, 100 * label + 156, (4, 4, 3), dtype=np.uint8))
                    for label in labels]
        names = [f"{number}.png" for number in range(count)]
        return datasets.Dataset.from_dict({"image": pictures, "label": labels, "path": names, "sha": names}, features)

    datasets.DatasetDict({"train": split(20), "validation": split(6)}).save_to_disk(str(folder))


def _png(pixels: np.ndarray) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((32, 32)).save(buffer, "png")
    return {"bytes": buffer.getvalue(), "path": None}
