"""Recorded steps: what a GPU replays is what the network says, wherever and whenever it is called."""

import pytest
import torch

from tesserae.accel.cuda_graphs import ALIGNED, RecordedSteps, Recorder
from tesserae.models.transformer import LatentTransformer, TransformerConfig
from tesserae.sampling import autoregressive
from tesserae.sampling.autoregressive import SampleOptions, sample

K, P, T = 11, 2, 12
ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: graphs are recorded on one alone")


class Replayed:
    """A graph's place on a CPU: it computes with the tensors it was recorded with, and into its one result."""

    count = 0

    def __init__(self, function, inputs, result):
        self.function, self.inputs, self.result = function, inputs, result

    def replay(self):
        Replayed.count += 1
        self.result.copy_(self.function(*self.inputs))


class OnCPU(Recorder):
    def record(self, function, inputs):
        own = [part.clone() for part in inputs]
        result = function(*own).clone()
        return Replayed(function, own, result), own, result


@pytest.fixture
def recorder():
    Replayed.count = 0
    return OnCPU()


def made(prefix_attention="causal", device="cpu", **sizes):
    torch.manual_seed(0)
    config = TransformerConfig(codebook_size=K, prefix_vocab=7, prefix_length=P, max_tokens=T, n_layer=2, n_head=2,
                               n_embd=16, prefix_attention=prefix_attention, **sizes)
    model = LatentTransformer(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval().to(device)


@torch.no_grad()
@pytest.mark.parametrize("prefix_attention", ["causal", "full"])
@pytest.mark.parametrize("at_once", [1, 3])
def test_a_recorded_step_is_a_step(recorder, prefix_attention, at_once):
    model, generator = made(prefix_attention), torch.Generator().manual_seed(1)
    steps = RecordedSteps(model, recorder)
    for _ in range(3):  # again from the start: what the buffers held before must not be attended
        prefix = torch.randint(7, (4, P), generator=generator)
        codes = torch.randint(K, (4, T), generator=generator)
        _, plain = model.prefill(prefix, codes[:, :2])
        _, cache = steps.prefill(prefix, codes[:, :2])
        for position in range(2, T - 1 - at_once, at_once):
            expected = model.step(codes[:, position:position + at_once], plain)
            found = steps.step(codes[:, position:position + at_once], cache)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert cache.length == plain.length
    assert Replayed.count > 2
    assert cache.capacity % ALIGNED == 0
    assert cache.capacity >= model.config.block_size


def test_a_function_is_recorded_once_for_each_shape(recorder):
    calls = []

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
def test_samples_are_the_same_recorded(recorder, monkeypatch, count):
    model, prefix = made(), torch.arange(2 * count).view(count, 2) % 7
    options = SampleOptions(seed=3, batch_size=3)
    expected = sample(model, prefix, (3, 4), options)
    monkeypatch.setattr(autoregressive, "decoder", lambda model, options: RecordedSteps(model, recorder))
    assert torch.equal(sample(model, prefix, (3, 4), options), expected)
    assert Replayed.count >= T - 2


@ON_GPU
@pytest.mark.parametrize("bf16", [False, True])
def test_a_gpu_replays_what_it_recorded(bf16):
    """Logits of recorded steps beside those of plain ones, on the device itself."""
    model, generator = made(device="cuda"), torch.Generator().manual_seed(1)
    prefix, codes = (torch.randint(n, (5, t), generator=generator).cuda() for n, t in ((7, P), (K, T)))
    near = {"rtol": 0.05, "atol": 0.05} if bf16 else {"rtol": 1e-4, "atol": 1e-4}
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=bf16):
        steps = RecordedSteps(model)
        for _ in range(2):
            _, plain = model.prefill(prefix, codes[:, :1])
            _, cache = steps.prefill(prefix, codes[:, :1])
            for position in range(1, T - 1):
                expected = model.step(codes[:, position], plain)
                torch.testing.assert_close(steps.step(codes[:, position], cache), expected, **near)
        assert any(steps.recorder.known.values())


@ON_GPU
def test_a_gpu_samples_the_same_recorded():
    model, prefix = made(device="cuda"), torch.zeros(5, P, dtype=torch.int64, device="cuda")
    maps = [sample(model, prefix, (3, 4), SampleOptions(recorded=recorded)) for recorded in (True, False)]
    share = float((maps[0] == maps[1]).double().mean())
    assert share > 0.9, share  # rounding may turn a code, and what follows it
