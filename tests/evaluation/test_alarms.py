"""Alarms: each is raised by what it names, once, and by nothing that a sound training does."""

import math
from pathlib import Path

import pytest

from tesserae.codebook_params import NEUTRAL, USED
from tesserae.errors import TesseraeError
from tesserae.evaluation.alarms import check_exploded, codebook_remedy, vqgan_alarms
from tesserae.params import VQGANParams, load_params

K, REMEDY = 256, "a lower codebook_lr"


def rows(count, first=0, **terms):
    sound = {"perplexity": 150.0, "usage": 0.9}
    return [{"step": 20 * (first + number + 1), **sound, **terms} for number in range(count)]


JUDGED = {"disc": 0.4, "logits_real": 0.3, "logits_fake": -0.2}


def test_a_sound_training_raises_none():
    history = rows(5) + rows(5, first=5, **JUDGED) + [{"step": 205, "val_lpips": 0.3, "disc": math.nan}]
    assert vqgan_alarms(history, K, REMEDY) == []
    assert vqgan_alarms([], K, REMEDY) == []


@pytest.mark.parametrize(("terms", "word", "remedy"), [
    ({"usage": 0.05}, "codebook has collapsed: 5% of its 256 codes", "codebook_lr"),
    ({"perplexity": 3.0}, "as evenly as 3.0", "codebook_lr"),
    ({"disc": 0.001}, "discriminator has won", "disc_lr"),
    ({"disc": 1.0, "logits_real": 0.5, "logits_fake": 0.5}, "no better than chance: its loss is 1,", "disc_lr"),
])
def test_what_goes_wrong_is_named_when_it_has_gone_on(terms, word, remedy):
    bad = rows(10, first=4, **JUDGED | terms)
    for short in (1, 2):
        assert vqgan_alarms(rows(4) + bad[:short], K, REMEDY) == []
    alarm, = vqgan_alarms(rows(4) + bad, K, REMEDY)
    assert alarm.step == bad[2]["step"]
    assert word in str(alarm)
    assert remedy in str(alarm)


def test_a_second_collapse_is_said_again():
    dead = {"usage": 0.01}
    history = rows(3, **dead) + rows(2, first=3) + rows(3, first=5, **dead)
    assert [alarm.step for alarm in vqgan_alarms(history, K, "revive_after: 50")] == [60, 160]
    assert "revive_after" in vqgan_alarms(history, K, "revive_after: 50")[0].sentence


def test_an_explosion_is_measured_by_the_first_loss():
    history = [{"step": 20, "rec": 2.0, "commitment": 0.01}]
    check_exploded(40, {"rec": 19.0, "commitment": 15.0}, history, ("rec", "commitment"))
    check_exploded(40, {"rec": 1e9}, [], ("rec",))
    for name in ("rec", "commitment"):
        with pytest.raises(TesseraeError, match=f"step 40: the term '{name}' is 21"):
            check_exploded(40, {"rec": 1.0, "commitment": 1.0, name: 21.0}, history, ("rec", "commitment"))


def test_lpips_joining_is_no_explosion():
    before = [{"step": 20, "rec": 0.1}, {"step": 40, "rec": 0.05}]
    mixed, joined = {"rec": 0.5, "perceptual": 8.95}, {"rec": 9.0, "perceptual": 8.95}
    check_exploded(60, mixed, before, ("rec",))
    check_exploded(80, joined, [*before, {"step": 60, **mixed}], ("rec",))
    history = [*before, {"step": 60, **mixed}, {"step": 80, **joined}]
    check_exploded(100, {"rec": 89.0, "perceptual": 88.0}, history, ("rec",))
    with pytest.raises(TesseraeError, match="step 100"):
        check_exploded(100, {"rec": 91.0, "perceptual": 90.0}, history, ("rec",))
    with pytest.raises(TesseraeError, match="step 60"):
        check_exploded(60, {"rec": 1.1}, before, ("rec",))
    with pytest.raises(TesseraeError, match="step 40"):  # with LPIPS from the first step, the first row counts
        check_exploded(40, {"rec": 91.0, "perceptual": 90.0}, [{"step": 20, **joined}], ("rec",))


BLOCK = load_params(Path(__file__).parents[2] / "params.yaml").vqgan["image"]


def test_advice_is_of_what_the_quantizer_has_a_use_for():
    """An alarm never names a parameter that the quantizer ignores, nor one that is set so already."""
    values = BLOCK.model_dump()
    for quantizer, used in USED.items():
        block = BLOCK.model_validate(values | dict.fromkeys(NEUTRAL, "auto") | {"quantizer": quantizer})
        remedy = codebook_remedy(block)
        assert remedy
        for key in NEUTRAL:
            assert key in used or key not in remedy
    careless = BLOCK.model_copy(update={"revive_after": 0, "codebook_init": "uniform"})
    assert codebook_remedy(careless) == "revive_after: 50 and codebook_init: data"
    assert "codebook_init: data" not in codebook_remedy(careless.model_copy(update={"codebook_init": "data"}))


def judged(losses, real=0.02, fake=0.01, **terms):
    return [row | {"disc": loss, "logits_real": real, "logits_fake": fake, **terms}
            for row, loss in zip(rows(len(losses)), losses)]


SLOW = (1.01, 1.01, 1.0, 0.99, 0.99, 0.98, 0.97, 0.97, 0.96)  # a PatchGAN that had 180 steps


@pytest.mark.parametrize(("history", "gan_loss"), [
    (judged(SLOW), "hinge"),
    (judged(SLOW, disc_accuracy=0.51), "hinge"),
    (judged((1.3, 1.2, 1.25), real=0.9, fake=0.6, disc_accuracy=0.5), "hinge"),  # far from zero, and no better
    (judged((0.70, 0.69, 0.68), disc_accuracy=0.5), "vanilla"),
])
def test_a_discriminator_no_better_than_chance_is_named(history, gan_loss):
    alarm, = vqgan_alarms(history, K, REMEDY, gan_loss)
    assert alarm.step == history[2]["step"]
    assert "no better than chance" in alarm.sentence
    assert ("right about 5" in alarm.sentence) == ("disc_accuracy" in history[0])
    named = [word.strip(",.:;") for word in alarm.sentence.split() if "disc_" in word or word == "discriminator:"]
    assert set(named) == {"discriminator", "disc_lr", "disc_channels"} <= VQGANParams.model_fields.keys()
    on_features, = vqgan_alarms(history, K, REMEDY, gan_loss, "features")
    assert "discriminator: features" not in on_features.sentence


@pytest.mark.parametrize(("history", "gan_loss"), [
    (judged((1.0, 0.93, 0.7, 0.5, 0.5)), "hinge"),  # it joins in the first row, untrained, and learns
    (judged((1.0, 1.0, 0.9, 1.0, 1.0, 0.9)), "hinge"),
    (judged((1.1, 1.1, 1.1, 1.1), disc_accuracy=0.8), "hinge"),  # right about most, and far off on the rest
    (judged((0.69,) * 5, disc_accuracy=0.75), "hinge"),  # log 2 is chance for the other loss
    (judged((0.6,) * 5), "vanilla"),
    (judged((0.8,) * 5, real=-0.3, fake=-0.7, disc_accuracy=0.5), "hinge"),  # all below zero, and yet apart
    (rows(3) + judged((0.5,) * 5, disc_accuracy=math.nan), "hinge"),
])
def test_a_discriminator_that_learns_raises_none(history, gan_loss):
    assert vqgan_alarms(history, K, REMEDY, gan_loss) == []


def test_one_that_wins_after_it_was_blind_is_two_alarms():
    history = judged((*SLOW[:4], 0.5, 0.01, 0.01, 0.01))
    assert [(alarm.step, "has won" in alarm.sentence) for alarm in vqgan_alarms(history, K, REMEDY)] == [
        (60, False), (160, True)]
