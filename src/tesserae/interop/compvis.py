"""Models of the reference implementation, CompVis/taming-transformers, and latent-diffusion's VQ models, as ours.

    vqgan = load_vqgan("configs/model.yaml", "checkpoints/last.ckpt")

The network is the same, so indices, reconstructions and logits are too; only the names of the weights differ.
What belongs to training is left out: the discriminator and LPIPS (`loss.*`), optimisers, callbacks. Whoever
trains on should know two habits of the reference that its weights do not show: its quantizer multiplies beta
with the codebook term, not with the commitment term ("legacy"; here: codebook_weight 0.25, commitment_weight
1), and its LPIPS runs with dropout in its heads while it trains.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tesserae.errors import TesseraeError
from tesserae.interop.compvis_configs import model_block, stage_block, transformer_config, vqgan_config
from tesserae.interop.lightning import load_state
from tesserae.models.transformer import LatentTransformer
from tesserae.models.vqgan import VQGAN
from tesserae.sampling.orderings import ordering

__all__ = ["load_transformer", "load_vqgan", "vqgan_config"]

# Parts of our names -> parts of the reference's.
_VQGAN_NAMES = (
    (r"^(encoder|decoder)\.middle\.block", r"\1.mid.block_"), (r"\.middle\.attention\.", ".mid.attn_1."),
    (r"^encoder\.levels\.", "encoder.down."), (r"^decoder\.levels\.", "decoder.up."),
    (r"\.blocks\.", ".block."), (r"^encoder\.downsample\.(\d+)\.", r"encoder.down.\1.downsample."),
    (r"^decoder\.upsample\.(\d+)\.", r"decoder.up.\1.upsample."),
    (r"\.attention\.(\d+)\.", r".attn.\1."), (r"\.out\.", ".proj_out."), (r"\.shortcut\.", ".nin_shortcut."),
    (r"^pre_quant\.", "quant_conv."), (r"^post_quant\.", "post_quant_conv."),
    (r"^quantizer\.projection\.", "quantize.proj."),
)
_TRANSFORMER_NAMES = (
    (r"\.norm_(\d)\.", r".ln\1."), (r"\.attention\.", ".attn."), (r"\.up\.", ".mlp.0."),
    (r"\.down\.", ".mlp.2."), (r"^norm\.", "ln_f."),
)
_NOT_WEIGHTS = re.compile(r"^loss\.|^model_ema\.|^colorize$|^blocks\.\d+\.attn\.mask$")
_MEANING = {"quantize.used": " (its codes are remapped)"}
_PREFIX = "prefix_embedding.weight"  # rows of the reference's common table


def load_vqgan(config: str | Path | Mapping, checkpoint: str | Path | Mapping, stage: str = "first",
               ema: bool = False) -> VQGAN:
    """A VQGAN of the reference or of latent-diffusion, in evaluation mode.

    config: its YAML, a path or what was read from it; that of a transformer or of a latent diffusion model gives
    its first stage, or with stage = "cond" the VQGAN of its condition. checkpoint: its .ckpt file, or a state dict.
    ema: take the moving averages of the weights that latent-diffusion's trainings with `use_ema` keep
    (`model_ema.*`), not the weights of the last step.

    A model of masks (VQSegmentationModel) encodes one-hot masks (B,classes,H,W) and decodes to logits of the same
    shape, its `config.view` is segmentation. Codes that are moving averages (EMAVQ) go on as such in training, and
    those of GumbelVQ are chosen by logits. Raises TesseraeError where config and checkpoint do not go together, or
    where the model has a part that ours lacks.
    """
    if stage not in ("first", "cond"):
        raise TesseraeError(f"stage = {stage!r} is not known: take first or cond.")
    block = stage_block(model_block(config), stage)
    state = _network(load_state(checkpoint), f"{stage}_stage_model.", "encoder.conv_in.weight")
    if ema or any(key.startswith("model_ema.") for key in state):
        state = _averaged(state, ema)
    model = VQGAN(vqgan_config(block["params"], block["target"], state))
    wanted = {key: _vqgan_names(key, len(model.config.channel_mult)) for key in model.state_dict()}
    return _filled(model, wanted | _codebook_names(model.config.quantizer, state), state)


def load_transformer(config: str | Path | Mapping, checkpoint: str | Path | Mapping) -> LatentTransformer:
    """A latent transformer of the reference (Net2NetTransformer), in evaluation mode.

    The reference embeds condition and codes by one table, ours by two: the condition's is a copy of those
    rows that it uses. Unconditional models take the prefix 0. n_unmasked, where it is the length of the prefix, is
    prefix_attention: full. Raises TesseraeError as `load_vqgan` does, and where the model orders its codes at random.
    """
    sizes, first = transformer_config(model_block(config))
    everything = load_state(checkpoint)
    _check_order(sizes.order, everything)
    state, model = _network(everything, "transformer.", "tok_emb.weight"), LatentTransformer(sizes)
    wanted = {key: _transformer_names(key) for key in model.state_dict()}
    if "tok_emb.weight" in state:
        state[_PREFIX] = state["tok_emb.weight"][first:first + sizes.prefix_vocab]
    if "pos_emb" in state and state["pos_emb"].ndim == 3:
        state["pos_emb"] = state["pos_emb"].flatten(0, 1)  # (1,block,C) -> (block,C)
    return _filled(model, wanted, state)


def _network(state: dict[str, Tensor], preferred: str, known: str) -> dict[str, Tensor]:
    """The weights of one network of a checkpoint, under their own names; all of them where it is not found.

    known: a weight that it has. What stands before that name is its prefix; of several the `preferred` is taken.
    """
    prefixes = sorted(key.removesuffix(known) for key in state if key == known or key.endswith(f".{known}"))
    if len(prefixes) > 1:
        prefixes = [prefix for prefix in prefixes if f".{prefix}".endswith(f".{preferred}")] or prefixes
    if len(prefixes) > 1 and "" not in prefixes:
        raise TesseraeError(f"the checkpoint holds several networks, under {_listed(prefixes)}: give the weights of "
                            "one of them, as a state dict.")
    if not prefixes or "" in prefixes:
        return state
    return {key.removeprefix(prefixes[0]): value for key, value in state.items() if key.startswith(prefixes[0])}


def _averaged(state: dict[str, Tensor], ema: bool) -> dict[str, Tensor]:
    """The state with moving averages as its weights if `ema`; warns which are taken where it has both."""
    averages = {key: state[name] for key in state if (name := f"model_ema.{key.replace('.', '')}") in state}
    if ema and not averages:
        raise TesseraeError("ema = True asks for moving averages of the weights (model_ema.*), and the checkpoint "
                            "has none: leave ema out.")
    if not ema:
        warnings.warn("The checkpoint also holds moving averages of its weights (model_ema.*): the weights of the "
                      "last step are loaded; ema=True loads the averages.", stacklevel=3)
    return state | averages if ema else state


def _check_order(order: str, state: Mapping[str, Tensor]) -> None:
    """Raise TesseraeError where the permuter that a checkpoint keeps is not the order of that name."""
    kept = next((state[key].flatten() for key in state if key.endswith("permuter.forward_shuffle_idx")), None)
    if kept is None:
        return
    count = len(kept)
    shapes = [(height, count // height) for height in range(1, count + 1) if count % height == 0]
    if not any(torch.equal(kept.long().cpu(), ordering(order, *shape)) for shape in shapes):
        raise TesseraeError(f"the checkpoint's permuter (permuter.forward_shuffle_idx, {count} codes) is not the "
                            f"order {order} that the config names: give the YAML file that goes with the checkpoint.")


def _codebook_names(quantizer: str, state: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """The reference's names of our quantizers' tensors except the projection."""
    if quantizer == "gumbel":
        return {"quantizer.codebook": ["quantize.embed.weight"]}
    names = {"quantizer.codebook": ["quantize.embedding.weight"]}
    if quantizer == "ema":
        prefix = "quantize." if "quantize.cluster_size" in state else "quantize.embedding."
        names |= {"quantizer.counts": [f"{prefix}cluster_size"], "quantizer.sums": [f"{prefix}embed_avg"]}
    return names


def _vqgan_names(key: str, levels: int) -> list[str]:
    """The reference's names for one of our weights: three where ours holds query, key and value together."""
    if key == "quantizer.idle":
        return []
    # the reference counts its decoder's levels from the highest resolution
    key = re.sub(r"^(decoder\.(?:levels|upsample)\.)(\d+)",
                 lambda match: f"{match[1]}{levels - 1 - int(match[2])}", key)
    return _split_qkv(_renamed(key, _VQGAN_NAMES), ("q", "k", "v"))


def _transformer_names(key: str) -> list[str]:
    fixed = {_PREFIX: _PREFIX, "token_embedding.weight": "tok_emb.weight", "positions": "pos_emb"}
    if key in fixed:
        return [fixed[key]]
    return _split_qkv(_renamed(key, _TRANSFORMER_NAMES), ("query", "key", "value"))


def _renamed(key: str, names: tuple) -> str:
    for pattern, replacement in names:
        key = re.sub(pattern, replacement, key)
    return key


def _split_qkv(key: str, names: tuple[str, ...]) -> list[str]:
    return [key.replace(".qkv.", f".{name}.") for name in names] if ".qkv." in key else [key]


def _filled(model: nn.Module, wanted: dict[str, list[str]], state: dict[str, Tensor]) -> Any:
    """`model` with the weights of `state`. Raises TesseraeError naming what is missing, over or misshapen."""
    names = {name for parts in wanted.values() for name in parts}
    missing = sorted(names - state.keys() - {_PREFIX})
    over = sorted(f"{key}{_MEANING.get(key, '')}" for key in state.keys() - names if not _NOT_WEIGHTS.match(key))
    wrong = []
    with torch.no_grad():
        for key, target in model.state_dict().items():
            if not wanted[key] or not state.keys() >= set(wanted[key]):
                continue
            parts = [state[name] for name in wanted[key]]
            shape = (target.shape[0] // len(parts), *target.shape[1:])
            misshapen = [name for name, part in zip(wanted[key], parts) if part.shape != shape]
            wrong += [f"{name} is {tuple(state[name].shape)}, not {shape}" for name in misshapen if name != _PREFIX]
            if not misshapen:
                target.copy_(torch.cat(parts))
    faults = (("lacks", missing), ("has, unknown here,", over), ("differs:", wrong))
    faulty = [f"{verb} {_listed(keys)}" for verb, keys in faults if keys]
    if faulty:
        raise TesseraeError(f"the checkpoint does not fit the config; it {'; it '.join(faulty)}: give the YAML "
                            "file that goes with the checkpoint.")
    return model.eval()


def _listed(keys: list[str]) -> str:
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(keys[:3]) + more
