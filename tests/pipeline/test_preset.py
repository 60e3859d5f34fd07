"""make preset: params.yaml composed from a preset; one's own file is kept aside."""

import shutil
from pathlib import Path

import pytest

from tesserae.errors import TesseraeError
from tesserae.params import ParamsError, load_params
from tesserae.params.compose import composed
from tesserae.pipeline.preset import compose, list_presets, main, write_params

ROOT = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").touch()
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    (tmp_path / "params.yaml").write_text(composed({}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def taken(root, name, **changes):
    return write_params(root, compose(root, name, changes))


def test_it_says_what_changed(root):
    lines = taken(root, "own-64")
    assert lines[:2] == ["  scenes: count 1200 -> 1600", "  prepare: image_size 96 -> 64"]
    assert lines[2].startswith("  vqgan.image: channels 96 -> 128, refine 8 -> 0, ")
    assert "  transformer.layout: gone" in lines
    assert load_params(root / "params.yaml") == load_params(root / "presets/own-64.yaml")
    text = (root / "params.yaml").read_text()
    assert text.startswith((root / "presets/own-64.yaml").read_text().split("\n\n")[0]), "the preset's own comment"
    assert taken(root, "own-64") == []
    taken(root, "default")
    assert (root / "params.yaml").read_text() == composed({})
    assert not (root / "earlier").exists()


def test_an_edited_file_is_kept_and_none_is_overwritten(root):
    kept = "The params.yaml that was here is in earlier/."
    edits = []
    for seed in (7, 8):
        edits.append(composed({"seed": seed}))
        (root / "params.yaml").write_text(edits[-1])
        assert kept in taken(root, "photos")
    assert sorted(path.read_text() for path in (root / "earlier").iterdir()) == sorted(edits)
    (root / "params.yaml").write_text("vqgan: [")
    assert taken(root, "default") == [kept], "one that cannot be read, too"


def test_a_size_goes_with_any_preset(root):
    taken(root, "default", size="xs")
    params = load_params(root / "params.yaml")
    assert params.size == "xs"
    assert params == load_params(root / "params.yaml", {"size": "xs"})
    taken(root, "own-64", size="m")
    assert load_params(root / "params.yaml").vqgan["image"].channels == 128, "the preset's own number"
    with pytest.raises(ParamsError, match="size = 'big' is not allowed"):
        compose(root, "own-64", {"size": "big"})


def test_ones_own_short_file_is_written_out_whole(root):
    (root / "params.yaml").write_text("# mine\nvqgan: {image: {steps: 9}}\n")
    taken(root, "params.yaml")
    text = (root / "params.yaml").read_text()
    assert text.startswith("# mine\n")
    assert load_params(root / "params.yaml").vqgan["image"].steps == 9
    assert "batch_size: auto" in text
    assert taken(root, "params.yaml") == []


def test_the_command_lists_presets_and_takes_one(root, monkeypatch, capsys):
    main()
    assert capsys.readouterr().out.splitlines() == list_presets(root)
    assert any("own-64 " in line and "Your own pictures, small and soon: " in line for line in list_presets(root))
    monkeypatch.setenv("NAME", "own-64")
    main()
    assert capsys.readouterr().out.startswith("params.yaml is now presets/own-64.yaml:\n  scenes: count 1200 -> ")
    main()
    assert capsys.readouterr().out.startswith("params.yaml is presets/own-64.yaml already.\n")
    monkeypatch.setenv("NAME", "own")
    with pytest.raises(SystemExit, match="NAME=own is no preset: take one of default, landscapes-128, "):
        main()


def test_a_preset_that_holds_no_keys_is_refused(root):
    (root / "presets/mine.yaml").write_text("- 1\n")
    with pytest.raises(TesseraeError, match=r"mine\.yaml must hold keys and values"):
        compose(root, "mine")
