"""Code maps: what is written is read, bad files are named."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tesserae.data.codes import CodeMaps, CodesError, save_codes
from tesserae.errors import DiskFullError

N, K = 12, 20


def make(views=2, labels=True):
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(K, (N, 1, 2, 3), generator=generator, dtype=torch.int32)
    if views == 2:
        indices = torch.cat([indices, indices.flip(-1)], dim=1)
    return indices, torch.arange(N) % 3 if labels else None


def saved(folder, split="train", views=2, labels=True, **changes):
    indices, classes = make(views, labels)
    names = ["a", "b", "ü"] if labels else []
    values = {"indices": indices, "labels": classes, "class_names": names, "codebook_size": K,
              "origin": {"vqgan": "f00"}} | changes
    save_codes(folder, split, **values)
    return CodeMaps.load(folder, split)


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("views", [1, 2])
def test_round_trip(tmp_path, views, labels):
    maps = saved(tmp_path / "new" / "folder", views=views, labels=labels)
    indices, classes = make(views, labels)
    assert torch.equal(maps.indices, indices)
    assert maps.indices.dtype == torch.int32
    assert (maps.labels is None) if classes is None else torch.equal(maps.labels, classes)
    assert maps.class_names == (["a", "b", "ü"] if labels else [])
    assert (maps.codebook_size, maps.origin, maps.shape, len(maps)) == (K, {"vqgan": "f00"}, (2, 3), N)


def test_equal_codes_give_equal_bytes(tmp_path):
    for name in "ab":
        saved(tmp_path / name)
    assert (tmp_path / "a/train.safetensors").read_bytes() == (tmp_path / "b/train.safetensors").read_bytes()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["train.safetensors"]


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("count", [3, N])
def test_the_file_is_as_the_library_writes_it_from_memory(tmp_path, labels, count):
    indices, classes = make(labels=labels)
    classes = classes[:count] if labels else None
    names = ["a", 'b"', "ü"] if labels else []
    path = save_codes(tmp_path, "train", indices[:count], classes, names, K, {"vqgan": "f00"})
    with safe_open(path, "pt") as file:
        tensors = {"indices": indices[:count].contiguous()} | ({"labels": classes} if labels else {})
        save_file(tensors, tmp_path / "library.safetensors", file.metadata())
    assert path.read_bytes() == (tmp_path / "library.safetensors").read_bytes()


def test_maps_that_come_in_parts_give_the_same_file(tmp_path):
    indices, classes = make()
    whole = save_codes(tmp_path / "a", "train", indices, classes, ["a", "b", "c"], K)
    np.save(tmp_path / "part.npy", indices[:5].numpy())
    parts = [np.load(tmp_path / "part.npy", mmap_mode="r"), indices[5:6].numpy(), indices[6:].numpy()]
    assert save_codes(tmp_path / "b", "train", parts, classes, ["a", "b", "c"], K).read_bytes() == whole.read_bytes()
    with pytest.raises(CodesError, match="codes run from 0 to 20"):
        save_codes(tmp_path / "b", "train", [*parts[:2], np.full_like(parts[2], K)], classes, ["a", "b", "c"], K)


def test_fingerprint_follows_the_content(tmp_path):
    marks = {saved(tmp_path / "a").fingerprint, saved(tmp_path / "b").fingerprint}
    assert len(marks) == 1
    changed = make()[0]
    changed[0, 0, 0, 0] = (changed[0, 0, 0, 0] + 1) % K
    marks |= {saved(tmp_path / "c", indices=changed).fingerprint,
              saved(tmp_path / "d", class_names=["a", "b", "c"]).fingerprint,
              saved(tmp_path / "e", labels=False).fingerprint}
    assert len(marks) == 4


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(CodesError, match=r"train\.safetensors does not exist: run dvc repro codebook"):
        CodeMaps.load(tmp_path, "train")
    saved(tmp_path)
    path = tmp_path / "train.safetensors"
    whole = path.read_bytes()
    for content in (whole[:40], whole[:-5], b"", b"\xff" * 200):
        path.write_bytes(content)
        with pytest.raises(CodesError, match=r"train\.safetensors is damaged"):
            CodeMaps.load(tmp_path, "train")


@pytest.mark.parametrize("back", [1, 40, 200])
def test_a_flipped_byte_is_noticed(tmp_path, back):
    saved(tmp_path / "codes/image")
    path = tmp_path / "codes/image/train.safetensors"
    content = bytearray(path.read_bytes())
    content[-back] ^= 1
    path.write_bytes(content)
    with pytest.raises(CodesError, match=r"is damaged .*: remove it, then run dvc checkout codes/image, or dvc repro "
                                         r"codebook@image\.$"):
        CodeMaps.load(tmp_path / "codes/image", "train")


def test_maps_of_an_older_version_load_unchecked(tmp_path):
    indices, classes = make()
    about = {"class_names": ["a", "b", "c"], "codebook_size": K, "vqgan": "f00"}
    save_file({"indices": indices, "labels": classes}, tmp_path / "train.safetensors",
              {"tesserae": json.dumps(about)})
    maps = CodeMaps.load(tmp_path, "train")
    assert torch.equal(maps.indices, indices)
    assert maps.origin == {}


@pytest.mark.parametrize(("changes", "expected"), [
    ({"indices": torch.full((N, 1, 2, 3), K)}, "codes run from 20 to 20"),
    ({"indices": torch.zeros(N, 3, 2, 3)}, "1 or 2 views"),
    ({"indices": torch.zeros(N, 2, 3)}, "shape"),
    ({"labels": torch.zeros(N - 1)}, "do not fit 12 pictures"),
    ({"labels": torch.full((N,), 3)}, "3 classes"),
])
def test_what_does_not_fit_is_not_written(tmp_path, changes, expected):
    with pytest.raises(CodesError, match=expected):
        save_codes(tmp_path, "train", **{"indices": make()[0], "labels": make()[1], "codebook_size": K,
                                         "class_names": ["a", "b", "c"]} | changes)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_sentence(tmp_path, full_disk):
    full_disk(tmp_path)
    with pytest.raises(DiskFullError, match=r"image/train\.safetensors could not be written: free some space"):
        save_codes(tmp_path / "image", "train", torch.zeros(2, 1, 4, 4, dtype=torch.int32), None, [], 4)
