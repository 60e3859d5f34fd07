"""Where a run's results come from: the tags that tie it to code, data, parameters and DVC's stage."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def provenance(root: str | Path, stage_name: str, params: Mapping) -> dict[str, str]:
    """Tags that tie a run to its code, its data, its parameters and its DVC stage and experiment."""
    root = Path(root)
    changed = _git(root, "status", "--porcelain", "--", "src", "dvc.yaml") or _edited_notebooks(root)
    tags = {
        "stage": stage_name,
        "params.hash": params_hash(params),
        "git.commit": os.environ.get("DVC_EXP_BASELINE_REV") or _git(root, "rev-parse", "HEAD"),
        "git.dirty": "true" if changed else "false",
        "dvc.stage": os.environ.get("DVC_STAGE", ""),
        "dvc.experiment": os.environ.get("DVC_EXP_NAME", ""),
        "data.hash": _data_hash(root),
    }
    return {key: value for key, value in tags.items() if value}


def params_hash(params: Mapping) -> str:
    """Twelve hexadecimal digits that stand for the parameters, whatever their order."""
    text = json.dumps(flatten(params), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def flatten(values: Mapping, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    flat = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _git(root: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", "--no-optional-locks", "-C", str(root), *words], capture_output=True, text=True,
                              timeout=10)  # a killed git would leave its lock behind
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _edited_notebooks(root: Path) -> bool:
    """Whether the code of a notebook is not the committed one; a notebook that was only saved is the same."""
    from tesserae.source_code.notebooks import NotebookError, code_of_notebook, read_notebook

    for line in _git(root, "status", "--porcelain", "--", "notebooks").splitlines():
        name = line.strip().partition(" ")[2].strip().strip('"')
        try:
            committed = json.loads(_git(root, "show", f"HEAD:./{name}"))
            if code_of_notebook(read_notebook(root / name)) != code_of_notebook(committed):
                return True
        except (NotebookError, ValueError, KeyError, TypeError):  # new, removed, or no notebook
            return True
    return False


def _data_hash(root: Path) -> str:
    try:
        match = re.search(r"\bmd5: *(\w+)", (root / "data.dvc").read_text(encoding="utf-8"))
    except OSError:
        return ""
    return match[1] if match else ""
