"""params.yaml: what is in the file gives parameters, or one sentence."""

import copy
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from tesserae.codebook_params import NEUTRAL, USED
from tesserae.errors import TesseraeError
from tesserae.params import Params, ParamsError, check_params, load_params

ROOT = Path(__file__).parents[1]
PRESETS = sorted((ROOT / "presets").glob("*.yaml"))
VALUES = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text(encoding="utf-8"))

VQGAN, TRANSFORMER, HIGHRES = ("vqgan", "image"), ("transformer", "layout"), ("highres", "layout")


def paths_in(values: object, path: tuple = ()) -> list[tuple]:
    """Every place in nested dicts and lists."""
    items = {dict: lambda: values.items(), list: lambda: enumerate(values)}.get(type(values), tuple)()
    return [path, *(place for key, value in items for place in paths_in(value, (*path, key)))]


def replaced(values: dict, path: tuple, new: object) -> dict:
    values = copy.deepcopy(values)
    inner = values
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return values


def sentence_for(values: object) -> str:
    with pytest.raises(ParamsError) as caught:
        check_params(values, "params.yaml")
    return str(caught.value)


def assert_is_a_sentence(text: str) -> None:
    assert "\n" not in text
    assert text.endswith((".", "?"))
    assert 20 < len(text) < 600


@pytest.mark.parametrize("path", [ROOT / "params.yaml", *PRESETS], ids=lambda path: path.name)
def test_every_shipped_file_is_valid(path):
    params = load_params(path)
    assert set(params.sample) == set(params.transformer), "dvc.yaml makes a sample stage of each transformer"


def test_paper_preset_has_the_papers_numbers():
    params = load_params(ROOT / "presets/paper-f16-256.yaml")
    vqgan, transformer = params.vqgan["image"], params.transformer["class"]
    assert vqgan.downsampling == 16
    assert params.prepare.image_size // vqgan.downsampling == 16
    assert (vqgan.channels, vqgan.channel_mult, vqgan.res_blocks) == (128, [1, 1, 2, 2, 4], 2)
    assert (vqgan.codebook_size, vqgan.codebook_dim, vqgan.commitment_weight) == (1024, 256, 0.25)
    assert vqgan.attention_levels == [4]  # 16x16, as the released network of f = 16 has it
    assert vqgan.lr == vqgan.disc_lr == pytest.approx(4.5e-6 * vqgan.batch_size)
    assert (vqgan.discriminator, vqgan.disc_channels, vqgan.disc_layers) == ("patch", 64, 3)
    assert (transformer.n_layer, transformer.n_head, transformer.n_embd) == (24, 16, 1024)


@pytest.mark.parametrize("quantizer", USED)
def test_another_quantizer_is_one_changed_word(quantizer):
    """`auto` is what its authors use, and nothing where it has no effect."""
    block = check_params(replaced(VALUES, (*VQGAN, "quantizer"), quantizer)).vqgan["image"]
    for key, value in (NEUTRAL | USED[quantizer]).items():
        assert getattr(block, key) == value
    assert block.entries == (240 if quantizer == "fsq" else 256)


def test_values_that_auto_became_are_allowed_themselves():
    for quantizer in USED:
        values = check_params(replaced(VALUES, (*VQGAN, "quantizer"), quantizer)).model_dump()
        assert check_params(values).model_dump() == values


def test_auto_is_for_what_depends_on_the_quantizer():
    assert "codebook_size = 'auto'" in sentence_for(replaced(VALUES, (*VQGAN, "codebook_size"), "auto"))


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("vqgan", "image", "codebook_size"), 1, ["vqgan.image.codebook_size = 1", "at least 2"]),
        (("vqgan", "image", "codebook_size"), "many", ["'many'", "a whole number"]),
        (("vqgan", "image", "quantizer"), "nearst", ["one of nearest, ema"]),
        (("vqgan", "image", "codebok_size"), 8, ["did you mean codebook_size?"]),
        (("vqgan", "image", "lr"), float("nan"), ["vqgan.image.lr", "a number"]),
        (("vqgan", "image", "flip"), "yes", ["true or false"]),
        (("vqgan", "image", "channel_mult"), [], ["a list of 1 to 8"]),
        (("vqgan", "../x"), VALUES["vqgan"]["image"], ["'../x'", "a name is made of letters"]),
        (("vqgan", "image"), None, ["vqgan.image", "a block of keys and values"]),
        (("prepare", "image_size"), 65, ["prepare.image_size = 65", "multiple of the downsampling f = 8"]),
        (("transformer", "class", "vqgan"), "none", ["class.vqgan = 'none'", "one of image, segmentation"]),
        (("transformer", "class", "n_head"), 7, ["n_embd = 256", "n_head = 7"]),
        (("sample",), {"nothing": VALUES["sample"]["class"]}, ["sample.nothing has no transformer.nothing"]),
        (("evaluation", "reference"), 1, ["evaluation.reference = 1", "at least 2 and at most 100,000"]),
        (("evaluation", "inception_weights"), None, ["evaluation.inception_weights = None", "a text"]),
        (("evaluation", "max_train_images"), 0, ["evaluation.max_train_images = 0", "at least 2"]),
    ],
)  # fmt: skip
def test_a_bad_value_is_named_with_its_remedy(path, value, words):
    text = sentence_for(replaced(VALUES, path, value))
    assert_is_a_sentence(text)
    for word in ("params.yaml", *words):
        assert word in text




@pytest.mark.parametrize(
    ("changes", "words"),
    [
        # views and what judges them
        ({(*VQGAN, "pixel_loss"): "cross_entropy"}, ["pixel_loss = 'cross_entropy' does not go with view = 'image'",
                                                     "take l1 or l2"]),
        ({("vqgan", "segmentation", "pixel_loss"): "l1"}, ["does not go with view = 'segmentation'",
                                                           "take cross_entropy"]),
        ({("vqgan", "segmentation", "perceptual_weight"): 1.0}, ["view = 'segmentation' has no colours",
                                                                 "set perceptual_weight: 0"]),
        ({(*VQGAN, "discriminator"): "features", (*VQGAN, "disc_layers"): 5},
         ["disc_layers = 5 must be at most 4 with discriminator = 'features'"]),
        ({(*VQGAN, "discriminator"): "pixels"}, ["discriminator = 'pixels'", "one of patch, features"]),
        ({(*VQGAN, "view"): "edges"}, ["view = 'edges' has no colours", "gan_loss: none"]),
        ({(*VQGAN, "ignore_index"): 255}, ["vqgan.image: ignore_index = 255 is for view = 'segmentation'",
                                           "set it to -1"]),
        ({("vqgan", "segmentation", "ignore_index"): 256}, ["vqgan.segmentation.ignore_index = 256",
                                                            "at least -1 and at most 255"]),
        ({(*VQGAN, "view"): "thermal"}, ["vqgan.image.view = 'thermal'", "one of image, segmentation, depth"]),
        # crops
        ({(*VQGAN, "crop"): 60}, ["crop = 60 must be a multiple of the downsampling f = 8"]),
        ({(*VQGAN, "crop"): 256}, ["vqgan.image.crop = 256 must be at most prepare.image_size = 96"]),
        ({(*VQGAN, "crop"): 8}, ["vqgan.image.crop = 8 leaves vqgan.image one code a side", "take at least 16"]),
        ({(*VQGAN, "crop"): 16, (*VQGAN, "discriminator"): "patch", (*VQGAN, "disc_layers"): 3},
         ["crop = 16 is too small for vqgan.image.disc_layers = 3", "at most 2"]),
        ({(*VQGAN, "crop"): 64, (*VQGAN, "discriminator"): "patch", (*VQGAN, "disc_layers"): 6},
         ["crop = 64 is too small for vqgan.image.disc_layers = 6", "at most 4"]),
        ({(*VQGAN, "patch"): 2, (*VQGAN, "crop"): 8}, ["crop = 8 is too small for LPIPS", "need 16 pixels"]),
        # conditions and windows
        ({(*TRANSFORMER, "condition"): ["class", "depth"]}, ["transformer.layout.condition names 'depth'",
                                                             "none of class, coordinates, image, segmentation"]),
        ({(*TRANSFORMER, "condition"): ["class", "class"]}, ["names one of them twice"]),
        ({(*TRANSFORMER, "strategy"): "fsdp", (*TRANSFORMER, "optimiser"): "muon"},
         ["transformer.layout: strategy = 'fsdp' does not go with optimiser = 'muon'", "take adamw, or ddp"]),
        ({(*TRANSFORMER, "condition"): "class"}, ["transformer.layout.condition = 'class'", "a list"]),
        ({(*TRANSFORMER, "window"): 13}, ["transformer.layout.window = 13 must be at most the 12 codes a side"]),
        ({("vqgan", "segmentation", "patch"): 8}, ["the downsampling 16 of vqgan.segmentation must divide the 8 of "
                                                   "vqgan.image"]),
        ({("codebook", "depth"): VALUES["codebook"]["image"]}, ["codebook.depth has no vqgan.depth to go with it"]),
        ({(*TRANSFORMER, "window"): 0}, ["transformer.layout.condition names coordinates",
                                         "take a window below 12"]),
        ({(*TRANSFORMER, "window"): 12}, ["transformer.layout.condition names coordinates", "its window = 12 is the "
                                          "whole map"]),
        # quantizers
        ({(*VQGAN, "quantizer"): "fsq", (*VQGAN, "revive_after"): 50},
         ["vqgan.image: quantizer = 'fsq' has no use for revive_after: 50; set it to auto"]),
        ({(*VQGAN, "quantizer"): "lfq", (*VQGAN, "codebook_init"): "data", (*VQGAN, "codebook_weight"): 1.0},
         ["quantizer = 'lfq' has no use for codebook_init: data, codebook_weight: 1.0; set each of them to auto"]),
        ({(*VQGAN, "quantizer"): "simvq", (*VQGAN, "codebook_init"): "uniform"},
         ["no use for codebook_init: uniform"]),
        ({(*VQGAN, "quantizer"): "ema", (*VQGAN, "codebook_weight"): 1.0}, ["no use for codebook_weight: 1.0"]),
        ({(*VQGAN, "quantizer"): "gumbel", (*VQGAN, "commitment_weight"): 0.25}, ["no use for commitment_weight"]),
        ({(*VQGAN, "entropy_weight"): 0.1}, ["quantizer = 'nearest' has no use for entropy_weight: 0.1"]),
        ({(*VQGAN, "quantizer"): "gumbel", (*VQGAN, "gradient"): "rotation"}, ["no use for gradient: rotation"]),
        ({(*VQGAN, "quantizer"): "gumbel", (*VQGAN, "temperature_end"): 0.0}, ["temperature_end must be more than"]),
        ({(*VQGAN, "codebook_init"): "none"}, ["codebook_init = 'none' leaves quantizer = 'nearest' without codes"]),
        ({(*VQGAN, "codebook_lr"): 0.0}, ["codebook_lr must be more than 0 for quantizer = 'nearest'"]),
        ({(*VQGAN, "quantizer"): "fsq", (*VQGAN, "codebook_size"): 101}, ["codebook_size = 101", "fsq", "use "]),
        ({(*VQGAN, "quantizer"): "lfq", (*VQGAN, "codebook_size"): 300}, ["codebook_size = 300", "lfq", "use 256"]),
        ({(*VQGAN, "attention_levels"): [2]}, ["attention_levels = [2] names a level that channel_mult lacks"]),
        ({(*VQGAN, "quantizer"): "fsq", (*VQGAN, "codebook_size"): 2}, ["codebook_size = 2", "fsq", "use 3."]),
        ({(*VQGAN, "crop"): 8, (*VQGAN, "perceptual_weight"): 0.0}, ["vqgan.image.crop = 8 leaves", "at least 16"]),
        ({("vqgan", "segmentation", "crop"): 16}, ["zoom = 3 enlarges 5.33 pixels", "the 8", "a zoom of at most 2"]),
        ({("prepare", "image_size"): 8, (*VQGAN, "crop"): 0, ("vqgan", "segmentation", "crop"): 0},
         ["prepare.image_size = 8 leaves vqgan.image one code a side"]),
        # blocks that need each other
        ({("codebook",): {"image": VALUES["codebook"]["image"]}},
         ["transformer.layout.condition names 'segmentation'", "no codebook.segmentation", "add that block"]),
        ({("codebook",): {"segmentation": VALUES["codebook"]["segmentation"]}},
         ["transformer.class.vqgan = 'image' has no codebook.image", "add that block"]),
        ({(*TRANSFORMER, "order"): "z_curve", ("highres",): {}},
         ["transformer.layout.order = 'z_curve' does not go with its window of 8 codes", "the 12 codes a side",
          "sample.layout", "take order: row, or window: 0"]),
        # large pictures
        ({(*TRANSFORMER, "order"): "z_curve"}, ["highres.layout needs transformer.layout.order = 'row'"]),
        ({(*HIGHRES, "sizes"): [[512, 516]]}, ["highres.layout.sizes holds [512, 516]", "multiple of 8"]),
        ({(*HIGHRES, "sizes"): [[512, 512], [56, 512]]}, ["sizes holds [56, 512]", "at least 64 pixels"]),
        ({(*HIGHRES, "sizes"): []}, ["highres.layout.sizes = []", "a list of 1 to 16"]),
        ({(*HIGHRES, "stride"): 9}, ["highres.layout.stride = 9 must be at most the window of 8 codes"]),
        ({(*HIGHRES, "compare_stride"): 9}, ["highres.layout.compare_stride = 9"]),
        ({("sample", "layout", "stride"): 9}, ["sample.layout.stride = 9 must be at most the window of 8 codes"]),
        ({(*TRANSFORMER, "window"): 1}, ["highres.layout slides the window of transformer.layout", "one code"]),
        ({(*HIGHRES, "tile"): 4}, ["highres.layout.tile = 4", "at least 8"]),
        ({("highres",): {"other": VALUES["highres"]["layout"]}}, ["highres.other has no transformer.other"]),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_named(changes, words):
    values = VALUES
    for path, value in changes.items():
        values = replaced(values, path, value)
    text = sentence_for(values)
    assert_is_a_sentence(text)
    for word in words:
        assert word in text


def test_one_window_is_the_whole_map_where_it_is_0():
    """Then a large picture's sides are at least a prepared picture's."""
    values = replaced(replaced(VALUES, (*TRANSFORMER, "window"), 0), (*TRANSFORMER, "condition"), ["segmentation"])
    assert "[64, 256]; each side must be a multiple of 8 and at least 96 pixels" in sentence_for(
        replaced(values, (*HIGHRES, "sizes"), [[64, 256]]))
    check_params(replaced(values, (*HIGHRES, "sizes"), [[96, 256]]))


def test_conditions_may_be_codes_of_finer_maps():
    values = replaced(VALUES, ("vqgan", "segmentation", "patch"), 2)
    assert check_params(values).transformer["layout"].codes_read == ["segmentation"]


def test_a_key_without_a_default_is_named():
    text = sentence_for({"transformer": {"other": {"condition": ["class"]}}})
    assert text == "params.yaml: transformer.other.vqgan is missing: give it, whose codes it models."


def test_the_schema_is_strict():
    """What looks like a number is none: a quoted 8 would otherwise pass here and fail elsewhere."""
    assert "a whole number" in sentence_for(replaced(VALUES, ("seed",), "0"))
    assert "a whole number" in sentence_for(replaced(VALUES, ("seed",), True))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ParamsError, match=r"nowhere.yaml does not exist: make preset NAME=default"):
        load_params(tmp_path / "nowhere.yaml")


def test_the_error_is_one_of_ours():
    assert issubclass(ParamsError, TesseraeError)
    assert issubclass(ParamsError, ValueError)


scalars = [st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9), st.dates(), st.binary()]
keys = st.text(max_size=9) | st.integers()
anything = st.recursive(
    st.one_of(scalars),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(paths_in(VALUES)[1:]), anything)
def test_any_value_anywhere_gives_parameters_or_a_sentence(path, new):
    try:
        outcome = check_params(replaced(VALUES, path, new), "params.yaml")
    except ParamsError as error:
        outcome = str(error)
    if not isinstance(outcome, Params):
        assert_is_a_sentence(outcome)
        assert outcome.startswith("params.yaml")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode) | anything.map(repr).map(str.encode))
def test_any_content_gives_parameters_or_a_sentence(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(content)
    try:
        load_params(path)
    except ParamsError as error:
        assert_is_a_sentence(str(error).replace(str(path), "fuzz.yaml" + 20 * " "))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 2000,
        "a: &a [*a]\n",
        "a: 1\na: 2\n",
        "!!python/object:os.system {}\n",
        "? {a: b}\n: 1\n",
        "a: !x 1\n",
        "seed: " + "9" * 5000 + "\n",
        "seed: 0\n---\nseed: 1\n",
        "\tseed: 0",
        "",
        "- 1\n",
        "%YAML 9.9\n---\na: 1\n",
    ],
    ids=lambda text: repr(text[:12]),
)
def test_nasty_yaml_gives_a_sentence(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ParamsError) as caught:
        load_params(path)
    assert_is_a_sentence(str(caught.value).replace(str(tmp_path), "somewhere"))


def test_numbers_without_a_dot_are_numbers(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text().replace("lr: auto ", "lr: 1e-3 ", 1))
    assert load_params(path).vqgan["image"].lr == 1e-3


@pytest.mark.parametrize(("text", "words"), [
    ("seed: 0\nseed: 3\n", r"params\.yaml is not YAML: line 2: found duplicate key \"seed\""),
    ("seed: 0\n\tx: 1\n", r"params\.yaml is not YAML: line \d+: "),
])
def test_what_is_no_yaml_names_the_line(tmp_path, text, words):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ParamsError, match=words) as error:
        load_params(path)
    assert "http" not in str(error.value)
    assert len(str(error.value)) < len(str(path)) + 150
