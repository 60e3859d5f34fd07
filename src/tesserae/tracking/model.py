"""A trained network as a model of MLflow's: `mlflow.pyfunc.load_model("models:/<id>").predict(...)`.

A VQGAN maps pictures, (B,H,W,3) uint8, to their reconstructions, or to the indices of their codes with
params={"output": "indices"}. A transformer maps rows of a table (columns: label, and the path of a picture for each
other condition) to pictures.

The model is this file and the folders that `save_pretrained` wrote: nothing is pickled.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities import LoggedModelOutput
from mlflow.models import ModelSignature
from mlflow.pyfunc import PythonModel
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

TRANSFORMER = "LatentTransformer"
PACKAGES = ("torch", "safetensors", "pydantic", "einops", "pillow")
SAMPLING = {"seed": 0, "temperature": 1.0, "top_k": 0, "top_p": 1.0}


def log_model(client, experiment: str, run_id: str, folder: Path, main: str) -> None:
    """Record the model in `folder`/`main` for a run, once; what it needs lies beside it."""
    if client.get_run(run_id).outputs.model_outputs:
        return
    config = _config(folder / main)
    signature, example = _signature(config)
    model = client.create_logged_model(experiment, main, source_run_id=run_id, model_type=str(config.get("kind")))
    with tempfile.TemporaryDirectory() as place:
        mlflow.pyfunc.save_model(
            f"{place}/model", python_model=str(Path(__file__).with_name("model_code.py")),
            artifacts={each.name: str(each) for each in folder.iterdir()},
            model_config={"main": main}, signature=signature, input_example=example,
            pip_requirements=[f"{name}=={metadata.version(name)}" for name in PACKAGES])
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


warnings.filterwarnings("ignore", "(?s).*Add type hints to the `predict` method")  # the signature says more


class Network(PythonModel):
    """MLflow's view of a network; it imports torch when it is loaded, not when it is recorded."""

    def load_context(self, context) -> None:
        import tesserae

        folder = Path(context.artifacts[context.model_config["main"]])
        kind = _config(folder)["kind"]
        self.network = (tesserae.Sampler if kind == TRANSFORMER else tesserae.VQGAN).from_pretrained(folder)

    def predict(self, context, model_input, params: dict[str, Any] | None = None) -> np.ndarray:
        if hasattr(self.network, "sample"):
            return _sampled(self.network, model_input, SAMPLING | (params or {}))
        return _reconstructed(self.network, model_input, (params or {}).get("output", "images"))


def _sampled(sampler, rows, params: dict[str, Any]) -> np.ndarray:
    """A picture for each row, (B,H,W,3) uint8; rows that follow each other have seeds that do."""
    pictures = []
    for number, row in enumerate(rows.to_dict("records")):
        label = row.pop("label", None)
        label = int(label) if isinstance(label, str) and label.isdecimal() else label
        has_label = any(each.name == "class" for each in sampler.conditions)
        options = params | {"seed": params.get("seed", 0) + number}
        pictures += sampler.sample(label if has_label else None, row or None, **options)
    return np.stack([np.asarray(each) for each in pictures])


def _reconstructed(vqgan, pictures: np.ndarray, output: str) -> np.ndarray:
    import torch

    from tesserae.data.batches import to_bytes
    from tesserae.data.views import view_of

    view = view_of(vqgan.config)
    with torch.no_grad():
        raw = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2)
        indices = vqgan.encode(view.network_input(raw))
        if output == "indices":
            return indices.numpy()
        return to_bytes(view.rendered(vqgan.decode(indices))).permute(0, 2, 3, 1).numpy()


def _config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))
