"""A training's parameters: its length, and what it ends before."""

import pytest

from tesserae.params import load_params
from tesserae.training_params import LENGTHS, lengthened, never_reached


@pytest.mark.parametrize("effort", [1, 3, 2.5, 0.01])
def test_effort_lengthens_all_that_is_counted_in_steps(pytestconfig, effort):
    params, said = load_params(pytestconfig.rootpath / "tests/plain.yaml"), []
    for block in (params.vqgan["image"], params.transformer["class"]):
        found = lengthened(block, effort, said.append)
        assert found.steps >= 1
        for name in LENGTHS:
            before = getattr(block, name, None)
            if before is not None:
                assert getattr(found, name) == max(min(1, before), round(before * effort))
        assert found.log_every == block.log_every
    assert len(said) == (0 if effort == 1 else 2)


def test_what_a_training_ends_before_is_said(pytestconfig):
    block = load_params(pytestconfig.rootpath / "params.yaml").vqgan["image"]
    assert never_reached(block) == []
    assert never_reached(block.model_copy(update={"steps": 900})) == [
        "disc_start = 900 is beyond the last of 900 steps, so the discriminator does not join."]
    said = never_reached(block.model_copy(update={"steps": 49, "gan_loss": "none"}))
    assert [sentence.partition(" ")[0] for sentence in said] == ["warmup", "perceptual_start"]
    other = load_params(pytestconfig.rootpath / "params.yaml").transformer["class"]
    assert never_reached(other.model_copy(update={"steps": other.warmup})) == []
    (sentence,) = never_reached(other.model_copy(update={"steps": other.warmup - 1}))
    assert sentence.endswith("so the learning rate does not reach its full value.")
