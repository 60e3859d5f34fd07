"""Parameter files as people keep them: short ones, presets, those of earlier versions; and changes of single keys."""

from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest
from ruamel.yaml import YAML

from tesserae.params import Params, ParamsError, check_params, load_params, settings
from tesserae.params.compose import composed
from tesserae.params.defaults import KINDS
from tesserae.params.listed import with_listed_keys
from tesserae.params.reading import parsed, read_values
from tesserae.params.renamed import RENAMED
from tesserae.params.sizes import SIZES

ROOT = Path(__file__).parents[1]
PRESETS = sorted((ROOT / "presets").glob("*.yaml"))
DEFAULT = check_params({})

# A new key is a decision, for everyone reads the file that it stands in. Is there a value that is right for all, or a
# key that says the same? Where there is neither, add the name here.
KEYS = {
    "": "size seed precision compile effort threads scenes prepare vqgan codebook transformer sample highres "
        "evaluation",
    "scenes": "count size seed",
    "prepare": "source image_size fit holdout min_side max_rejected hub_config hub_split hub_revision value_ranges",
    "vqgan": "view column ignore_index channels channel_mult res_blocks patch refine attention "
             "attention_levels z_channels dropout quantizer codebook_size codebook_dim gradient "
             "codebook_init revive_after pixel_loss pixel_weight perceptual_weight perceptual_fraction "
             "perceptual_start codebook_weight commitment_weight entropy_weight kl_weight "
             "temperature_start temperature_end gan_loss gan_weight discriminator disc_start "
             "disc_channels disc_layers steps batch_size optimiser lr muon_lr codebook_lr betas "
             "disc_lr disc_betas warmup cooldown grad_clip flip zoom crop max_seconds log_every "
             "sample_every eval_every eval_images checkpoint_every",
    "codebook": "batch_size dictionary patches num_images",
    "transformer": "vqgan condition window order prefix_attention n_layer n_head n_embd dropout pkeep steps "
                   "batch_size strategy optimiser lr muon_lr betas weight_decay warmup cooldown grad_clip "
                   "flip max_seconds log_every sample_every eval_every eval_images checkpoint_every",
    "sample": "temperature top_k top_p stride per_class num_eval_samples completions neighbours num_conditions "
              "condition_image seed",
    "highres": "sizes per_size conditions_from temperature top_k top_p stride compare_stride tile seed",
    "evaluation": "inception_weights reference max_train_images",
}


def fields_of(place):
    """The fields of a block, by name."""
    if not place:
        return Params.model_fields
    annotation = Params.model_fields[place].annotation
    return (get_args(annotation)[1] if place in KINDS else annotation).model_fields


@pytest.mark.parametrize("place", KEYS)
def test_the_list_of_keys_is_frozen(place):
    new = set(fields_of(place)) - set(KEYS[place].split())
    assert not new, f"a new key is a decision: see KEYS in this file, then add {new} there"
    assert list(fields_of(place)) == KEYS[place].split()


@pytest.mark.parametrize("place", KEYS)
def test_every_key_has_a_comment(place):
    assert all(field.description or key == "seed" for key, field in fields_of(place).items())


def test_the_parameters_file_is_the_default():
    """`make preset NAME=default` writes it: who changes the schema runs that."""
    assert (ROOT / "params.yaml").read_text(encoding="utf-8") == composed({})
    assert load_params(ROOT / "params.yaml") == DEFAULT


def test_the_parameters_file_shows_what_applies():
    values = read_values(ROOT / "params.yaml")
    image, segmentation = values["vqgan"]["image"], values["vqgan"]["segmentation"]
    assert not {"temperature_start", "entropy_weight", "ignore_index"} & set(image)
    assert not {"perceptual_weight", "gan_loss", "disc_lr"} & set(segmentation)
    gumbel = composed({"vqgan": {"image": {"quantizer": "gumbel", "gan_loss": "none"}}})
    shown = parsed(gumbel, "")["vqgan"]["image"]
    assert "temperature_start" in shown
    assert not {"revive_after", "commitment_weight", "disc_start"} & set(shown)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_says_what_differs_and_composes(path):
    values = read_values(path)
    text = composed(values)
    assert parsed(text, path) == parsed(composed(parsed(text, path)), path), "composing again changes nothing"
    params = load_params(path)
    assert check_params(parsed(text, path)) == params
    assert set(params.sample) == set(params.transformer), "dvc.yaml makes a sample stage of each transformer"
    assert path.read_text(encoding="utf-8").startswith("# ")
    for place in leaves(values):
        assert outcome(without(values, place)) != params, f"{'.'.join(place)} is the default: leave it out"


def outcome(values):
    """The parameters, or None where some are not allowed."""
    with suppress(ParamsError):
        return check_params(values)


def leaves(values, path=()):
    """Every key that a file gives a value, but for those that make a block's kind."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*path, key))
        elif key not in ("view", "vqgan", "condition") and value != {}:
            yield (*path, key)


def without(values, place):
    key, *rest = place
    inner = {name: value for name, value in values.items() if name != key}
    return inner | {key: without(values[key], rest)} if rest else inner


def test_a_short_file_has_the_defaults(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("vqgan:\n  image: {steps: 7}\ntransformer:\n  mine: {vqgan: image}\n")
    params = load_params(path)
    assert params.vqgan["image"].steps == 7
    assert params.vqgan["image"].channels == DEFAULT.vqgan["image"].channels
    assert (list(params.vqgan), list(params.codebook)) == (["image"], ["image"])
    assert (list(params.transformer), list(params.sample), params.highres) == (["mine"], ["mine"], {})
    assert params.prepare == DEFAULT.prepare
    path.write_text("vqgan:\n  image: {}\n")
    assert list(load_params(path).sample) == ["class"], "what needs the other VQGAN is not there"


def test_views_that_are_no_pictures_need_one_key():
    """depth, edges: no LPIPS, no discriminator, a small network, without a word in the file."""
    blocks = {"image": {}, "d": {"view": "depth"}, "e": {"view": "edges"}}
    params = check_params({"vqgan": blocks})
    assert (params.vqgan["d"].column, params.vqgan["e"].column) == ("depth", "image")
    for name in "de":
        block = params.vqgan[name]
        assert (block.perceptual_weight, block.gan_loss, block.codebook_size) == (0.0, "none", 128)


OLD = """
vqgan:
  image: {perceptual_share: 0.5}
codebook:
  image: {views: 3}
transformer:
  layout: {vqgan: image, condition: [class], processes: ddp}
sample:
  layout: {measured: 20, elsewhere: mine.png, layouts: 2}
highres:
  layout: {layout: held_out}
evaluation: {bank: 50}
"""


def test_names_of_earlier_versions_are_accepted_with_one_note(tmp_path, capfd):
    path = tmp_path / "old.yaml"
    path.write_text(OLD)
    params = load_params(path)
    load_params(path)
    assert params.vqgan["image"].perceptual_fraction == 0.5
    assert params.codebook["image"].num_images == 3
    assert params.transformer["layout"].strategy == "ddp"
    sample = params.sample["layout"]
    assert (sample.num_eval_samples, sample.condition_image, sample.num_conditions) == (20, "mine.png", 2)
    assert params.highres["layout"].conditions_from == "held_out"
    assert params.evaluation.max_train_images == 50
    note = capfd.readouterr().err
    assert note.count("\n") == 1
    assert note.startswith(f"{path} has keys of an earlier version, which still work: ")
    for place, names in RENAMED.items():
        for old, new in names.items():
            assert f"{place}.{old} is {new} now" in note


def test_an_earlier_name_beside_its_present_one_is_refused():
    with pytest.raises(ParamsError, match=r"params: evaluation has bank and max_train_images, .*; keep max_train"):
        check_params({"evaluation": {"bank": 5, "max_train_images": 5}})


def test_a_file_of_an_earlier_version_gets_the_keys_that_dvc_reads():
    text = composed({"seed": 3}).replace("size: s ", "# size ")
    added, missing = with_listed_keys(text, "params.yaml")
    assert missing == ["size"]
    assert added.startswith(text.rstrip())
    assert check_params(parsed(added, "")) == check_params({"seed": 3})
    assert with_listed_keys(added, "params.yaml") == (added, [])
    with pytest.raises(ParamsError, match=r"leaves out transformer\.class\.vqgan, which dvc\.yaml lists; make"):
        with_listed_keys("transformer:\n  class: {}\n", "params.yaml")


@pytest.mark.parametrize(("smaller", "larger"), pairwise(SIZES))
def test_the_dial_turns_all_networks(smaller, larger):
    less, more = check_params({"size": smaller}), check_params({"size": larger})
    for kind, keys in {"vqgan": ("channels", "steps"), "transformer": ("n_embd", "n_layer", "steps")}.items():
        for name, block in getattr(less, kind).items():
            assert all(getattr(block, key) < getattr(getattr(more, kind)[name], key) for key in keys)


@pytest.mark.parametrize("size", SIZES)
def test_every_size_is_a_training_that_reaches_its_end(size):
    params = check_params({"size": size})
    for block in (*params.vqgan.values(), *params.transformer.values()):
        assert block.warmup < block.steps
        assert block.eval_every <= block.steps
        assert block.checkpoint_every <= block.steps
    image = params.vqgan["image"]
    assert image.perceptual_start < image.disc_start < image.steps


def test_a_given_key_comes_before_the_dial():
    params = check_params({"size": "l", "vqgan": {"image": {"steps": 5}}, "transformer": {}})
    assert params.vqgan["image"].steps == 5
    assert params.vqgan["image"].channels > DEFAULT.vqgan["image"].channels
    with pytest.raises(ParamsError, match="size = 'xl' is not allowed; it must be one of xs, s"):
        check_params({"size": "xl"})


@pytest.mark.parametrize("overrides", [
    {"vqgan.image.steps": 20}, {"vqgan": {"image": {"steps": 20}}}, {"vqgan.image": {"steps": 20}},
    "vqgan.image.steps: 20", "{vqgan: {image: {steps: 20}}}",
])
def test_overrides_replace_the_files_values(overrides):
    params = load_params(ROOT / "params.yaml", overrides)
    assert params.vqgan["image"].steps == 20
    assert params == load_params(ROOT / "params.yaml", settings(["vqgan.image.steps=20"]))
    assert params.vqgan["segmentation"] == DEFAULT.vqgan["segmentation"]


def test_overrides_of_a_dial_a_list_and_an_earlier_name():
    words = ["size=xs", "vqgan.image.betas=[0.5, 0.9]", "vqgan.image.lr=1e-4", "sample.layout.measured=4"]
    params = load_params(ROOT / "params.yaml", settings(words))
    assert params.vqgan["image"].steps < DEFAULT.vqgan["image"].steps
    assert (params.vqgan["image"].betas, params.vqgan["image"].lr) == ([0.5, 0.9], 1e-4)
    assert params.sample["layout"].num_eval_samples == 4


@pytest.mark.parametrize(("overrides", "words"), [
    ({"vqgan.imag.steps": 1}, r"overrides: vqgan\.imag is not in .*params\.yaml; did you mean image\?"),
    ({"vqgan.image.stepps": 1}, r"with overrides: vqgan\.image\.stepps is not a parameter; did you mean steps\?"),
    ({"vqgan.image.steps": 0}, r"with overrides: vqgan\.image\.steps = 0 is not allowed; .*at least 1"),
    ({"sed": 1}, r"with overrides: sed is not a parameter; did you mean seed\?"),
    ({"vqgan": 3}, r"overrides: vqgan = 3 is not allowed"),
    ("vqgan", r"overrides = 'vqgan' must be keys and values, such as"),
    ("a: b: c", r"overrides is not YAML: "),
    ([1], r"overrides = \[1\] must be keys and values"),
])
def test_a_wrong_override_is_named(overrides, words):
    with pytest.raises(ParamsError, match=words) as caught:
        load_params(ROOT / "params.yaml", overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("word", ["vqgan.image.steps", "=3"])
def test_a_setting_is_a_key_and_a_value(word):
    with pytest.raises(ParamsError, match="is no key=value: write --set"):
        settings([word])


@pytest.mark.parametrize("values", [
    {"compile": "on"}, {"prepare": {"source": "my pictures: #1", "value_ranges": {"depth": [0.0, 1e5]}}},
    {"vqgan": {"image": {"lr": 1.25e-5, "betas": [0.5, 0.9]}}, "transformer": {}}, {"prepare": {"source": "no"}},
])
def test_values_are_written_as_they_are_read(values):
    """Also by a parser of YAML 1.2 that is not ours, such as DVC's."""
    text = composed(values)
    read = YAML(typ="safe").load(text)
    assert check_params(read) == check_params(values)
    for key, value in values.items():
        if key == "prepare":
            assert all(read[key][inner] == each for inner, each in value.items())
