"""The reference's sliding window, in our words: for each code the whole of its window goes through the network."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.cases import Plan
from benchmarks.data import random_codes
from benchmarks.theirs.drawing import drawer
from benchmarks.work import Work
from tesserae.sampling.sliding_window import local_position


def prepare(plan: Plan) -> tuple[Work, dict[str, Any]]:
    """One code at every so many places of the map, all of which take it the same time."""
    (module, network, outputs, given), size = drawer(plan), plan.size
    map_side, side = size["map_side"], size["side"]
    codes, layout = (random_codes(size, 1, map_side, plan.seed + n).to(plan.device) for n in (1, 2))
    label = torch.full((1, 1), 1, device=plan.device)
    places = range(0, map_side**2, size["every_position"])

    @torch.no_grad()
    def run() -> float:
        for place in places:
            i, j = divmod(place, map_side)
            row, col = (local_position(at, map_side, side) for at in (i, j))
            window = (slice(None), slice(i - row, i - row + side), slice(j - col, j - col + side))
            prefix = label if size["condition"] == "class" else layout[window].flatten(1)
            logits, _ = network(torch.cat([prefix, codes[window].flatten(1)], dim=1)[:, :-1])
            wanted = logits[:, prefix.shape[1] - 1 + row * side + col]  # (1,K)
            chances = torch.softmax(module.top_k_logits(wanted, size["top_k"]), dim=-1)
            codes[:, i, j] = torch.multinomial(chances, 1)[:, 0]
        return len(places)

    return Work(run, outputs), given
