"""Which modules compute what a module or a notebook does."""

import pytest

from tesserae.source_code.graph import (
    NOT_COMPUTING,
    computing_modules,
    imported_modules,
    source_of,
    submodules,
)


def test_imports_are_followed_and_what_computes_nothing_is_left_out():
    found = computing_modules("tesserae.training.vqgan")
    assert found == sorted(found)
    assert {"tesserae.training.vqgan", "tesserae.models.layers", "tesserae.data.views.depth"} <= set(found)
    assert not {"tesserae", "tesserae.stage", "tesserae.tracking.run", "tesserae.models.transformer"} & set(found)


@pytest.mark.parametrize(("code", "modules"), [
    ("from tesserae import VQGAN, figures", {"tesserae.models.vqgan", "tesserae.figures"}),
    ("import torch\nimport tesserae.models.vqgan as vqgan", {"tesserae.models.vqgan"}),
    ("def f():\n    from tesserae.evaluation import codebook", {"tesserae.evaluation.codebook"}),
    ("from tesserae.data.views import make_view", {"tesserae.data.views"}),
    ("import numpy", set()),
])
def test_what_a_notebook_imports(code, modules):
    assert imported_modules(code) == modules


def test_every_name_in_the_list_of_what_does_not_compute_is_a_module():
    assert [name for name in NOT_COMPUTING if not submodules(f"tesserae.{name}")] == []


def test_modules_have_files():
    assert all(source_of(module).is_file() for module in submodules("tesserae"))
