"""What stages made that are no more moves aside; all else stays."""

from pathlib import Path

import pytest

from tesserae.params import load_params
from tesserae.pipeline.earlier import moved_message, set_aside

PLAIN = Path(__file__).parents[1] / "plain.yaml"  # vqgan.image, codebook.image, transformer.class, sample.class
LOCK = """schema: '2.0'
stages:
  sample@layout:
    cmd: x
    outs:
    - path: samples/layout
      md5: 0.dir
  codebook@depth:
    cmd: x
    outs:
    - path: codes/depth
      md5: 0.dir
"""


@pytest.fixture
def root(tmp_path):
    (tmp_path / "dvc.lock").write_text(LOCK)
    for name in ("reports/vqgan-image", "reports/vqgan-depth", "reports/sample-layout", "reports/prepare",
                 "reports/experiments", "reports/my-notes", "models/vqgan-image", "models/vqgan-depth",
                 "models/clip-large", "codes/image", "codes/depth", "samples/class", "samples/layout",
                 "samples/painted"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_text(name)
    (tmp_path / "reports/notebooks").mkdir()
    for name in ("prepare", "vqgan-image", "vqgan-depth"):
        (tmp_path / f"reports/notebooks/{name}.ipynb").write_text(name)
    return tmp_path


GONE = ["codes/depth", "models/vqgan-depth", "reports/notebooks/vqgan-depth.ipynb", "reports/sample-layout",
        "reports/vqgan-depth", "samples/layout"]


def test_stages_that_are_no_more_leave_nothing_beside_ones_own(root):
    before = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    moved = set_aside(root, load_params(PLAIN))
    assert sorted(moved) == GONE
    left = {path.relative_to(root).as_posix() for path in root.rglob("*")
            if path.is_file() and "earlier" not in path.parts}
    kept = {path.relative_to(root / "earlier").as_posix() for path in (root / "earlier").rglob("*") if path.is_file()}
    assert left | kept == before
    assert kept == {name for name in before if name.startswith(tuple(GONE))}
    assert set_aside(root, load_params(PLAIN)) == []


def test_a_second_one_of_a_name_gets_a_number(root):
    params = load_params(PLAIN)
    set_aside(root, params)
    for text in ("second", "third"):
        (root / "reports/vqgan-depth").mkdir()
        (root / "reports/vqgan-depth/file").write_text(text)
        assert set_aside(root, params) == ["reports/vqgan-depth"]
    earlier = root / "earlier/reports"
    found = [(earlier / name / "file").read_text() for name in ("vqgan-depth", "vqgan-depth-2", "vqgan-depth-3")]
    assert found == ["reports/vqgan-depth", "second", "third"]


def test_the_message_is_one_line():
    assert moved_message(["a", "b"]) == "params.yaml has no stage any more for a, b: moved to earlier/."
    many = moved_message("abcdefg")
    assert many == "params.yaml has no stage any more for a, b, c, d and 3 more: moved to earlier/."
