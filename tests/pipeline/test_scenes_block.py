"""A changed block `scenes` renders the landscapes anew; going back brings the old ones back, to the bit."""

import shutil

import pytest
from ruamel.yaml import YAML
from test_whole_pipeline import end_of_queue, stages_run
from tests.plain import plain_text

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(clone):
    """A clone whose data/ is of rendered landscapes, as data.dvc says."""
    values = YAML(typ="safe", pure=True).load(plain_text())
    clone.set_params(values | {"scenes": {"count": 4, "size": 32, "seed": 0}})
    clone.run("python", "-m", "tesserae.scenes")
    clone.run("dvc", "add", "-q", "data")
    tracked = clone.root / "data.dvc"
    md5 = YAML(typ="safe", pure=True).load(tracked.read_text())["outs"][0]["md5"]
    made = f"meta:\n  landscapes: {md5}\n  scenes: {{count: 4, size: 32, seed: 0}}\n"
    tracked.write_text(tracked.read_text() + made)
    assert stages_run(clone.run("dvc", "repro", "check")) == ["check"]
    clone.commit("Begin")
    return clone


def picture(project) -> bytes:
    return next((project.root / "data").rglob("scene-00000.png")).read_bytes()


def test_an_experiment_with_other_scenes_has_other_pictures(project):
    before, source = picture(project), (project.root / ".checked/source.json").read_text()
    text = project.run("dvc", "exp", "run", "-S", "scenes.seed=1", "check")
    assert "data/ holds the landscapes of other parameters: it is rendered anew." in text
    assert picture(project) != before
    assert (project.root / ".checked/source.json").read_text() != source, "so prepare runs again"
    assert "seed: 1" in (project.root / "data.dvc").read_text()
    assert "rendered anew" not in project.run("dvc", "repro", "check")
    project.run("git", "checkout", "-q", "params.yaml", "data.dvc", "dvc.lock")
    project.run("dvc", "checkout", "-q", "--force", "data.dvc")
    assert "rendered anew" not in project.run("dvc", "repro", "check")
    assert picture(project) == before
    assert (project.root / ".checked/source.json").read_text() == source


def test_a_copy_that_shares_the_pictures_is_refused_with_the_command(project):
    project.run("dvc", "exp", "run", "--queue", "--name", "apart", "-S", "scenes.seed=2", "check")
    project.run("dvc", "queue", "start")
    assert "Failed" in end_of_queue(project)
    assert "run it without --queue and --temp, as dvc exp run -S scenes.seed=2" in project.run("dvc", "queue", "logs",
                                                                                             "apart")


def test_ones_own_pictures_stay_and_that_is_logged(project):
    shutil.copy(next((project.root / "data").rglob("scene-00000.png")), project.root / "data/mine.png")
    project.run("dvc", "repro", "check")
    values = project.params()
    project.set_params(values | {"scenes": {"count": 4, "size": 32, "seed": 3}})
    text = project.run("dvc", "repro", "check")
    assert "scenes has changed, and the pictures have not" in text
    assert (project.root / "data/mine.png").exists()
