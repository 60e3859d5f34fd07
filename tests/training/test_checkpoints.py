"""Checkpoints: what is written comes back, and neither a crash nor a changed byte goes unnoticed."""

import hashlib
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tesserae.errors import DiskFullError
from tesserae.files import replace_folder
from tesserae.fingerprints import fingerprint
from tesserae.training import checkpoints
from tesserae.training.checkpoints import (
    flatten,
    load_checkpoint,
    save_checkpoint,
    steps_in,
    unflatten,
)

leaves = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**40), 2**40), st.floats(allow_nan=False), st.text(max_size=5),
    st.lists(st.integers(0, 9), max_size=4).map(torch.tensor), st.just(torch.randn(2, 3)),
    st.just(torch.tensor(True)), st.just(torch.randn(3).bfloat16()),
)
keys = st.one_of(st.text(max_size=4), st.integers(0, 9))
nests = st.recursive(leaves, lambda inner: st.one_of(st.lists(inner, max_size=3),
                                                     st.dictionaries(keys, inner, max_size=3)))


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@given(nests)
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_flatten_and_back(nest):
    assert same(unflatten(*flatten(nest)), nest)


def test_paths_of_tensors_do_not_collide():
    nest = {"a/b": torch.zeros(1), "a": {"b": torch.ones(1)}}
    assert same(unflatten(*flatten(nest)), nest)


def trained(steps=2):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.BatchNorm1d(5))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.1, betas=(0.5, 0.9), fused=True)
    for _ in range(steps):
        step(model, optimiser)
    return model, optimiser


def step(model, optimiser):
    optimiser.zero_grad()
    model(torch.arange(12.0).reshape(3, 4).sin()).square().sum().backward()
    optimiser.step()


def test_a_model_with_its_optimiser_goes_on_with_the_same_bits(tmp_path):
    model, optimiser = trained()
    save_checkpoint(tmp_path, 2, {"model": model.state_dict(), "optimiser": optimiser.state_dict()})
    step(model, optimiser)
    again, again_optimiser = trained(0)
    found, state = load_checkpoint(tmp_path, at_most=10)
    assert found == 2
    again.load_state_dict(state["model"])
    again_optimiser.load_state_dict(state["optimiser"])
    step(again, again_optimiser)
    assert same(dict(again.state_dict()), dict(model.state_dict()))


def test_what_is_saved_is_of_that_moment(tmp_path):
    values = torch.zeros(3)
    save_checkpoint(tmp_path, 1, {"x": values})
    values += 1
    assert torch.equal(load_checkpoint(tmp_path, 1)[1]["x"], torch.zeros(3))


def two_checkpoints(folder: Path) -> Path:
    for number in (1, 2):
        save_checkpoint(folder, number, {"x": torch.full((50,), float(number)), "n": number})
    return folder


@pytest.mark.parametrize("suffix", ["safetensors", "json"])
@pytest.mark.parametrize("share", [place / 20 for place in range(20)] + [0.999])
def test_a_cut_file_gives_the_one_before(tmp_path, suffix, share):
    path = two_checkpoints(tmp_path) / f"step-00000002.{suffix}"
    content = path.read_bytes()
    path.write_bytes(content[:int(len(content) * share)])
    said = []
    found, state = load_checkpoint(tmp_path, 9, said.append)
    assert (found, state["n"], state["x"][0].item()) == (1, 1, 1.0)
    assert len(said) == 1
    assert "step-00000002" in said[0]


@pytest.mark.parametrize("suffix", ["safetensors", "json"])
@pytest.mark.parametrize("share", [place / 12 for place in range(12)] + [0.99])
def test_a_changed_byte_is_noticed(tmp_path, suffix, share):
    path = two_checkpoints(tmp_path) / f"step-00000002.{suffix}"
    content = bytearray(path.read_bytes())
    content[int(len(content) * share)] ^= 1
    path.write_bytes(content)
    said = []
    assert load_checkpoint(tmp_path, 9, said.append)[0] == 1
    assert len(said) == 1


def test_a_changed_number_in_the_text_part_is_noticed(tmp_path):
    """It is JSON as before, and nothing but its own checksum could tell."""
    path = two_checkpoints(tmp_path) / "step-00000002.json"
    text = path.read_text()
    assert text.count('{"value": 2}') == 1
    path.write_text(text.replace('{"value": 2}', '{"value": 3}'))
    said = []
    assert load_checkpoint(tmp_path, 9, said.append)[0] == 1
    assert "step-00000002.safetensors is damaged (its checksum does not match)" in said[0]


def test_the_files_of_another_step_are_noticed(tmp_path):
    two_checkpoints(tmp_path)
    for suffix in ("safetensors", "json"):
        (tmp_path / f"step-00000001.{suffix}").replace(tmp_path / f"step-00000005.{suffix}")
    assert load_checkpoint(tmp_path, 9, lambda _: None)[0] == 2


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("write", [lambda bomb, path: path.write_bytes(pickle.dumps(bomb)),
                                   lambda bomb, path: torch.save({"x": bomb}, path)], ids=["pickle", "torch"])
def test_a_pickle_is_never_opened(tmp_path, write):
    """Not even one whose checksums are all right."""
    path = two_checkpoints(tmp_path) / "step-00000002.safetensors"
    mark = tmp_path / "exploded"
    write(Bomb(mark), path)
    head = path.with_suffix(".json")
    record = json.loads(head.read_text())
    del record["self"]
    record["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    head.write_text(json.dumps({**record, "self": checkpoints._seal(record)}))
    said = []
    assert load_checkpoint(tmp_path, 9, said.append)[0] == 1
    assert len(said) == 1
    assert not mark.exists()


def test_a_missing_file_of_the_pair(tmp_path):
    (two_checkpoints(tmp_path) / "step-00000002.safetensors").unlink()
    assert load_checkpoint(tmp_path, 9, lambda _: None)[0] == 1
    (tmp_path / "step-00000001.json").unlink()
    assert load_checkpoint(tmp_path, 9, lambda _: None) is None


@pytest.mark.parametrize("call", range(8))
def test_a_crash_at_any_call_of_the_system_leaves_a_whole_checkpoint(tmp_path, monkeypatch, call):
    """`kill -9` has no handlers to run: BaseException passes by the clean-up for ordinary errors."""

    class KilledError(BaseException):
        pass

    save_checkpoint(tmp_path, 1, {"n": 1, "x": torch.ones(5)})
    made = 0

    def dying(function):
        def wrapped(*arguments, **options):
            nonlocal made
            made += 1
            if made > call:
                raise KilledError
            return function(*arguments, **options)
        return wrapped

    monkeypatch.setattr(os, "replace", dying(os.replace))
    monkeypatch.setattr(os, "fsync", dying(os.fsync))
    monkeypatch.setattr(checkpoints, "save_file", dying(checkpoints.save_file))
    try:
        save_checkpoint(tmp_path, 2, {"n": 2, "x": torch.ones(5)})
    except KilledError:
        survived = False
    else:
        survived = True
    monkeypatch.undo()
    said = []
    step_number, state = load_checkpoint(tmp_path, 9, said.append)
    assert state["n"] == step_number
    assert not said
    assert step_number == (2 if survived or call == 6 else 1)
    save_checkpoint(tmp_path, 3, {"n": 3})
    assert load_checkpoint(tmp_path, 9)[0] == 3


def test_a_full_disk_is_one_sentence_and_spoils_nothing(tmp_path, full_disk, monkeypatch):
    two_checkpoints(tmp_path)
    full_disk(tmp_path)
    with pytest.raises(DiskFullError, match=r"^The disk is full, .*step-00000003.safetensors could not be written: "
                                            r"free some space, then run again\.$"):
        save_checkpoint(tmp_path, 3, {"n": 3, "x": torch.ones(5)})
    monkeypatch.undo()
    assert load_checkpoint(tmp_path, 9)[0] == 2
    assert not list(tmp_path.glob(".*"))
    save_checkpoint(tmp_path, 3, {"n": 3})
    assert load_checkpoint(tmp_path, 9)[0] == 3


def test_a_disk_that_fills_up_with_the_text_part_spoils_nothing(tmp_path, full_disk, monkeypatch):
    two_checkpoints(tmp_path)
    full_disk(tmp_path / ".step-00000003.json")
    with pytest.raises(DiskFullError):
        save_checkpoint(tmp_path, 3, {"n": 3, "x": torch.ones(5)})
    monkeypatch.undo()
    assert steps_in(tmp_path) == [1, 2]
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk_leaves_a_folder_as_it_was(tmp_path, full_disk, monkeypatch):
    source, target = tmp_path / "best", tmp_path / "models"
    for folder, text in ((source, "new"), (target, "old")):
        folder.mkdir()
        (folder / "weights").write_text(text)
    full_disk(target)
    with pytest.raises(DiskFullError, match="models could not be written"):
        replace_folder(source, target)
    monkeypatch.undo()
    assert (target / "weights").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "models"]


def test_the_newest_stay(tmp_path):
    (tmp_path / ".step-00000004.safetensors.77").touch()  # a kill left it
    for number in range(1, 6):
        save_checkpoint(tmp_path, number, {"n": number}, keep=2)
    assert steps_in(tmp_path) == [4, 5]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json"] * 2 + [".safetensors"] * 2


def test_fewer_steps_than_before_still_leave_a_checkpoint(tmp_path):
    for number in (100, 150):
        save_checkpoint(tmp_path, number, {"n": number})
    assert load_checkpoint(tmp_path, at_most=50) is None
    for number in (25, 50):
        save_checkpoint(tmp_path, number, {"n": number})
    assert steps_in(tmp_path) == [25, 50]
    assert load_checkpoint(tmp_path, at_most=200)[0] == 50


def test_replace_folder(tmp_path):
    source, target = tmp_path / "new", tmp_path / "models" / "x"
    (source / "inner").mkdir(parents=True)
    (source / "inner" / "a").write_text("new")
    target.mkdir(parents=True)
    (target / "stale").write_text("old")
    replace_folder(source, target)
    assert [path.relative_to(target).as_posix() for path in sorted(target.rglob("*"))] == ["inner", "inner/a"]
    assert (source / "inner" / "a").exists()
    assert [path.name for path in target.parent.iterdir()] == ["x"]


def test_fingerprint():
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert fingerprint({"b": [1, 2]}) != fingerprint({"b": [2, 1]})
