"""What a killed dvc leaves is put right, and nothing else is touched."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tesserae.pipeline.repair import KEPT, keep_lock, repair

WHOLE = ("schema: '2.0'\nstages:\n  prepare:\n    cmd: python x.py\n    outs:\n    - path: prepared\n"
         "      md5: 0123.dir\n")


@pytest.fixture
def root(tmp_path):
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    (tmp_path / "dvc.yaml").touch()
    return tmp_path


def rwlock(root, *holders):
    path = root / ".dvc/tmp/rwlock"
    writes = {f"/{number}": each for number, each in enumerate(holders)}
    path.write_text(json.dumps({"read": {"/a": list(holders)}, "write": writes}))
    return path


def test_where_all_is_well_nothing_happens(root):
    assert repair(root) == []
    (root / "dvc.lock").write_text(WHOLE)
    own = {"pid": os.getpid(), "cmd": " ".join(sys.orig_argv[-2:])}
    path = rwlock(root, own)
    before = path.read_text()
    assert repair(root) == []
    assert (path.read_text(), (root / "dvc.lock").read_text()) == (before, WHOLE)


REMOVED = ["A killed dvc had left its locks in .dvc/tmp/rwlock: they are removed."]


@pytest.mark.parametrize("half", ["", "{", '{"read": {"/a": [{"pid": 1', '{"read": 3}', '{"read": {"/a": [{}]}}'])
def test_half_of_the_locks_is_removed(root, half):
    (root / ".dvc/tmp/rwlock").write_text(half)
    assert repair(root) == REMOVED
    assert not (root / ".dvc/tmp/rwlock").exists()
    assert repair(root) == []


def test_locks_of_the_dead_are_removed_and_those_of_the_living_stay(root):
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    living = {"pid": os.getpid(), "cmd": " ".join(sys.orig_argv[-2:])}
    dead = {"pid": child.pid, "cmd": "dvc repro"}
    another = {"pid": os.getppid(), "cmd": "/usr/bin/dvc repro vqgan@image"}  # the number is taken again
    path = rwlock(root, living, dead)
    before = path.read_text()
    assert repair(root) == []
    assert path.read_text() == before
    rwlock(root, dead, another)
    assert repair(root) == REMOVED
    assert not path.exists()


@pytest.mark.parametrize("length", range(0, len(WHOLE) - 12, 9))
def test_half_of_the_lock_file_is_whole_again(root, length):
    (root / "dvc.lock").write_text(WHOLE)
    keep_lock(root)
    half = (WHOLE + "  vqgan@image:\n    cmd: y\n")[:length]
    (root / "dvc.lock").write_text(half)
    done = repair(root)
    text = (root / "dvc.lock").read_text()
    assert text == WHOLE if done else text == half  # a cut may fall where a smaller file is a good one, too
    assert repair(root) == []


def test_without_a_kept_one_the_committed_is_taken_then_none(root):
    (root / "dvc.lock").write_text("")
    assert "there is no older one: it is removed" in repair(root)[0]
    assert not (root / "dvc.lock").exists()
    (root / "dvc.lock").write_text(WHOLE)
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "dvc.lock"], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *words], check=True)
    (root / "dvc.lock").write_text(WHOLE[:-30])
    assert repair(root) == ["A killed dvc had left half of dvc.lock: it is as it was committed again."]
    assert (root / "dvc.lock").read_text() == WHOLE


def test_a_half_written_copy_is_never_kept(root):
    (root / "dvc.lock").write_text("")
    keep_lock(root)
    (root / KEPT).write_text("schema: '2.0'\nstages:")
    assert "removed" in repair(root)[0]


def test_without_git_dvc_goes_without_and_with_git_again_with(root):
    """A ZIP of the repository."""
    (root / ".git").rmdir()
    done = repair(root)
    assert len(done) == 1
    assert done[0].startswith("There is no git here: the pipeline runs, but has no experiments")
    assert repair(root) == []
    (root / "dvc.yaml").write_text("stages: {}\n")
    done = subprocess.run([sys.executable, "-m", "dvc", "status"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    assert repair(root) == []
    assert "no_scm" not in (root / ".dvc/config.local").read_text()


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root writes everywhere")
@pytest.mark.parametrize("folder", [".", ".dvc", "models", "checkpoints", "samples/class"])
def test_a_folder_that_cannot_be_written_is_named(root, folder):
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / folder).chmod(0o555)
    rights = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    command = [*rights, sys.executable, "-m", "tesserae.pipeline.repair"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    (root / folder).chmod(0o755)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{root / folder} cannot be written (it is read-only): ")
    assert done.stderr.count("\n") == 1


def test_the_command_says_what_it_did(root):
    (root / ".dvc/tmp/rwlock").write_text("{")
    command = [sys.executable, "-m", "tesserae.pipeline.repair"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout.count("\n"), done.stderr) == (0, 1, "")
    done = subprocess.run(command, cwd=root.parent, capture_output=True, text=True)
    assert done.returncode == 1
    assert "holds dvc.yaml" in done.stderr
