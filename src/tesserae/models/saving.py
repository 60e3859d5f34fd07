"""Models on disk: `model.safetensors` and `config.json`, written aside and renamed."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from tesserae.errors import TesseraeError


def save_model(model: nn.Module, config: Any, folder: str | Path) -> None:
    """Write weights and the config (a dataclass) into `folder`, each file whole or not at all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors.part")
    text = json.dumps({"kind": type(model).__name__, **dataclasses.asdict(config)}, indent=2)
    (folder / "config.json.part").write_text(text + "\n", encoding="utf-8")
    for name in ("model.safetensors", "config.json"):
        os.replace(folder / f"{name}.part", folder / name)


def read_config(config_class: type, kind: str, folder: str | Path) -> Any:
    """The config of a saved model. Raises TesseraeError where the folder holds none of that kind."""
    path = Path(folder) / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TesseraeError(f"{folder} holds no model: run `dvc repro` first, or name another folder.") from None
    except ValueError:
        raise TesseraeError(f"{path} is damaged: run the stage that writes it again.") from None
    if not isinstance(values, dict) or values.pop("kind", None) != kind:
        raise TesseraeError(f"{path} is not that of a {kind}: name another folder.")
    values = getattr(config_class, "upgraded", dict)(values)
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    try:
        return config_class(**values)
    except TypeError as error:
        raise TesseraeError(f"{path} does not fit this version ({error}): train again.") from None


def load_weights(model: nn.Module, folder: str | Path) -> None:
    """Fill `model` from `folder`. Raises TesseraeError where the file is missing, damaged or of other shapes."""
    path = Path(folder) / "model.safetensors"
    try:
        model.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise TesseraeError(f"{path} is missing: run the stage that writes it again.") from None
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TesseraeError(f"{path} is damaged or of another shape ({reason}): train again.") from None
