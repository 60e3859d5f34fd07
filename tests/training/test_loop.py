"""The loop: an interrupted run ends with the same bits, bad numbers stop it, the best model stays."""

import csv
import math
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tesserae.errors import DiskFullError, TesseraeError
from tesserae.evaluation.alarms import Alarm
from tesserae.training import loop
from tesserae.training.checkpoints import steps_in
from tesserae.training.loop import Trainer, deliver, rate_scale, step_seed

torch.set_num_threads(1)

BLOCK = {"steps": 30, "max_seconds": 0, "warmup": 4, "cooldown": 0.3, "log_every": 5, "sample_every": 10,
         "eval_every": 10, "checkpoint_every": 8}


class KilledError(Exception):
    """In the place of a power cut."""


class Toy:
    """Noisy descent of |w|^2 by Adam; `hook` is called in each step, before anything happens."""

    score, unit, per_step, logged, losses = "height", "points", 4, ("loss",), ("loss",)

    def __init__(self, hook=lambda step: None, heights=None):
        torch.manual_seed(7)
        self.w = torch.nn.Parameter(torch.randn(5))
        self.optimiser = torch.optim.Adam([self.w], lr=0.1)
        self.hook, self.heights = hook, heights or {}
        self.rates, self.sampled = [], []

    def set_rate(self, scale, done):
        self.rates.append(scale)
        self.optimiser.param_groups[0]["lr"] = 0.1 * scale

    def step(self, step):
        self.hook(step)
        self.optimiser.zero_grad()
        loss = (self.w + 0.1 * torch.randn(5)).square().sum()
        loss.backward()
        self.optimiser.step()
        terms = {"loss": loss.detach()}
        return terms | {"late": loss.detach() * 2} if step >= 12 else terms  # a term that joins later

    def summary(self):
        return {"lr": self.optimiser.param_groups[0]["lr"]}

    def evaluate(self, step):
        return {"height": self.heights.get(step, float(self.w.detach().square().sum()))}

    def sample(self, step):
        self.sampled.append(step)

    def alarms(self, history):
        return [Alarm(row["step"], "it is ten") for row in history if row["step"] == 10]

    def state(self):
        return {"w": self.w.detach(), "optimiser": self.optimiser.state_dict()}

    def load_state(self, state):
        self.w.data.copy_(state["w"])
        self.optimiser.load_state_dict(state["optimiser"])

    def export(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "w").write_text(repr(self.w.tolist()))


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


def run(task, folder, accelerator, said=None, **changes):
    block = SimpleNamespace(**{**BLOCK, **changes})
    said = [] if said is None else said
    logged = []
    progress = Trainer(task, block, 3, folder / "checkpoints", folder / "reports", accelerator,
                       lambda values, step: logged.append((step, values)), said.append).run()
    progress.logged = logged
    return progress


def outcome(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes()
            for path in (folder / "reports" / "history.csv", *sorted((folder / "checkpoints").rglob("w")))}


def killed_at(number):
    def hook(step):
        if step == number:
            raise KilledError
    return hook


@pytest.mark.parametrize("step", [0, 1, 7, 8, 9, 13, 20, 24, 29])
def test_a_killed_run_ends_with_the_same_bits(tmp_path, accelerator, step):
    run(Toy(), tmp_path / "whole", accelerator)
    with pytest.raises(KilledError):
        run(Toy(killed_at(step)), tmp_path / "cut", accelerator)
    said = []
    task = Toy()
    run(task, tmp_path / "cut", accelerator, said)
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")
    names = {"reports/history.csv", "checkpoints/best/w", "checkpoints/last/w"}
    assert names <= outcome(tmp_path / "whole").keys()
    assert (said[0] == f"going on from step {step // 8 * 8}") == (step >= 8)
    assert len(task.rates) == 30 - step // 8 * 8


def test_killed_again_and_again(tmp_path, accelerator):
    run(Toy(), tmp_path / "whole", accelerator)
    for step in (9, 12, 17, 23, 28):
        with pytest.raises(KilledError):
            run(Toy(killed_at(step)), tmp_path / "cut", accelerator)
    run(Toy(), tmp_path / "cut", accelerator)
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_and_writes_a_checkpoint(tmp_path, accelerator, number):
    run(Toy(), tmp_path / "whole", accelerator)
    handlers = [signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)]

    def hook(step):
        if step == 12:
            os.kill(os.getpid(), number)

    said = []
    with pytest.raises(KeyboardInterrupt):
        run(Toy(hook), tmp_path / "cut", accelerator, said)
    assert steps_in(tmp_path / "cut" / "checkpoints") == [8, 13]
    assert "stopped at step 13" in said[-1]
    assert [signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)] == handlers
    run(Toy(), tmp_path / "cut", accelerator)
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def test_a_finished_run_is_not_run_again(tmp_path, accelerator):
    run(Toy(), tmp_path, accelerator)
    before = outcome(tmp_path)
    said = []
    run(Toy(killed_at(0)), tmp_path, accelerator, said)
    assert outcome(tmp_path) == before
    assert "step 30 of 30 was reached before" in said[0]


def test_more_steps_go_on(tmp_path, accelerator):
    run(Toy(), tmp_path, accelerator)
    task = Toy()
    progress = run(task, tmp_path, accelerator, steps=40)
    assert progress.step == 40
    assert len(task.rates) == 10
    assert [row["step"] for row in progress.history] == [5, 10, 15, 20, 25, 30, 35, 40]


def test_fewer_steps_start_afresh_and_can_be_resumed(tmp_path, accelerator):
    run(Toy(), tmp_path, accelerator)  # leaves 24 and 30
    with pytest.raises(KilledError):
        run(Toy(killed_at(18)), tmp_path, accelerator, steps=20)
    task = Toy()
    run(task, tmp_path, accelerator, steps=20)
    assert len(task.rates) == 4
    run(Toy(), tmp_path / "other", accelerator, steps=20)
    assert outcome(tmp_path)["checkpoints/best/w"] == outcome(tmp_path / "other")["checkpoints/best/w"]


def test_history_has_every_term_and_is_logged(tmp_path, accelerator):
    progress = run(Toy(), tmp_path, accelerator)
    with (tmp_path / "reports" / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "loss", "lr", "val_height", "late"]
    assert [int(row["step"]) for row in rows] == [5, 10, 15, 20, 25, 30]
    assert [bool(row["val_height"]) for row in rows] == [False, True, False, True, False, True]
    assert [bool(row["late"]) for row in rows] == [False, False, True, True, True, True]
    # the term that joined at step 12 is a mean over the steps that had it
    assert float(rows[3]["late"]) == pytest.approx(2 * float(rows[3]["loss"]), rel=1e-5)
    assert {step for step, _ in progress.logged} == {5, 10, 15, 20, 25, 30}
    with (tmp_path / "reports" / "timings.csv").open() as file:
        assert list(csv.DictReader(file))[-1].keys() == {"step", "seconds", "points_per_second"}


def test_terms_are_means_since_the_last_log(tmp_path, accelerator):
    seen = []

    class Counting(Toy):
        def step(self, step):
            seen.append(float(step))
            return {"loss": torch.tensor(10.0 + step)}

    progress = run(Counting(), tmp_path, accelerator)
    assert [row["loss"] for row in progress.history] == [12.0, 17.0, 22.0, 27.0, 32.0, 37.0]


def test_the_best_model_is_kept(tmp_path, accelerator):
    weights = {}

    class Watched(Toy):
        def evaluate(self, step):
            weights[step] = repr(self.w.tolist())
            return super().evaluate(step)

    progress = run(Watched(heights={10: 3.0, 20: 1.0, 30: 2.0}), tmp_path, accelerator)
    assert progress.best == {"step": 20, "height": 1.0}
    assert progress.latest == {"step": 30, "height": 2.0}
    deliver(tmp_path / "checkpoints", tmp_path / "model")
    assert (tmp_path / "model" / "w").read_text() == weights[20]
    assert (tmp_path / "model" / "last" / "w").read_text() == weights[30]
    kept = sorted(path.name for path in (tmp_path / "checkpoints").glob("best*"))
    assert kept == ["best", "best-00000020"]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("at", [11, 15])
def test_a_loss_that_is_no_number_stops_with_a_sentence_and_a_good_checkpoint(tmp_path, accelerator, bad, at):
    class Diverging(Toy):
        def step(self, step):
            terms = super().step(step)
            if step == at:
                self.w.data.fill_(math.nan)
                terms["loss"] = torch.tensor(bad)
            return terms

    with pytest.raises(TesseraeError, match=r"'loss' is (nan|inf).*half the learning rate"):
        run(Diverging(), tmp_path, accelerator)
    assert steps_in(tmp_path / "checkpoints") == [8]  # at step 15 the next one, 16, would hold no numbers
    run(Toy(), tmp_path, accelerator)
    assert "nan" not in (tmp_path / "checkpoints" / "last" / "w").read_text()


@pytest.mark.parametrize("at", [11, 15])
def test_an_exploding_loss_stops_and_no_checkpoint_holds_it(tmp_path, accelerator, at):
    """Ten times the mean of the first row, which is that of steps 1 to 5."""
    class Exploding(Toy):
        def step(self, step):
            terms = super().step(step)
            return terms | {"loss": terms["loss"] + 1e4} if step >= at else terms

    with pytest.raises(TesseraeError, match=r"'loss' is .*more than 10 times the loss .*half the learning rate"):
        run(Exploding(), tmp_path, accelerator)
    assert steps_in(tmp_path / "checkpoints") == [8]
    run(Toy(), tmp_path, accelerator)


def test_alarms_are_said_once_also_by_a_run_that_goes_on(tmp_path, accelerator):
    said = []
    run(Toy(), tmp_path, accelerator, said)
    assert [line for line in said if "ALARM" in line] == ["ALARM, step 10: it is ten"]
    more = []
    run(Toy(), tmp_path, accelerator, more, steps=40)
    assert not [line for line in more if "ALARM" in line]


@pytest.mark.parametrize(("what", "state"), [
    ("checkpoints/step-00000016.safetensors", "the last checkpoint (step 8) is intact"),
    ("checkpoints/best-00000010", "the last checkpoint (step 8) is intact"),
    ("checkpoints/last", "the last checkpoint (step 30) is intact"),
    ("reports/history.csv", "there is no checkpoint yet"),
])
def test_a_full_disk_stops_with_a_sentence_and_the_same_command_goes_on(tmp_path, accelerator, full_disk, monkeypatch,
                                                                       what, state):
    run(Toy(), tmp_path / "whole", accelerator)
    place = tmp_path / "cut"
    full_disk(place / what.replace("history", ".history").replace("step-", ".step-"))
    with pytest.raises(DiskFullError) as caught:
        run(Toy(), place, accelerator)
    said = str(caught.value)
    assert said.startswith(f"The disk is full, {what} could not be written: free some space, then run again; ")
    assert said.endswith(f"; {state}.")
    monkeypatch.undo()
    assert not list((place / "checkpoints").glob(".*"))
    run(Toy(), place, accelerator)
    assert outcome(place) == outcome(tmp_path / "whole")


def test_a_kill_between_the_last_checkpoint_and_the_best_model(tmp_path, accelerator, monkeypatch):
    run(Toy(), tmp_path / "whole", accelerator)

    def killed(progress, folder):
        if progress.step == 30:
            raise KilledError

    monkeypatch.setattr(loop, "_settle_best", killed)
    with pytest.raises(KilledError):
        run(Toy(), tmp_path / "cut", accelerator)
    monkeypatch.undo()
    run(Toy(), tmp_path / "cut", accelerator)
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def test_rates_and_samples(tmp_path, accelerator):
    task = Toy()
    run(task, tmp_path, accelerator)
    assert task.sampled == [0, 10, 20, 30]
    assert task.rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert task.rates[21] == 1.0
    assert task.rates[-1] == pytest.approx((1 / 30) / 0.3)
    assert all(a > b for a, b in zip(task.rates[21:], task.rates[22:]))


@given(st.floats(0, 1), st.integers(0, 200), st.integers(0, 100), st.floats(0, 1))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_rate_s_scale_stays_within_its_bounds(done, step, warmup, cooldown):
    scale = rate_scale(done, step, warmup, cooldown)
    assert 0 <= scale <= 1
    if step + 1 >= warmup and done <= 1 - cooldown - 1e-9:
        assert scale == 1
    if done == 1 and cooldown:
        assert scale == 0
    assert rate_scale(done, step + 1, warmup, cooldown) >= scale


def test_time_ends_a_run_with_its_cooldown_fitted_in(tmp_path, accelerator, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: clock[0])

    def hook(step):
        clock[0] += 1.0

    task = Toy(hook)
    progress = run(task, tmp_path, accelerator, steps=1000, max_seconds=20)
    assert progress.step == 20
    assert task.rates[-1] == pytest.approx((1 / 20) / 0.3)
    assert (tmp_path / "checkpoints" / "last" / "w").exists()


def test_a_step_s_seed_is_its_own():
    seeds = {step_seed(seed, step, stream) for seed in range(3) for step in range(50) for stream in range(3)}
    assert len(seeds) == 450
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert step_seed(1, 2) == step_seed(1, 2, 0)
