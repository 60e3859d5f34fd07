"""Models on disk: `model.safetensors` and `config.json`, written aside and renamed.

The weights' file carries their checksum, which is compared on loading, and where the model comes from (`origin`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tesserae.earlier_models import upgraded
from tesserae.errors import TesseraeError

_KEY = "tesserae"  # one entry of metadata: several are written in any order, and the file's hash changes


def save_model(model: nn.Module, config: Any, folder: str | Path, origin: Mapping[str, Any] | None = None) -> None:
    """Write weights and the config (a dataclass) into `folder`, each file whole or not at all.

    origin: JSON values that say what the model was trained on; `load_weights` returns them.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    about = {"checksum": _checksum(weights), "origin": dict(origin or {})}
    save_file(weights, folder / "model.safetensors.part", {_KEY: json.dumps(about, sort_keys=True)})
    text = json.dumps({"kind": type(model).__name__, **dataclasses.asdict(config)}, indent=2)
    (folder / "config.json.part").write_text(text + "\n", encoding="utf-8")
    for name in ("model.safetensors", "config.json"):
        os.replace(folder / f"{name}.part", folder / name)


def read_config(config_class: type, kind: str, folder: str | Path) -> Any:
    """The config of a saved model. Raises TesseraeError where the folder holds none of that kind."""
    path = Path(folder) / "config.json"
    values = _read_values(path)
    if not isinstance(values, dict) or values.pop("kind", None) != kind:
        raise TesseraeError(f"{path} is not that of a {kind}: name another folder.")
    values = upgraded(kind, values)
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    try:
        return config_class(**values)
    except TypeError as error:
        raise TesseraeError(f"{path} does not fit this version ({error}): train again.") from None


def load_weights(model: nn.Module, folder: str | Path) -> tuple[str, dict[str, Any]]:
    """Fill `model` from `folder`; its fingerprint and its origin, {} of a model that was saved without one.

    The fingerprint is 32 hex digits that change with any weight and with the config. Raises TesseraeError where the
    file is missing, damaged or of other shapes; files of an older version, without a checksum, load unchecked.
    """
    return _read_weights(folder, model.load_state_dict)


def fingerprint_of(folder: str | Path) -> str:
    """The fingerprint of the model in `folder`, as `load_weights` gives it. Raises TesseraeError as that does."""
    return _read_weights(folder, lambda weights: None)[0]


def _read_weights(folder: str | Path, use: Callable[[dict[str, Tensor]], object]) -> tuple[str, dict[str, Any]]:
    path = Path(folder) / "model.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(_KEY, "{}"))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        checksum = _checksum(weights)
        if about.get("checksum", checksum) != checksum:
            raise ValueError("its weights do not have the checksum that they were saved with")
        use(weights)
    except FileNotFoundError:
        raise TesseraeError(f"{path} is missing: {_remedy(folder)}.") from None
    except (SafetensorError, RuntimeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TesseraeError(f"{path} is damaged or of another shape ({reason}): remove it, then {_remedy(folder)}."
                            ) from None
    config = json.dumps(_read_values(Path(folder) / "config.json"), sort_keys=True)
    return hashlib.blake2b(f"{checksum} {config}".encode(), digest_size=16).hexdigest(), about.get("origin", {})


def _read_values(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TesseraeError(f"{path.parent} holds no model: run `dvc repro` first, or name another folder.") from None
    except ValueError:
        raise TesseraeError(f"{path} is damaged: remove it, then {_remedy(path.parent)}.") from None


def _remedy(folder: str | Path) -> str:
    """How a model's file comes back: a folder in models/ is an output of the pipeline, any other was put there."""
    folder = Path(folder)
    stage = folder.parent if folder.name == "last" else folder
    if stage.parent.name != "models" or not stage.name.startswith(("vqgan-", "transformer-")):
        return "copy the model here again"
    return f"run dvc checkout models/{stage.name}, or dvc repro, which goes on from the last checkpoint"


def _checksum(weights: Mapping[str, Tensor]) -> str:
    """Of names, types, shapes and bytes, whatever their order in a file."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
