"""Addresses tesserae:/mlruns/...: files below the repository's root, wherever the repository is.

MLflow keeps the address of a run's files for ever. This is its documented way to add a kind of address: the entry
point mlflow.artifact_repository in pyproject.toml.
"""

from __future__ import annotations

from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from tesserae.files import find_root
from tesserae.tracking.store import path_of, real_root


class RepositoryArtifacts(LocalArtifactRepository):
    """Files beside the SQLite store that the run is in; on its server, below the root around the working folder."""

    def __init__(self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> None:
        from mlflow import get_tracking_uri  # not above: MLflow imports this file while it is imported

        store = path_of(tracking_uri or get_tracking_uri())
        home = store.parent if store else real_root(find_root())
        relative = artifact_uri.partition(":")[2].lstrip("/")
        super().__init__((home / relative).as_uri(), tracking_uri, registry_uri)
        self.artifact_uri = artifact_uri
