"""Weights from Lightning checkpoints, without running code that such a pickle may hold.

These checkpoints keep callbacks and omegaconf containers with the weights, as pickled objects.
PyTorch's own restricted reader takes the plain ones. For the others every name that is no tensor becomes an
inert stand-in, so the file loads without its libraries and without their code.
"""

from __future__ import annotations

import pickle
import types
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tesserae.errors import TesseraeError

_REBUILT = {("collections", "OrderedDict"), ("torch._utils", "_rebuild_tensor_v2"),
            ("torch._utils", "_rebuild_parameter")}
# Modules that genuine checkpoints name; stand-ins replace their objects, and nothing is imported.
_INERT = {"pytorch_lightning", "lightning", "lightning_fabric", "omegaconf", "taming", "main", "numpy",
          "torch", "collections", "typing", "argparse", "enum", "pathlib", "datetime", "copyreg",
          "copy_reg", "_codecs"}
_PLAIN = {"set", "frozenset", "object", "list", "dict", "tuple", "int", "long", "float", "complex", "str",
          "bytes", "bytearray", "bool", "unicode", "slice", "range"}
# Where training scripts put the weights.
_WRAPPERS = ("state_dict", "model", "model_state_dict", "module", "params")


class _Inert:
    """Takes whatever a pickle does to an object, and forgets it."""

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def _forget(self, *_: Any) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = _forget


class _Refused(pickle.UnpicklingError):
    """The pickle names what no checkpoint needs."""


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _REBUILT:
            return super().find_class(module, name)
        plain = module in ("builtins", "__builtin__") and name in _PLAIN
        if plain or module.split(".")[0] in _INERT:
            return _Inert
        raise _Refused(f"it names {module}.{name}, which no checkpoint needs")


def load_state(checkpoint: str | Path | Mapping) -> dict[str, Tensor]:
    """The state dict of a checkpoint: a path, or one already loaded.

    The weights lie at the top, or under one of the names that training scripts give them (`_WRAPPERS`). Raises
    TesseraeError where the file is missing, damaged, no checkpoint, or names code that none has a use for.
    """
    content = checkpoint if isinstance(checkpoint, Mapping) else _read(Path(checkpoint))
    keys = content if isinstance(content, Mapping) else {}
    for state in (content, *(keys[name] for name in _WRAPPERS if name in keys)):
        if isinstance(state, Mapping) and state and all(isinstance(value, Tensor) for value in state.values()):
            return dict(state)
    origin = "the checkpoint" if isinstance(checkpoint, Mapping) else checkpoint
    there = f"its keys are {', '.join(map(str, [*keys][:5]))}{', ...' * (len(keys) > 5)}" if keys else "it is empty"
    there = there if isinstance(content, Mapping) else "it holds another object"
    raise TesseraeError(f"{origin} holds no state dict of tensors ({there}): give the reference's .ckpt file, or "
                        "tensors by their names under state_dict.")


def _read(path: Path) -> Any:
    if not path.exists():
        raise TesseraeError(f"{path} does not exist: give the .ckpt file of the reference's run.")
    if not path.is_file():
        raise TesseraeError(f"{path} is a folder: give the .ckpt file in it.")
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            return _read_inertly(path)
    except PermissionError:
        raise TesseraeError(f"{path} may not be read: see to its permissions.") from None
    except _Refused as error:
        raise TesseraeError(f"{path} is refused ({error}): give one from a source you trust, or save its "
                            "state_dict alone with torch.save.") from None
    except Exception as error:
        raise TesseraeError(f"{path} is refused, as {_fault_of(path, error)}: download or copy the checkpoint "
                            "again.") from None


def _fault_of(path: Path, error: Exception) -> str:
    """What a file is that cannot be read as a checkpoint."""
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        return "it is empty"
    if start.lstrip().startswith(b"<"):
        return "it is a web page"
    if start.startswith(b"version https://git-lfs"):
        return "it is Git LFS's pointer to a file, not the file"
    if start.startswith(b"PK") and not zipfile.is_zipfile(path):
        return f"it is cut short at {path.stat().st_size:,} bytes"
    return f"it is damaged or no checkpoint ({' '.join(str(error).split())[:120]})"


def _read_inertly(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("constants.pkl") for name in archive.namelist()):
                raise _Refused("it is a TorchScript program, not a checkpoint")
    reader = types.SimpleNamespace(__name__="inert", Unpickler=_InertUnpickler, load=_load)
    return torch.load(path, map_location="cpu", weights_only=False, pickle_module=reader)


def _load(file: Any, **options: Any) -> Any:
    return _InertUnpickler(file, **options).load()
