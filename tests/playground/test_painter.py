"""The brush and the canvas, without a browser: strokes go where the mouse went, and what is painted is drawn."""

import io

import datasets
import numpy as np
import pytest
import torch
from ipywidgets import Button
from PIL import Image

from tesserae import Sampler, load_params
from tesserae.data.conditions import Codes, Label, record
from tesserae.data.external import external_condition
from tesserae.data.layouts import read_layout
from tesserae.data.pictures import Pictures
from tesserae.data.views import Classes
from tesserae.models.transformer import LatentTransformer, TransformerConfig
from tesserae.models.vqgan import VQGAN, VQGANConfig
from tesserae.playground import codes_panel, complete_panel, paint_panel, sample_panel
from tesserae.playground.painter import SIZES
from tesserae.playground.work import Models, stroke
from tesserae.scenes.render import SEGMENT_PALETTE

SIZE, CODES = 32, 16
COLOURS = [(0, 0, 255), (0, 160, 0), (200, 200, 0)]


def png(pixels, mode):
    buffer = io.BytesIO()
    Image.fromarray(pixels, mode).save(buffer, "png")
    return {"bytes": buffer.getvalue(), "path": None}


def make_models(conditions, request, colours=COLOURS, count=4):
    names, shape = ["day", "night"][:conditions[0].vocab], (count, SIZE, SIZE)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (*shape, 3), dtype=np.uint8)
    maps = generator.integers(0, len(colours), shape, dtype=np.uint8)
    rows = {"image": [png(image, "RGB") for image in images], "segmentation": [png(each, "L") for each in maps],
            "label": [number % len(names) for number in range(count)], "path": list("abcd")[:count]}
    features = datasets.Features(image=datasets.Image(), segmentation=datasets.Image(),
                                 label=datasets.ClassLabel(names=names), path=datasets.Value("string"))
    held_out = Pictures(datasets.Dataset.from_dict(rows, features=features))
    torch.manual_seed(0)
    small = {"channels": 16, "channel_mult": (1, 1), "patch": 4, "res_blocks": 1, "z_channels": 16,
             "codebook_size": CODES, "codebook_dim": 4}
    reader = VQGAN(VQGANConfig(**Classes("segmentation", colours).record(), **small)).eval()
    config = TransformerConfig(codebook_size=CODES, prefix_vocab=sum(c.vocab for c in conditions),
                               prefix_length=sum(c.length for c in conditions), max_tokens=4, n_layer=1, n_head=2,
                               n_embd=16, conditions=tuple(record(c) for c in conditions), window=(2, 2))
    filters = load_params(request.config.rootpath / "tests/plain.yaml").sample["class"]
    vqgan = VQGAN(VQGANConfig(**small)).eval()
    sampler = Sampler(LatentTransformer(config), vqgan, {"segmentation": reader} if len(conditions) > 1 else {})
    return Models(vqgan, sampler, dict(enumerate(names)), held_out, SIZE, "cover", filters)


@pytest.fixture
def models(request):
    return make_models([Label(2), Codes("segmentation", CODES, (2, 2))], request)


def test_a_stroke_is_a_round_brush_drawn_along_a_line():
    layout = np.zeros((20, 30), np.uint8)
    stroke(layout, (5, 10), (25, 10), 3, 2)
    assert layout[10, 4:26].all()
    assert not layout[:6].any()
    assert not layout[14:].any()
    assert layout[9, 2] == 2  # the round end
    assert layout[7, 2] == 0  # has no corners
    assert set(np.unique(layout)) == {0, 2}


def test_the_mouse_paints_the_chosen_class_only_while_it_is_down(models):
    panel = paint_panel(models)
    board = panel.controls["board"]
    panel.controls["paint with"].value = 0
    panel.controls["fill"].click()
    panel.controls["paint with"].value = 2
    panel.controls["brush"].value = 3
    board.move(100, 100)
    assert not board.layout.any()
    board.down(192, 192)
    board.move(300, 192)
    board.up()
    board.move(20, 20)
    assert board.layout[16, 16] == 2  # canvas pixels are 12 to one of the layout's
    assert board.layout[16, 24] == 2
    assert board.layout[2, 2] == 0


def test_what_is_painted_is_drawn_at_its_size(models):
    panel = paint_panel(models)
    panel.controls["size"].value = "wide"
    assert panel.controls["board"].layout.shape == (SIZE, 4 * SIZE)
    panel.controls["fill"].click()
    first = panel.controls["view"].value
    panel.controls["sample"].click()
    assert panel.controls["message"].value == ""
    made = Image.open(io.BytesIO(panel.controls["view"].value))
    assert panel.controls["view"].value != first
    assert made.width > 3 * made.height


def test_layouts_decide_what_is_drawn(models):
    panel = paint_panel(models)
    made = []
    for value in (0, 1):
        panel.controls["paint with"].value = value
        panel.controls["fill"].click()
        panel.controls["sample"].click()
        made.append(panel.controls["view"].value)
    assert made[0] != made[1]


@pytest.mark.parametrize("size", list(SIZES))
def test_a_saved_layout_is_read_back_as_it_was_painted(models, tmp_path, size):
    models.root = tmp_path
    panel = paint_panel(models)
    panel.controls["size"].value = size
    board = panel.controls["board"]
    board.layout[:] = np.random.default_rng(0).integers(0, 3, board.layout.shape)
    panel.controls["save"].click()
    panel.controls["fill"].click()
    panel.controls["save"].click()  # beside the first one
    board.layout[:] = np.random.default_rng(0).integers(0, 3, board.layout.shape)
    assert "sample.layout.condition_image: painted/layout-002.png" in panel.controls["message"].value
    files = [tmp_path / "painted" / f"layout-00{number}.png" for number in (1, 2)]
    assert torch.equal(read_layout(files[0], 3, COLOURS), torch.from_numpy(board.layout).long())
    assert read_layout(files[1], 3, COLOURS).unique().tolist() == [0]
    view = models.condition_views["segmentation"]
    (raw,) = external_condition("painted/layout-001.png", {"layout": view}, (SIZE, SIZE), tmp_path).values()
    assert raw.shape == (1, 1, SIZE, SIZE)
    assert size != next(iter(SIZES)) or np.array_equal(raw[0, 0], board.layout)


def test_a_layout_that_cannot_be_saved_is_one_sentence(models, tmp_path):
    models.root = tmp_path
    (tmp_path / "painted").write_text("a file, not a folder")
    panel = paint_panel(models)
    panel.controls["save"].click()
    assert "painted/layout-001.png cannot be written" in panel.controls["message"].value


def test_the_canvas_keeps_its_size_beside_a_wide_picture(models):
    """A flexible row would shrink it to nothing, for a canvas has no least width."""
    panel = paint_panel(models)
    canvas = panel.controls["board"].canvas
    panel.controls["size"].value = "wide"
    panel.controls["sample"].click()
    assert (canvas.width, canvas.height) == (768, 192)
    around = [widget for widget in panel.widget.children[-1].children if canvas in getattr(widget, "children", ())]
    assert [widget.layout.flex for widget in (canvas, *around)] == ["0 0 auto"] * 2
    assert panel.widget.children[-1].layout.flex_flow == "row wrap"


def test_no_picture_is_shown_before_there_is_one(models):
    panel = paint_panel(models)
    assert panel.controls["view"].layout.display == "none"
    panel.controls["sample"].click()
    assert panel.controls["view"].layout.display is None


def test_an_example_has_no_class_that_the_set_lacks(request):
    """The built-in scenes' first seven classes, of which a painted landscape has more."""
    models = make_models([Label(2), Codes("segmentation", CODES, (2, 2))], request, SEGMENT_PALETTE[:7])
    panel = paint_panel(models)
    assert set(np.unique(panel.controls["board"].layout)) == set(range(7))
    panel.controls["sample"].click()
    assert panel.controls["message"].value == ""


def test_one_class_and_one_held_out_picture_are_enough(request):
    models = make_models([Label(1), Codes("segmentation", CODES, (2, 2))], request, COLOURS[:1], 1)
    for panel in (paint_panel(models), sample_panel(models), complete_panel(models), codes_panel(models)):
        for name, control in panel.controls.items():
            if isinstance(control, Button) and name != "save":
                control.click()
                assert "<b>" not in panel.controls["message"].value
    assert sample_panel(models).controls["picture"].disabled


def test_the_chosen_picture_and_its_map_are_seen_before_it_is_drawn(models):
    panel = sample_panel(models)
    before, drawn = panel.controls["condition"].value, panel.controls["view"].value
    panel.controls["picture"].value = 3
    assert panel.controls["condition"].value != before
    assert panel.controls["view"].value == drawn
    seen = np.asarray(Image.open(io.BytesIO(panel.controls["condition"].value)).convert("RGB"))
    colours = {tuple(int(value) for value in colour) for colour in seen.reshape(-1, 3)[::97]}
    assert colours & set(COLOURS)


def test_without_a_map_of_classes_it_says_where_to_look(request):
    models = make_models([Label(2)], request)
    assert "layout" in paint_panel(models).controls["message"].value


def test_the_sample_panel_takes_the_layout_of_a_held_out_picture(models):
    panel = sample_panel(models)
    before = panel.controls["view"].value
    panel.controls["picture"].value = 3
    panel.controls["sample"].click()
    assert panel.controls["view"].value != before
    assert panel.controls["message"].value == ""
