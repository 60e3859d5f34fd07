"""What one of two processes sees of a network in shares; test_processes.py starts them."""

import copy

import torch
from accelerate import Accelerator

from tesserae.models.transformer import LatentTransformer, TransformerConfig
from tesserae.training.processes import in_shares, memory_of, shared, take_up, weights_of


def main():
    accelerator = Accelerator()
    torch.manual_seed(0)
    model = LatentTransformer(TransformerConfig(codebook_size=16, max_tokens=4, n_layer=2, n_head=2, n_embd=32))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    network = shared(model, model.blocks, "fsdp", accelerator)
    assert in_shares(model)
    local = sum(weight.to_local().numel() for weight in model.parameters())
    whole = sum(weight.numel() for weight in before.values())
    assert local <= 0.51 * whole, (local, whole)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    found = weights_of(model)
    assert all(torch.equal(found[name], before[name]) for name in (before if accelerator.is_main_process else found))
    indices = torch.randint(16, (3, 4), generator=torch.Generator().manual_seed(accelerator.process_index))
    network(torch.zeros(3, 1, dtype=torch.long), indices).square().mean().backward()
    optimiser.step()
    optimiser.zero_grad()
    kept = sum(value.to_local().numel() for state in optimiser.state.values() for value in state.values()
               if value.ndim)
    assert kept == 2 * local, (kept, local)
    weights, memory = weights_of(model), memory_of(model, optimiser)
    assert bool(weights) == bool(memory) == accelerator.is_main_process
    both = [weights, memory]
    torch.distributed.broadcast_object_list(both)
    other = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    for weight in model.parameters():
        weight.data.zero_()
    take_up(model, other, *copy.deepcopy(both))
    again, remembered = weights_of(model), memory_of(model, other)
    assert all(torch.equal(again[name], weights[name]) for name in again)
    for name, state in remembered.get("state", {}).items():
        assert all(torch.equal(state[key], memory["state"][name][key]) for key in state)
    print("held its share", flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
