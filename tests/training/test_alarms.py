"""Alarms: each is raised by what it names, once, and by nothing that a sound training does."""

import math

import pytest

from tesserae.errors import TesseraeError
from tesserae.training.alarms import check_exploded, vqgan_alarms

K = 256


def rows(count, first=0, **terms):
    sound = {"perplexity": 150.0, "usage": 0.9}
    return [{"step": 20 * (first + number + 1), **sound, **terms} for number in range(count)]


JUDGED = {"disc": 0.4, "logits_real": 0.3, "logits_fake": -0.2}


def test_a_sound_training_raises_none():
    history = rows(5) + rows(5, first=5, **JUDGED) + [{"step": 205, "val_lpips": 0.3, "disc": math.nan}]
    assert vqgan_alarms(history, K, revived=True) == []
    assert vqgan_alarms([], K, revived=True) == []


@pytest.mark.parametrize(("terms", "word", "remedy"), [
    ({"usage": 0.05}, "codebook has collapsed: 5% of its 256 codes", "codebook_lr"),
    ({"perplexity": 3.0}, "as evenly as 3.0", "codebook_lr"),
    ({"disc": 0.001}, "discriminator has won", "disc_lr"),
    ({"logits_real": 0.5, "logits_fake": 0.5}, "discriminator has collapsed", "twice the disc_lr"),
])
def test_what_goes_wrong_is_named_when_it_has_gone_on(terms, word, remedy):
    bad = rows(10, first=4, **JUDGED | terms)
    for short in (1, 2):
        assert vqgan_alarms(rows(4) + bad[:short], K, revived=True) == []
    alarm, = vqgan_alarms(rows(4) + bad, K, revived=True)
    assert alarm.step == bad[2]["step"]
    assert word in str(alarm)
    assert remedy in str(alarm)


def test_a_second_collapse_is_said_again():
    dead = {"usage": 0.01}
    history = rows(3, **dead) + rows(2, first=3) + rows(3, first=5, **dead)
    assert [alarm.step for alarm in vqgan_alarms(history, K, revived=False)] == [60, 160]
    assert "revive_after" in vqgan_alarms(history, K, revived=False)[0].sentence


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
