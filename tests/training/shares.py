"""What one of two processes sees of a network in shares; test_processes.py starts them."""

import copy
import weakref

import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tesserae.models.transformer import LatentTransformer, TransformerConfig
from tesserae.training.processes import Group, distributed, is_sharded, load_state, model_state, optimizer_state


class Held(TorchDispatchMode):
    """Counts the numbers of four bytes in what is made while it is on and still held: `most` at once.

    Of tensors that were there before, `known` ones do not count.
    """

    def __init__(self, known=()):
        super().__init__()
        self.now = self.most = 0
        for tensor in tree_leaves(known):
            if isinstance(tensor, torch.Tensor):
                tensor.untyped_storage().counted = True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and not isinstance(tensor, DTensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage):
        if not hasattr(storage, "counted"):  # a storage is one Python object as long as anything holds it
            storage.counted = True
            size = storage.nbytes() / 4
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._gone, size)

    def _gone(self, size):
        self.now -= size


def main():
    accelerator = Accelerator()
    torch.manual_seed(0)
    model = LatentTransformer(TransformerConfig(codebook_size=16, max_tokens=4, n_layer=2, n_head=2, n_embd=32))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    network = distributed(model, model.blocks, "fsdp", accelerator)
    assert is_sharded(model)
    local = sum(weight.to_local().numel() for weight in model.parameters())
    whole = sum(weight.numel() for weight in before.values())
    assert local <= 0.51 * whole, (local, whole)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    found = model_state(model)
    assert all(torch.equal(found[name], before[name]) for name in (before if accelerator.is_main_process else found))
    indices = torch.randint(16, (3, 4), generator=torch.Generator().manual_seed(accelerator.process_index))
    network(torch.zeros(3, 1, dtype=torch.long), indices).square().mean().backward()
    optimiser.step()
    optimiser.zero_grad()
    kept = sum(value.to_local().numel() for state in optimiser.state.values() for value in state.values()
               if value.ndim)
    assert kept == 2 * local, (kept, local)
    most = max(weight.numel() for weight in before.values())  # of one tensor
    with Held() as gathering:
        weights, memory = model_state(model), optimizer_state(model, optimiser)
    if not accelerator.is_main_process:  # the first keeps all on the CPU, which cannot be told apart here
        assert gathering.most <= 4 * most < whole, (gathering.most, most)
    assert bool(weights) == bool(memory) == accelerator.is_main_process
    state = copy.deepcopy({"model": weights, "optimiser": memory}) if accelerator.is_main_process else None
    other = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    for weight in model.parameters():
        weight.data.zero_()
    with Held([state, [weight.to_local() for weight in model.parameters()]]) as held:
        load_state(model, other, state, Group(accelerator))
    # its shares of two moments, and a tensor that arrives, whole and in parts, while the one before it goes
    assert held.most <= 2 * local + 4 * most < 2 * whole, (held.most, local, most, whole)
    again, remembered = model_state(model), optimizer_state(model, other)
    assert all(torch.equal(again[name], weights[name]) for name in again)
    for name, state in remembered.get("state", {}).items():
        assert all(torch.equal(state[key], memory["state"][name][key]) for key in state)
    print("held its share", flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
