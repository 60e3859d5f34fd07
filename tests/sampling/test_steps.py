"""Recorded steps: what a GPU plays back is what the network says, wherever and whenever it is asked."""

import pytest
import torch

from tesserae.models.transformer import LatentTransformer, TransformerConfig
from tesserae.sampling import steps
from tesserae.sampling.sampler import sample
from tesserae.sampling.steps import Recorder, Steps
from tesserae.sampling.windows import sample_map

K, P, T = 11, 2, 12
ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: graphs are recorded on one alone")


class Replayed:
    """A graph's place on a CPU: it computes with the tensors it was recorded with, and into its one result."""

    count = 0

    def __init__(self, function, places, result):
        self.function, self.places, self.result = function, places, result

    def replay(self):
        Replayed.count += 1
        self.result.copy_(self.function(*self.places))


@pytest.fixture
def recording(monkeypatch):
    """Recorders that record on a CPU, too."""

    def start(self, device):
        self.records, self.pool, self.known = True, None, {}

    def recorded(self, function, inputs):
        places = [part.clone() for part in inputs]
        result = function(*places).clone()
        return Replayed(function, places, result), places, result

    monkeypatch.setattr(Recorder, "__init__", start)
    monkeypatch.setattr(Recorder, "_recorded", recorded)
    Replayed.count = 0


def made(prefix_attention="causal", device="cpu", **sizes):
    torch.manual_seed(0)
    config = TransformerConfig(codebook_size=K, prefix_vocab=7, prefix_length=P, max_tokens=T, n_layer=2, n_head=2,
                               n_embd=16, prefix_attention=prefix_attention, **sizes)
    model = LatentTransformer(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval().to(device)


def telling(samples, tops, lefts):
    return torch.stack([(samples + 2 * tops) % 7, (tops + 3 * lefts) % 7], 1)


@torch.no_grad()
@pytest.mark.parametrize("at_once", [1, 3])
def test_a_recorded_step_is_a_step(recording, at_once):
    model, generator = made(), torch.Generator().manual_seed(1)
    playing = Steps(model)
    for _ in range(3):  # again from the start: what the buffers held before must not be seen
        prefix = torch.randint(7, (4, P), generator=generator)
        codes = torch.randint(K, (4, T), generator=generator)
        _, plain = model.prefill(prefix, codes[:, :2])
        playing.start(model.prefill(prefix, codes[:, :2])[1])
        for place in range(2, T - 1 - at_once, at_once):
            expected = model.step(codes[:, place:place + at_once], plain)
            found = playing(codes[:, place:place + at_once])
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert Replayed.count > 2


def test_a_function_is_recorded_once_for_each_shape(recording):
    calls, recorder = [], Recorder(torch.device("cpu"))

    def double(x):
        calls.append(x.shape)
        return 2 * x

    for number in range(5):
        x = torch.full((3,), float(number))
        assert torch.equal(recorder("double", double, x), 2 * x)
    once = len(calls)
    recorder("double", double, torch.ones(4))
    recorder("another", double, torch.ones(3))
    assert len(calls) == once + 2
    assert len(recorder.known) == 3


@pytest.mark.parametrize("count", [1, 5])
def test_samples_are_the_same_recorded(recording, monkeypatch, count):
    model, prefix = made(), torch.arange(2 * count).view(count, 2) % 7
    found = sample(model, prefix, (3, 4), seed=3, batch_size=3)
    assert Replayed.count >= T - 2
    monkeypatch.undo()
    assert torch.equal(found, sample(model, prefix, (3, 4), seed=3, batch_size=3))


@pytest.mark.parametrize("prefix_attention", ["causal", "full"])
@pytest.mark.parametrize(("stride", "together"), [(1, True), (1, False), (2, None), (3, None)])
def test_large_maps_are_the_same_recorded(recording, monkeypatch, prefix_attention, stride, together):
    model = made(prefix_attention)
    drawing = {"count": 2, "seed": 1, "stride": stride, "top_k": 7}
    found = sample_map(model, telling, (9, 10), (3, 4), **drawing, together=together)
    assert Replayed.count > 10
    monkeypatch.undo()
    assert torch.equal(found, sample_map(model, telling, (9, 10), (3, 4), **drawing))


@pytest.mark.parametrize("wavefront", [True, False])
@pytest.mark.parametrize("shape", [(4, 13), (12, 5), (9, 9), (3, 4)])
def test_windows_of_all_lengths_go_together(shape, wavefront):
    model = made()
    drawing = {"count": 2, "seed": 2, "wavefront": wavefront, "batch_size": 3}
    expected = sample_map(model, telling, shape, (3, 4), **drawing, together=False)
    assert torch.equal(sample_map(model, telling, shape, (3, 4), **drawing, together=True), expected)


@ON_GPU
@pytest.mark.parametrize("bf16", [False, True])
def test_a_gpu_plays_what_it_recorded(monkeypatch, bf16):
    """Logits of recorded steps beside those of plain ones, on the device itself."""
    model, generator = made(device="cuda"), torch.Generator().manual_seed(1)
    prefix, codes = (torch.randint(n, (5, t), generator=generator).cuda() for n, t in ((7, P), (K, T)))
    near = {"rtol": 0.05, "atol": 0.05} if bf16 else {"rtol": 1e-4, "atol": 1e-4}
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=bf16):
        playing = Steps(model)
        for _ in range(2):
            _, plain = model.prefill(prefix, codes[:, :1])
            playing.start(model.prefill(prefix, codes[:, :1])[1])
            for place in range(1, T - 1):
                expected = model.step(codes[:, place], plain)
                torch.testing.assert_close(playing(codes[:, place]), expected, **near)
        assert any(playing.recorder.known.values())


@ON_GPU
def test_a_gpu_draws_the_same_maps_in_every_way():
    model = made(device="cuda")

    def on_gpu(samples, tops, lefts):
        return telling(samples, tops, lefts)

    maps = [sample_map(model, on_gpu, (9, 10), (3, 4), count=2, seed=1, together=together)
            for together in (True, False)]
    share = float((maps[0] == maps[1]).double().mean())
    assert share > 0.9, share  # rounding may turn a draw, and what follows it


def test_masks_are_as_wide_as_fused_attention_likes(recording):
    model = made()
    playing = Steps(model)
    with torch.no_grad():
        playing.start(model.prefill(torch.zeros(2, P, dtype=torch.int64))[1])
    assert playing.cache.capacity % steps.ALIGNED == 0
    assert playing.cache.capacity >= model.config.block_size
