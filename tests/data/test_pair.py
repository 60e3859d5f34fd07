"""python -m tesserae.data.pair: pictures find the files of their names, and what cannot be paired is a sentence."""

import json

import pytest
from PIL import Image

from tesserae.data.listing import list_source
from tesserae.data.pair import main


def put(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L" if "mask" in name or "depth" in name else "RGB", (40, 40)).save(path)


def refused(folder, *words):
    """The sentence that the command ends with."""
    with pytest.raises(SystemExit) as end:
        main([str(folder), *words])
    assert "\n" not in str(end.value.code)
    return end.value.code


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("picture", "mask"), [
    ("a.jpg", "masks/a.png"), ("a.jpg", "masks/a_mask.png"), ("cats/a.jpg", "masks/cats/a.png"),
    ("cats/a.jpg", "masks/a.png"), ("images/cats/a.png", "masks/cats/a.png"), ("a.b.jpg", "masks/a.b.png"),
    ("a b ü.jpg", "masks/a b ü.png"),
])
def test_names_that_people_give(tmp_path, picture, mask):
    put(tmp_path, picture, mask)
    main([str(tmp_path), "segmentation=masks"])
    assert rows_of(tmp_path) == [{"file_name": picture, "segmentation_file_name": mask}]
    raw = list_source(tmp_path)
    assert raw.columns == ["segmentation"]
    assert list(raw.dataset()["error"]) == [None]


def test_equal_names_in_several_folders_go_with_their_own(tmp_path, capsys):
    put(tmp_path, "cats/1.jpg", "dogs/1.jpg", "masks/cats/1_mask.png", "masks/dogs/1_mask.png", "depth/dogs/1.png",
        "depth/cats/1.png")
    main([str(tmp_path), "segmentation=masks", "depth=depth"])
    assert rows_of(tmp_path) == [
        {"file_name": f"{name}/1.jpg", "segmentation_file_name": f"masks/{name}/1_mask.png",
         "depth_file_name": f"depth/{name}/1.png"} for name in ("cats", "dogs")]
    assert "pairs 2 pictures" in capsys.readouterr().out


def test_pictures_without_a_file_are_counted_and_named(tmp_path, capsys):
    put(tmp_path, *(f"{number}.jpg" for number in range(9)), "masks/0.png", "masks/8.png")
    main([str(tmp_path), "segmentation=masks"])
    assert [row["file_name"] for row in rows_of(tmp_path)] == ["0.jpg", "8.jpg"]
    assert "7 have no file of their name and will be left out: 1.jpg, 2.jpg, 3.jpg, 4.jpg, 5.jpg and 2 more." in (
        capsys.readouterr().out)


@pytest.mark.parametrize(("files", "words", "sentence"), [
    (["a.jpg", "masks/b.png"], ["segmentation=masks"], "a.jpg, for instance, has none"),
    (["a.jpg"], ["segmentation=masks"], "segmentation=masks is no folder inside"),
    (["a.jpg", "masks/a.png"], ["segmentation"], "segmentation is not of the form column=folder"),
    (["a.jpg", "masks/a.png"], ["segmentation=.."], "lies outside"),
    (["a.jpg", "masks/a.png"], ["segmentation=."], "is no folder inside"),
    (["masks/a.png"], ["segmentation=masks"], "holds no pictures outside masks"),
    (["a.jpg", "masks/x/a.png", "masks/y/a.png"], ["segmentation=masks"], "a.jpg could go with 2 files"),
])
def test_what_cannot_be_paired_is_one_sentence(tmp_path, files, words, sentence):
    put(tmp_path, *files)
    assert sentence in refused(tmp_path, *words)
    assert not (tmp_path / "metadata.jsonl").exists()


def test_metadata_that_is_there_stays(tmp_path):
    put(tmp_path, "a.jpg", "masks/a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.jpg", "label": "cat"}\n')
    assert "is there already and stays as it is" in refused(tmp_path, "segmentation=masks")
    assert rows_of(tmp_path) == [{"file_name": "a.jpg", "label": "cat"}]


def test_the_same_command_again_is_fine(tmp_path):
    put(tmp_path, "a.jpg", "masks/a.png")
    for _ in range(2):
        main([str(tmp_path), "segmentation=masks"])
    put(tmp_path, "b.jpg", "masks/b.png")
    assert "is there already and stays as it is" in refused(tmp_path, "segmentation=masks")
