"""One run at a time makes a prepared set."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from tesserae import locks
from tesserae.data.prepare import prepare
from tesserae.errors import TesseraeError
from tesserae.locks import held, run_of
from tesserae.params import PrepareParams

PLAIN = Path(__file__).parents[1] / "plain.yaml"
HOLD = """
from pathlib import Path
from tesserae.locks import held
with held(Path("prepared"), "a test", {run!r}):
    print(1, flush=True)
    input()
"""


def holding(folder, run=None):
    process = subprocess.Popen([sys.executable, "-c", HOLD.format(run=run)], cwd=folder, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE)
    process.stdout.readline()
    return process


@pytest.fixture
def other(tmp_path):
    """Another process that holds the set."""
    process = holding(tmp_path)
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def project(tmp_path):
    (tmp_path / "data").mkdir()
    for number in range(1600):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / f"{number:04d}.png")
    yaml = YAML(typ="safe")
    values = yaml.load(PLAIN.read_text())
    values["prepare"]["image_size"] = 64
    yaml.dump(values, tmp_path / "params.yaml")
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    return tmp_path


def params():
    return PrepareParams(source="data", image_size=16, fit="cover", holdout=0.3, min_side=8, max_rejected=0.5)


def shards(folder, *launcher):
    return subprocess.Popen([sys.executable, *launcher, "-m", "tesserae.data.prepare"], cwd=folder, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_the_second_says_who_is_first_and_what_to_do(tmp_path, other, monkeypatch):
    monkeypatch.setattr(locks, "WAIT_SECONDS", 0.2)
    with pytest.raises(TesseraeError) as caught:
        prepare(tmp_path / "data", tmp_path / "prepared", params(), 0)
    assert re.fullmatch(
        rf"{tmp_path.name}/prepared is being written by a test \(process {other.pid}, started by process "
        rf"{os.getpid()}, at work since [\d-]+ [\d:]+\): wait until it ends or stop it with kill {other.pid}, then "
        r"run again\.", str(caught.value))
    with held(tmp_path / "other set", "a test"):
        pass


def test_processes_of_one_run_hold_it_together_and_others_do_not(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "WAIT_SECONDS", 0.2)
    first, second = holding(tmp_path, "run 1"), holding(tmp_path, "run 1")
    try:
        for left in (first, second):
            for run in (None, "run 2"):
                with pytest.raises(TesseraeError, match="is being written by a test"), \
                        held(tmp_path / "prepared", "another", run):
                    pytest.fail("both have it")
            left.communicate(b"\n")
        with held(tmp_path / "prepared", "another"):
            pass
    finally:
        first.kill()
        second.kill()


def test_runs_of_one_process_have_no_name():
    assert run_of({}) is run_of({"WORLD_SIZE": "1", "MASTER_PORT": "5"}) is None
    names = [run_of({"WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": port}) for port in ("5", "6")]
    assert len({*names, None}) == 3


def test_two_at_once_never_harm_each_other(project):
    both = [shards(project), shards(project)]
    ended = [(*process.communicate(timeout=120), process.returncode) for process in both]
    for out, error, code in ended:
        assert "Traceback" not in error
        if code:
            assert re.fullmatch(rf"{project.name}/prepared is being written by python -m tesserae\.data\.prepare "
                                r"\(process .*\n", error)
        else:
            assert "1,600 pictures in 4 shards" in out
    assert 0 in [code for *_, code in ended]


def test_torchrun_is_refused_as_a_whole_while_another_works(project):
    process = holding(project)
    try:
        run = shards(project, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
        _, error = run.communicate(timeout=120)
        assert run.returncode
        assert f"{project.name}/prepared is being written by a test (process {process.pid}" in error
        assert not (project / ".prepared.partial").exists()
    finally:
        process.kill()
