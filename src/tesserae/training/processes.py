"""How several processes learn one network together.

`ddp`: each holds it whole, and they average their gradients while they still compute them. `fsdp`: each holds a
share of every weight, of its gradient and of what the optimiser keeps for it, and fetches a layer's whole weights
when they are needed, so that networks can be trained that no device holds with all that. The same is learned either
way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

GATHERED = StateDictOptions(full_state_dict=True, cpu_offload=True)  # on the first process; {} on the others
SPREAD = StateDictOptions(full_state_dict=True)


def average_gradients(accelerator: Accelerator, parameters: list[Tensor]) -> None:
    """Replace gradients by their mean over processes, in one message: for networks that `shared` does not hold."""
    if accelerator.num_processes == 1:
        return
    with_gradient = [p for p in parameters if p.grad is not None]
    flat = accelerator.reduce(torch.cat([p.grad.flatten() for p in with_gradient]), reduction="mean")
    for parameter, part in zip(with_gradient, flat.split([p.numel() for p in with_gradient])):
        parameter.grad.copy_(part.view_as(parameter.grad))


def clipped(parameters: list[Tensor], most: float) -> Tensor:
    """The norm of all gradients, a scalar; where it is more than `most`, they are scaled down to that. 0: never."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if isinstance(norm, DTensor):  # each process knows its own shares' part of it
        norm = norm.full_tensor()
    if most:
        torch.nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return norm


def shared(model: nn.Module, layers: Sequence[nn.Module], way: str, accelerator: Accelerator) -> Callable:
    """What to call in place of `model` in training, so that `backward` leaves every process the mean gradient.

    way: "ddp" or "fsdp", which turns the weights of `model`, of each of `layers` by itself, into shares in place:
    make the optimiser afterwards. One process calls `model` itself, whatever the way.
    """
    if accelerator.num_processes == 1:
        return model
    device = accelerator.device
    if way == "ddp":
        return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
    mesh = init_device_mesh(device.type, (accelerator.num_processes,))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def in_shares(model: nn.Module) -> bool:
    """Whether the weights of `model` are spread over processes."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The whole weights by name; of one in shares all processes must ask, and the first alone is answered."""
    return get_model_state_dict(model, options=GATHERED) if in_shares(model) else model.state_dict()


def memory_of(model: nn.Module, optimiser) -> dict:
    """What `optimiser` keeps for `model`, whole; the same holds as for `weights_of`."""
    if in_shares(model):
        return get_optimizer_state_dict(model, optimiser, options=GATHERED)
    return optimiser.state_dict()


def take_up(model: nn.Module, optimiser, weights: dict[str, Tensor], memory: dict) -> None:
    """Give both what `weights_of` and `memory_of` found, in shares where theirs are; every process has the whole."""
    if in_shares(model):
        set_model_state_dict(model, dict(weights), options=SPREAD)  # it replaces what it is given by shares
        set_optimizer_state_dict(model, optimiser, memory, options=SPREAD)
    else:
        model.load_state_dict(weights)
        optimiser.load_state_dict(memory)
