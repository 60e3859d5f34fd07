"""Models on disk: `model.safetensors` and `config.json`, written aside and renamed.

The weights' file carries their checksum, which is compared on loading, and where the model comes from (`origin`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tesserae.earlier_models import upgraded
from tesserae.errors import TesseraeError
from tesserae.files import replacing

_KEY = "tesserae"  # one entry of metadata: several are written in any order, and the file's hash changes


class SavedModel(nn.Module):
    """A network that is written into a folder and read back, with its config, a dataclass of `config_class`.

    origin: JSON values that say what it was trained on. fingerprint: 32 hex digits that change with any weight and
    with the config, "" for a network that was not read from a folder.
    """

    config_class: type

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.origin: dict[str, Any] = {}
        self.fingerprint = ""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model.safetensors and config.json into `folder`, each file whole or not at all.

        Raises DiskFullError and TesseraeError, see `files.replacing`.
        """
        folder = Path(folder)
        weights = {key: value.detach().cpu().contiguous() for key, value in self.state_dict().items()}
        about = {"checksum": _checksum(weights), "origin": self.origin}
        text = json.dumps({"kind": type(self).__name__, **dataclasses.asdict(self.config)}, indent=2)
        with replacing(folder / "config.json") as config_file, replacing(folder / "model.safetensors") as body:
            save_file(weights, body, {_KEY: json.dumps(about, sort_keys=True)})
            config_file.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Read what `save_pretrained` wrote. Raises TesseraeError where it is missing, damaged or of another kind.

        Files of an older version, without a checksum, load unchecked.
        """
        model = cls(_read_config(cls, Path(folder) / "config.json"))
        model.fingerprint, model.origin = _read_weights(folder, model.load_state_dict)
        return model.eval()


def _read_config(model_class: type[SavedModel], path: Path) -> Any:
    kind, values = model_class.__name__, _read_values(path)
    if not isinstance(values, dict) or values.pop("kind", None) != kind:
        raise TesseraeError(f"{path} is not that of a {kind}: name another folder.")
    values = upgraded(kind, values)
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    try:
        return model_class.config_class(**values)
    except TypeError as error:
        raise TesseraeError(f"{path} does not fit this version ({error}): train again.") from None


def fingerprint_of(folder: str | Path) -> str:
    """The fingerprint of the model in `folder`. Raises TesseraeError where a file is missing or damaged."""
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
