"""Addresses tesserae:/mlruns/...: files below the repository's root, wherever the repository is.

MLflow keeps the address of a run's files for ever. This is its documented way to add a kind of address: the entry
point mlflow.artifact_repository in pyproject.toml.
"""

from __future__ import annotations

from pathlib import Path

from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository


class RepositoryArtifacts(LocalArtifactRepository):
    """Files beside the SQLite store that the run is in; on its server, below the root around the working folder."""

    def __init__(self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> None:
        super().__init__((_home(tracking_uri) / _relative(artifact_uri)).as_uri(), tracking_uri, registry_uri)
        self.artifact_uri = artifact_uri


def _home(tracking_uri: str | None) -> Path:
    from mlflow import get_tracking_uri

    from tesserae.files import find_root
    from tesserae.tracking.store import path_of, real_root

    store = path_of(tracking_uri or get_tracking_uri())
    return store.parent if store else real_root(find_root())


def _relative(artifact_uri: str) -> str:
    return artifact_uri.partition(":")[2].lstrip("/")
