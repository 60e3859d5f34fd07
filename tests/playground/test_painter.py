"""The brush and the canvas, without a browser: strokes go where the mouse went, and what is painted is drawn."""

import io

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from tesserae import load_params
from tesserae.data.conditions import Codes, Label, record
from tesserae.data.pictures import Pictures
from tesserae.data.views import Classes
from tesserae.models.transformer import LatentTransformer, TransformerConfig
from tesserae.models.vqgan import VQGAN, VQGANConfig
from tesserae.playground import draw_panel, paint_panel
from tesserae.playground.work import Models, stroke

SIZE, CODES = 32, 16
COLOURS = [(0, 0, 255), (0, 160, 0), (200, 200, 0)]


def png(pixels, mode):
    buffer = io.BytesIO()
    Image.fromarray(pixels, mode).save(buffer, "png")
    return {"bytes": buffer.getvalue(), "path": None}


def make_models(conditions, request):
    generator = np.random.default_rng(0)
    rows = {"image": [png(generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8), "RGB") for _ in range(4)],
            "segmentation": [png(generator.integers(0, 3, (SIZE, SIZE), dtype=np.uint8), "L") for _ in range(4)],
            "label": [0, 1, 0, 1], "path": list("abcd")}
    features = datasets.Features(image=datasets.Image(), segmentation=datasets.Image(),
                                 label=datasets.ClassLabel(names=["day", "night"]), path=datasets.Value("string"))
    held_out = Pictures(datasets.Dataset.from_dict(rows, features=features))
    torch.manual_seed(0)
    small = {"channels": 16, "channel_mult": (1, 1), "patch": 4, "res_blocks": 1, "z_channels": 16,
             "codebook_size": CODES, "codebook_dim": 4}
    reader = VQGAN(VQGANConfig(**Classes("segmentation", COLOURS).record(), **small)).eval()
    config = TransformerConfig(codebook_size=CODES, prefix_vocab=sum(c.vocab for c in conditions),
                               prefix_length=sum(c.length for c in conditions), max_tokens=4, n_layer=1, n_head=2,
                               n_embd=16, conditions=tuple(record(c) for c in conditions), window=(2, 2))
    filters = load_params(request.config.rootpath / "tests/plain.yaml").sample["class"]
    readers = {"segmentation": reader} if len(conditions) > 1 else {}
    return Models(VQGAN(VQGANConfig(**small)).eval(), LatentTransformer(config).eval(), ["day", "night"], held_out,
                  SIZE, "cover", filters, readers=readers)


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
    panel.controls["draw"].click()
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
        panel.controls["draw"].click()
        made.append(panel.controls["view"].value)
    assert made[0] != made[1]


def test_without_a_map_of_classes_it_says_where_to_look(request):
    models = make_models([Label(2)], request)
    assert "layout" in paint_panel(models).controls["message"].value


def test_the_draw_panel_takes_the_layout_of_a_held_out_picture(models):
    panel = draw_panel(models)
    before = panel.controls["view"].value
    panel.controls["picture"].value = 3
    panel.controls["draw"].click()
    assert panel.controls["view"].value != before
    assert panel.controls["message"].value == ""
