"""The speed suite on tiny sizes: it hands weights over, refuses what differs, takes turns, prints one table."""

import functools
import importlib
import json
import sys

import pytest
import torch
from benchmarks import speed, worker
from benchmarks.cases import CASES, DEFAULT, SAME, STRIDE, Plan
from benchmarks.configs import code_side
from benchmarks.ours.sliding import middle
from benchmarks.reference import keep_likeliest
from benchmarks.table import Row, mfu, table
from benchmarks.turns import Found
from benchmarks.work import check_equal
from standin import lay_out

from tesserae.errors import TesseraeError
from tesserae.models.perceptual import LPIPS
from tesserae.sampling.sliding_window import blocks_of, wavefronts

torch.set_num_threads(1)
load_once = functools.cache(LPIPS.load)
STOOD_IN = ("taming", "main", "pytorch_lightning", "transformers")


@pytest.fixture(autouse=True)
def _weights_read_once(monkeypatch):
    monkeypatch.setattr(LPIPS, "load", load_once)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A stand-in for the reference; afterwards this process is as it was."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    held = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in STOOD_IN}
    yield lay_out(tmp_path / "checkout")
    for name in [name for name in sys.modules if name.split(".")[0] in STOOD_IN]:
        del sys.modules[name]
    sys.modules |= held


def plan(case, folder, side="ours", mode=SAME, reference=None):
    kind = CASES[case].kind
    return Plan(case, kind, side, mode, CASES[case].quick, 1, "cpu", reference and str(reference),
                str(folder / "shared.pt"))


def answers(plan, *words):
    """What a worker says when it is asked these words."""
    said = []
    worker.serve(plan, ["prepare", *words], said.append)
    return said


def test_every_case_has_both_sides():
    for case in CASES.values():
        for side in ("ours", "theirs"):
            assert importlib.import_module(f"benchmarks.{side}.{case.kind}").prepare
        assert set(case.size) == set(case.quick), case.name


@pytest.mark.parametrize("case", ["vqgan-small", "transformer-small", "sampling-4", "sliding-32", "sliding-64-layout",
                                  "nearest-1024"])
def test_both_sides_agree_on_the_weights_of_the_reference(case, checkout, tmp_path):
    theirs, go, whole = answers(plan(case, tmp_path, "theirs", reference=checkout), "go", "finish")
    assert go["seconds"] > 0
    assert whole["seconds"] == [go["seconds"]]
    assert whole["peak_bytes"] > theirs["library_bytes"] / 2
    ours, go, _ = answers(plan(case, tmp_path, reference=checkout), "go", "finish")
    assert go["seconds"] > 0
    assert ours["flops"] > 0
    assert ours["amount"] >= 1
    assert ours["note"].startswith("fp32")


@pytest.mark.parametrize(("case", "mode"), [("vqgan-small", DEFAULT), ("transformer-small", DEFAULT),
                                            ("sampling-1", SAME), ("sliding-32", STRIDE), ("nearest-16384", SAME)])
def test_ours_alone(case, mode, tmp_path):
    ours, go = answers(plan(case, tmp_path, mode=mode), "go")
    assert ours["amount"] >= 1
    assert go["seconds"] > 0


def test_the_network_of_the_case_is_what_is_trained(checkout, tmp_path):
    size = CASES["transformer-small"].quick
    answers(plan("transformer-small", tmp_path, "theirs", reference=checkout))
    for reference in (None, checkout):
        ours, = answers(plan("transformer-small", tmp_path, reference=reference))
        tokens, width = size["batch_size"] * code_side(size) ** 2, size["n_embd"]
        weights = size["n_layer"] * 12 * width**2 + width * size["codebook_size"]  # of matrix products
        attention = 2 * size["n_layer"] * tokens * code_side(size) ** 2 * width
        assert ours["flops"] == 3 * 2 * (tokens * weights + attention)  # there, and back to inputs and to weights


def test_codes_are_counted(tmp_path):
    size = CASES["sampling-1"].quick
    assert answers(plan("sampling-1", tmp_path))[0]["amount"] == size["batch_size"] * size["side"] ** 2
    whole = CASES["sliding-32-small"].quick["map_side"] ** 2
    assert answers(plan("sliding-32-small", tmp_path))[0]["amount"] == whole
    part, = answers(plan("sliding-32", tmp_path))
    assert 0.1 * whole < part["amount"] < 0.8 * whole
    assert "1 of 2 wavefronts" in part["note"]


@pytest.mark.parametrize("case", [name for name in CASES if name.startswith("sliding")])
def test_a_part_of_a_map_is_like_its_middle(case):
    """As many codes as it says, next to each other, with those of the left and right edge among them."""
    size = CASES[case].size
    shape, window = (size["map_side"],) * 2, (size["side"],) * 2
    every = wavefronts(blocks_of(shape, window), shape, window)
    assert middle(every, 1) == every
    part = middle(every, size["every_wave"])
    codes = sum(block.cols for wavefront in part for block in wavefront)
    assert codes * size["every_wave"] == pytest.approx(shape[0] * shape[1], rel=0.6)
    first = every.index(part[0])
    assert part == every[first:first + len(part)]


def test_what_differs_is_refused():
    theirs = {"logits": torch.linspace(-1, 1, 50), "indices": torch.arange(50)}
    check_equal("a case", {name: value.clone() for name, value in theirs.items()}, theirs)
    check_equal("a case", {"logits": theirs["logits"] + 1e-5}, theirs)
    for ours, words in (({"logits": theirs["logits"] * 1.01}, "our logits differs by 0.01 of its range"),
                        ({"logits": theirs["logits"][:5]}, "has the shape"),
                        ({"indices": theirs["indices"] // 2}, "is equal in")):
        with pytest.raises(TesseraeError, match=words) as error:
            check_equal("a case", ours, theirs)
        assert str(error.value).startswith("a case is not timed")


def test_likeliest_are_kept():
    kept = keep_likeliest(torch.tensor([[0.0, 3.0, 1.0, 2.0]]), top_k=2, top_p=1.0)
    assert kept.tolist() == [[-torch.inf, 3.0, -torch.inf, 2.0]]


def row(theirs=True):
    ours = Found(amount=2, flops=4e9, note="fp32", bf16=False, library_bytes=1, seconds=[3.0, 1.0, 2.0], peak_bytes=2)
    other = Found(amount=1, flops=0, note="", bf16=False, library_bytes=1, seconds=[4.0, 4.0, 9.0], peak_bytes=2)
    return Row("a case", "step", SAME, ours, other if theirs else None)


def test_ratio_is_of_medians_for_a_unit():
    assert row().ratio == 4.0
    peak = {"fp32": 8e9, "bf16": 1e9}
    assert mfu(row(), row().ours, peak) == 0.25
    assert mfu(row(), row().theirs, peak) == 0.25 / 4
    assert "4.00" in table([row()], peak)
    assert table([row(False)], peak).count(" - ") == 4


@pytest.mark.parametrize(("words", "said"), [
    (["--cases", "no-such"], "no case 'no-such'"), (["--rounds", "0"], "at least 1"),
    (["--reference", "nowhere"], "give a checkout of the reference"),
])
def test_what_cannot_be_run_is_said(words, said, capsys):
    with pytest.raises(SystemExit):
        speed.parse(words)
    assert said in capsys.readouterr().err


def test_one_table_of_two_processes_that_take_turns(checkout, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speed, "matrix_peak", lambda *_: {"fp32": 1e9, "bf16": 2e9})
    out = tmp_path / "speed.json"
    speed.main(["--quick", "--cases", "nearest-1024", "--rounds", "2", "--threads", "1", "--out", str(out),
                "--reference", str(checkout)])
    shown = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in shown if line.startswith("|")][2:] == ["nearest-1024"]
    found, = json.loads(out.read_text())["rows"]
    for side in ("ours", "theirs"):
        assert len(found[side]["seconds"]) == 2
        assert found[side]["peak_bytes"] > 0
    assert found["ratio"] > 0
