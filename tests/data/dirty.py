"""A corpus of dirty input: each kind spoils a small good folder in one way and says what the user should read of it.

A kind is a function of the folder, which holds eight good pictures in two classes. It may return changes of the
`prepare` block. `says` is a pattern of what is to be read; `keeps` how many pictures are kept, None where the stage
stops with one sentence.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

GOOD = 8


@dataclass(frozen=True)
class Kind:
    name: str
    spoil: Callable
    says: str
    keeps: int | None


KINDS: list[Kind] = []


def kind(says: str, keeps: int | None = GOOD):
    """Register a function as a kind of its name."""
    def register(function):
        KINDS.append(Kind(function.__name__.replace("_", " "), function, says, keeps))
        return function
    return register


# ---- means -------------------------------------------------------------------------------------------------


def pixels(number: int, size=(24, 20)) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)


def picture(number: int = 99, size=(24, 20)) -> Image.Image:
    """One that no other number gives."""
    return Image.fromarray(pixels(number, size))


def saved(image: Image.Image, form: str = "PNG", **how) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **how)
    return buffer.getvalue()


def good_folder(folder: Path) -> Path:
    for number in range(GOOD):
        path = folder / ("cats" if number < GOOD // 2 else "dogs") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)
    return folder


def put(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def pictures_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


def metadata(folder: Path, rows: list) -> None:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def masked(folder: Path, mask: Callable[[int], bytes | None], suffix: str = "png") -> None:
    """Pair every picture with a mask file of these bytes; None: no file."""
    rows = []
    for number, name in enumerate(pictures_of(folder)):
        content = mask(number)
        if content is not None:
            put(folder, f"masks/{number}.{suffix}", content)
        rows.append({"file_name": name, "segmentation_file_name": f"masks/{number}.{suffix}"})
    metadata(folder, rows)


def stripes(values, size=(24, 20)) -> np.ndarray:
    """(H,W) uint8 of these values in turn."""
    return np.resize(np.asarray(values, np.uint8).repeat(3), size)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_head(width: int, height: int) -> bytes:
    """A PNG that claims this size and holds nothing."""
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))


# ---- broken files ------------------------------------------------------------------------------------------


@kind(r"cats/x\.png: truncated")
def truncated_png(data):
    content = saved(picture())
    put(data, "cats/x.png", content[: len(content) // 2])


@kind(r"cats/x\.jpg: truncated")
def truncated_jpeg(data):
    put(data, "cats/x.jpg", saved(picture(), "JPEG")[:-60])


@kind(r"cats/x\.png: empty")
def empty_file(data):
    put(data, "cats/x.png", b"")


@kind(r"cats/x\.jpg: not a picture")
def text_with_a_pictures_suffix(data):
    put(data, "cats/x.jpg", b"<html>404 not found</html>")


@kind(r"cats/x\.png: broken at its head")
def broken_head(data):
    put(data, "cats/x.png", b"\x89PNG or so")


@kind(r"cats/x\.png: broken")
def wrong_checksum_inside(data):
    content = bytearray(saved(picture()))
    content[content.index(b"IDAT") + 40] ^= 255
    put(data, "cats/x.png", bytes(content))


@kind(r"cats/x\.png: (broken|not a picture)")
def width_of_nothing(data):
    put(data, "cats/x.png", png_head(0, 10))


@kind(r"cats/x\.png: a decompression bomb")
def bomb_by_its_head(data):
    put(data, "cats/x.png", png_head(60_000, 60_000))


@kind(r"cats/x\.png: a decompression bomb: 11000 x 11000 pixels")
def bomb_of_one_colour(data):
    put(data, "cats/x.png", saved(Image.new("1", (11_000, 11_000))))


@kind(r"cats/x\.png: too small: 1 x 1 pixels")
def tiny(data):
    put(data, "cats/x.png", saved(picture(size=(1, 1))))


@kind(r"cats/x\.png: too small: 200 x 3 pixels")
def narrow(data):
    put(data, "cats/x.png", saved(picture(size=(3, 200))))


@kind(r"cats/x\.tif: holds values that are no numbers")
def floats_that_are_no_numbers(data):
    put(data, "cats/x.tif", saved(Image.fromarray(np.full((24, 20), np.nan, np.float32)), "TIFF"))


# ---- odd files that are good -------------------------------------------------------------------------------


@kind("everything is kept", GOOD + 1)
def jpeg_named_png(data):
    put(data, "cats/x.png", saved(picture(), "JPEG"))


@kind("everything is kept", GOOD + 1)
def without_a_suffix(data):
    put(data, "cats/x", saved(picture(), "JPEG"))


@kind("everything is kept", GOOD + 1)
def strange_suffix(data):
    put(data, "cats/x.jpg_large", saved(picture(), "JPEG"))


@kind("everything is kept", GOOD + 1)
def sixteen_bit_grey(data):
    put(data, "cats/x.png", saved(Image.fromarray(pixels(99)[..., 0].astype(np.uint16) * 257)))


@kind("everything is kept", GOOD + 1)
def cmyk(data):
    put(data, "cats/x.jpg", saved(picture().convert("CMYK"), "JPEG"))


@kind("everything is kept", GOOD + 1)
def palette_with_transparency(data):
    put(data, "cats/x.png", saved(picture().convert("P"), transparency=3))


@kind("everything is kept", GOOD + 1)
def alpha(data):
    put(data, "cats/x.png", saved(picture().convert("RGBA")))


@kind("everything is kept", GOOD + 1)
def grey_with_alpha(data):
    put(data, "cats/x.png", saved(picture().convert("LA")))


@kind("everything is kept", GOOD + 1)
def one_bit(data):
    put(data, "cats/x.png", saved(picture().convert("1")))


@kind("everything is kept", GOOD + 1)
def animated_gif(data):
    put(data, "cats/x.gif", saved(picture(), "GIF", save_all=True, append_images=[picture(98)]))


@kind("everything is kept", GOOD + 1)
def animated_png(data):
    put(data, "cats/x.png", saved(picture(), save_all=True, append_images=[picture(98)]))


@kind("everything is kept", GOOD + 1)
def turned_by_its_exif(data):
    exif = Image.Exif()
    exif[0x112] = 6
    put(data, "cats/x.jpg", saved(picture(), "JPEG", exif=exif))


@kind("everything is kept", GOOD + 1)
def broken_exif(data):
    put(data, "cats/x.jpg", saved(picture(), "JPEG", exif=b"Exif\0\0nonsense"))


@kind("everything is kept", GOOD + 1)
def broken_colour_profile(data):
    put(data, "cats/x.png", saved(picture(), icc_profile=b"nonsense"))


@kind("everything is kept", GOOD + 1)
def rubbish_after_the_end(data):
    put(data, "cats/x.jpg", saved(picture(), "JPEG") + b"\0" * 500)


@kind("everything is kept", GOOD + 1)
def many_pages(data):
    put(data, "cats/x.tif", saved(picture(), "TIFF", save_all=True, append_images=[picture(98)]))


# ---- files that are no pictures ----------------------------------------------------------------------------


@kind(r"cats/x\.heic: HEIC pictures are not read here: convert this one to PNG or JPEG")
def heic(data):
    put(data, "cats/x.heic", b"\0\0\0\x18ftypheic" + b"\0" * 100)


@kind(r"x\.svg: SVG pictures are not read here")
def svg(data):
    put(data, "cats/x.svg", b"<svg/>")


@kind(r"not pictures: cats/notes\.txt, film\.mp4, pictures\.zip")
def other_files(data):
    put(data, "cats/notes.txt", b"hello")
    put(data, "film.mp4", b"\0\0\0\x18ftypmp42")
    put(data, "pictures.zip", b"PK\3\4")


@kind("everything is kept")
def clutter_of_systems(data):
    for name in ("Thumbs.db", "cats/.DS_Store", "cats/._1.png", "__MACOSX/x.png", ".ipynb_checkpoints/x.png"):
        put(data, name, b"clutter")


@kind(r"Names that begin with a dot are left out: \.old, cats/\.x\.png\.")
def hidden_pictures(data):
    put(data, "cats/.x.png", saved(picture()))
    put(data, ".old/y.png", saved(picture(98)))


@kind(r"cats/x\.png: no file, but a pipe, a socket or a device")
def a_pipe(data):
    os.mkfifo(data / "cats/x.png")


@kind(r"cats/x\.png: too large: a file of 2\.0 GB")
def a_huge_file(data):
    with (data / "cats/x.png").open("wb") as file:
        file.truncate(2_000_000_000)  # of holes


# ---- names, links, folders ---------------------------------------------------------------------------------


@kind("everything is kept", GOOD + 3)
def names_in_other_scripts(data):
    for number, name in enumerate(("été 1#.png", "猫.png", "🐈.png")):
        put(data, f"cats/{name}", saved(picture(90 + number)))


@kind(r"cats/\\udcff\.png: its name is not UTF-8: rename it")
def a_name_that_is_no_text(data):
    put(data, "cats/" + os.fsdecode(b"\xff.png"), saved(picture()))


@kind(r"cats/a\\x0ab\.png: not a picture")
def a_name_of_two_lines(data):
    put(data, "cats/a\nb.png", b"text")


@kind("everything is kept", GOOD + 1)
def a_long_name(data):
    put(data, f"cats/{'x' * 240}.png", saved(picture()))


@kind(r"Links to folders that are listed already are left out: cats/loop\.")
def a_loop_of_links(data):
    os.symlink("..", data / "cats/loop")


@kind(r"Links to folders that are listed already are left out: puppies\.")
def a_class_that_is_a_link_to_another(data):
    os.symlink("dogs", data / "puppies")


@kind(r"cats/x\.png: a link that leads back to itself")
def a_link_to_itself(data):
    os.symlink("x.png", data / "cats/x.png")


@kind(r"cats/x\.png: a link to something that is not there")
def a_link_to_nothing(data):
    os.symlink("/nowhere/x.png", data / "cats/x.png")


@kind("everything is kept", GOOD + 1)
def folders_in_folders(data):
    put(data, "cats/" + "deep/" * 40 + "x.png", saved(picture()))


@kind(r"x\.png: lies in no class folder, unlike most")
def a_picture_beside_the_classes(data):
    put(data, "x.png", saved(picture()))


@kind(r"The folder masks is taken for a class: if it holds masks", GOOD + 1)
def masks_that_nobody_pairs(data):
    put(data, "masks/0.png", saved(Image.fromarray(stripes([0, 1, 2]))))


@kind(r"cats/x\.png: cannot be read: Permission denied")
def a_file_that_may_not_be_read(data):
    """The tests may run as root, who may read everything, so the refusal is played."""
    path = put(data, "cats/x.png", saved(picture()))
    return {"forbidden": path}


@kind(r"cats/secret: a folder that cannot be entered: Permission denied")
def a_folder_that_may_not_be_entered(data):
    put(data, "cats/secret/x.png", saved(picture()))
    return {"forbidden": data / "cats/secret"}


# ---- copies ------------------------------------------------------------------------------------------------


@kind(r"dogs/copy\.bmp is the same picture as cats/0\.png")
def a_copy_in_another_class_and_format(data):
    put(data, "dogs/copy.bmp", saved(picture(0), "BMP"))


@kind(r"validation/cats/0\.png is the same picture as train/cats/0\.png", 9)
def a_copy_in_both_splits(data):
    for name in ("cats", "dogs"):
        (data / "train").mkdir(exist_ok=True)
        (data / name).rename(data / "train" / name)
    put(data, "validation/cats/0.png", saved(picture(0)))
    put(data, "validation/dogs/9.png", saved(picture(9)))


@kind(r"holds one usable picture, cats/0\.png, and 7 copies of it: two at least are needed", None)
def all_the_same(data):
    for name in pictures_of(data):
        shutil.copy(data / "cats/0.png", data / name) if name != "cats/0.png" else None


# ---- paired files ------------------------------------------------------------------------------------------


@kind(r"cats/1\.png: segmentation is missing: masks/1\.png", GOOD - 1)
def a_missing_mask(data):
    masked(data, lambda n: None if n == 1 else saved(Image.fromarray(stripes([0, 1]))))


@kind(r"cats/1\.png: segmentation is 10 x 10, the picture 20 x 24 pixels", GOOD - 1)
def a_mask_of_another_size(data):
    masked(data, lambda n: saved(Image.fromarray(stripes([0, 1], (10, 10) if n == 1 else (24, 20)))))


@kind(r"cats/1\.png: segmentation: truncated", GOOD - 1)
def a_broken_mask(data):
    masked(data, lambda n: saved(Image.fromarray(stripes([0, 1])))[: -30 if n == 1 else None])


@kind(r"segmentation is a JPEG or the like, which smears the borders between indices \(\d+ values occur\): "
      r"save masks as PNG", None)
def masks_saved_as_jpeg(data):
    masked(data, lambda n: saved(Image.fromarray(stripes([0, 3, 7])), "JPEG"), "jpg")


@kind("everything is kept")
def masks_saved_as_jpeg_of_one_value(data):
    masked(data, lambda n: saved(Image.fromarray(np.full((24, 20), n % 3, np.uint8)), "JPEG", quality=100), "jpg")


@kind(r"cats/1\.png: segmentation is in colours, not in indices: save it in grey or with a palette", GOOD - 1)
def a_mask_in_colours(data):
    masked(data, lambda n: saved(picture(n) if n == 1 else Image.fromarray(stripes([0, 1]))))


@kind("everything is kept")
def masks_in_grey_saved_as_colours(data):
    masked(data, lambda n: saved(Image.fromarray(stripes([0, 1, 2])).convert("RGB")))


@kind(r"cats/1\.png: segmentation holds the index 300: 0 to 255 can be kept", GOOD - 1)
def a_label_out_of_range(data):
    masked(data, lambda n: saved(Image.fromarray(stripes([0, 1]).astype(np.uint16) * (300 if n == 1 else 1))))


@kind(r"segmentation holds 2 different indices, the largest 255, so its VQGAN would have 256 classes")
def masks_of_black_and_white(data):
    masked(data, lambda n: saved(Image.fromarray(stripes([0, 255]))))


@kind("everything is kept")
def masks_of_one_bit(data):
    masked(data, lambda n: saved(Image.fromarray(stripes([0, 255])).convert("1")))


@kind(r"The palettes of segmentation give one index several colours")
def masks_with_other_palettes(data):
    def mask(number):
        image = Image.fromarray(stripes([0, 1]))
        image.putpalette([0, 0, 0, *((255, 0, 0) if number % 2 else (0, 255, 0))])
        return saved(image)

    masked(data, mask)


@kind(r"cats/1\.png: segmentation lies outside of the folder: \.\./secret\.png", GOOD - 1)
def a_mask_from_outside(data):
    put(data.parent, "secret.png", saved(Image.fromarray(stripes([0, 1]))))
    rows = [{"file_name": name, "segmentation_file_name": f"m/{number}.png"}
            for number, name in enumerate(pictures_of(data))]
    for number in range(GOOD):
        put(data, f"m/{number}.png", saved(Image.fromarray(stripes([0, 1]))))
    rows[1]["segmentation_file_name"] = "../secret.png"
    metadata(data, rows)


@kind(r"cats/1\.png: has no segmentation in the metadata, unlike others", GOOD - 1)
def a_row_without_a_mask(data):
    masked(data, lambda n: saved(Image.fromarray(stripes([0, 1]))))
    lines = (data / "metadata.jsonl").read_text().splitlines()
    metadata(data, [lines[0], '{"file_name": "cats/1.png"}', *lines[2:]])


# ---- metadata ----------------------------------------------------------------------------------------------


@kind(r"metadata\.jsonl, line 2, is not JSON: repair the line, or remove the file", None)
def metadata_that_is_no_json(data):
    metadata(data, [{"file_name": "cats/0.png"}, "{oops"])


@kind(r"metadata\.jsonl, line 1, is not JSON", None)
def metadata_of_endless_brackets(data):
    metadata(data, ["[" * 200_000])


@kind(r"metadata\.jsonl, line 1, is no object of keys and values", None)
def a_row_that_is_a_list(data):
    metadata(data, [["cats/0.png", "cat"]])


@kind(r"metadata\.jsonl, line 1, has no file_name: add one, or remove it", None)
def a_row_without_a_name(data):
    metadata(data, [{"label": "cat"}])


@kind(r"line 1, has the file_name 5, which is no text: put it in quotes", None)
def a_name_that_is_a_number(data):
    metadata(data, [{"file_name": 5}])


@kind(r'line 1, has the label \{"a": 1\}, which is neither a word nor a number', None)
def a_label_that_is_no_word(data):
    metadata(data, [{"file_name": "cats/0.png", "label": {"a": 1}}])


@kind(r"line 2, says something else of cats/0\.png than .*line 1: keep one of them", None)
def two_rows_that_disagree(data):
    metadata(data, [{"file_name": "cats/0.png", "label": "a"}, {"file_name": "cats/0.png", "label": "b"}])


@kind(r"cats/gone\.png: named in the metadata, but not there")
def a_row_of_a_picture_that_is_not_there(data):
    metadata(data, [{"file_name": "cats/gone.png"}])


@kind(r"/etc/x\.png: named in the metadata, but it lies outside of the folder")
def an_absolute_path(data):
    metadata(data, [{"file_name": "/etc/x.png"}])


@kind(r"\.\./\.\./x\.png: named in the metadata, but it lies outside of the folder")
def a_path_that_leads_out(data):
    metadata(data, [{"file_name": "../../x.png"}])


@kind(r"cats: named in the metadata, but it is a folder")
def a_row_of_a_folder(data):
    metadata(data, [{"file_name": "cats"}])


@kind("everything is kept")
def paths_as_windows_writes_them(data):
    metadata(data, [{"file_name": name.replace("/", "\\"), "label": "x" if n % 2 else "y"}
                    for n, name in enumerate(pictures_of(data))])


@kind(r"Labels are left out: 7 pictures have none\.")
def a_label_for_one_picture_alone(data):
    metadata(data, [{"file_name": "cats/0.png", "label": "cat"}])


@kind(r"metadata\.jsonl is not UTF-8: save it as that", None)
def metadata_in_another_encoding(data):
    (data / "metadata.jsonl").write_bytes('{"file_name": "été.png"}'.encode("latin-1"))


@kind("everything is kept")
def metadata_with_a_byte_order_mark(data):
    (data / "metadata.jsonl").write_text('{"file_name": "cats/0.png"}\n', encoding="utf-8-sig")


@kind("everything is kept")
def metadata_that_is_empty(data):
    (data / "metadata.jsonl").write_text("")


@kind(r"metadata\.csv has no column file_name, its first line is file_name;label: name the columns there", None)
def a_table_with_semicolons(data):
    (data / "metadata.csv").write_text("file_name;label\ncats/0.png;a\n")


@kind(r"metadata\.csv, line 2, has more cells than there are columns", None)
def a_table_with_ragged_rows(data):
    (data / "metadata.csv").write_text("file_name,label\ncats/0.png,a,b,c\n")


@kind(r"metadata\.jsonl is no file, but a pipe, a socket or a device: repair it, or remove it", None)
def metadata_that_is_a_pipe(data):
    os.mkfifo(data / "metadata.jsonl")


# ---- the whole folder --------------------------------------------------------------------------------------


@kind(r"data is a file: set prepare\.source to the folder that holds the pictures", None)
def a_folder_that_is_a_file(data):
    shutil.rmtree(data)
    data.write_text("no folder")


@kind(r"data does not exist: put pictures there, render landscapes with python -m tesserae\.scenes", None)
def no_folder(data):
    shutil.rmtree(data)


@kind(r"data cannot be entered \(Permission denied\): see to its rights", None)
def a_folder_that_may_not_be_entered_at_all(data):
    return {"forbidden": data}


@kind(r"data holds no pictures: put some there, unpacked, or change prepare\.source", None)
def an_empty_folder(data):
    shutil.rmtree(data)
    data.mkdir()


@kind(r"data holds no pictures, only pictures\.zip: put some there, unpacked", None)
def only_an_archive(data):
    shutil.rmtree(data)
    put(data, "pictures.zip", b"PK\3\4")


@kind(r"data holds one usable picture, x\.png: two at least are needed", None)
def one_picture(data):
    shutil.rmtree(data)
    put(data, "x.png", saved(picture()))


@kind(r"Every picture lies in the folder cats, so there are no classes\.", 4)
def one_class(data):
    shutil.rmtree(data / "dogs")


@kind(r"The class birds has one picture alone\.", GOOD + 1)
def a_class_of_one_picture(data):
    put(data, "birds/x.png", saved(picture()))


@kind(r"data holds no usable picture \(cats/0\.png and 7 more: not a picture\): repair them, or put others there",
      None)
def only_broken_ones(data):
    for name in pictures_of(data):
        put(data, name, b"broken")


@kind(r"4 of 12 files in .*data were rejected, more than prepare\.max_rejected = 0\.2 allows "
      r"\(cats/bad0\.png and 3 more: not a picture\): repair or remove them, or raise it", None)
def more_rejected_than_allowed(data):
    for number in range(4):
        put(data, f"cats/bad{number}.png", b"broken")
    return {"max_rejected": 0.2}


@kind(r"data holds tables that cannot be loaded \(.*\): repair them", None)
def a_broken_table(data):
    shutil.rmtree(data)
    put(data, "train.parquet", b"PAR1 or so")


@kind(r"Labels are left out: 2 pictures have none\.")
def a_table_with_labels_out_of_range(data):
    import datasets

    images = [{"bytes": (data / name).read_bytes(), "path": None} for name in pictures_of(data)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    table = datasets.Dataset.from_dict({"image": images, "label": [0, 1, -1, 0, 1, 0, 7, 1]}, features)
    shutil.rmtree(data)
    data.mkdir()
    named = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    arrow = table.data.table.replace_schema_metadata(named.arrow_schema.metadata)  # as such files come
    import pyarrow.parquet as parquet

    parquet.write_table(arrow, data / "train.parquet")


# ---- tables and documents among pictures -------------------------------------------------------------------


def table_of(pictures: int):
    """A table of so many pictures, None for one of words."""
    import datasets

    if not pictures:
        return datasets.Dataset.from_dict({"text": ["a", "b"] * 50})
    images = [{"bytes": saved(picture(200 + number)), "path": None} for number in range(pictures)]
    return datasets.Dataset.from_dict({"image": images}, datasets.Features({"image": datasets.Image()}))


@kind(r"not pictures: notes\.parquet\nTables beside the pictures are left out: notes\.parquet\. Labels and paired ")
def a_table_that_is_none_beside_pictures(data):
    put(data, "notes.parquet", b"PAR1 or so")


@kind(r"Tables beside the pictures are left out: cats/embeddings\.parquet, cats/words\.arrow\.")
def tables_of_words_beside_pictures(data):
    table_of(0).to_parquet(str(data / "cats/embeddings.parquet"))
    table_of(0).save_to_disk(str(data.parent / "words"))
    shutil.move(next((data.parent / "words").glob("*.arrow")), data / "cats/words.arrow")


@kind(r"Tables beside the pictures are left out: thumbnails\.parquet\.")
def a_table_of_few_pictures_beside_more(data):
    table_of(3).to_parquet(str(data / "thumbnails.parquet"))


@kind(r"Pictures beside the tables, which hold more of them, are left out: cats/0\.png, .* and 3 more\.", 12)
def a_table_of_more_pictures_than_lie_beside_it(data):
    table_of(12).to_parquet(str(data / "train-00000.parquet"))
    put(data, "README.md", b"# mine")


@kind(r"not pictures: dataset_dict\.json, state\.json")
def a_state_of_something_else(data):
    put(data, "state.json", b"{}")
    put(data, "dataset_dict.json", b"{}")


@kind(r"not pictures: archive\.tar, table\.csv")
def an_archive_and_a_list(data):
    put(data, "archive.tar", b"ustar")
    put(data, "table.csv", b"a,b\n1,2\n")


@kind(r"not pictures: cats/a\.pdf, cats/b\.eps, cats/c\.ps, cats/d\.wmf, cats/e\.fits, cats/f\.grib, cats/g\.h5, "
      r"cats/h\.mpg, cats/i\.emf, cats/j\.hdf, cats/k\.bufr, cats/l\.mpeg")
def documents_films_and_tables_that_pillow_knows(data):
    heads = {"pdf": b"%PDF-1.4", "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n", "ps": b"%!PS\n",
             "wmf": b"\xd7\xcd\xc6\x9a\0\0" + b"\0" * 40, "fits": b"SIMPLE  = T", "grib": b"GRIB\0\0\0\1",
             "h5": b"\x89HDF\r\n\x1a\n", "mpg": b"\0\0\1\xb3" + b"\1" * 40, "emf": b"\1\0\0\0" + b"\0" * 60,
             "hdf": b"\x89HDF\r\n\x1a\n", "bufr": b"BUFR\0\0\0\4", "mpeg": b"\0\0\1\xb3" + b"\1" * 40}
    for letter, (suffix, content) in zip("abcdefghijkl", heads.items()):
        put(data, f"cats/{letter}.{suffix}", content)


@kind(r"cats/x\.png: not a picture")
def postscript_named_png(data):
    put(data, "cats/x.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n")


@kind("everything is kept", GOOD + 1)
def a_jpeg_named_pdf(data):
    put(data, "cats/x.pdf", saved(picture(), "JPEG"))


@kind("everything is kept", GOOD + 1)
def a_stereo_picture(data):
    put(data, "cats/x.mpo", saved(picture(), "MPO", save_all=True, append_images=[picture(98)]))


# ---- whole folders -----------------------------------------------------------------------------------------


@kind(r"None of the 3 pictures in .*data/mine can be used \(mine/0\.png and 2 more: has no segmentation in the "
      r"metadata, unlike others\): set prepare\.source to .*data/mine to train on these alone, or name the "
      r"segmentation_file_name of each in the metadata; with prepare\.max_rejected = 1 the stage goes on without "
      r"them",
      None)
def a_folder_beside_pictures_with_metadata(data):
    masked(data, lambda n: saved(Image.fromarray(stripes([0, 1]))))
    for number in range(3):
        put(data, f"mine/{number}.png", saved(picture(90 + number)))


@kind(r"None of the 4 pictures in .*data/icons can be used \(icons/a/0\.png and 3 more: too small: 6 x 6 pixels, and "
      r"prepare\.min_side is 8\): set prepare\.min_side to 6 to take them, or remove them", None)
def a_folder_of_small_pictures(data):
    for number in range(4):
        put(data, f"icons/{'ab'[number % 2]}/{number}.png", saved(picture(90 + number, (6 + number % 2, 6))))


@kind(r"None of the 2 pictures in .*data/phone can be used \(phone/0\.heic and 1 more: HEIC pictures are not "
      r"read here",
      None)
def a_folder_of_a_format_that_is_not_read(data):
    for number in range(2):
        put(data, f"phone/{number}.heic", b"\0\0\0\x18ftypheic" + b"\0" * 100)


@kind(r"mine/2\.png: has no segmentation in the metadata")
def a_folder_that_may_be_left_out(data):
    a_folder_beside_pictures_with_metadata(data)
    return {"max_rejected": 1.0}


@kind(r"data holds no usable picture \(cats/0\.png and 7 more: too small: 5 x 5 pixels, and prepare\.min_side is "
      r"8\): set prepare\.min_side to 5 to take them", None)
def nothing_but_small_pictures(data):
    for number, name in enumerate(pictures_of(data)):
        put(data, name, saved(picture(number, (5 + number % 2, 5 + number % 3))))


@kind(r"No picture of the class puppies in .*data is its own: 4 are left out as copies, for instance puppies/4\.png "
      r"of dogs/4\.png: remove one of the two classes", None)
def a_class_that_is_a_copy_of_another(data):
    shutil.copytree(data / "dogs", data / "puppies")


@kind(r"2 classes have one picture, which trains, so none is held out: birds, fish\.", GOOD + 2)
def two_classes_of_one_picture(data):
    put(data, "birds/x.png", saved(picture()))
    put(data, "fish/x.png", saved(picture(98)))


@kind(r"7 classes have one picture, which trains, so none is held out: c0, c1, c2, c3, c4 and 2 more\.", GOOD + 7)
def many_classes_of_one_picture(data):
    for number in range(7):
        put(data, f"c{number}/x.png", saved(picture(90 + number)))
