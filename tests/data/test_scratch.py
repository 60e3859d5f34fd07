"""Lists of pictures in a file: what comes out is what went in, and memory does not know how much that was."""

import gc
import pathlib
import sqlite3
import tracemalloc
from functools import partial

import pytest

from tesserae.data.prepare import PrepareError, prepare
from tesserae.data.raw import list_raw
from tesserae.data.raw_metadata import Row
from tesserae.data.scratch import Kept, Listing
from tesserae.errors import TesseraeError
from tesserae.params import PrepareParams

ODD = ["été/日本.png", "line\nbreak.png", "quote'\".png", "\udcff\udc80.png", "lone \ud800.png", "nul\x00.png"]


def kept_of(shas, given=(), holdout=0.1, seed=0):
    kept = Kept()
    for number, sha in enumerate(shas):
        kept.add(number, sha, f"{number}.png", given=given[number] if given else None)
    kept.split(holdout, seed)
    return kept


def splits(kept):
    return kept.splits(range(len(kept)))


def held(made):
    """Bytes that Python holds for what this generator has made when it gives its last."""
    tracemalloc.start()
    try:
        kept = next(made())
        gc.collect()  # empties the lists of freed tuples that the interpreter keeps for itself, too
        table = tracemalloc.Filter(False, pathlib.__file__)  # of the names that paths share, which is the process's
        sizes = [one.size for one in tracemalloc.take_snapshot().filter_traces([table]).statistics("filename")]
        assert kept is not None
        return sum(sizes)
    finally:
        tracemalloc.stop()


def test_a_listing_keeps_names_of_every_kind_in_their_order():
    listing = Listing()
    names = ["z.png", *ODD, "a.png"]
    for name in names:
        listing.add_file(name, "a fault" if name == "a.png" else None)
    assert list(listing.files()) == [*((name, None) for name in names[:-1]), ("a.png", "a fault")]


def test_rows_belong_to_their_pictures_and_lost_ones_are_told_sorted():
    listing = Listing()
    rows = {name: Row(f"label {name}", {"mask": f"masks/{name}"}, "here, line 1,") for name in ODD}
    for name, row in rows.items():
        assert listing.add_row(name, row) is None
    assert listing.add_row(ODD[0], Row("another")) == rows[ODD[0]]
    assert listing.row("unheard of") is None
    assert listing.is_paired(f"masks/{ODD[3]}")
    assert not listing.is_paired(ODD[3])
    listing.add_picture("b/c.png", None)
    for name in ODD[:2]:
        listing.add_picture(name, "a fault")
    assert list(listing.folders()) == [["b"], ["été"], []]
    assert listing.counts() == (3, 0)
    listing.add_lost()
    assert listing.counts() == (len(ODD) + 1, len(ODD) - 2)
    found = [("b/c.png", None, None, False), *((name, "a fault", rows[name], False) for name in ODD[:2]),
             *((name, None, None, True) for name in sorted(ODD[2:]))]
    for numbers in (range(len(found)), range(1, 4), range(2, 2)):
        assert list(listing.pictures(numbers)) == found[numbers.start:numbers.stop]


def test_split_share_salt_and_small_sets():
    shas = [f"{number:040x}" for number in range(4000)]
    one, two = (splits(kept_of(shas, seed=seed)) for seed in (0, 1))
    assert 0.08 < one.count("validation") / 4000 < 0.12
    assert one != two
    assert kept_of(shas).splits(range(10, 21)) == one[10:21]
    assert splits(kept_of(shas[::-1])) == one[::-1], "a picture's split depends on its place"
    for seed in range(50):
        for holdout in (0.01, 0.99):
            assert sorted(splits(kept_of("ab", holdout=holdout, seed=seed))) == ["train", "validation"]
    with pytest.raises(TesseraeError, match="two"):
        kept_of("a")


def test_splits_of_their_own_count_where_there_are_both():
    given = ["train", "validation", None, "train"]
    assert splits(kept_of("abcd", given, holdout=0.99)) == ["train", "validation", "validation", "train"]
    assert splits(kept_of("abcd", ["train"] * 4, holdout=0.99)) == splits(kept_of("abcd", holdout=0.99))


def test_kept_pictures_are_counted_and_copies_are_not():
    kept = Kept()
    said = [kept.add(number, sha, path, label, None, size) for number, (sha, path, label, size) in enumerate((
        ("1", "a.png", "cat", (9, 8)), ("2", "b.png", None, (8, 9)), ("1", "c.png", "dog", (7, 7)),
        ("3", "d.png", "cat", (9, 8))))]
    assert said == [None, None, "a.png", None]
    assert len(kept) == 3
    assert kept.first_path() == "a.png"
    assert kept.sizes() == {(9, 8): 2, (8, 9): 1}
    kept.split(0.5, 0)
    first, second, copy, third = kept.splits(range(4))
    assert copy is None
    assert kept.labels() == {(first, "cat"): 1} | {(second, None): 1} | {(third, "cat"): 1 + (first == third)}
    for split in {first, second, third}:
        assert list(kept.shas(split)) == [sha for sha, own in zip("123", (first, second, third)) if own == split]


def test_memory_does_not_grow_with_a_listing(tmp_path):
    def made(folders):
        for folder in range(folders):
            place = tmp_path / str(folders) / f"class-{folder % 3}" / str(folder)
            place.mkdir(parents=True)
            for number in range(50):
                (place / f"{number}.png").touch()
        return 50 * folders

    def listed(folders, count):
        raw = list_raw(tmp_path / str(folders))
        assert raw.count == count
        for number, entry in enumerate(raw.entries(range(raw.length)), start=1):
            if number == count:
                assert entry.label == "class-2"
                yield raw

    sizes = [(folders, made(folders)) for folders in (3, 90)]
    next(listed(*sizes[0]))  # what is imported and kept by then is not the set's
    few, most = (held(partial(listed, *size)) for size in sizes)
    assert most < few + 10 * (sizes[1][1] - sizes[0][1]), "ten bytes a file"


def test_memory_does_not_grow_with_what_is_kept():
    def filled(count):
        kept = kept_of(f"{number:040x}" for number in range(count))
        shas = kept.shas("train")
        next(shas)
        yield kept, shas

    next(filled(1000))
    few, most = (held(partial(filled, count)) for count in (1000, 81000))  # sqlite3 knows its last 200 cursors
    assert most < few + 80000, "a byte a picture"


def test_a_disk_that_is_full_is_told_in_a_sentence(tmp_path, monkeypatch):
    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.png").write_bytes(b"none")
    monkeypatch.setattr(Listing, "add_file", full)
    values = {"source": "data", "image_size": 16, "fit": "cover", "holdout": 0.3, "min_side": 8, "max_rejected": 0.5}
    with pytest.raises(PrepareError, match=r"out cannot be written \(database or disk is full\): see to the disk"):
        prepare(tmp_path / "data", tmp_path / "out", PrepareParams(**values), 0)
    assert [item.name for item in tmp_path.iterdir()] == ["data"]
