"""A dataset on the hub, played by a folder of the same form: its configurations, splits and revisions."""

import re
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from tesserae.data.listing import RawError, list_source
from tesserae.data.prepare import prepare
from tesserae.data.tables import check_hub
from tesserae.params import PrepareParams

NAME = "someone/flowers"
CARD = """---
configs:
- config_name: small
  data_files:
  - {split: train, path: small/train/*.parquet}
  - {split: test, path: small/test/*.parquet}
- config_name: large
  data_files:
  - {split: train, path: large/*.parquet}
---
"""


def params(**changes):
    values = {"source": NAME, "image_size": 16, "fit": "cover", "holdout": 0.3, "min_side": 8, "max_rejected": 0.5}
    return PrepareParams(**values | changes)


def write(path: Path, first: int, count: int) -> None:
    pictures = [Image.fromarray(np.random.default_rng(first + n).integers(0, 256, (20, 24, 3), dtype=np.uint8))
                for n in range(count)]
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict({"image": pictures}, datasets.Features({"image": datasets.Image()})).to_parquet(path)


@pytest.fixture
def revisions(tmp_path, monkeypatch):
    """The revisions that were wanted. The real loading code works, on a folder in place of the hub."""
    folder, wanted = tmp_path / "hub", []
    write(folder / "small/train/a.parquet", 0, 6)
    write(folder / "small/test/a.parquet", 100, 4)
    write(folder / "large/a.parquet", 200, 20)
    (folder / "README.md").write_text(CARD)
    monkeypatch.chdir(tmp_path)

    def on_the_folder(real):
        def load(path, name=None, revision=None, **options):
            assert path == NAME
            wanted.append(revision)
            return real(str(folder), name, cache_dir=str(tmp_path / "cache"), **options)

        return load

    for name in ("load_dataset", "load_dataset_builder"):
        monkeypatch.setattr(datasets, name, on_the_folder(getattr(datasets, name)))
    return wanted


@pytest.mark.parametrize(("options", "counts"), [
    ({"hub_config": "small"}, {"train": 6, "validation": 4}),
    ({"hub_config": "small", "hub_split": "test"}, 4),
    ({"hub_config": "small", "hub_split": "train[:3]"}, 3),
    ({"hub_config": "small", "hub_split": "train+test"}, 10),
    ({"hub_config": "large"}, 20),
])
def test_the_options_choose_what_is_loaded(tmp_path, revisions, options, counts):
    report = prepare(NAME, tmp_path / "out", params(**options), 0)
    if isinstance(counts, int):
        assert sum(report.counts.values()) == counts
        assert min(report.counts.values()) >= 1
    else:
        assert report.counts == counts
    assert revisions == [None]


def test_a_revision_is_passed_on(tmp_path, revisions):
    check_hub(NAME, params(hub_config="large", hub_split="train[:3]", hub_revision="v1.2").hub)
    assert revisions.pop() == "v1.2"
    prepare(NAME, tmp_path / "out", params(hub_config="large", hub_revision="v1.2"), 0)
    assert revisions == ["v1.2"]


@pytest.mark.parametrize(("options", "message"), [
    ({}, f"{NAME} has several configurations, small, large: set prepare.hub_config to one of them."),
    ({"hub_config": "huge"},
     f"{NAME} has no configuration 'huge', but small, large: set prepare.hub_config to one of them."),
    ({"hub_config": "small", "hub_split": "dev"},
     f"{NAME} has no split 'dev', but train, test: set prepare.hub_split to one of them, or to \"\"."),
])
def test_what_there_is_to_choose_from_is_named(tmp_path, revisions, options, message):
    with pytest.raises(RawError) as caught:
        prepare(NAME, tmp_path / "out", params(**options), 0)
    assert str(caught.value) == message
    assert not (tmp_path / "out").exists()
    with pytest.raises(RawError) as caught:
        check_hub(NAME, params(**options).hub)
    assert str(caught.value) == message


def test_what_cannot_be_loaded_names_the_options(tmp_path, monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    message = r"\(Couldn't reach the Hub\): check prepare\.source, prepare\.hub_revision and the connection\.$"
    with pytest.raises(RawError, match=message):
        list_source(NAME, hub=params(hub_revision="v9").hub)


@pytest.mark.parametrize("options", [{"hub_config": "small"}, {"hub_split": "train", "hub_revision": "main"}])
def test_a_folder_has_none_of_that(tmp_path, options):
    (tmp_path / "data").mkdir()
    with pytest.raises(RawError) as caught:
        prepare(tmp_path / "data", tmp_path / "out", params(**options), 0)
    for key, value in options.items():
        assert f"prepare.{key} = '{value}'" in str(caught.value)
    assert re.search(r"for a dataset on the hub, and prepare\.source is .*data here: set (it|them) to \"\", or "
                     r"prepare\.source to the name of the dataset\.$", str(caught.value))
