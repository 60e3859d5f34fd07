"""Views: what a VQGAN sees of a picture has the right shape and range, and is what it says."""

import numpy as np
import pytest
import torch
from tiny_pictures import PALETTE, painted, pictures_of, smooth

from tesserae.data.batches import to_unit
from tesserae.data.pictures import PicturesError
from tesserae.data.views import KINDS, Classes, Depth, Edges, LowResolution, Picture, Viewed, make_view, view_of
from tesserae.evaluation.images import view_metrics
from tesserae.models.vqgan import VQGANConfig

COUNT, SIDE = 5, 16
COLUMNS = [("image", "image"), ("image", "photo"), ("segmentation", "segmentation"), ("depth", "depth"),
           ("edges", "image"), ("edges", "photo"), ("low_resolution", "image")]


def masks(count=COUNT, classes=3, seed=0):
    found = np.random.default_rng(seed).integers(0, classes, (count, SIDE, SIDE), dtype=np.uint8)
    found[:, 0, 0] = classes - 1  # each occurs
    return found


def depths(count=COUNT):
    return np.random.default_rng(2).integers(0, 65536, (count, SIDE, SIDE), dtype=np.uint16)


@pytest.fixture(scope="module")
def pictures():
    return pictures_of(image=smooth(COUNT), photo=smooth(COUNT, seed=1), depth=depths(),
                       segmentation=[painted(mask) for mask in masks()])


def uniform(*colour, side=SIDE):
    return torch.tensor(colour, dtype=torch.uint8)[None, :, None, None].expand(1, 3, side, side)


# ------------------------------------------------------------------ all of them


def test_every_kind_is_tried_here():
    assert {kind for kind, _ in COLUMNS} == set(KINDS)


@pytest.mark.parametrize(("kind", "column"), COLUMNS)
def test_shapes_and_ranges(pictures, kind, column):
    view = make_view(kind, column, pictures)
    assert (view.kind, view.column) == (kind, column)
    raw = view.raw(pictures, [3, 0])
    assert raw.shape[0] == 2
    assert raw.shape[2:] == (SIDE, SIDE)
    assert not raw.is_floating_point()
    x = view.network_input(raw)
    assert x.shape == (2, view.channels, SIDE, SIDE)
    assert x.dtype == torch.float32
    assert -1 <= x.min() < x.max() <= 1
    assert torch.equal(x[1], view.network_input(view.raw(pictures, [0]))[0])
    for made in (x, 5 * torch.randn(x.shape)):  # a decoder's output keeps to no range
        rendered = view.rendered(made)
        assert rendered.shape == (2, 3, SIDE, SIDE)
        assert -1 <= rendered.min() <= rendered.max() <= 1


@pytest.mark.parametrize(("kind", "column"), COLUMNS)
def test_a_networks_config_tells_its_view(pictures, kind, column):
    view = make_view(kind, column, pictures)
    again = view_of(VQGANConfig(**view.record()))
    assert type(again) is type(view)
    assert vars(again) == vars(view)
    config = VQGANConfig(**view.record())
    assert config.in_channels == config.out_channels == view.channels
    assert bool(config.colours) == (kind == "segmentation")


@pytest.mark.parametrize(("kind", "column"), COLUMNS)
def test_a_view_is_mirrored_as_its_picture_is(pictures, kind, column):
    """Raw forms are mirrored as they are: what is computed from a mirrored picture must be that."""
    view = make_view(kind, column, pictures)
    raw = view.raw(pictures, range(COUNT))
    assert torch.equal(view.network_input(raw.flip(-1)), view.network_input(raw).flip(-1))
    if view.of_picture(uniform(0, 0, 0)) is not None:
        images = pictures.batch(range(COUNT), column)
        mirrored = view.of_picture(images.flip(-1)).int()
        assert (mirrored - raw.flip(-1).int()).abs().max() <= 1  # sums round in another order


@pytest.mark.parametrize(("kind", "column"), COLUMNS)
def test_measures_know_what_is_perfect(pictures, kind, column):
    view = make_view(kind, column, pictures)
    x = view.network_input(view.raw(pictures, range(COUNT)))
    lpips = lambda x, y: (x - y).abs().mean((1, 2, 3))  # noqa: E731
    perfect = view_metrics(view, x, x, lpips)
    worse = view_metrics(view, x.roll(1, 0), x, lpips)
    assert view.judged in perfect
    assert all(values.shape == (COUNT,) for values in perfect.values())
    assert perfect[view.judged].abs().max() < 1e-6
    assert (worse[view.judged] > 0.01).all()
    assert ("psnr" in perfect) == view.perceptual


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_column_is_one_sentence(pictures, kind):
    with pytest.raises(PicturesError, match=r"no column 'thermal' \(image, .*depth.* are there\)") as caught:
        make_view(kind, "thermal", pictures)
    assert "thermal_file_name in metadata.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_can_be_computed_from_a_picture(pictures):
    images = pictures.batch(range(COUNT))
    assert torch.equal(Picture().of_picture(images), images)
    for view in (Edges(), LowResolution()):
        assert torch.equal(view.of_picture(images), view.raw(pictures, range(COUNT)))
    for view in (Picture("photo"), Depth("depth"), Classes("segmentation", PALETTE)):
        assert view.of_picture(images) is None


def test_viewed_pictures_are_network_input_and_pictures_to_look_at(pictures):
    viewed = Viewed(pictures, make_view("segmentation", "segmentation", pictures))
    assert (len(viewed), viewed.size) == (COUNT, SIDE)
    colours = torch.tensor(PALETTE, dtype=torch.uint8)[torch.from_numpy(masks()[[4, 1]]).long()]
    assert torch.equal(viewed.batch([4, 1]), colours.permute(0, 3, 1, 2))
    assert torch.equal(viewed.network_input([2]).argmax(1)[0], torch.from_numpy(masks()[2]).long())
    plain = Viewed(pictures, Picture())
    assert torch.equal(plain.batch([2]), pictures.batch([2]))
    assert torch.equal(plain.network_input([2]), to_unit(pictures.batch([2])))


# ------------------------------------------------------------------ classes


def test_classes_are_one_hot_and_rendered_in_their_colours(pictures):
    view = make_view("segmentation", "segmentation", pictures)
    assert view.colours == PALETTE
    x = view.network_input(view.raw(pictures, range(COUNT)))
    truth = torch.from_numpy(masks()).long()
    assert torch.equal(x.sum(1), torch.ones(COUNT, SIDE, SIDE))
    assert set(x.unique().tolist()) == {0, 1}
    assert torch.equal(x.argmax(1), truth)
    colours = torch.tensor(PALETTE)[truth].permute(0, 3, 1, 2)
    for made in (x, 9 * x + torch.rand(x.shape)):  # one-hot, or logits with the same largest
        assert torch.equal(((view.rendered(made) + 1) * 127.5).round().long(), colours)


def test_masks_without_a_palette_get_colours_far_apart():
    view = make_view("segmentation", "segmentation", pictures_of(image=smooth(2), segmentation=masks(2, 7)))
    assert view.channels == len(set(view.colours)) == 7
    apart = torch.cdist(*2 * [torch.tensor(view.colours).double()]) + 1000 * torch.eye(7)
    assert apart.min() > 30


def test_all_splits_together_decide_the_classes():
    few, many = (pictures_of(image=smooth(2), segmentation=[painted(mask) for mask in masks(2, classes)])
                 for classes in (2, 3))
    assert make_view("segmentation", "segmentation", few, many).colours == PALETTE
    assert make_view("segmentation", "segmentation", many, few).colours == PALETTE
    narrow = make_view("segmentation", "segmentation", few)
    with pytest.raises(PicturesError, match=r"holds the index 2, and this VQGAN's classes are 0 to 1: .* dvc repro"):
        narrow.raw(many, [0])  # it is no other class


def with_void(count=COUNT, classes=3, void=255):
    """Masks whose left third is void."""
    found = masks(count, classes)
    found[:, :, :SIDE // 3] = void
    found[:, -1, -1] = classes - 1
    return found


@pytest.mark.parametrize("highest", [2, 170])
def test_void_is_no_class_where_the_parameter_says_so(highest):
    pictures = pictures_of(image=smooth(COUNT), segmentation=with_void(classes=highest + 1))
    view = make_view("segmentation", "segmentation", pictures, ignore_index=255)
    assert view.channels == highest + 1
    assert make_view("segmentation", "segmentation", pictures).channels == 256
    x = view.network_input(view.raw(pictures, range(COUNT)))
    assert (x[..., :SIDE // 3] == 0).all()  # no channel is set
    assert (x[..., SIDE // 3:].sum(1) == 1).all()
    rendered = ((view.rendered(x) + 1) * 127.5).round()
    assert (rendered[..., :SIDE // 3] == 0).all()  # black
    assert view.legend(view.rendered(x))[-1] == ("void", (0, 0, 0))
    assert (view.targets(view.raw(pictures, range(COUNT)))[..., :SIDE // 3] == -100).all()  # as torch's losses


@pytest.mark.parametrize("void", [0, 1, 255])
def test_what_is_painted_over_void_changes_no_measure(void):
    pictures = pictures_of(image=smooth(COUNT), segmentation=with_void(void=void))
    view = make_view("segmentation", "segmentation", pictures, ignore_index=void)
    x = view.network_input(view.raw(pictures, range(COUNT)))
    made = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    other = torch.where(x.any(1, keepdim=True), made, made.roll(1, 1))
    first, second = view.measures(made, x), view.measures(other, x)
    assert all(torch.equal(first[name], second[name]) for name in ("error", "pixel_accuracy", "miou"))
    perfect = view.measures(torch.where(x.any(1, keepdim=True), 5 * x, made), x)
    assert perfect["error"].abs().max() == 0
    assert perfect["miou"].min() == 1


def test_a_mask_of_void_alone_has_no_measure():
    nothing = Classes("segmentation", PALETTE, 255).measures(torch.randn(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))
    assert all(values.isnan().all() for values in nothing.values())


def test_a_view_with_void_is_kept_with_its_network():
    pictures = pictures_of(image=smooth(COUNT), segmentation=with_void())
    view = make_view("segmentation", "segmentation", pictures, ignore_index=255)
    assert vars(view_of(VQGANConfig(**view.record()))) == vars(view)
    older = {name: value for name, value in view.record().items() if name not in ("ignore_index", "void_colour")}
    assert view_of(VQGANConfig(**older)).ignore_index == -1  # models that know nothing of it


def test_a_colour_of_void_in_the_masks_own_palette_is_kept():
    palette = [*PALETTE, *[(0, 0, 0)] * 252, (224, 224, 192)]
    pictures = pictures_of(image=smooth(COUNT), segmentation=[painted(mask, palette) for mask in with_void()])
    view = make_view("segmentation", "segmentation", pictures, ignore_index=255)
    assert view.colours == PALETTE
    assert view.void == (224, 224, 192)


@pytest.mark.parametrize("column", ["image", "photo", "depth", "thermal"])
def test_a_column_without_masks_is_refused_with_its_key(column):
    pictures = pictures_of(image=smooth(COUNT), photo=smooth(COUNT, seed=1), depth=depths(), segmentation=masks(),
                           thermal=np.arange(256, dtype=np.uint8).reshape(1, 16, 16).repeat(COUNT, 0))
    with pytest.raises(PicturesError, match=r"holds no masks.*name segmentation") as caught:
        make_view("segmentation", column, pictures, key="vqgan.layout.column")
    assert str(caught.value).startswith(f"vqgan.layout.column = '{column}' holds no masks")
    assert "\n" not in str(caught.value)


def test_masks_with_palettes_go_by_any_name():
    pictures = pictures_of(image=smooth(COUNT), parts=[painted(mask) for mask in masks()])
    assert make_view("segmentation", "parts", pictures).channels == 3


@pytest.mark.parametrize(("ignore_index", "highest", "expected"), [
    (-1, 255, ["vqgan.layout.ignore_index: 255 leaves", "occur in no mask"]),
    (255, 255, []), (255, 2, ["vqgan.layout.ignore_index = 255 occurs in no mask"]), (-1, 2, []),
])
def test_notes_before_training(ignore_index, highest, expected):
    found = with_void() if highest == 255 else masks()
    pictures = pictures_of(image=smooth(COUNT), segmentation=found)
    view = make_view("segmentation", "segmentation", pictures, ignore_index=ignore_index)
    notes = view.notes([pictures], "vqgan.layout")
    assert len(notes) == len(expected)
    assert all(words in note for words, note in zip(expected, notes))


def test_nothing_but_void_is_refused():
    pictures = pictures_of(image=smooth(1), segmentation=np.full((1, 16, 16), 255, np.uint8))
    with pytest.raises(PicturesError, match="nothing but the index 255, which ignore_index leaves out"):
        make_view("segmentation", "segmentation", pictures, ignore_index=255)


def test_measures_of_classes_by_hand():
    def one_hot(*classes):
        return torch.eye(3)[torch.tensor(classes)].T.view(1, 3, 2, 2)

    found = Classes("segmentation", PALETTE).measures(5 * one_hot(0, 1, 1, 1), one_hot(0, 0, 1, 1))
    assert found["error"].tolist() == [0.25]
    assert found["pixel_accuracy"].tolist() == [0.75]
    assert found["miou"].item() == pytest.approx((1 / 2 + 2 / 3) / 2)  # the third class does not occur


# ------------------------------------------------------------------ depth


def test_depth_keeps_sixteen_bits():
    steps = np.array([[0, 1], [30000, 65535]], dtype=np.uint16).repeat(8, 0).repeat(8, 1)
    pictures = pictures_of(image=smooth(1), depth=[steps])
    view = make_view("depth", "depth", pictures)
    x = view.network_input(view.raw(pictures, [0]))[0, 0, ::8, ::8].flatten()
    assert x.tolist() == pytest.approx([-1, 2 / 65535 - 1, 60000 / 65535 - 1, 1], abs=1e-7)
    assert x[1] > x[0]


def test_depth_of_eight_bits_has_the_same_range():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pictures = pictures_of(image=smooth(1), depth=[levels])
    x = Depth("depth").network_input(Depth("depth").raw(pictures, [0])).flatten()
    torch.testing.assert_close(x, torch.linspace(-1, 1, 256))
    rendered = Depth("depth").rendered(x.view(1, 1, 16, 16))
    assert torch.equal(rendered[:, 0], rendered[:, 2])


# ------------------------------------------------------------------ edges and small pictures


def edges_of(images):
    return Edges().network_input(Edges().of_picture(images))[:, 0]


def test_a_step_is_a_strong_edge_and_a_plain_picture_has_none():
    assert (edges_of(uniform(200, 10, 90)) == -1).all()
    step = uniform(0, 0, 0).clone()
    step[..., SIDE // 2:] = 255
    found = edges_of(step)[0]
    assert (found[:, SIDE // 2 - 1:SIDE // 2 + 1] > 0.99).all()
    assert (found[:, :SIDE // 2 - 4] == -1).all()
    assert (found[:, SIDE // 2 + 4:] == -1).all()
    assert torch.equal(edges_of(step.mT)[0], found.T)  # in any direction
    assert torch.equal(edges_of(step.flip(-1))[0], found.flip(-1))


def test_edges_grow_with_the_step_and_do_not_depend_on_the_brightness():
    found = []
    for low, high in ((100, 104), (100, 110), (160, 170), (100, 140)):
        step = uniform(low, low, low).clone()
        step[..., SIDE // 2:] = high
        found.append(edges_of(step).max().item())
    assert -1 < found[0] < found[1] < found[3]
    assert found[1] == pytest.approx(found[2], abs=0.01)


def test_a_small_picture_of_one_colour_is_that_colour():
    assert torch.equal(LowResolution().of_picture(uniform(12, 200, 255)), uniform(12, 200, 255))


def test_a_small_picture_has_no_details():
    checks = (torch.arange(SIDE)[:, None] + torch.arange(SIDE)) % 2 * 255
    found = LowResolution().of_picture(checks.to(torch.uint8).expand(1, 3, SIDE, SIDE))
    assert (found.int() - 128).abs().max() <= 1
    halves = uniform(0, 0, 0).clone()
    halves[..., SIDE // 2:] = 240
    blurred = LowResolution().of_picture(halves)[0, 0, 0].int()
    assert blurred[0] < 20
    assert blurred[-1] > 220
    assert blurred.diff().max() < 120  # where the picture itself goes from 0 to 240


@pytest.mark.parametrize("size", [(18, 22), (4, 9), (3, 3)])
def test_what_is_computed_has_the_pictures_size(size):
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    assert LowResolution().of_picture(images).shape == images.shape
    assert Edges().of_picture(images).shape == (2, 1, *size)
