"""What a run says of itself: where it comes from, what its name and its description are, which data it read."""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SHELLS = {"sh", "bash", "dash", "zsh", "fish", "ksh", "ash", "busybox"}  # between dvc and a stage
NAME_LENGTH = 100
SPLITS = {"train": "training", "validation": "validation"}  # of the prepared set, and what MLflow calls them


def provenance(root: str | Path, stage_name: str) -> dict[str, str]:
    """Tags that tie a run to its code, data and DVC stage; those that MLflow itself gives, too."""
    root = Path(root)
    edited = _git(root, "status", "--porcelain", "--", "src", "notebooks", "dvc.yaml")
    commit = os.environ.get("DVC_EXP_BASELINE_REV") or _git(root, "rev-parse", "HEAD")
    source, kind = _source(root)
    tags = {
        "stage": stage_name,
        "git.commit": commit,
        "git.dirty": "true" if edited else "false",
        "dvc.stage": os.environ.get("DVC_STAGE", ""),
        "dvc.experiment": os.environ.get("DVC_EXP_NAME", ""),
        "data.hash": _data_hash(root),
        "mlflow.source.git.commit": commit,
        "mlflow.source.git.branch": _git(root, "branch", "--show-current"),
        "mlflow.source.git.repoURL": re.sub(r"(?<=://)[^@/]*@", "", _git(root, "remote", "get-url", "origin")),
        "mlflow.source.name": source,
        "mlflow.source.type": kind,
        "mlflow.user": _user(),
    }
    return {key: value for key, value in tags.items() if value}


def changed(root: str | Path, params: Mapping) -> dict[str, Any]:
    """The parameters that differ from the committed params.yaml, by their dotted keys."""
    revision = os.environ.get("DVC_EXP_BASELINE_REV") or "HEAD"
    default = flatten(_yaml(_git(Path(root), "show", f"{revision}:./params.yaml")))
    return {key: value for key, value in flatten(params).items()
            if key in default and default[key] != "auto" and _plain(default[key]) != _plain(value)}


def in_words(values: Mapping[str, Any]) -> str:
    """{"vqgan.image.lr": 1, "seed": 2} -> "lr=1, seed=2"; whole keys where two end alike."""
    last = [key.rsplit(".", 1)[-1] for key in values]
    return ", ".join(f"{short if last.count(short) == 1 else key}={value}"
                     for short, (key, value) in zip(last, values.items()))


def run_name(stage_name: str, *parts: str) -> str:
    """("vqgan-image", "wide", "K=256") -> "vqgan-image: wide, K=256"; of no more than NAME_LENGTH letters."""
    name = ": ".join(filter(None, (stage_name, ", ".join(filter(None, parts)))))
    return name if len(name) <= NAME_LENGTH else f"{name[:NAME_LENGTH - 1]}…"


def group(root: str | Path) -> dict[str, str]:
    """The execution of dvc that this stage belongs to: `id` and `name`; {} for a stage that is run by itself."""
    experiment = os.environ.get("DVC_EXP_NAME", "")
    if experiment:
        found = f"{os.environ.get('DVC_EXP_BASELINE_REV', '')[:12]}/{experiment}"
    elif os.environ.get("DVC_STAGE"):
        import psutil

        dvc = next(each for each in psutil.Process().parents() if each.name() not in SHELLS)
        found = f"{socket.gethostname()}/{dvc.pid}/{dvc.create_time():.0f}"
    else:
        return {}
    differing = changed(root, _yaml_file(root, "params.yaml"))
    return {"id": found, "name": run_name(experiment or "dvc repro", in_words(differing))}


def datasets_read(root: str | Path) -> list[dict[str, str]]:
    """The prepared set's splits as they are on disk: name, digest, source and context of each."""
    found = []
    for split, context in SPLITS.items():
        folder = Path(root) / "prepared" / split
        try:
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(state, dict) and state.get("_fingerprint"):
            found.append({"name": f"prepared/{split}", "digest": str(state["_fingerprint"])[:36],
                          "source": str(folder), "context": context})
    return found


def description(root: str | Path, stage_name: str, numbers: Mapping[str, float]) -> str:
    """The run's first page, in Markdown: what dvc.yaml says of the stage, and its numbers."""
    lines = [_stage_says(root, stage_name)]
    if numbers:
        lines += ["", ", ".join(f"{name} **{value:.6g}**" for name, value in sorted(numbers.items()))]
    return "\n".join(lines)


def flatten(values: Mapping, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    flat = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _stage_says(root: str | Path, stage_name: str) -> str:
    """The `desc` of the stage in dvc.yaml, else its name."""
    stage = flatten(_yaml_file(root, "dvc.yaml").get("stages") or {}, "stages.")
    kind = f"stages.{stage_name.partition('-')[0]}"
    said = stage.get(f"{kind}.do.desc") or stage.get(f"{kind}.desc")
    return f"**{stage_name}**: {said}." if said else f"**{stage_name}**"


def _yaml_file(root: str | Path, name: str) -> dict:
    path = Path(root) / name
    return _yaml(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _yaml(text: str) -> dict:
    from ruamel.yaml import YAML

    return YAML(typ="safe").load(text) or {}


def _source(root: Path) -> tuple[str, str]:
    """What runs here, and MLflow's word for its kind: a notebook, of JupyterLab or of the pipeline, or a module."""
    notebook = os.environ.get("JPY_SESSION_NAME") or next((arg for arg in sys.argv if arg.endswith(".ipynb")), "")
    source = Path(notebook or sys.argv[0] or "python").absolute()
    shown = source.relative_to(root) if source.is_relative_to(root) else source
    return str(shown), "NOTEBOOK" if notebook else "LOCAL"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container without names of users
        return ""


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _git(root: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", "--no-optional-locks", "-C", str(root), *words], capture_output=True, text=True,
                              timeout=10)  # a killed git would leave its lock behind
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _data_hash(root: Path) -> str:
    try:
        match = re.search(r"\bmd5: *(\w+)", (root / "data.dvc").read_text(encoding="utf-8"))
    except OSError:
        return ""
    return match[1] if match else ""
