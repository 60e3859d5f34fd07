"""How several processes learn one network together.

`ddp`: each holds it whole, and they average their gradients. `fsdp`: each holds a shard of every weight, of its
gradient and of the optimiser's state, for networks that no device holds with all that. Both learn the same, and the
same as one process with the whole batch: norms, statistics and vectors are those of all processes, see `Group`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as sharded
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.nn.functional import all_reduce
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

GATHERED = sharded.StateDictOptions(full_state_dict=True, cpu_offload=True)  # in the first process; {} in the others
SCATTERED = sharded.StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


class Group:
    """The processes that learn together, as one of them sees them; without an accelerator, one alone.

    Process i takes the elements i, i + count, i + 2 count and so on of a batch. All processes must call a method for
    any of them to return.
    """

    def __init__(self, accelerator: Accelerator | None = None) -> None:
        self.accelerator = accelerator
        self.index = accelerator.process_index if accelerator else 0
        self.count = accelerator.num_processes if accelerator else 1

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of each process's tensor, all of one shape; no gradient passes."""
        return tensor if self.count == 1 else self.accelerator.reduce(tensor, "mean")

    def mean_with_gradient(self, tensor: Tensor) -> Tensor:
        """`mean` for parts of a loss, whose gradients `average_gradients` or `distributed` average afterwards."""
        return tensor if self.count == 1 else all_reduce(tensor) / self.count

    def part(self, number: int) -> Tensor:
        """This process's positions among `number` > 0 elements, (n,) int64.

        n is the same in every process; where `number` does not divide, the last positions begin again at 0, which
        `whole` leaves out.
        """
        return torch.arange(self.index, -(-number // self.count) * self.count, self.count) % number

    def whole(self, part: Tensor, number: int | None = None) -> Tensor:
        """The elements of all processes in the order of the whole: (n,...) each -> (number,...), by default all."""
        if self.count == 1:
            return part
        found = self.accelerator.gather(part.to(self.accelerator.device).contiguous()).to(part.device)
        return found.unflatten(0, (self.count, -1)).transpose(0, 1).flatten(0, 1)[:number]

    def each(self, tensor: Tensor) -> Tensor:
        """Each process's tensor by its index: (...) -> (count,...), on the CPU."""
        return torch.stack(self.all_of(tensor.cpu()))

    def of_first(self, value: Any) -> Any:
        """What the first process calls it with, in all of them. Numbers come with all their bits."""
        return value if self.count == 1 else broadcast_object_list([value])[0]

    def all_of(self, value: Any) -> list:
        """What each process calls it with, by its index; tensors lie on the CPU."""
        return [value] if self.count == 1 else gather_object([value])

    def equalise(self, module: nn.Module) -> None:
        """Give the module the weights and buffers that it has in the first process."""
        if self.count > 1:
            for each in (*module.parameters(), *module.buffers()):
                broadcast(each.data)


ALONE = Group()


class _GroupBatchNorm(nn.BatchNorm2d):
    """BatchNorm over the batch of all processes. torch's SyncBatchNorm is the same on GPUs alone."""

    def __init__(self, like: nn.BatchNorm2d, group: Group) -> None:
        super().__init__(like.num_features, like.eps, like.momentum)
        self.load_state_dict(like.state_dict())
        self.group = group

    def forward(self, x: Tensor) -> Tensor:  # (B,C,H,W) -> the same
        if not self.training:
            return super().forward(x)
        full = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = self.group.mean_with_gradient(full.mean((0, 2, 3)))
        centred = full - mean[:, None, None]
        variance = self.group.mean_with_gradient(centred.square().mean((0, 2, 3)))
        with torch.no_grad():
            number = self.group.count * x.numel() // x.shape[1]
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (number / max(1, number - 1)), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def with_shared_statistics(network: nn.Module, group: Group) -> nn.Module:
    """The same network with BatchNorm over the batch of all processes: its statistics, and their gradients."""
    for name, module in list(network.named_children()) if group.count > 1 else ():
        if isinstance(module, nn.BatchNorm2d):
            setattr(network, name, _GroupBatchNorm(module, group).to(module.weight.device))
        else:
            with_shared_statistics(module, group)
    return network


def average_gradients(accelerator: Accelerator, parameters: list[Tensor]) -> None:
    """Replace gradients by their mean over processes, in one message: for networks outside of `distributed`."""
    if accelerator.num_processes == 1:
        return
    with_gradient = [p for p in parameters if p.grad is not None]
    flat = accelerator.reduce(torch.cat([p.grad.flatten() for p in with_gradient]), reduction="mean")
    for parameter, part in zip(with_gradient, flat.split([p.numel() for p in with_gradient])):
        parameter.grad.copy_(part.view_as(parameter.grad))


def clipped(parameters: list[Tensor], max_norm: float) -> Tensor:
    """The norm of all gradients, a scalar; where it exceeds `max_norm`, they are scaled down to that. 0: never."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if isinstance(norm, DTensor):  # each process knows the part of its own shards
        norm = norm.full_tensor()
    if max_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def distributed(model: nn.Module, layers: Sequence[nn.Module], strategy: str, accelerator: Accelerator) -> Callable:
    """What to call in place of `model` in training, so that `backward` leaves every process the mean gradient.

    strategy: "ddp" or "fsdp", which shards the weights of `model`, of each of `layers` by itself, in place: make the
    optimiser afterwards. One process calls `model` itself, whatever the strategy.
    """
    if accelerator.num_processes == 1:
        return model
    device = accelerator.device
    if strategy == "ddp":
        return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
    mesh = init_device_mesh(device.type, (accelerator.num_processes,))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def is_sharded(model: nn.Module) -> bool:
    """Whether the weights of `model` are sharded over processes."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """The whole weights by name; of a sharded model every process must call this, and the first alone gets them."""
    return sharded.get_model_state_dict(model, options=GATHERED) if is_sharded(model) else model.state_dict()


def optimizer_state(model: nn.Module, optimiser) -> dict:
    """What `optimiser` keeps for `model`, whole; the same holds as for `model_state`."""
    if is_sharded(model):
        return sharded.get_optimizer_state_dict(model, optimiser, options=GATHERED)
    return optimiser.state_dict()


def load_state(model: nn.Module, optimiser, state: dict | None, group: Group) -> None:
    """Load what `model_state` and `optimizer_state` returned: state["model"], state["optimiser"], in the first
    process alone, on the CPU. Of a sharded model each process gets its own shards.
    """
    if is_sharded(model):
        state = state or {"model": {}, "optimiser": {}}
        sharded.set_model_state_dict(model, state["model"], options=SCATTERED)
        sharded.set_optimizer_state_dict(model, optimiser, state["optimiser"], options=SCATTERED)
        return
    state = group.of_first(state)
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
