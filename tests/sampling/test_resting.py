"""Windows that rest at a map's edges keep what they know: less work, the same codes, no more memory than allowed."""

import pytest
import torch
from tests.rows import Rows

from tesserae.models.transformer import LatentTransformer, TransformerConfig
from tesserae.sampling import resting
from tesserae.sampling.resting import Resting
from tesserae.sampling.windows import sample_map

WINDOW, SHAPE, PREFIX = (4, 6), (11, 15), 2


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = LatentTransformer(TransformerConfig(codebook_size=11, prefix_vocab=7, prefix_length=PREFIX, max_tokens=24,
                                               n_layer=2, n_head=2, n_embd=16)).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return made


def telling(samples, tops, lefts):
    """A prefix that differs between samples and places."""
    return torch.stack([(samples + 2 * tops) % 7, (tops + 3 * lefts) % 7], 1)


@pytest.fixture
def kept(monkeypatch):
    """What a map's windows keep: every Resting that is made, the most bytes it kept at once, those it may keep."""
    seen = {"room": 2**30, "most": 0, "all": []}
    real = Resting.draw

    def draw(self, *given):
        if self not in seen["all"]:
            seen["all"].append(self)
        drawn = real(self, *given)
        seen["most"] = max(seen["most"], sum(cache.nbytes for cache in self.caches.values()))
        return drawn

    monkeypatch.setattr(resting, "_quarter", lambda _: seen["room"])
    monkeypatch.setattr(Resting, "draw", draw)
    return seen


def passed(model, **how):
    """A map, and how many rows went through the network for it."""
    with Rows(model) as rows:
        return sample_map(model, telling, SHAPE, WINDOW, seed=3, **how), rows.count


def windows_of(size, window):
    return [min(max(i - window // 2, 0), size - window) for i in range(size)]


@pytest.mark.parametrize("wavefront", [True, False])
def test_each_code_of_a_resting_window_goes_through_the_network_once(model, kept, wavefront):
    """Counted by the definition: what a window knows for its next code is what it knew for the last, and more."""
    known, expected, alone = {}, 0, 0
    for i, top in enumerate(windows_of(SHAPE[0], WINDOW[0])):
        for j, left in enumerate(windows_of(SHAPE[1], WINDOW[1])):
            before = (i - top) * WINDOW[1] + j - left
            expected += before - known[top, left] if (top, left) in known else PREFIX + before
            alone += PREFIX + before
            known[top, left] = before
    assert expected < 0.6 * alone
    assert passed(model, count=4, wavefront=wavefront)[1] == 4 * expected  # four, so that no rows are filled up
    kept["room"] = 0
    assert expected < passed(model, count=4, wavefront=wavefront)[1] / 4 < alone


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_the_codes_do_not_depend_on_what_is_kept(model, kept, count, batch_size):
    maps, most = [], []
    for room in (0, 20_000, 2**30):
        kept["room"], kept["most"] = room, 0
        maps.append(sample_map(model, telling, SHAPE, WINDOW, count=count, seed=5, batch_size=batch_size))
        most.append(kept["most"])
    assert torch.equal(maps[0], maps[1])
    assert torch.equal(maps[0], maps[2])
    assert most[0] == 0
    assert 0 < most[1] <= 20_000 < most[2]


def test_nothing_is_kept_longer_than_it_is_needed(model, kept):
    sample_map(model, telling, SHAPE, WINDOW, count=2)
    one, = kept["all"]
    assert not one.caches
    assert one.room == kept["room"]
    capacity = PREFIX + WINDOW[0] * WINDOW[1] - 1
    whole = 2 * 2 * capacity * 16 * 4  # layers, keys and values, positions, numbers of four bytes
    columns = len(set(windows_of(SHAPE[1], WINDOW[1])))
    assert kept["most"] <= 2 * columns * whole  # of the windows below each other one at a time


def test_a_machine_or_a_container_that_tells_its_memory_gives_a_quarter(monkeypatch, tmp_path):
    said, limits = {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}, [tmp_path / "new", tmp_path / "old"]
    monkeypatch.setattr(resting.os, "sysconf", said.__getitem__, raising=False)
    monkeypatch.setattr(resting, "LIMITS", limits)
    assert resting._quarter(torch.device("cpu")) == 1_024_000
    limits[0].write_text("max\n")
    limits[1].write_text(f"{2**62}\n")
    assert resting._quarter(torch.device("cpu")) == 1_024_000
    limits[1].write_text("400000\n")
    assert resting._quarter(torch.device("cpu")) == 100_000
    monkeypatch.delattr(resting.os, "sysconf")
    limits[1].unlink()
    assert resting._quarter(torch.device("cpu")) == 2**31


def test_keys_on_a_gpu_heed_its_own_memory(monkeypatch):
    monkeypatch.setattr(resting.torch.cuda, "mem_get_info", lambda device: (4000, 9000))
    assert resting._quarter(torch.device("cuda", 0)) == 1000
