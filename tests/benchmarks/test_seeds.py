"""Settings over seeds: arms are read as they are meant, and the table says what was found and how surely."""

import json
import math
import subprocess
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest
from benchmarks import seeds
from scipy import stats

from tesserae.errors import TesseraeError
from tesserae.params import load_params

PARAMS = load_params(Path(__file__).parents[2] / "params.yaml")


def overridden(arm, **others):
    return seeds.overridden(PARAMS, "vqgan", "image", arm, others)


def test_an_arm_changes_its_keys_and_no_others():
    changed = overridden("codebook_size=64 channel_mult=[1,2] flip=false", seed=3).model_dump()
    plain = PARAMS.model_dump()
    assert changed.pop("seed") == 3
    del plain["seed"]
    block = plain["vqgan"]["image"]
    block |= {"codebook_size": 64, "channel_mult": [1, 2], "flip": False}
    assert changed == plain


def test_another_quantizer_has_its_own_values_unless_named():
    block = overridden("quantizer=lfq entropy_weight=0.5").vqgan["image"]
    assert (block.entropy_weight, block.commitment_weight, block.codebook_init) == (0.5, 0.25, "none")
    assert overridden("quantizer=ema revive_after=7").vqgan["image"].revive_after == 7


def test_a_wrong_arm_is_refused_before_anything_runs():
    with pytest.raises(TesseraeError, match=r"--arm names 'codebok_size', which vqgan.image lacks"):
        overridden("codebok_size=64")
    with pytest.raises(TesseraeError, match="no use for revive_after: 5"):
        overridden("quantizer=fsq revive_after=5")


def test_intervals_are_students():
    found = [0.31, 0.28, 0.35, 0.30]
    middle, half = seeds.interval(found)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(found), scale=stats.sem(found))
    assert (middle - half, middle + half) == pytest.approx((low, high))
    assert seeds.interval([1.0])[1] == math.inf


def test_the_table_pairs_seeds():
    found = {"a": [{"psnr": 20.0}, {"psnr": 22.0}, {"psnr": 24.0}],
             "b": [{"psnr": 20.5}, {"psnr": 22.6}, {"psnr": 24.7}]}
    text = seeds.table(found, ("psnr", "absent"))
    assert "absent" not in text
    assert f"| a | 22 ± {stdev([20, 22, 24]):.2g} |" in text
    middle, half = seeds.interval([0.5, 0.6, 0.7])
    assert f"| b | {middle:+.3g} ± {half:.2g} |" in text  # far narrower than either arm's own spread
    assert mean([0.5, 0.6, 0.7]) == pytest.approx(middle)


def test_a_run_that_is_there_is_not_run_again(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text(json.dumps({"psnr": 1.5}))
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("it ran"))
    assert seeds.run("vqgan", "image", PARAMS, tmp_path, tmp_path / "run") == {"psnr": 1.5}


def test_other_parameters_are_another_run(tmp_path):
    """Else the numbers of an older run would stand for them."""
    (tmp_path / "prepared").mkdir()
    def folder(arm="", stage="vqgan.image", **changes):
        return seeds.folder_of(tmp_path / "out", arm, stage, PARAMS.model_copy(update=changes), tmp_path)

    every = {folder(), folder(effort=2.0), folder(seed=1), folder(threads=1), folder(stage="vqgan.segmentation"),
             folder("lr=0.1"), folder("lr=01")}
    assert len(every) == 7
    assert folder() == folder()
    assert len(folder("lr=1.0e-3 " * 100).name) < 120


def test_a_base_without_the_pipelines_results_is_refused(tmp_path):
    (tmp_path / "prepared").mkdir()
    with pytest.raises(TesseraeError, match=r"codes does not exist: run make repro there first"):
        seeds.folder_of(tmp_path, "", "transformer.class", PARAMS, tmp_path)


def test_what_cannot_be_read_is_refused():
    with pytest.raises(TesseraeError, match=r"vqgan.nope is not in the parameters file: take one of image"):
        seeds.overridden(PARAMS, "vqgan", "nope", "lr=0.1", {})
    for arm in ("lr", "lr=0.1 batch_size", "lr= 0.1"):
        with pytest.raises(TesseraeError, match="cannot be read: write key=value"):
            overridden(arm)
    assert overridden("channel_mult=[1, 2] lr=0.1").vqgan["image"].channel_mult == [1, 2]
