"""README, CONTRIBUTING and docs/: their links, pictures, commands and parameters are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")),
             ROOT / "benchmarks/README.md"]

NEW = "src/tesserae/data/views/sketch.py"  # of the example in CONTRIBUTING.md


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", document.read_text()):
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", each).strip().lower().replace(" ", "-") for each in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_are_there(document):
    text = document.read_text()
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z][\w-]*)(?=[\s`,;:.)]|$)", text)) - {"one", "of", "it"} <= targets
    for module in re.findall(r"-m (tesserae(?:\.\w+)+)", text):
        path = ROOT / "src" / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    folders = "src|tests|benchmarks|presets|notebooks"
    for path in re.findall(rf"(?<![/\w])((?:{folders})/[\w./]+\.(?:py|yaml|ipynb))\b", text):
        assert (ROOT / path).exists() or path == NEW, path


def test_presets_are_named():
    named = set(re.findall(r"`([\w-]+)`(?:, `([\w-]+)`)? \|", (ROOT / "docs/recipes.md").read_text()))
    assert {path.stem for path in (ROOT / "presets").glob("*.yaml")} <= {name for pair in named for name in pair}
