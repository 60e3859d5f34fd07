"""Folders of pictures -> prepared sets."""

import csv
import filecmp
import io
import os
import tarfile

import datasets
import numpy as np
import pytest
from PIL import Image

from tesserae.data.listing import RawError, find_source, list_source
from tesserae.data.pictures import Pictures
from tesserae.data.prepare import PrepareError, prepare
from tesserae.params import PrepareParams


def params(**changes):
    values = {"source": "data", "image_size": 16, "fit": "cover", "holdout": 0.25, "min_side": 8,
              "max_rejected": 0.5}
    return PrepareParams(**values | changes)


def draw(path, number, size=(24, 20)):
    """A picture that no other number gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    for number in range(12):
        draw(tmp_path / "data" / ("cats" if number % 3 else "dogs") / f"{number}.png", number)
    return tmp_path / "data"


def splits(out):
    return {path: split for split in ("train", "validation")
            for path in datasets.load_from_disk(str(out / split))["path"]}


def test_a_folder_with_classes(folder, tmp_path):
    seen = []
    report = prepare(folder, tmp_path / "out", params(), 0, lambda done, count: seen.append((done, count)))
    assert report.classes == ["cats", "dogs"]
    assert report.counts["train"] + report.counts["validation"] == 12
    assert sum(sum(counts.values()) for counts in report.class_counts.values()) == 12
    assert report.sizes == {(20, 24): 12}
    assert seen == [(k, 12) for k in range(1, 13)]
    for split, count in report.counts.items():
        pictures = Pictures.load(tmp_path / "out", split)
        assert len(pictures) == count
        assert (pictures.size, pictures.class_names) == (16, ["cats", "dogs"])
        for path, label in zip(pictures.paths, pictures.labels):
            assert path.split("/")[0] == pictures.class_names[label]


def test_stored_pictures_are_the_raw_ones(tmp_path):
    for number in range(4):
        draw(tmp_path / "data" / f"{number}.png", number, size=(16, 16))
    prepare(tmp_path / "data", tmp_path / "out", params(), 0)
    for split in ("train", "validation"):
        pictures = Pictures.load(tmp_path / "out", split)
        assert pictures.labels is None
        assert pictures.class_names == []
        for path, image in zip(pictures.paths, pictures.batch(range(len(pictures)))):
            raw = np.asarray(Image.open(tmp_path / "data" / path))
            assert np.array_equal(image.numpy().transpose(1, 2, 0), raw)


def test_two_runs_write_the_same_bytes(folder, tmp_path):
    prepare(folder, tmp_path / "one", params(), 0)
    prepare(folder, tmp_path / "two", params(), 0)
    files = sorted(str(file.relative_to(tmp_path / "one")) for file in (tmp_path / "one").rglob("*")
                   if file.is_file())
    assert len(files) >= 7
    same, changed, lost = filecmp.cmpfiles(tmp_path / "one", tmp_path / "two", files, shallow=False)
    assert (sorted(same), changed, lost) == (files, [], [])
    loaded = [Pictures.load(tmp_path / out, "train").fingerprint for out in ("one", "two")]
    assert loaded[0] == loaded[1]


def test_fingerprint_follows_the_pixels(folder, tmp_path):
    prepare(folder, tmp_path / "one", params(), 0)
    prepare(folder, tmp_path / "two", params(fit="stretch"), 0)
    first, second = (Pictures.load(tmp_path / out, "train") for out in ("one", "two"))
    assert first.paths == second.paths
    assert first.fingerprint != second.fingerprint


def test_adding_pictures_moves_none(tmp_path):
    for number in range(40):
        draw(tmp_path / "data" / f"{number}.png", number)
    prepare(tmp_path / "data", tmp_path / "out", params(), 0)
    before = splits(tmp_path / "out")
    for number in range(40, 80):
        draw(tmp_path / "data" / f"a{number}.png", number)
    prepare(tmp_path / "data", tmp_path / "out", params(), 0)
    after = splits(tmp_path / "out")
    assert len(after) == 80
    assert {path: after[path] for path in before} == before


def test_what_is_left_out_is_listed(folder, tmp_path):
    draw(folder / "cats" / "small.png", 50, size=(4, 40))
    (folder / "cats" / "text.jpg").write_text("no picture")
    (folder / "cats" / "notes.txt").write_text("ignored")
    whole = draw(folder / "dogs" / "whole.png", 51).read_bytes()
    (folder / "dogs" / "half.png").write_bytes(whole[: len(whole) // 2])
    Image.open(folder / "cats" / "1.png").save(folder / "dogs" / "copy.bmp")  # another class, another format
    draw(folder / "stray.png", 52)
    report = prepare(folder, tmp_path / "out", params(), 0)
    reasons = dict(report.rejected)
    assert set(reasons) == {"cats/small.png", "cats/text.jpg", "dogs/half.png", "stray.png"}
    assert "too small" in reasons["cats/small.png"]
    assert reasons["cats/text.jpg"] == "not a picture"
    assert reasons["dogs/half.png"] == "truncated"
    assert "class folder" in reasons["stray.png"]
    assert report.duplicates == [("dogs/copy.bmp", "cats/1.png")]
    assert report.ignored == ["cats/notes.txt"]
    assert report.counts["train"] + report.counts["validation"] == 13
    with (tmp_path / "out/left_out.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["file", "why"]
    assert {name for name, _ in rows[1:]} == {*reasons, "dogs/copy.bmp", "cats/notes.txt"}
    assert ["dogs/copy.bmp", "the same picture as cats/1.png"] in rows


def test_too_many_rejected_stops_with_the_list_and_keeps_the_old_set(folder, tmp_path):
    prepare(folder, tmp_path / "out", params(), 0)
    before = splits(tmp_path / "out")
    for number in range(8):
        (folder / f"cats/bad{number}.png").write_bytes(b"bad")
    with pytest.raises(PrepareError, match=r"8 of 20 .*max_rejected = 0.1 .*cats/bad0.png and 7 more: not a picture"):
        prepare(folder, tmp_path / "out", params(max_rejected=0.1), 0)
    assert splits(tmp_path / "out") == before
    assert {item.name for item in tmp_path.iterdir()} == {"data", "out", ".out.partial"}
    assert [item.name for item in (tmp_path / ".out.partial").iterdir()] == ["shards"]  # what was decoded is kept
    prepare(folder, tmp_path / "out", params(max_rejected=0.5), 0)
    assert splits(tmp_path / "out") == before
    assert {item.name for item in tmp_path.iterdir()} == {"data", "out"}


def test_one_sentence_for_what_cannot_be(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(RawError, match=r"nowhere does not exist: put pictures there"):
        prepare(tmp_path / "nowhere", out, params(), 0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(PrepareError, match="holds no pictures"):
        prepare(tmp_path / "empty", out, params(), 0)
    draw(tmp_path / "single" / "a.png", 0)
    with pytest.raises(PrepareError, match=r"one usable picture, a\.png"):
        prepare(tmp_path / "single", out, params(), 0)
    draw(tmp_path / "small" / "a.png", 0, size=(3, 3))
    with pytest.raises(PrepareError, match=r"no usable picture \(a.png: too small"):
        prepare(tmp_path / "small", out, params(), 0)
    with pytest.raises(RawError, match="is a file"):
        prepare(tmp_path / "single" / "a.png", out, params(), 0)
    assert not out.exists()


def test_paired_columns(folder, tmp_path):
    rows = []
    for number in range(12):
        name = f"{'cats' if number % 3 else 'dogs'}/{number}.png"
        mask = Image.fromarray(np.full((24, 20), number % 4, np.uint8))
        (folder / "masks").mkdir(exist_ok=True)
        mask.save(folder / "masks" / f"{number}.png")
        rows.append(f'{{"file_name": "{name}", "segmentation_file_name": "masks/{number}.png"}}\n')
    (folder / "masks" / "3.png").unlink()
    (folder / "masks" / "11.png").unlink()
    Image.new("L", (5, 5)).save(folder / "masks" / "4.png")
    (folder / "metadata.jsonl").write_text("".join(rows[:11]) + '{"file_name": "cats/gone.png"}\n')
    report = prepare(folder, tmp_path / "out", params(), 0)
    assert report.columns == ["segmentation"]
    reasons = dict(report.rejected)
    assert set(reasons) == {"dogs/3.png", "cats/4.png", "cats/11.png", "cats/gone.png"}
    assert "missing: masks/3.png" in reasons["dogs/3.png"]
    assert "5 x 5" in reasons["cats/4.png"]
    assert "no segmentation" in reasons["cats/11.png"]
    assert "not there" in reasons["cats/gone.png"]
    assert report.classes == ["cats", "dogs"]
    for split in ("train", "validation"):
        part = datasets.load_from_disk(str(tmp_path / "out" / split))
        for row in part:
            number = int(row["path"].split("/")[1].split(".")[0])
            assert (np.asarray(row["segmentation"]) == number % 4).all()
        pictures = Pictures.load(tmp_path / "out", split)
        assert pictures.paired == ["segmentation"]
        assert pictures.look("segmentation", range(len(pictures))).shape == (len(part), 3, 16, 16)


def test_pairs_that_lie_otherwise_than_their_picture_are_noted(tmp_path):
    """Turned where the sizes say so, named where they cannot."""
    rows, exif = [], Image.Exif()
    for number in range(6):
        picture = Image.open(draw(tmp_path / "data" / f"{number}.png", number, (20, 24)))
        exif[0x112] = 6 if number < 3 else 3  # a quarter turn, or upside down
        if number < 5:
            picture.save(tmp_path / "data" / f"{number}.png", exif=exif)
        (tmp_path / "data" / "masks").mkdir(exist_ok=True)
        Image.fromarray(np.full((20, 24), number % 2, np.uint8)).save(tmp_path / "data" / "masks" / f"{number}.png")
        rows.append(f'{{"file_name": "{number}.png", "segmentation_file_name": "masks/{number}.png"}}\n')
    (tmp_path / "data" / "metadata.jsonl").write_text("".join(rows))
    report = prepare(tmp_path / "data", tmp_path / "out", params(), 0)
    assert not report.rejected
    exif_notes = [note for note in report.notes if "EXIF" in note]
    assert exif_notes == [
        "EXIF turns 0.png and 2 more but not the segmentation, which lay on its side and was turned with it.",
        "EXIF turns or mirrors 3.png and 1 more, and the segmentation has no EXIF and fits either way: it is taken "
        "as upright; where it lies as the picture is stored, remove the orientation from the picture's EXIF."]


def test_labels_from_metadata(tmp_path):
    for number in range(6):
        draw(tmp_path / "data" / f"{number}.png", number)
    lines = "".join(f"{number}.png,{'odd' if number % 2 else 'even'}\n" for number in range(6))
    (tmp_path / "data" / "metadata.csv").write_text("file_name,label\n" + lines)
    assert prepare(tmp_path / "data", tmp_path / "out", params(), 0).classes == ["even", "odd"]
    (tmp_path / "data" / "metadata.csv").unlink()
    (tmp_path / "data" / "metadata.jsonl").write_text('{"file_name": "0.png"}\n{oops\n')
    with pytest.raises(RawError, match="line 2, is not JSON"):
        prepare(tmp_path / "data", tmp_path / "out", params(), 0)
    (tmp_path / "data" / "metadata.jsonl").write_text('{"name": "0.png"}\n')
    with pytest.raises(RawError, match="line 1, has no file_name"):
        prepare(tmp_path / "data", tmp_path / "out", params(), 0)


@pytest.mark.parametrize("names", [("train", "validation"), ("train", "val", "test"), ("train", "test")])
def test_splits_that_are_there_are_kept(tmp_path, names):
    number = 0
    for name in names:
        for kind in ("cats", "dogs"):
            for _ in range(3):
                draw(tmp_path / "data" / name / kind / f"{number}.png", number)
                number += 1
    report = prepare(tmp_path / "data", tmp_path / "out", params(), 0)
    assert report.counts == {"train": 6, "validation": 6}
    assert report.classes == ["cats", "dogs"]
    for path, split in splits(tmp_path / "out").items():
        assert path.startswith("train") == (split == "train")
    assert ("test split" in " ".join(report.notes)) == (len(names) == 3)


def test_odd_names_deep_folders_and_loops(tmp_path):
    root = tmp_path / "meine Bilder"
    for number, place in enumerate(["a/x/1 #.png", "a/y/été.png", "b/日本.png", "b/z/4.png"]):
        draw(root / "all" / place, number)
    os.symlink("..", root / "all" / "a" / "loop")
    os.symlink("gone", root / "all" / "a" / "gone.png")
    draw(root / "all" / ".hidden" / "h.png", 9)
    report = prepare(root, tmp_path / "out", params(), 0)
    assert report.classes == ["a", "b"]
    assert report.counts["train"] + report.counts["validation"] == 4
    assert [path for path, _ in report.rejected] == ["all/a/gone.png"]
    assert "all/b/日本.png" in splits(tmp_path / "out")


def test_lonely_classes_are_noted(folder, tmp_path):
    draw(folder / "birds" / "1.png", 77)
    report = prepare(folder, tmp_path / "out", params(), 0)
    assert any("birds has one picture" in note for note in report.notes)


def test_tables_are_read_too(folder, tmp_path):
    content = [(file.read_bytes(), "cats" in str(file)) for file in sorted(folder.rglob("*.png"))]
    features = datasets.Features({"img": datasets.Image(), "kind": datasets.ClassLabel(names=["dog", "cat"])})
    table = datasets.Dataset.from_dict({"img": [{"bytes": data, "path": None} for data, _ in content],
                                        "kind": [int(cat) for _, cat in content]}, features=features)
    (tmp_path / "tables").mkdir()
    table.to_parquet(str(tmp_path / "tables" / "train.parquet"))
    table.save_to_disk(str(tmp_path / "disk"))
    plain = prepare(folder, tmp_path / "plain", params(), 0)
    for source in ("tables", "disk"):
        report = prepare(tmp_path / source, tmp_path / "out", params(), 0)
        assert report.classes == ["cat", "dog"]
        assert report.counts == plain.counts
        first, second = (datasets.load_from_disk(str(tmp_path / name / "train")) for name in ("plain", "out"))
        assert sorted(first["sha"]) == sorted(second["sha"])


def test_webdataset_archives_are_read_too(folder, tmp_path):
    files = sorted(folder.rglob("*.png"))
    (tmp_path / "tars").mkdir()
    for name, part in (("train-0000.tar", files[:5]), ("train-0001.tar", files[5:9]), ("val-0000.tar", files[9:])):
        with tarfile.open(tmp_path / "tars" / name, "w") as archive:
            for file in part:
                for suffix, content in (("png", file.read_bytes()), ("cls", str(int("cats" in str(file))).encode())):
                    member = tarfile.TarInfo(f"{file.stem}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    report = prepare(tmp_path / "tars", tmp_path / "out", params(), 0)
    assert (report.classes, report.counts) == (["0", "1"], {"train": 9, "validation": 3})
    prepare(folder, tmp_path / "plain", params(), 0)
    found, plain = ({sha: label for split in ("train", "validation")
                     for sha, label in zip(*(datasets.load_from_disk(str(tmp_path / name / split))[column]
                                             for column in ("sha", "label")))} for name in ("out", "plain"))
    assert found == {sha: 1 - label for sha, label in plain.items()}  # cats are 1 in the archives, 0 in the folder


def test_tables_without_pictures(tmp_path):
    (tmp_path / "tables").mkdir()
    datasets.Dataset.from_dict({"text": ["a", "b"]}).to_parquet(str(tmp_path / "tables" / "train.parquet"))
    with pytest.raises(RawError, match="no column of pictures, only text"):
        list_source(tmp_path / "tables")


def test_a_source_is_a_folder_here_or_a_name_on_the_hub(tmp_path):
    (tmp_path / "my" / "set").mkdir(parents=True)
    assert find_source("data", tmp_path) == tmp_path / "data"
    assert find_source("my/set", tmp_path) == tmp_path / "my" / "set"
    assert find_source("someone/flowers", tmp_path) == "someone/flowers"
    assert find_source(str(tmp_path / "gone"), tmp_path) == tmp_path / "gone"


def test_a_table_larger_than_any_picture_is_still_a_table(folder, tmp_path, monkeypatch):
    images = [{"bytes": file.read_bytes(), "path": None} for file in sorted(folder.rglob("*.png"))]
    table = datasets.Dataset.from_dict({"image": images}, datasets.Features({"image": datasets.Image()}))
    (tmp_path / "tables").mkdir()
    table.to_parquet(str(tmp_path / "tables" / "train.parquet"))
    monkeypatch.setattr("tesserae.data.listing.LARGEST_FILE", 1000)
    assert sum(prepare(tmp_path / "tables", tmp_path / "out", params(), 0).counts.values()) == 12


def test_classes_that_lack_a_side_are_counted(tmp_path):
    for number in range(24):
        draw(tmp_path / "data" / ("train" if number < 20 else "val") / f"c{number % 5}" / f"{number}.png", number)
    draw(tmp_path / "data" / "val" / "only" / "1.png", 77)
    draw(tmp_path / "data" / "val" / "only" / "2.png", 78)
    notes = prepare(tmp_path / "data", tmp_path / "out", params(), 0).notes
    assert "1 class has no picture that is held out, since all lie in the training split: c4." in notes
    assert "1 class has no picture to train on, since all are held out: only." in notes
