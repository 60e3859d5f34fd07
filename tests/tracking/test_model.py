"""A trained network comes back from MLflow as a model that predicts, with nothing unpickled."""

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch

from tesserae import VQGAN, Sampler, tracking
from tesserae.models.transformer import LatentTransformer, TransformerConfig
from tesserae.models.vqgan import VQGANConfig
from tesserae.tracking.store import Store

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Untrained networks: f = 8, K = 16."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    VQGAN(VQGANConfig(channels=16, channel_mult=(1, 2), patch=4, res_blocks=1, z_channels=16, codebook_size=16,
                      codebook_dim=4)).save_pretrained(folder / "vqgan-image")
    transformer = LatentTransformer(TransformerConfig(
        codebook_size=16, prefix_vocab=2, max_tokens=16, n_layer=1, n_head=2, n_embd=16,
        conditions=({"kind": "class", "vocab": 2},), window=(4, 4)))
    transformer.origin = {"vqgans": {"image": VQGAN.from_pretrained(folder / "vqgan-image").fingerprint},
                          "class_names": ["dark", "light"]}
    transformer.save_pretrained(folder / "transformer-class")
    return folder


def recorded(monkeypatch, capfd, home, name, *folders):
    run = tracking.start_run(home, name)
    run.model(*folders)
    run.finish()
    assert capfd.readouterr().err == ""
    store = Store(home)
    (run_id,) = tracking.runs_table(home)["run_id"]
    (model,) = store.client.get_run(run_id).outputs.model_outputs
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    return mlflow.pyfunc.load_model(f"models:/{model.model_id}")


def test_a_vqgan_predicts_reconstructions_or_indices(home, models, monkeypatch, capfd):
    model = recorded(monkeypatch, capfd, home, "vqgan-image", models / "vqgan-image")
    pictures = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    own = VQGAN.from_pretrained(models / "vqgan-image")
    indices = own.encode(torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1)
    assert np.array_equal(model.predict(pictures, params={"output": "indices"}), indices.numpy())
    again = model.predict(pictures)
    assert (again.shape, again.dtype) == (pictures.shape, np.uint8)
    assert model.predict(model.input_example).shape == model.input_example.shape
    assert not list((home / "mlruns").rglob("*.pkl"))


def test_a_transformer_predicts_pictures_of_labels(home, models, monkeypatch, capfd):
    folders = (models / "transformer-class", models / "vqgan-image")
    model = recorded(monkeypatch, capfd, home, "transformer-class", *folders)
    pictures = model.predict(pd.DataFrame({"label": ["light", "1"]}), params={"seed": 3})
    sampler = Sampler.from_pretrained(models / "transformer-class")
    wanted = [np.asarray(sampler.sample("light", seed=seed)[0]) for seed in (3, 4)]
    assert np.array_equal(pictures, np.stack(wanted))
    assert model.predict(model.input_example).shape == (1, 32, 32, 3)
