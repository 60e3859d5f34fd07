"""Saving a notebook is no edit of it: only the code of its cells counts."""

import json
import subprocess
import sys

import nbformat
import pytest

from tesserae.source_code.notebooks import NotebookError, code_of_notebook, has_results, read_notebook

FIRST = 'params_file = "params.yaml"\ntarget = "image"'


def notebook(*sources, first=FIRST):
    v4 = nbformat.v4
    cells = [v4.new_markdown_cell("# A stage"), v4.new_code_cell(first, metadata={"tags": ["parameters"]}),
             *map(v4.new_code_cell, sources)]
    return v4.new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})


def saved(made, **changes) -> dict:
    """As a notebook server writes it after Run All: other ids, metadata, counts, outputs, one string a source."""
    values = json.loads(nbformat.writes(made)) | {"nbformat_minor": 4}
    values["metadata"] = {"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)"},
                          "language_info": {"name": "python", "version": "3.12.1"}}
    for number, cell in enumerate(values["cells"]):
        cell.pop("id")
        cell["source"] = "".join(cell["source"])
        cell["metadata"] |= {"collapsed": False, "execution": {"iopub.execute_input": "now"}}
        if cell["cell_type"] == "code":
            cell |= {"execution_count": number, "outputs": [{"output_type": "stream", "name": "stdout", "text": "1"}]}
    return dict(reversed(values.items())) | changes


def test_what_a_server_writes_beside_the_code_does_not_count():
    made = notebook("import torch", "x = 1\n\nprint(x)")
    assert not has_results(made)
    assert has_results(saved(made))
    assert code_of_notebook(saved(made)) == code_of_notebook(made)


@pytest.mark.parametrize("other", [
    notebook("import torch", "x = 1", "", "  \n"),
    notebook("import torch", "x = 1\n"),
    notebook("import torch", "x = 1", first='params_file = "mine.yaml"\ntarget = "layout"'),
    notebook("import torch", "x = 1", first=f'{FIRST}\noverrides = {{"vqgan.image.steps": 20}}  # for this run'),
], ids=["empty cells", "a line's end", "another target to look at", "overrides, of which a stage has none"])
def test_what_people_do_without_changing_what_is_computed(other):
    assert code_of_notebook(other) == code_of_notebook(notebook("import torch", "x = 1"))


@pytest.mark.parametrize("other", [
    notebook("import torch", "x = 2"),
    notebook("x = 1", "import torch"),
    notebook("import torch\nx = 1"),
    notebook("import torch", "x = 1", first=f"{FIRST}\nsteps = 3"),
    notebook("import torch", "x = 1", first=f"{FIRST}\noverrides = mine()"),
], ids=["a value", "order", "cells joined", "another parameter", "overrides that a function computes"])
def test_an_edit_counts(other):
    assert code_of_notebook(other) != code_of_notebook(notebook("import torch", "x = 1"))


def test_outputs_are_named_and_taken_out(tmp_path):
    path, made = tmp_path / "05_sample.ipynb", notebook("import torch", "x = 1")
    path.write_text(json.dumps(saved(made)))
    command = [sys.executable, "-m", "tesserae.source_code.notebooks", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("Notebooks are committed without outputs: python -m tesserae.source_code.notebooks")
    subprocess.run([*command, "--strip"], check=True)
    assert not has_results(read_notebook(path))
    assert code_of_notebook(read_notebook(path)) == code_of_notebook(made)
    assert subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.parametrize("content", ["", "{}", '{"cells": [{}]}', "[1]", '{"cells": 3}'])
def test_what_is_no_notebook_is_one_sentence(tmp_path, content):
    path = tmp_path / "05_sample.ipynb"
    path.write_text(content)
    with pytest.raises(NotebookError, match=r"05_sample\.ipynb is no notebook of version 4: git checkout "):
        read_notebook(path)
    path.unlink()
    with pytest.raises(NotebookError, match="cannot be read"):
        read_notebook(path)
