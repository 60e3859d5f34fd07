"""The built-in landscapes: deterministic, the same at any size, exactly labelled."""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from tesserae.data.prepare import prepare
from tesserae.params import PrepareParams
from tesserae.scenes import render as scenes
from tesserae.scenes.render import CLASSES, SEGMENT_NAMES, SEGMENT_PALETTE, ScenesError, render_scene, write_scenes

SKY, DISC, CLOUD, MOUNTAIN, SNOW, WATER, FOREST, GRASS, SAND = range(9)
ABOVE = (SKY, DISC, CLOUD)


@pytest.fixture(scope="module")
def some():
    """Three landscapes of each class."""
    return [render_scene(0, index, 48) for index in range(3 * len(CLASSES))]


def same(a, b):
    return a.label == b.label and all(np.array_equal(getattr(a, name), getattr(b, name))
                                      for name in ("image", "segmentation", "depth"))


def test_a_scene_follows_from_seed_and_index():
    first = render_scene(3, 5, 32)
    render_scene(1, 1, 40)
    assert same(render_scene(3, 5, 32), first)
    assert not same(render_scene(4, 5, 32), first)
    assert not same(render_scene(3, 5 + len(CLASSES), 32), first)


def test_scenes_are_the_same_on_every_processor():
    """NumPy rounds otherwise with other instructions: a pixel in every eighth picture was another one."""
    count = 40
    script = ("from tesserae.scenes.render import render_scene\n"
              "import hashlib\n"
              f"for index in range({count}):\n"
              "    scene = render_scene(0, index, 128)\n"
              "    every = (scene.image, scene.segmentation, scene.depth)\n"
              "    print(hashlib.sha256(b''.join(part.tobytes() for part in every)).hexdigest())\n")
    found = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    plain = {"NPY_DISABLE_CPU_FEATURES": " ".join(found)}
    command = [sys.executable, "-W", "ignore", "-c", script]
    hashes = [subprocess.run(command, env={**os.environ, **changes}, check=True, capture_output=True,
                             text=True).stdout.split() for changes in ({}, plain)]
    assert len(hashes[0]) == count
    assert hashes[0] == hashes[1]


def test_kinds_and_ranges(some):
    assert len(SEGMENT_NAMES) == len(SEGMENT_PALETTE) == 9
    for scene in some:
        assert (scene.image.shape, scene.image.dtype) == ((48, 48, 3), np.uint8)
        assert (scene.segmentation.shape, scene.segmentation.dtype) == ((48, 48), np.uint8)
        assert (scene.depth.shape, scene.depth.dtype) == ((48, 48), np.float32)
        assert scene.segmentation.max() < len(SEGMENT_NAMES)
        assert scene.depth.min() >= 0
    assert {scene.label for scene in some} == set(CLASSES)


def test_depth_ends_where_the_sky_begins(some):
    for scene in some:
        assert np.array_equal(scene.depth == 1, np.isin(scene.segmentation, ABOVE))
        assert np.isin(scene.segmentation, ABOVE).mean() > 0.1  # every landscape has a sky
        assert scene.depth[-1].max() < 0.6  # and stands on near ground


def test_ground_recedes_upwards(some):
    """Open ground and water grow more distant with every row, up to the first thing that stands on them."""
    for scene in some:
        if scene.label.startswith(("coast", "lake")):
            water = scene.segmentation == WATER
            both = water[1:] & water[:-1]
            assert (np.diff(scene.depth, axis=0)[both] < 0).all()


def test_segments_fit_the_class(some):
    wanted = {"coast": (WATER, SAND), "desert": (SAND,), "forest": (FOREST, GRASS), "lake": (WATER, FOREST),
              "mountain": (MOUNTAIN, FOREST)}
    for biome, segments in wanted.items():
        here = [scene for scene in some if scene.label.startswith(biome)]
        for segment in segments:
            assert np.mean([np.mean(scene.segmentation == segment) for scene in here]) > 0.02, (biome, segment)
    dry = [scene for scene in some if scene.label.startswith(("desert", "forest", "mountain"))]
    assert not any((scene.segmentation == WATER).any() for scene in dry)


def test_segmentation_says_what_is_painted(some):
    """Inside their segments, snow is bright, woods are dark, and the disc is the brightest thing in the sky."""
    for scene in some:
        light = scene.image.mean(-1)
        disc = scene.segmentation == DISC
        if disc.sum() >= 2:
            assert light[disc].mean() > light[scene.segmentation == SKY].mean()
        if scene.label.endswith("day"):
            snow, forest = scene.segmentation == SNOW, scene.segmentation == FOREST
            if snow.sum() > 40 and forest.sum() > 40:
                assert light[snow].mean() > light[forest].mean()


def test_hours_differ_in_light(some):
    light = {hour: np.mean([scene.image.mean() for scene in some if scene.label.endswith(hour)])
             for hour in ("day", "sunset", "night")}
    assert light["night"] < 0.8 * light["sunset"]
    assert light["sunset"] < light["day"]
    for scene in some:
        if scene.label.endswith("sunset"):
            assert scene.image[..., 0].mean() > scene.image[..., 2].mean()  # red over blue


@pytest.mark.parametrize("index", range(len(CLASSES)))
def test_the_same_landscape_at_any_size(index):
    small, large = render_scene(0, index, 48), render_scene(0, index, 144)
    middle = large.segmentation[1::3, 1::3]
    assert np.mean(middle == small.segmentation) > 0.8
    ground = (large.depth[1::3, 1::3] < 1) & (small.depth < 1)
    assert np.median(np.abs(large.depth[1::3, 1::3] - small.depth)[ground]) < 0.01
    mean = large.image.reshape(48, 3, 48, 3, 3).mean(axis=(1, 3))
    assert np.abs(mean - small.image).mean() < 14


def test_a_wide_picture_shows_more_at_the_sides():
    square, wide = render_scene(0, 8, 48), render_scene(0, 8, (48, 96))
    assert wide.image.shape == (48, 96, 3)
    assert np.mean(wide.segmentation[:, 24:72] == square.segmentation) > 0.95


@pytest.mark.parametrize("size", [1, 3, (7, 13), (8, 40), (40, 8)])
def test_no_size_is_too_odd(size):
    height, width = (size, size) if isinstance(size, int) else size
    for index in range(len(CLASSES)):
        assert render_scene(5, index, size).image.shape == (height, width, 3)


def test_written_scenes_are_an_imagefolder(tmp_path):
    seen = []
    write_scenes(tmp_path / "data", 12, 32, 0, lambda done, count: seen.append((done, count)))
    assert seen == [(k, 12) for k in range(1, 13)]
    rows = [json.loads(line) for line in (tmp_path / "data" / "metadata.jsonl").read_text().splitlines()]
    for index, row in enumerate(rows):
        scene = render_scene(0, index, 32)
        assert row["label"] == scene.label == row["file_name"].split("/")[0]
        stored = {name: Image.open(tmp_path / "data" / row[name]) for name in row if name.endswith("file_name")}
        assert np.array_equal(np.asarray(stored["file_name"]), scene.image)
        assert np.array_equal(np.asarray(stored["segmentation_file_name"]), scene.segmentation)
        depth = np.asarray(stored["depth_file_name"])
        assert depth.dtype == np.uint16
        assert np.abs(depth / 65535 - scene.depth).max() < 1e-4
        palette = np.asarray(stored["segmentation_file_name"].convert("RGB"))
        assert np.array_equal(palette, np.array(SEGMENT_PALETTE, np.uint8)[scene.segmentation])
    loaded = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "data"), split="train",
                                   cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == 12
    assert set(loaded.column_names) == {"image", "label", "segmentation", "depth"}


def test_written_scenes_can_be_prepared(tmp_path):
    write_scenes(tmp_path / "data", 20, 32, 0)
    params = PrepareParams(source="data", image_size=16, fit="cover", holdout=0.2, min_side=16, max_rejected=0.0)
    report = prepare(tmp_path / "data", tmp_path / "prepared", params, 0)
    assert (report.classes, report.columns) == (list(CLASSES), ["depth", "segmentation"])
    assert report.counts["train"] + report.counts["validation"] == 20
    row = datasets.load_from_disk(str(tmp_path / "prepared" / "train"))[0]
    scene = render_scene(0, int(row["path"][-9:-4]), 32)
    assert set(np.unique(np.asarray(row["segmentation"]))) <= set(np.unique(scene.segmentation))


def test_processes_write_what_one_would(tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "cores", lambda: 2)
    write_scenes(tmp_path / "many", scenes.FEW + 2, 16, 7)
    monkeypatch.setattr(scenes, "cores", lambda: 1)
    write_scenes(tmp_path / "one", scenes.FEW + 2, 16, 7)
    files = sorted(file.relative_to(tmp_path / "one") for file in (tmp_path / "one").rglob("*") if file.is_file())
    assert len(files) == 3 * (scenes.FEW + 2) + 1
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "many" / file).read_bytes()


def test_nothing_half_written_stays(tmp_path):
    def stop(done, count):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "data", 5, 16, 0, stop)
    assert list(tmp_path.iterdir()) == []
    write_scenes(tmp_path / "data", 3, 16, 0)
    with pytest.raises(ScenesError, match="exists already"):
        write_scenes(tmp_path / "data", 3, 16, 0)


def test_the_command_leaves_data_alone(tmp_path):
    text = (Path(__file__).parents[2] / "params.yaml").read_text()
    lines = ["  count: 4" if line.startswith("  count:") else "  size: 16" if line.startswith("  size:") else line
             for line in text.splitlines()]
    (tmp_path / "params.yaml").write_text("\n".join(lines))
    command = [sys.executable, "-m", "tesserae.scenes", "--params", str(tmp_path / "params.yaml")]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "4 of 4 landscapes" in first.stdout
    assert len((tmp_path / "data" / "metadata.jsonl").read_text().splitlines()) == 4
    (tmp_path / "data" / "metadata.jsonl").write_text("mine")
    second = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "stays as it is" in second.stdout
    assert (tmp_path / "data" / "metadata.jsonl").read_text() == "mine"
    (tmp_path / "params.yaml").write_text("scenes: {count: few}")
    broken = subprocess.run([*command, "--out", str(tmp_path / "new")], capture_output=True, text=True, check=False)
    assert broken.returncode == 1
    assert broken.stderr.count("\n") == 1
