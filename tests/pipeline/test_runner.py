"""Notebooks run as stages: what is seen, what is kept, how it ends."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from tesserae import tracking
from tesserae.pipeline import runner as pipeline

pytestmark = pytest.mark.slow

NOTEBOOK = "notebooks/02_train_vqgan.ipynb"
COMMAND = (sys.executable, "-m", "tesserae.pipeline", NOTEBOOK, "--target", "image")
OPENING = 'from tesserae.stage import Stage\nstage = Stage.open("vqgan", target, params_file=params_file)'


def write_notebook(root: Path, *sources: str) -> None:
    """A stage's notebook of a few cells in the place of the real one."""
    v4 = nbformat.v4
    first = v4.new_code_cell('params_file = "params.yaml"\ntarget = "image"')
    first.metadata["tags"] = ["parameters"]
    spec = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    cells = [v4.new_markdown_cell("# A stage"), first, *map(v4.new_code_cell, (OPENING, *sources))]
    nbformat.write(v4.new_notebook(cells=cells, metadata=spec), root / NOTEBOOK)


def executed(root: Path) -> list[dict]:
    notebook = json.loads((root / "reports/notebooks/vqgan-image.ipynb").read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def last_run(root: Path) -> dict:
    return tracking.runs_table(root, "vqgan-image").iloc[0].to_dict()


@pytest.fixture(autouse=True)
def _own_store(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_a_notebook_runs_as_a_stage(clone):
    show = "import os, sys, tesserae\nprint(os.getcwd(), sys.executable, tesserae.__file__, sep='\\n')"
    log = "stage.run.metrics({'loss': 0.5}, 3)\nstage.metrics({'lpips': 0.25})"
    write_notebook(clone.root, show, log, "stage.close()")
    lines = clone.run(*COMMAND).splitlines()
    package = clone.root / "src/tesserae/__init__.py"
    assert lines[:3] == [str(clone.root / "notebooks"), sys.executable, str(package)]
    assert len(lines) == 4, f"nothing but the notebook's own output and a last line: {lines}"
    assert lines[3].startswith("vqgan-image: ")
    run = last_run(clone.root)
    assert (run["status"], run["metrics.loss"], run["metrics.lpips"]) == ("FINISHED", 0.5, 0.25)
    assert run["params.vqgan.image.codebook_size"] == clone.params()["vqgan"]["image"]["codebook_size"]
    assert len(tracking.runs_table(clone.root)) == 1, "the notebook joined the pipeline's run"
    (attached,) = (clone.root / "mlruns").rglob("notebook/vqgan-image.ipynb")
    assert json.loads(attached.read_text())["cells"]


def test_a_users_mistake_is_one_sentence(clone):
    write_notebook(
        clone.root,
        "from tesserae import TesseraeError\n"
        "class Known(TesseraeError, ValueError): pass\n"
        "raise Known('data/x.png cannot be read: remove it.')",
    )
    assert clone.run(*COMMAND, fails=True).strip() == "data/x.png cannot be read: remove it."
    assert last_run(clone.root)["status"] == "FAILED"
    assert executed(clone.root)[-1]["outputs"][-1]["evalue"] == "data/x.png cannot be read: remove it."


def test_any_other_failure_shows_its_trace_and_where_to_look(clone):
    write_notebook(clone.root, "print('before')", "{}['nothing']")
    text = clone.run(*COMMAND, fails=True)
    assert text.startswith("before\n")
    assert "KeyError: 'nothing'" in text
    assert "papermill" not in text
    assert text.splitlines()[-1] == (
        "02_train_vqgan.ipynb failed with KeyError: see reports/notebooks/vqgan-image.ipynb."
    )
    assert executed(clone.root)[-2]["outputs"][0]["text"] == ["before\n"]


def test_a_full_disk_is_one_sentence_wherever_it_is_met(clone):
    write_notebook(clone.root, "raise OSError(28, 'No space left on device', 'history.csv')")
    text = clone.run(*COMMAND, fails=True)
    assert text.strip() == "The disk is full: free some space, then run again."


def test_a_kernel_that_dies_is_reported(clone):
    write_notebook(clone.root, "import os\nos._exit(9)")
    text = clone.run(*COMMAND, fails=True)
    assert text.strip().startswith("The kernel of 02_train_vqgan.ipynb died")
    assert last_run(clone.root)["status"] == "FAILED"


def test_a_bad_parameters_file_stops_before_a_kernel_starts(clone):
    good = clone.params()
    clone.set_params(good | {"sead": 1})
    try:
        text = clone.run(*COMMAND, fails=True).strip()
    finally:
        clone.set_params(good)
    assert text.endswith("sead is not a parameter; did you mean seed?")
    assert "\n" not in text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_lets_the_cell_end_in_order(clone, number):
    """A cell that writes a checkpoint when interrupted gets to write it, and no kernel is left behind."""
    write_notebook(
        clone.root,
        "import os, pathlib, time\n"
        "try:\n"
        "    print('kernel', os.getpid(), flush=True)\n"
        "    time.sleep(60)\n"
        "except KeyboardInterrupt:\n"
        "    time.sleep(1)\n"
        "    pathlib.Path('saved').touch()\n"
        "    raise",
        "pathlib.Path('not reached').touch()",
    )
    pipe = subprocess.PIPE
    process = subprocess.Popen(COMMAND, cwd=clone.root, stdout=pipe, stderr=pipe, text=True)
    kernel = int(process.stdout.readline().split()[1])
    began = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert time.monotonic() - began < 25
    assert "goes on from the last checkpoint" in errors
    assert "Traceback" not in errors
    assert (clone.root / "notebooks/saved").exists()
    assert not (clone.root / "notebooks/not reached").exists()
    (clone.root / "notebooks/saved").unlink()
    with pytest.raises(ProcessLookupError):
        os.kill(kernel, 0)
    assert last_run(clone.root)["status"] == "KILLED"
    assert executed(clone.root)[-2]["outputs"][-1]["ename"] == "KeyboardInterrupt"


def test_a_kernel_that_dies_before_it_is_ready_is_reported(clone):
    write_notebook(clone.root, "print('work')")
    (clone.root / "src/ipykernel_launcher.py").write_text("import os\nos._exit(9)\n")
    text = clone.run(*COMMAND, fails=True)
    (clone.root / "src/ipykernel_launcher.py").unlink()
    assert "The kernel of 02_train_vqgan.ipynb died" in text
    assert "Traceback" not in text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_before_the_kernel_is_ready_ends_both(clone, number):
    write_notebook(clone.root, "import time\ntime.sleep(100)")
    process = subprocess.Popen(COMMAND, cwd=clone.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    kernels = []
    while not kernels:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
        kernels = [child for child in psutil.Process(process.pid).children()
                   if child.status() != psutil.STATUS_ZOMBIE and "ipykernel_launcher" in child.cmdline()]
    process.send_signal(number)
    _, errors = process.communicate(timeout=100)
    assert (process.returncode, "Traceback" in errors) == (130, False), errors
    assert not kernels[0].is_running()


def test_only_stages_notebooks_are_stages(clone, tmp_path):
    other = tmp_path / "08_playground.ipynb"
    other.touch()
    with pytest.raises(pipeline.PipelineError, match="is no stage's notebook: take one of 01_prepare_data"):
        pipeline.run_stage(other)


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root writes everywhere")
@pytest.mark.parametrize("folder", ["checkpoints", "models", "reports/notebooks", "reports/vqgan-image"])
def test_a_folder_that_cannot_be_written_is_named_before_any_work(clone, folder):
    write_notebook(clone.root, "print('work')", "stage.close()")
    (clone.root / folder).mkdir(parents=True, exist_ok=True)
    (clone.root / folder).chmod(0o555)
    rights = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    try:
        text = clone.run(*rights, *COMMAND, fails=True).strip()
    finally:
        (clone.root / folder).chmod(0o755)
    assert text.startswith(str(clone.root / folder))
    assert "cannot be written (it is read-only): see to its owner and its rights" in text
    assert "\n" not in text


def test_a_file_that_may_not_be_written_is_one_sentence(clone):
    write_notebook(clone.root, "raise PermissionError(13, 'Permission denied', '/x/history.csv')")
    text = clone.run(*COMMAND, fails=True).strip()
    assert text == ("/x/history.csv cannot be used (Permission denied): see to its owner and rights and to the disk, "
                    "then run again.")


def test_a_stage_leaves_its_environment_as_it_was(clone, monkeypatch):
    """MLflow reads its retries and time limits from it at each request, also after the kernel has ended."""
    monkeypatch.chdir(clone.root)
    monkeypatch.setenv("PYTHONPATH", str(clone.root / "src"))
    show = "import os\nprint(os.environ['MINE'], os.environ['TESSERAE_RUN_ID'] != '', os.environ['GOMP_SPINCOUNT'])"
    write_notebook(clone.root, show, "stage.close()")
    monkeypatch.setenv("MINE", "kept")
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    before = dict(os.environ)
    pipeline.run_stage(Path(NOTEBOOK), "image")
    after = dict(os.environ)
    assert {key: after.get(key) for key in before} == before
    assert after["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0", "set while the kernel ran, and still there"
    assert "kept True 10000" in str(executed(clone.root))


def test_a_long_folder_for_temporary_files(clone, tmp_path, monkeypatch):
    """A socket's path may have about a hundred letters."""
    write_notebook(clone.root, "print('work')", "stage.close()")
    long = tmp_path / ("t" * 150)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    assert "work" in clone.run(*COMMAND)
    assert not [path for path in long.iterdir() if path.name.startswith("kernel")]
