"""Stage 2's trainer: targets stay, a toy language is learned to its entropy, a crash loses nothing."""

import math
import signal

import pandas as pd
import pytest
import torch

from tesserae import devices, load_params, tracking
from tesserae.data.codes import CodeMaps, save_codes
from tesserae.data.paired import PairedMaps
from tesserae.devices import make_accelerator
from tesserae.evaluation.likelihood import (
    evaluate_codes,
    likelihood,
    likelihood_verdict,
    nats_to_bits,
    unigram_nll,
    wrong_labels,
)
from tesserae.models.transformer import LatentTransformer, TransformerConfig
from tesserae.models.vqgan import VQGAN, VQGANConfig
from tesserae.params import check_params
from tesserae.stage import Stage
from tesserae.training.optimisers import make_transformer_optimiser
from tesserae.training.transformer import (
    TransformerTask,
    fitting,
    replace_some,
    train_transformer,
)

K, CLASSES = 8, 3
CHANGES = {"n_layer": 1, "n_head": 2, "n_embd": 16, "dropout": 0.1, "pkeep": 0.9, "batch_size": 8, "lr": 1e-2,
           "steps": 12, "warmup": 2, "cooldown": 0.5, "log_every": 2, "sample_every": 6, "eval_every": 4,
           "eval_images": 20, "checkpoint_every": 3}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Nets this small are slowed by a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def defaults(request):
    return load_params(request.config.rootpath / "tests/plain.yaml").model_dump()


def make_block(defaults, **changes):
    values = {**defaults["transformer"]["class"], **CHANGES, **changes}
    return check_params({**defaults, "transformer": {"class": values}}).transformer["class"]


def toy_maps(count=60, seed=0, labels=True, flip=True):
    """2x2 maps: the first code is the class's or the one after it, the others count on from there."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.arange(count) % CLASSES
    first = 2 * classes + torch.randint(2, (count,), generator=generator)
    maps = (first[:, None] + torch.arange(4)).view(count, 1, 2, 2) % K
    maps = torch.cat([maps, maps.flip(-1)], 1) if flip else maps
    names = ["a", "b", "c"]
    return CodeMaps(maps.int(), classes if labels else None, names if labels else [], K)


def tiny_vqgan():
    torch.manual_seed(0)
    return VQGAN(VQGANConfig(channels=32, channel_mult=(1, 1), res_blocks=1, attention=False, z_channels=32,
                             codebook_size=K, codebook_dim=4))


def make_task(block, maps):
    data, accelerator = PairedMaps(maps, window=block.window), make_accelerator("fp32")
    return TransformerTask(block, 0, data, data, {"image": tiny_vqgan()}, accelerator, lambda picture, step: None)


@pytest.fixture
def house(tmp_path, monkeypatch, defaults):
    """A root with codes and a VQGAN, and a way to open its stage with changed parameters."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(tracking.RUN_VARIABLE, "")  # a silent run
    (tmp_path / "dvc.yaml").touch()
    maps, held_out = toy_maps(), toy_maps(20, seed=1)
    for split, each in (("train", maps), ("validation", held_out)):
        save_codes(tmp_path / "codes/image", split, each.indices, each.labels, each.class_names, K)
    tiny_vqgan().save_pretrained(tmp_path / "models/vqgan-image")

    def open_stage(precision="fp32", **changes):
        values = {**defaults, "precision": precision, "transformer": {
            "class": {**defaults["transformer"]["class"], **CHANGES, **changes}}}
        return Stage(tmp_path, "transformer", "class", check_params(values))

    return open_stage


# ------------------------------------------------------------------ pkeep, groups, measures


def test_pkeep_replaces_as_many_as_it_says():
    generator = torch.Generator().manual_seed(0)
    indices = torch.full((200, 500), 3)
    made = replace_some(indices, 0.8, 10, generator)
    assert (indices == 3).all()
    assert abs((made != 3).double().mean() - 0.2 * 0.9) < 0.004  # a tenth of them is the code itself
    others = torch.bincount(made[made != 3], minlength=10)
    assert others[3] == 0
    assert (others[others > 0] / others.sum() - 1 / 9).abs().max() < 0.01
    assert torch.equal(replace_some(indices, 1.0, 10, generator), indices)


def test_targets_are_never_replaced(defaults):
    maps = toy_maps()
    task = make_task(make_block(defaults, pkeep=0.0, flip=False), maps)
    prefix, inputs, targets = task.batch(5)
    chosen = task.data.batch(5, 8, 0, flip=False)
    assert torch.equal(targets, maps.indices[chosen.pictures, 0].flatten(1))
    assert torch.equal(prefix, maps.labels[chosen.pictures, None])
    assert not torch.equal(inputs, targets)


def test_a_step_s_batch_follows_from_its_number(defaults):
    one, other = (make_task(make_block(defaults), toy_maps()) for _ in range(2))
    one.batch(3)
    assert all(torch.equal(a, b) for a, b in zip(one.batch(4), other.batch(4)))
    assert not torch.equal(one.batch(4)[1], one.batch(5)[1])


def test_decay_is_on_matrices_only(defaults):
    model = LatentTransformer(TransformerConfig(n_layer=2, n_head=2, n_embd=8))
    block = make_block(defaults, optimiser="adamw", weight_decay=0.25)
    decayed, others = make_transformer_optimiser(model, block).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.25, 0.0)
    assert {names[id(p)].split(".")[-2] for p in decayed["params"]} == {"qkv", "proj", "up", "down", "head"}
    assert all(p.ndim == 2 for p in decayed["params"])
    ids = [id(p) for group in (decayed, others) for p in group["params"]]
    assert sorted(ids) == sorted(names)


def test_likelihood_is_the_cross_entropy():
    torch.manual_seed(0)
    config = TransformerConfig(codebook_size=K, prefix_vocab=3, max_tokens=4, n_layer=1, n_head=1, n_embd=8)
    model = LatentTransformer(config).eval()
    prefix, indices = torch.randint(3, (5, 1)), torch.randint(K, (5, 2, 2))
    found = likelihood(model, prefix, indices, batch_size=2)
    with torch.no_grad():
        logits = model(prefix, indices.flatten(1))
    expected = -logits.log_softmax(-1).gather(-1, indices.flatten(1)[..., None]).view(5, 2, 2)
    torch.testing.assert_close(found.nll, expected)
    assert torch.equal(found.hit, (logits.argmax(-1) == indices.flatten(1)).view(5, 2, 2))
    assert found.summary()["bits"] == pytest.approx(found.summary()["nll"] / math.log(2))


def test_units():
    assert nats_to_bits(math.log(256)) == pytest.approx(8)


def test_unigram_by_hand():
    train, held_out = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 2])
    assert unigram_nll(train, held_out, 4) == pytest.approx(-(math.log(4 / 8) + math.log(1 / 8)) / 2)


def test_unigram_of_uniform_codes_is_log_k():
    codes = torch.arange(16).repeat(1000)
    assert unigram_nll(codes, codes, 16) == pytest.approx(math.log(16), rel=1e-4)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_wrong_labels_are_wrong_and_all_of_them(classes):
    labels = torch.zeros(100, dtype=torch.int64)
    wrong = wrong_labels(labels, classes)
    assert (wrong != labels).all()
    assert set(wrong.tolist()) == set(range(1, classes))


# ------------------------------------------------------------------ training


def test_a_toy_language_is_learned_to_its_entropy(defaults):
    """With the class one coin decides the map: ln 2 nats of 4 codes. A wrong class costs far more."""
    block = make_block(defaults, steps=150, dropout=0.0, pkeep=1.0, batch_size=30, flip=False, n_embd=32)
    maps = toy_maps(120)
    task = make_task(block, maps)
    for step in range(150):
        task.set_rate(min(1, (150 - step) / 75))
        task.step(step)
    measures = evaluate_codes(task.model, task.data, 120)
    assert measures["nll"] == pytest.approx(math.log(2) / 4, abs=0.02)
    assert measures["class_gain"] > 0.5


@pytest.mark.parametrize("changes", [
    {"optimiser": "muon"}, {"prefix_attention": "full", "order": "spiral_out"},
])
def test_it_learns_in_every_way(defaults, changes):
    task = make_task(make_block(defaults, dropout=0.0, **changes), toy_maps())
    task.set_rate(1.0)
    nats = [float(task.step(step)["nll"]) for step in range(40)]
    assert sum(nats[-5:]) < sum(nats[:5]) - 5 * 0.3


@pytest.mark.parametrize("optimiser", ["muon", "adamw"])
def test_samples_on_the_way_change_nothing_that_is_learned(defaults, optimiser):
    learned = []
    for shows in (False, True):
        task = make_task(make_block(defaults, optimiser=optimiser), toy_maps())
        task.set_rate(1.0)
        for step in range(6):
            torch.manual_seed(step)
            task.step(step)
            if shows and step % 2:
                task.sample(step)
        learned.append(task.model.state_dict())
    assert all(torch.equal(alone, other) for alone, other in zip(*(found.values() for found in learned)))


def test_windows_of_a_map_and_its_conditions_are_learned(defaults):
    """s follows r at every place: told its condition, a window costs nothing, and another picture's far more."""
    generator = torch.Generator().manual_seed(0)
    r = torch.randint(K, (40, 1, 4, 4), generator=generator).int()
    data = PairedMaps(CodeMaps((r + 3) % K, None, [], K), {"map": CodeMaps(r, None, [], K)}, window=2)
    block = make_block(defaults, steps=200, dropout=0.0, pkeep=1.0, batch_size=32, n_embd=32, lr=2e-2)
    block = block.model_copy(update={"condition": ["coordinates", "map"], "window": 2})
    shown = []
    task = TransformerTask(block, 0, data, data, {"image": tiny_vqgan(), "map": tiny_vqgan()},
                           make_accelerator("fp32"), lambda picture, step: shown.append(picture))
    assert task.model.config.prefix_length == 2 + 4
    for step in range(200):
        task.set_rate(min(1, (200 - step) / 100))
        task.step(step)
    measures = task.evaluate(200)
    assert measures["nll"] < 0.1
    assert measures["gain"] > 1
    assert measures["gain_bits"] == pytest.approx(nats_to_bits(measures["gain"]))
    assert "class_gain" not in measures
    task.sample(200)
    width, height = shown[0].size
    assert width > 3 * height  # sixteen in a row: conditions above, samples below


def test_without_a_condition_one_start_token(defaults):
    maps = toy_maps(labels=False)
    task = make_task(make_block(defaults, condition=[]), maps)
    task.set_rate(1.0)
    assert task.model.config.prefix_vocab == 1
    assert not task.batch(0)[0].any()
    before = float(task.step(0)["nll"])
    for step in range(1, 40):
        task.step(step)
    assert float(task.step(40)["nll"]) < before - 0.3
    assert "class_gain" not in task.evaluate(41)


def test_without_classes_the_condition_is_left_out_and_that_is_said(defaults):
    said = []
    assert fitting(make_block(defaults), toy_maps(labels=False), said.append).condition == []
    assert "have no classes" in said[0]
    assert fitting(make_block(defaults), toy_maps(), said.append).condition == ["class"]
    assert len(said) == 1


def test_what_the_stage_leaves(house):
    stage, said = house(), []
    progress = train_transformer(stage, said.append)
    models = stage.root / "models/transformer-class"
    best, last = (LatentTransformer.from_pretrained(models / part) for part in ("", "last"))
    assert best.config.prefix_vocab == CLASSES
    assert last.config.max_tokens == 4
    assert [path.name for path in sorted((models / "samples").iterdir())] == [
        "step-00000000.png", "step-00000006.png", "step-00000012.png"]
    history = pd.read_csv(stage.reports / "history.csv")
    assert history["step"].tolist() == [2, 4, 6, 8, 10, 12]
    assert history["val_nll"].notna().tolist() == [False, True, False, True, False, True]
    assert (history["nll"] > 0).all()
    metrics = pd.read_json(stage.reports / "metrics.json", typ="series")
    assert metrics["val_nll"] == pytest.approx(progress.best["nll"], rel=1e-5)
    assert metrics["val_bits"] == pytest.approx(metrics["val_nll"] / math.log(2), rel=1e-4)
    assert 0.5 * math.log(K) < metrics["unigram_nll"] < 1.2 * math.log(K)
    assert any("needs" in line and "nats" in line for line in said)
    held_out = PairedMaps.load(stage.root / "codes", "validation", stage.block)
    assert evaluate_codes(best, held_out, 20)["nll"] == pytest.approx(metrics["val_nll"], abs=1e-4)


@pytest.mark.parametrize(("stop_at", "changes"), [
    (5, {}), (7, {"precision": "bf16"}), (8, {"optimiser": "muon", "order": "spiral_in"}),
])
def test_killed_and_resumed_ends_with_the_same_bits(house, monkeypatch, stop_at, changes):
    undisturbed = house(**changes)
    train_transformer(undisturbed, lambda line: None)
    wanted = _files(undisturbed)
    _forget(undisturbed)

    class Killed(Exception):
        pass

    step = TransformerTask.step

    def die(task, number):
        if number == stop_at:
            raise Killed
        return step(task, number)

    monkeypatch.setattr(TransformerTask, "step", die)
    with pytest.raises(Killed):
        train_transformer(house(**changes), lambda line: None)
    monkeypatch.setattr(TransformerTask, "step", step)
    said = []
    train_transformer(house(**changes), said.append)
    assert any(line.startswith(f"going on from step {stop_at // 3 * 3}") for line in said)
    assert _files(undisturbed) == wanted


def test_an_interrupt_leaves_a_checkpoint(house, monkeypatch):
    step = TransformerTask.step

    def interrupted(task, number):
        if number == 6:
            signal.raise_signal(signal.SIGINT)
        return step(task, number)

    monkeypatch.setattr(TransformerTask, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_transformer(house(), lambda line: None)
    monkeypatch.setattr(TransformerTask, "step", step)
    said = []
    train_transformer(house(), said.append)
    assert any(line.startswith("going on from step 7") for line in said)


def test_other_codes_start_afresh(house):
    stage = house()
    train_transformer(stage, lambda line: None)
    other = toy_maps(seed=7)
    save_codes(stage.root / "codes/image", "train", other.indices, other.labels, other.class_names, K)
    said = []
    assert train_transformer(house(), said.append).step == 12
    assert any("starts afresh" in line for line in said)


def test_overfitting_is_said_plainly():
    best, worse = {"step": 50, "nll": 2.0}, {"step": 100, "nll": 2.4}
    said = likelihood_verdict(best, worse, 3)
    assert any(line.startswith("Overfitting: by step 100") for line in said)
    assert not any("Overfitting" in line for line in likelihood_verdict(best, best, 3))


def _files(stage):
    """Bytes of all that a run leaves, but for what tells the time."""
    places = (stage.root / "models/transformer-class", stage.reports)
    return {str(path.relative_to(stage.root)): path.read_bytes() for place in places
            for path in sorted(place.rglob("*")) if path.is_file() and path.name != "timings.csv"}


def _forget(stage):
    import shutil

    for part in ("checkpoints", "models/transformer-class", "reports"):
        shutil.rmtree(stage.root / part)


def test_what_a_machine_is_quick_at_is_no_part_of_whose_a_checkpoint_is(house, monkeypatch):
    """A run goes on where another precision is the quick one, and says so."""
    for fast, steps in ((True, 12), (False, 14)):
        monkeypatch.setattr(devices, "bf16_is_fast", lambda device, fast=fast: fast)
        said = []
        train_transformer(house(precision="auto", steps=steps), said.append)
    assert "going on from step 12" in said
    assert any("from here in fp32, the steps before in bf16" in line for line in said)
