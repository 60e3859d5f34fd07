"""The raw pictures come from DVC, or are landscapes where those are meant; nothing is rendered over a project."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tesserae.data.obtain import HALF, ObtainError, is_landscapes, is_outdated, obtain, render_anew
from tesserae.params import check_params, load_params
from tesserae.params.compose import composed

ROOT = Path(__file__).parents[2]
PLAIN = ROOT / "tests/plain.yaml"


@pytest.fixture
def root(tmp_path):
    """A repository whose data.dvc is of two landscapes that are neither here nor in a cache."""
    root = tmp_path / "a clone"
    root.mkdir()
    (root / "dvc.yaml").write_text("stages: {}\n")
    dvc(root, "init", "--no-scm", "--quiet")
    obtain(root, params())
    dvc(root, "add", "--quiet", "data")
    shutil.rmtree(root / "data")
    obtain(root, params())  # from the cache: no landscapes' hash is noted yet
    assert not is_landscapes(root / "data.dvc")
    assert not is_outdated(root, of_seed(1))
    return root


def dvc(root, *words):
    subprocess.run([sys.executable, "-m", "dvc", *words], cwd=root, check=True, capture_output=True)


def params(**changes):
    values = YAML(typ="safe", pure=True).load(PLAIN.read_text(encoding="utf-8"))
    values["scenes"] = {"count": 2, "size": 16, "seed": 0}
    values["prepare"] |= changes
    return check_params(values)


def of_seed(seed):
    plain = params()
    return plain.model_copy(update={"scenes": plain.scenes.model_copy(update={"seed": seed})})


def empty_cache(root):
    shutil.rmtree(root / "data", ignore_errors=True)
    shutil.rmtree(root / ".dvc/cache")


def as_landscapes(root):
    """data.dvc as a rendering leaves it."""
    tracked = root / "data.dvc"
    content = YAML(typ="safe", pure=True).load(tracked.read_text())
    tracked.write_text(tracked.read_text() + f"meta:\n  landscapes: {content['outs'][0]['md5']}\n"
                       "  scenes:\n    count: 2\n    size: 16\n    seed: 0\n")


def test_the_repositorys_own_are_landscapes():
    if (ROOT / "params.yaml").read_text(encoding="utf-8") != composed({}):
        pytest.skip("a project of other pictures")
    assert is_landscapes(ROOT / "data.dvc")


def test_landscapes_that_are_missing_are_rendered_and_recorded(root):
    as_landscapes(root)
    empty_cache(root)
    before = (root / "data.dvc").read_text()
    obtain(root, params())
    assert sum(1 for path in (root / "data").rglob("*.png")) == 6
    assert (root / "data.dvc").read_text() == before
    empty_cache(root)
    obtain(root, of_seed(1))
    assert (root / "data.dvc").read_text() != before
    assert is_landscapes(root / "data.dvc"), "of another seed they are landscapes, too"


def test_landscapes_of_other_parameters_are_rendered_anew_and_back_to_the_bit(root):
    as_landscapes(root)
    first = (root / "data.dvc").read_text()
    assert not is_outdated(root, params())
    assert is_outdated(root, of_seed(1))
    render_anew(root, of_seed(1))
    assert (root / "data.dvc").read_text() != first
    assert not is_outdated(root, of_seed(1))
    render_anew(root, params())
    assert (root / "data.dvc").read_text() == first


def test_a_project_of_other_pictures_is_not_filled_with_landscapes(root):
    empty_cache(root)
    with pytest.raises(ObtainError, match=r"^The 7 files that data\.dvc records for data/ are not here: no remote is "
                                          r"set .*dvc pull from a remote that has them, copy them to data/, or"):
        obtain(root, params())
    assert not (root / "data").exists()
    dvc(root, "remote", "add", "-d", "away", str(root / "no/remote"))
    with pytest.raises(ObtainError, match="dvc pull failed"):
        obtain(root, params())
    assert not (root / "data").exists()


def test_it_is_fetched_where_a_remote_has_it(root, tmp_path):
    dvc(root, "remote", "add", "-d", "here", str(tmp_path / "remote"))
    dvc(root, "push", "--quiet")
    empty_cache(root)
    obtain(root, params())
    assert sum(1 for path in (root / "data").rglob("*.png")) == 6


def test_what_a_stop_left_half_is_filled(root):
    (root / HALF).touch()
    shutil.rmtree(root / "data/depth")
    obtain(root, params())
    assert sum(1 for path in (root / "data").rglob("*.png")) == 6
    assert not (root / HALF).exists()


def test_what_is_there_stays(root):
    (root / "data/mine.png").touch()
    obtain(root, params())
    assert (root / "data/mine.png").exists()


@pytest.mark.parametrize("source", ["/nowhere/pictures", "owner/name", "../pictures"])
def test_data_is_not_asked_for_where_the_pictures_lie_elsewhere(root, source):
    empty_cache(root)
    obtain(root, params(source=source))
    assert not (root / "data").exists()


def test_a_broken_link_is_named(root):
    shutil.rmtree(root / "data")
    (root / "data").symlink_to("../gone")
    with pytest.raises(ObtainError, match=r"data is a link to \.\./gone, which is not there"):
        obtain(root, params())


def test_the_command_says_it_in_a_sentence(root):
    empty_cache(root)
    shutil.copy(PLAIN, root / "params.yaml")
    assert load_params(root / "params.yaml").prepare.source == "data"
    done = subprocess.run([sys.executable, "-m", "tesserae.data.obtain"], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
