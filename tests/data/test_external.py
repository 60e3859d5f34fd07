"""Conditions from outside the set: a user's pictures, painted layouts, scenes of any size."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pictures import PALETTE, as_png, painted, pictures_of, smooth
from torch.nn.functional import avg_pool2d

from tesserae.data.external import (
    SCENES_SEED,
    enlarged,
    external_condition,
    large_conditions,
    read_condition,
    scene_conditions,
)
from tesserae.data.layouts import draw_layout
from tesserae.data.views import Classes, Depth, Edges, LowResolution, Picture
from tesserae.errors import TesseraeError
from tesserae.scenes.render import SEGMENT_PALETTE, render_scene

SCENES = Classes("segmentation", list(SEGMENT_PALETTE))
OTHER = Classes("layout", PALETTE)
SIZE = (24, 40)  # height, width


def saved(folder, pixels, name="mine.png"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(as_png(pixels)["bytes"])
    return folder / name


@pytest.fixture
def photo(tmp_path):
    return saved(tmp_path, smooth(1, side=64)[0])


@pytest.fixture(scope="module")
def held_out():
    masks = np.random.default_rng(0).integers(0, 3, (6, 16, 16))
    masks[:, 0, 0] = 2
    depth = np.random.default_rng(1).integers(0, 65536, (6, 16, 16), dtype=np.uint16)
    return pictures_of([0, 0, 1, 1, 2, 2], ["coast_day", "lake_day", "zoo"], image=smooth(6), depth=depth,
                       layout=[painted(mask) for mask in masks])


# ------------------------------------------------------------------ a user's picture


def test_a_layout_is_read_by_its_colours(tmp_path):
    mask = np.random.default_rng(0).integers(0, 3, (48, 80))
    path = saved(tmp_path, np.array(PALETTE, np.uint8)[mask])
    found = read_condition(path, OTHER, (48, 80))
    assert (found.shape, found.dtype) == ((1, 1, 48, 80), torch.uint8)
    assert np.array_equal(found[0, 0].numpy(), mask)
    assert OTHER.network_input(read_condition(path, OTHER, SIZE)).shape == (1, 3, *SIZE)


def test_void_of_a_layout_reaches_no_network(tmp_path):
    view = Classes("layout", PALETTE, 255, (224, 224, 192))
    mask = np.random.default_rng(0).integers(0, 3, (24, 40))
    mask[:9] = 255
    colours = np.array([*PALETTE, *[(0, 0, 0)] * 252, (224, 224, 192)], np.uint8)
    for pixels in (mask.astype(np.uint8), colours[mask]):  # indices, or painted
        x = view.network_input(read_condition(saved(tmp_path, pixels), view, SIZE))
        assert (x[:, :, :9] == 0).all()
        assert torch.equal(x[0].argmax(0)[9:], torch.from_numpy(mask[9:]))


@pytest.mark.parametrize(("view", "channels"), [(Picture(), 3), (Picture("photo"), 3), (LowResolution(), 3),
                                                (Edges(), 1)])
@pytest.mark.parametrize("size", [SIZE, (40, 24), (32, 32), (96, 96)])
def test_a_picture_becomes_what_the_view_reads(photo, view, channels, size):
    found = read_condition(photo, view, size)
    assert found.shape == (1, channels, *size)
    x = view.network_input(found)
    assert x.shape == (1, view.channels, *size)
    assert -1 <= x.min() < x.max() <= 1


def test_it_is_the_middle_of_the_picture(tmp_path):
    """Of a wide picture, what lies left and right of the middle is cut off, and no more than the shape asks for."""
    pixels = np.zeros((30, 90, 3), np.uint8)
    pixels[:, 30:60] = (200, 100, 50)
    found = read_condition(saved(tmp_path, pixels), Picture(), (30, 30))[0]
    assert (found == torch.tensor([200, 100, 50])[:, None, None]).all()
    half = read_condition(saved(tmp_path, pixels), Picture(), (30, 60))[0]
    assert np.array_equal(half.permute(1, 2, 0).numpy(), pixels[:, 15:75])


@pytest.mark.parametrize("size", [(24, 40), (40, 24), (24, 24)])
def test_a_picture_of_exactly_that_size_stays_as_it_is(tmp_path, size):
    """A picture that already has the requested size is neither zoomed nor cropped, square or not."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    found = read_condition(saved(tmp_path, pixels), Picture(), size)[0]
    assert np.array_equal(found.permute(1, 2, 0).numpy(), pixels)
    found = read_condition(saved(tmp_path, pixels[..., 0]), Depth("depth"), size)[0, 0]
    assert np.array_equal(found.numpy(), pixels[..., 0].astype(int) * 257)


def test_what_can_be_computed_is_computed_of_the_picture(photo):
    picture = read_condition(photo, Picture(), SIZE)
    for view in (Edges(), LowResolution()):
        assert torch.equal(read_condition(photo, view, SIZE), view.of_picture(picture))


def test_depth_is_read_from_grey(tmp_path):
    levels = np.repeat(np.linspace(0, 255, 32).astype(np.uint8)[:, None], 32, 1)
    found = read_condition(saved(tmp_path, levels), Depth("depth"), (32, 32))
    assert not found.is_floating_point()
    assert np.array_equal(found[0, 0].numpy(), levels.astype(int) * 257)


@pytest.mark.parametrize(("view", "expected"), [(Picture(), "cannot be read"), (OTHER, "does not exist")])
def test_a_missing_file_is_named(tmp_path, view, expected):
    with pytest.raises(TesseraeError, match=expected) as caught:
        read_condition(tmp_path / "nowhere.png", view, SIZE)
    assert "nowhere.png" in str(caught.value)


def test_a_file_that_is_no_picture_is_refused(tmp_path):
    path = tmp_path / "mine.png"
    path.write_text("no picture")
    for view in (Edges(), OTHER):
        with pytest.raises(TesseraeError, match=r"mine\.png"):
            read_condition(path, view, SIZE)


# ------------------------------------------------------------------ from a path, or painted


def test_without_a_path_a_layout_is_painted_where_the_classes_are_the_scenes():
    found = external_condition("", {"segmentation": SCENES}, SIZE, None)
    assert torch.equal(found["segmentation"], draw_layout(0, SIZE)[None, None].to(torch.uint8))
    assert external_condition("", {}, SIZE, None) == {}
    assert external_condition("", {"layout": OTHER}, SIZE, None) == {}
    assert external_condition("", {"segmentation": SCENES, "edges": Edges()}, SIZE, None) == {}


def test_a_path_gives_every_view_its_condition(tmp_path, photo):
    found = external_condition("mine.png", {"edges": Edges(), "small": LowResolution()}, SIZE, tmp_path)
    assert {name: raw.shape for name, raw in found.items()} == {"edges": (1, 1, *SIZE), "small": (1, 3, *SIZE)}


# ------------------------------------------------------------------ scenes of any size


def test_scenes_give_every_view_what_belongs_together():
    views = {"segmentation": SCENES, "depth": Depth("depth"), "edges": Edges(), "image": Picture()}
    raw, labels = scene_conditions(views, SIZE, 2, seed=5)
    for number in range(2):
        scene = render_scene(SCENES_SEED + 5, number, SIZE)
        assert labels[number] == scene.label
        assert np.array_equal(raw["segmentation"][number, 0].numpy(), scene.segmentation)
        assert np.array_equal(raw["image"][number].permute(1, 2, 0).numpy(), scene.image)
        depth = Depth("depth").network_input(raw["depth"])[number, 0].numpy()
        assert np.abs(depth - (2 * scene.depth - 1)).max() < 1e-4
    assert torch.equal(raw["edges"], Edges().of_picture(raw["image"]))
    other, _ = scene_conditions(views, SIZE, 2, seed=6)
    assert not torch.equal(other["image"], raw["image"])


def test_scenes_have_no_layouts_of_other_classes():
    with pytest.raises(TesseraeError, match=r"classes are not those of vqgan\.layout: set it to held_out") as caught:
        scene_conditions({"layout": OTHER}, SIZE, 1, 0)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------ enlarged


@pytest.mark.parametrize("size", [(16, 16), (16, 64), (48, 32), (33, 70)])
def test_enlarged_masks_hold_the_classes_that_were_there(held_out, size):
    found = enlarged(OTHER, held_out, [0, 3], size)
    assert (found.shape, found.dtype) == ((2, 1, *size), torch.uint8)
    assert set(found.unique().tolist()) <= {0, 1, 2}
    if size == (16, 16):
        assert torch.equal(found, OTHER.raw(held_out, [0, 3]))
    if size == (16, 64):  # four times as large, the middle of it cut out
        whole = OTHER.raw(held_out, [0, 3]).repeat_interleave(4, 2).repeat_interleave(4, 3)
        assert torch.equal(found, whole[:, :, 24:40])


@pytest.mark.parametrize("view", [Picture(), Depth("depth"), Edges(), LowResolution()])
def test_enlarged_pictures_stay_in_range(held_out, view):
    raw = view.raw(held_out, [0, 3])
    found = enlarged(view, held_out, [0, 3], (32, 48))
    assert found.shape == (2, raw.shape[1], 32, 48)
    assert found.dtype == raw.dtype
    assert raw.min() <= found.min() <= found.max() <= raw.max()
    assert torch.equal(enlarged(view, held_out, [0, 3], (16, 16)), raw)


def test_enlarged_pictures_show_the_same(held_out):
    large, raw = enlarged(Picture(), held_out, [0, 3], (48, 48)), Picture().raw(held_out, [0, 3])
    difference = avg_pool2d(large.float(), 3) - raw
    assert difference.abs().mean() < 0.05 * raw.float().std()


# ------------------------------------------------------------------ for large pictures


def test_large_scenes_have_the_sets_labels(held_out):
    raw, labels = large_conditions("scenes", {"depth": Depth("depth")}, SIZE, 3, 0, held_out, None)
    _, names = scene_conditions({}, SIZE, 3, 0)
    known = {name: number for number, name in enumerate(held_out.class_names)}
    assert raw["depth"].shape == (3, 1, *SIZE)
    assert labels.tolist() == [known.get(name, 0) for name in names]
    assert large_conditions("scenes", {}, SIZE, 3, 0, pictures_of(image=smooth(2)), None) == ({}, None)


def test_large_held_out_conditions_come_with_their_classes(held_out):
    raw, labels = large_conditions("held_out", {"layout": OTHER}, (32, 32), 3, 0, held_out, None)
    assert labels.tolist() == [0, 1, 2]  # from the whole of the set
    assert torch.equal(raw["layout"], enlarged(OTHER, held_out, [1, 3, 5], (32, 32)))
    other, _ = large_conditions("held_out", {"layout": OTHER}, (32, 32), 3, 1, held_out, None)
    assert not torch.equal(other["layout"], raw["layout"])
    _, none = large_conditions("held_out", {}, SIZE, 20, 0, pictures_of(image=smooth(2)), None)
    assert none is None


def test_large_conditions_from_a_folder_go_round(tmp_path, held_out):
    for number, pixels in enumerate(smooth(2, side=32)):
        saved(tmp_path / "mine", pixels, f"{number}.png")
    raw, labels = large_conditions("mine", {"edges": Edges()}, SIZE, 3, 0, held_out, tmp_path)
    assert raw["edges"].shape == (3, 1, *SIZE)
    assert torch.equal(raw["edges"][0], raw["edges"][2])
    assert not torch.equal(raw["edges"][0], raw["edges"][1])
    assert labels.tolist() == [0, 0, 0]
    single, _ = large_conditions("mine/1.png", {"edges": Edges()}, SIZE, 1, 0, held_out, tmp_path)
    assert torch.equal(single["edges"][0], raw["edges"][1])


def test_an_empty_folder_is_named(tmp_path, held_out):
    (tmp_path / "mine").mkdir()
    with pytest.raises(TesseraeError, match=r"mine holds no picture: put some there, or change the layout"):
        large_conditions("mine", {"edges": Edges()}, SIZE, 1, 0, held_out, tmp_path)


def test_a_palette_picture_may_hold_the_layout(tmp_path):
    mask = np.random.default_rng(0).integers(0, 3, (16, 16))
    painted(mask).save(tmp_path / "mine.png")
    with Image.open(tmp_path / "mine.png") as picture:
        assert picture.mode == "P"
    assert np.array_equal(read_condition(tmp_path / "mine.png", OTHER, (16, 16))[0, 0].numpy(), mask)
