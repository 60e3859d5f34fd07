"""Two processes share the machine (pyproject.toml), so each of them, and what it starts, works with one thread."""

import builtins
import errno
import io
import os
import sys
from pathlib import Path

import pytest
import safetensors.torch
from safetensors import SafetensorError

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; child processes inherit it
    if "torch" in sys.modules:  # a plugin was quicker
        sys.modules["torch"].set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Files that take minutes come first: at the end one process would work on them alone."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


class FullDisk(io.FileIO):
    """A file that was made, and for whose content there is no space."""

    def write(self, _):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fileno(self):
        raise io.UnsupportedOperation("fileno")  # so that nobody writes behind its back


@pytest.fixture
def full_disk(monkeypatch):
    """A function after which there is no space left for anything that begins with a path."""

    def fill(start):
        real = io.open

        def opened(file, mode="r", *rest, **options):
            if not str(file).startswith(str(start)) or not any(letter in mode for letter in "wax+"):
                return real(file, mode, *rest, **options)
            buffer = io.BufferedWriter(FullDisk(file, "w"))
            return buffer if "b" in mode else io.TextIOWrapper(buffer)

        monkeypatch.setattr(io, "open", opened)
        monkeypatch.setattr(builtins, "open", opened)
        saved = safetensors.torch.save_file

        def save(tensors, path, *rest):
            if not str(path).startswith(str(start)):
                return saved(tensors, path, *rest)
            Path(path).touch()
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

        for name, module in list(sys.modules.items()):
            if name.startswith("tesserae.") and getattr(module, "save_file", None) is saved:
                monkeypatch.setattr(module, "save_file", save)

    return fill


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory):
    """A file of random weights in the layout of torch-fidelity's Inception, of which activations keep their size."""
    import torch
    from torch_fidelity import FeatureExtractorInceptionV3, feature_extractor_inceptionv3

    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        patch.setattr(feature_extractor_inceptionv3, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
        for weight in network.parameters():
            if weight.ndim == 4:
                torch.nn.init.kaiming_normal_(weight)
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(network.state_dict(), path)
    return path
