"""The reference's transformer, ready to draw: shared by the cases that draw."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cases import Plan
from benchmarks.configs import gpt_params
from benchmarks.data import prefix_and_codes
from benchmarks.reference import shake, weights_of


def drawer(plan: Plan) -> tuple[ModuleType, nn.Module, dict[str, Tensor], dict[str, Any]]:
    """Its module of transformers, a GPT of the case's size, logits on codes that both sides know, and its weights."""
    module = importlib.import_module("taming.modules.transformer.mingpt")
    network = shake(module.GPT(**gpt_params(plan.size))).to(plan.device).eval()
    state = {f"transformer.{name}": value for name, value in weights_of(network).items()}
    return module, network, _outputs(network, plan), {"state": state}


@torch.no_grad()
def _outputs(network: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """Logits of a whole map at once, and of its first codes one after the other with its cache."""
    prefix, codes = (part.to(plan.device) for part in prefix_and_codes(plan.size, 2, plan.seed))
    length = prefix.shape[1]
    whole = network(torch.cat([prefix, codes[:, :-1]], dim=1))[0][:, length - 1:]
    tokens, past, steps = prefix, None, []
    for place in range(3):
        logits, _, present = network.forward_with_past(tokens, past=past, past_length=length + place - 1)
        steps.append(logits[:, -1])
        tokens, past = codes[:, place:place + 1], [*(past or []), present]
    return {"logits": whole, "cached logits": torch.stack(steps, dim=1)}
