"""A trained network as a model of MLflow's: `mlflow.pyfunc.load_model("models:/<id>").predict(...)`.

A VQGAN maps pictures, (B,H,W,3) uint8, to their reconstructions, or to the indices of their codes with
params={"output": "indices"}. A transformer maps rows of a table (columns: label, and the path of a picture for each
other condition) to pictures.

MLflow keeps the folders that `save_pretrained` wrote and the name of this module, whose `_load_pyfunc` it calls:
nothing is pickled.
"""

from __future__ import annotations

import json
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities import LoggedModelOutput
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

TRANSFORMER = "LatentTransformer"
PACKAGES = ("torch", "safetensors", "pydantic", "einops", "pillow")
SAMPLING = {"seed": 0, "temperature": 1.0, "top_k": 0, "top_p": 1.0}


def log_model(client, experiment: str, run_id: str, folder: Path, main: str) -> None:
    """Record the model in `folder`/`main` for a run, once; what it needs lies beside it.

    Files that are no model of this version are kept as the run's files.
    """
    if client.get_run(run_id).outputs.model_outputs:
        return
    with tempfile.TemporaryDirectory() as place:
        try:
            config = _config(folder / main)
            signature, example = _signature(config)
            mlflow.pyfunc.save_model(
                f"{place}/model", loader_module=__name__, data_path=str(folder), signature=signature,
                input_example=example, pip_requirements=[f"{name}=={metadata.version(name)}" for name in PACKAGES])
        except Exception:
            client.log_artifacts(run_id, str(folder / main), "model")
            return
        model = client.create_logged_model(experiment, main, source_run_id=run_id, model_type=str(config["kind"]))
        client.log_model_artifacts(model.model_id, f"{place}/model")
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])


def _signature(config: dict[str, Any]) -> tuple[ModelSignature, Any]:
    """MLflow's signature of a network with this config, and an example of an input."""
    pictures = Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, -1))])
    if config["kind"] != TRANSFORMER:
        side = 2 ** (len(config["channel_mult"]) + 2) * config["patch"]
        channels = 3 if config["view"] == "image" else 1
        signature = ModelSignature(pictures, pictures, ParamSchema([ParamSpec("output", "string", "images")]))
        return signature, np.zeros((1, side, side, channels), np.uint8)
    columns = ["label" if each["kind"] == "class" else each["name"] for each in config["conditions"]
               if each["kind"] in ("class", "codes")] or ["label"]
    params = ParamSchema([ParamSpec(name, "long" if isinstance(value, int) else "double", value)
                          for name, value in SAMPLING.items()])
    example = pd.DataFrame([{name: "0" if name == "label" else f"{name}.png" for name in columns}])
    return ModelSignature(Schema([ColSpec("string", name) for name in columns]), pictures, params), example


def _load_pyfunc(path: str) -> Reconstructing | Sampling:
    """What MLflow calls with the folder of the model's folders: an object that has `predict`."""
    import tesserae

    kinds = {folder: _config(folder)["kind"] for folder in Path(path).iterdir()}
    for folder, kind in kinds.items():
        if kind == TRANSFORMER:
            return Sampling(tesserae.Sampler.from_pretrained(folder))
    return Reconstructing(tesserae.VQGAN.from_pretrained(next(iter(kinds))))


class Reconstructing:
    """A VQGAN that MLflow has loaded."""

    def __init__(self, vqgan):
        self._vqgan = vqgan

    def predict(self, pictures: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """Reconstructions of pictures, both (B,H,W,C) uint8, or indices (B,h,w)."""
        import torch

        from tesserae.data.batches import to_bytes
        from tesserae.data.views import view_of

        view = view_of(self._vqgan.config)
        with torch.no_grad():
            raw = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2)
            indices = self._vqgan.encode(view.network_input(raw))
            if (params or {}).get("output") == "indices":
                return indices.numpy()
            return to_bytes(view.rendered(self._vqgan.decode(indices))).permute(0, 2, 3, 1).numpy()


class Sampling:
    """A transformer with its VQGANs that MLflow has loaded."""

    def __init__(self, sampler):
        self._sampler = sampler

    def predict(self, rows: pd.DataFrame, params: dict[str, Any] | None = None) -> np.ndarray:
        """A picture for each row, (B,H,W,3) uint8; rows that follow each other have seeds that do."""
        options = SAMPLING | (params or {})
        has_label = any(each.name == "class" for each in self._sampler.conditions)
        pictures = []
        for number, row in enumerate(rows.to_dict("records")):
            label = row.pop("label", None)
            label = int(label) if isinstance(label, str) and label.isdecimal() else label
            pictures += self._sampler.sample(label if has_label else None, row or None,
                                             **options | {"seed": options["seed"] + number})
        return np.stack([np.asarray(each) for each in pictures])


def _config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))
