"""The prepared pictures as trainers read them."""

import io

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from tesserae.data.pictures import Pictures, PicturesError, spread


def png(values):
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.fixture
def raw():
    return np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)


def make(folder, raw, labels=True, names=("a", "b"), **hold):
    columns = {"image": [png(values) for values in raw], "path": [f"{k}.png" for k in range(len(raw))]}
    features = {"image": datasets.Image(), "path": datasets.Value("string")}
    if labels:
        columns["label"] = [k % 2 for k in range(len(raw))]
        features["label"] = datasets.ClassLabel(names=list(names))
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    table.save_to_disk(str(folder / "train"))
    return Pictures.load(folder, "train", **hold)


@pytest.mark.parametrize("limit", [1 << 30, 0])
def test_batches_are_the_pictures(tmp_path, raw, limit):
    found = make(tmp_path, raw, hold=limit)  # held in memory, or decoded for each batch
    assert (len(found), found.size, found.class_names) == (20, 8, ["a", "b"])
    batch = found.batch([3, 0, 3, 19])
    assert batch.dtype == torch.uint8
    assert np.array_equal(batch.numpy(), raw[[3, 0, 3, 19]].transpose(0, 3, 1, 2))
    assert np.array_equal(found.batch(np.array([5])).numpy(), raw[[5]].transpose(0, 3, 1, 2))
    assert found.labels.tolist() == [k % 2 for k in range(20)]
    assert found.labels.dtype == torch.int64


def test_a_batch_is_a_copy(tmp_path, raw):
    found = make(tmp_path, raw)
    found.batch([0]).zero_()
    assert np.array_equal(found.batch([0])[0].numpy(), raw[0].transpose(2, 0, 1))


def test_fingerprint_changes_with_any_content(tmp_path, raw):
    marks = [make(tmp_path / "a", raw).fingerprint, make(tmp_path / "b", raw, labels=False).fingerprint,
             make(tmp_path / "c", raw, names=("a", "c")).fingerprint]
    changed = raw.copy()
    changed[7, 0, 0, 0] ^= 1
    marks.append(make(tmp_path / "d", changed).fingerprint)
    assert len(set(marks)) == 4
    assert make(tmp_path / "e", raw).fingerprint == marks[0]


def test_a_missing_set_names_the_remedy(tmp_path):
    with pytest.raises(PicturesError, match=r"prepared/train does not exist: run dvc repro prepare"):
        Pictures.load(tmp_path / "prepared", "train")
    (tmp_path / "train").mkdir()
    with pytest.raises(PicturesError, match="is no prepared set"):
        Pictures.load(tmp_path, "train")


@pytest.mark.parametrize(("count", "total"), [(1, 1), (3, 10), (10, 10), (20, 7), (256, 310)])
def test_spread_takes_pictures_from_the_whole_set_evenly(count, total):
    chosen = spread(count, total)
    assert len(chosen) == min(count, total) == len(set(chosen))
    assert chosen == sorted(chosen)
    assert chosen[0] >= 0
    assert chosen[-1] < total
    gaps = [b - a for a, b in zip([-1, *chosen], [*chosen, total])]
    assert max(gaps) <= -(-total // len(chosen))


def test_a_damaged_picture_of_the_set_is_one_sentence(tmp_path):
    """Its bytes flipped on the disk after the set was made."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    rows = {"image": [{"bytes": buffer.getvalue(), "path": None}]}
    dataset = datasets.Dataset.from_dict(rows, features=datasets.Features(image=datasets.Image()))
    datasets.DatasetDict(train=dataset).save_to_disk(str(tmp_path))
    (table,) = (tmp_path / "train").glob("*.arrow")
    content = bytearray(table.read_bytes())
    at = content.index(buffer.getvalue()) + len(buffer.getvalue()) // 2
    content[at] ^= 0xFF
    table.write_bytes(content)
    with pytest.raises(PicturesError, match=r"prepared set is damaged \(.*\): remove prepared/, then run dvc"):
        Pictures.load(tmp_path, "train").batch([0])
