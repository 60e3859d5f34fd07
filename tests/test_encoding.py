"""The set encoded in pieces: by one process or two, at a stretch or with stops, the same code maps."""

import os
import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML

from tesserae import encoding, tracking
from tesserae.data.batches import to_unit
from tesserae.data.codes import CodeMaps
from tesserae.data.pictures import Pictures
from tesserae.data.splitting import SPLIT
from tesserae.devices import make_accelerator
from tesserae.errors import DiskFullError
from tesserae.models.vqgan import VQGAN, VQGANConfig
from tesserae.stage import Stage
from tests.plain import plain_values

SIZE, COUNT, HELD_OUT, BATCH = 16, 1100, 21, 32


@pytest.fixture(scope="module")
def vqgan() -> VQGAN:
    """Untrained, f = 8, with codes spread over what the encoder gives, so that many are used."""
    torch.manual_seed(0)
    model = VQGAN(VQGANConfig(channels=8, channel_mult=(1, 2), patch=4, res_blocks=1, z_channels=8, codebook_size=24,
                              codebook_dim=4)).eval()
    with torch.no_grad():
        latents = model.latents(torch.rand(64, 3, SIZE, SIZE) * 2 - 1)
        model.quantizer.start(latents, torch.Generator().manual_seed(0))
    return model


@pytest.fixture(scope="module")
def project(tmp_path_factory, vqgan, pytestconfig):
    """A folder with a prepared set of two classes and the VQGAN."""
    root = tmp_path_factory.mktemp("project")
    generator = np.random.default_rng(0)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["odd", "even"]),
                                  "path": datasets.Value("string")})
    splits = {}
    for split, count in (("train", COUNT), ("validation", HELD_OUT)):
        noise = generator.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
        rows = {"image": [Image.fromarray(each).resize((SIZE, SIZE)) for each in noise],
                "label": [n % 2 for n in range(count)], "path": [f"{n}.png" for n in range(count)]}
        splits[split] = datasets.Dataset.from_dict(rows, features)
    datasets.DatasetDict(splits).save_to_disk(str(root / "prepared"))
    vqgan.save_pretrained(root / "models/vqgan-image")
    raw = plain_values()
    raw["codebook"]["image"]["batch_size"], raw["threads"], raw["prepare"]["image_size"] = BATCH, 1, SIZE
    raw["vqgan"]["image"]["disc_layers"] = 2
    YAML().dump(raw, root / "params.yaml")
    (root / "dvc.yaml").write_text("stages: {}\n")
    return root


@pytest.fixture(scope="module")
def pictures(project):
    return Pictures.load(project / "prepared", "train")


@pytest.fixture(scope="module")
def accelerator():
    return make_accelerator("fp32", 1)


def maps_of(paths):
    return torch.from_numpy(np.concatenate([np.load(path) for path in paths]))


def test_the_set_is_encoded_as_single_pictures_are_and_mirrored_too(vqgan, pictures, accelerator, tmp_path):
    told = []
    paths = encoding.encode_pieces(vqgan, pictures, BATCH, tmp_path, accelerator, progress=lambda *d: told.append(d))
    maps = maps_of(paths)
    assert len(paths) == 2
    assert maps.shape == (COUNT, 2, 2, 2)
    assert maps.dtype == torch.int32
    images = to_unit(pictures.batch(range(COUNT)))
    # not all: in other batches sums may round otherwise
    assert (maps[:, 0] == vqgan.encode(images)).float().mean() > 0.99
    assert (maps[:, 1] == vqgan.encode(images.flip(-1))).float().mean() > 0.99
    assert len(maps.unique()) > 4  # else this would say little
    assert told[0] == (BATCH, COUNT)
    assert told[-1] == (COUNT, COUNT)


def test_without_mirrors_there_is_one_view(vqgan, pictures, accelerator, tmp_path):
    once = maps_of(encoding.encode_pieces(vqgan, pictures, BATCH, tmp_path / "1", accelerator, mirrored=False))
    both = maps_of(encoding.encode_pieces(vqgan, pictures, BATCH, tmp_path / "2", accelerator))
    assert torch.equal(once, both[:, :1])


class StoppedError(Exception):
    pass


def test_after_a_stop_what_is_missing_is_encoded(vqgan, pictures, accelerator, tmp_path):
    whole = [path.read_bytes() for path in
             encoding.encode_pieces(vqgan, pictures, BATCH, tmp_path / "whole", accelerator)]

    def stop(done, total):
        if done > 1024:
            raise StoppedError

    with pytest.raises(StoppedError):
        encoding.encode_pieces(vqgan, pictures, BATCH, tmp_path / "cut", accelerator, progress=stop)
    (kept,) = (tmp_path / "cut").iterdir()
    written = kept.stat().st_mtime_ns
    told = []
    paths = encoding.encode_pieces(vqgan, pictures, BATCH, tmp_path / "cut", accelerator,
                                   progress=lambda *d: told.append(d))
    assert told[-1] == (COUNT - 1024, COUNT - 1024)
    assert kept.stat().st_mtime_ns == written
    assert [path.read_bytes() for path in paths] == whole


def test_a_damaged_piece_is_encoded_again(vqgan, pictures, accelerator, tmp_path):
    first, second = encoding.encode_pieces(vqgan, pictures, BATCH, tmp_path, accelerator)
    whole = first.read_bytes(), second.read_bytes()
    first.write_bytes(whole[0][:-10])
    second.write_bytes(b"")
    encoding.encode_pieces(vqgan, pictures, BATCH, tmp_path, accelerator)
    assert (first.read_bytes(), second.read_bytes()) == whole


def test_a_full_disk_is_one_sentence(vqgan, pictures, accelerator, tmp_path, full_disk):
    full_disk(tmp_path)
    with pytest.raises(DiskFullError, match=r"pieces/0000000000\.npy could not be written: free some space"):
        encoding.encode_pieces(vqgan, pictures, BATCH, tmp_path / "pieces", accelerator)
    assert list((tmp_path / "pieces").iterdir()) == []


@pytest.fixture(scope="module")
def by_two(project):
    """The command line's code maps, by two processes: bytes by split."""
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
                           "-m", "tesserae.encoding", "--target", "image"], cwd=project, text=True,
                          env={**os.environ, tracking.RUN_VARIABLE: "", "CUDA_VISIBLE_DEVICES": "",
                               "OMP_NUM_THREADS": "1"}, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"train: ({COUNT}, 2, 2, 2) codes" in done.stdout
    return {path.stem: path.read_bytes() for path in (project / "codes/image").iterdir()}


def opened(project, monkeypatch):
    monkeypatch.chdir(project)
    monkeypatch.setenv(tracking.RUN_VARIABLE, "")
    return Stage.open("codebook", "image")


def test_the_notebooks_run_takes_up_what_two_processes_encoded(project, by_two, monkeypatch, vqgan, accelerator):
    splits = {split: Pictures.load(project / "prepared", split) for split in SPLIT}
    told = []
    with opened(project, monkeypatch) as stage:
        maps = encoding.encode_set(stage, vqgan, splits, accelerator, lambda *done: told.append(done))
    assert told == []
    assert {path.stem: path.read_bytes() for path in (project / "codes/image").iterdir()} == by_two
    assert len(maps["validation"]) == HELD_OUT
    assert maps["train"].labels.tolist() == splits["train"].labels.tolist()


def test_two_processes_encode_what_one_does(project, by_two, monkeypatch, vqgan, accelerator, tmp_path):
    paths = encoding.encode_pieces(vqgan, Pictures.load(project / "prepared", "train"), BATCH, tmp_path, accelerator)
    assert torch.equal(CodeMaps.load(project / "codes/image", "train").indices, maps_of(paths))


@pytest.mark.parametrize("changed", ["weights", "batch_size", "pictures"])
def test_pieces_of_another_model_or_set_are_not_taken_up(project, by_two, monkeypatch, vqgan, accelerator, changed):
    splits = {"validation": Pictures.load(project / "prepared", "validation")}
    told = []
    with opened(project, monkeypatch) as stage:
        if changed == "weights":
            monkeypatch.setattr(encoding, "fingerprint_of", lambda folder: "another")
        elif changed == "pictures":
            splits["validation"].labels = 1 - splits["validation"].labels
        else:
            stage.block = stage.block.model_copy(update={"batch_size": 7})
        encoding.encode_set(stage, vqgan, splits, accelerator, lambda *done: told.append(done))
    assert told[-1] == (HELD_OUT, HELD_OUT)
