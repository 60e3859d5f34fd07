"""Models of the reference implementation, CompVis/taming-transformers: its YAML and its checkpoint, as ours.

    vqgan = load_vqgan("configs/model.yaml", "checkpoints/last.ckpt")

The network is the same, so indices, reconstructions and logits are too; only the names of the weights differ.
What belongs to training is left out: the discriminator and LPIPS (`loss.*`), optimisers, callbacks. Whoever
trains on should know two habits of the reference that its weights do not show: its quantizer multiplies beta
with the codebook term, not with the commitment term ("legacy"; here: codebook_weight 0.25, commitment_weight
1), and its LPIPS runs with dropout in its heads while it trains.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from torch import Tensor, nn

from tesserae.codebook_params import downsampling
from tesserae.errors import TesseraeError
from tesserae.interop.lightning import load_state
from tesserae.models.transformer import LatentTransformer, TransformerConfig
from tesserae.models.vqgan import VQGAN, VQGANConfig

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
# The reference's permuters -> our orders.
_ORDERS = {"Identity": "row", "Subsample": "subsample", "ZCurve": "z_curve", "SpiralOut": "spiral_out",
           "SpiralIn": "spiral_in", "AlternateParsing": "alternate"}
_NOT_WEIGHTS = re.compile(r"^loss\.|^colorize$|^blocks\.\d+\.attn\.mask$")


def load_vqgan(config: str | Path | Mapping, checkpoint: str | Path | Mapping) -> VQGAN:
    """A VQGAN of the reference, VQModel or GumbelVQ, in evaluation mode.

    config: its YAML, a path or what was read from it; that of a transformer gives its first stage.
    checkpoint: its .ckpt file, or a state dict. Raises TesseraeError where they do not go together, or where
    the model has a part that ours lacks.
    """
    params, state = _params(config), load_state(checkpoint)
    if "first_stage_config" in params:
        state = _below("first_stage_model.", state)
        params = _get(params, "first_stage_config.params")
    gumbel = any(key.startswith("quantize.proj.") for key in state)
    model = VQGAN(vqgan_config(params, "gumbel" if gumbel else "nearest"))
    wanted = {key: _vqgan_names(key, len(model.config.channel_mult)) for key in model.state_dict()}
    wanted["quantizer.codebook"] = ["quantize.embed.weight" if gumbel else "quantize.embedding.weight"]
    return _filled(model, wanted, state)


def load_transformer(config: str | Path | Mapping, checkpoint: str | Path | Mapping) -> LatentTransformer:
    """A latent transformer of the reference (Net2NetTransformer), in evaluation mode.

    The reference embeds condition and codes by one table, ours by two: the condition's is a copy of those
    rows that it uses. Unconditional models take the prefix 0. Raises TesseraeError as `load_vqgan` does, and
    where the model attends to its prefix without a mask (n_unmasked) or orders its codes at random.
    """
    params, state = _params(config), _below("transformer.", load_state(checkpoint))
    sizes = _get(params, "transformer_config.params")
    if sizes.get("n_unmasked"):
        raise TesseraeError(f"the config's n_unmasked = {sizes['n_unmasked']} asks for a prefix without a "
                            "causal mask: only transformers with n_unmasked 0 can be loaded.")
    permuter = str((params.get("permuter_config") or {}).get("target", "Identity"))
    order = _ORDERS.get(permuter.rsplit(".", 1)[-1])
    if order is None:
        raise TesseraeError(f"the config's permuter {permuter} is an order that is not known here: only "
                            f"{', '.join(_ORDERS)} can be loaded.")
    vocab, block = _get(sizes, "vocab_size"), _get(sizes, "block_size")
    length, first, rows = _prefix(params, vocab, block)
    model = LatentTransformer(TransformerConfig(
        codebook_size=vocab, prefix_vocab=rows, prefix_length=length, max_tokens=block - length + 1,
        n_layer=sizes.get("n_layer", 12), n_head=sizes.get("n_head", 8), n_embd=sizes.get("n_embd", 256),
        dropout=float(sizes.get("resid_pdrop", 0.0)), order=order,
    ))
    wanted = {key: _transformer_names(key) for key in model.state_dict()}
    if "tok_emb.weight" in state:
        state["prefix_embedding.weight"] = state["tok_emb.weight"][first:first + rows]
    if "pos_emb" in state:
        state["pos_emb"] = state["pos_emb"].flatten(0, 1)  # (1,block,C) -> (block,C)
    return _filled(model, wanted, state)


def vqgan_config(params: Mapping, quantizer: str = "nearest") -> VQGANConfig:
    """`model.params` of the reference's YAML -> our config."""
    network = _get(params, "ddconfig")
    mult = tuple(_get(network, "ch_mult"))
    resolution, attended = _get(network, "resolution"), _get(network, "attn_resolutions")
    return VQGANConfig(
        in_channels=_get(network, "in_channels"), out_channels=_get(network, "out_ch"),
        channels=_get(network, "ch"), channel_mult=mult, res_blocks=_get(network, "num_res_blocks"),
        attention_levels=tuple(n for n in range(len(mult)) if resolution // 2**n in attended),
        z_channels=_get(network, "z_channels"), dropout=float(network.get("dropout", 0.0)),
        quantizer=quantizer, codebook_size=_get(params, "n_embed"),
        codebook_dim=_get(params, "embed_dim"),
    )


def _prefix(params: Mapping, vocab: int, block: int) -> tuple[int, int, int]:
    """Tokens that the condition takes, its first row in the common table, and the number of its rows."""
    stage = params.get("cond_stage_config")
    if params.get("unconditional") or stage == "__is_unconditional__":
        return 1, params.get("sos_token", 0), 1
    first = _get(params, "first_stage_config.params")
    if stage == "__is_first_stage__":
        params = {**params, "cond_stage_config": params["first_stage_config"]}
    kind = str(_get(params, "cond_stage_config.target")).split(".")[-1]
    inner = params["cond_stage_config"].get("params") or {}
    if kind == "Labelator":
        return 1, 0, _get(inner, "n_classes")
    if kind == "CoordStage":
        side = _get(first, "ddconfig.resolution") // _get(inner, "down_factor")
        return side**2, 0, min(_get(inner, "n_embed") + 1, vocab)  # it rounds up to n_embed itself
    if "ddconfig" in inner:
        side = params.get("downsample_cond_size", -1)
        side = side if side > 0 else _get(inner, "ddconfig.resolution")
        return (side // downsampling(1, _get(inner, "ddconfig.ch_mult"))) ** 2, 0, _get(inner, "n_embed")
    codes = (_get(first, "ddconfig.resolution") // downsampling(1, _get(first, "ddconfig.ch_mult"))) ** 2
    if codes >= block:
        raise TesseraeError(f"the config's condition {kind} is not known, and its block_size = "
                            f"{block} leaves no room for one beside {codes} codes: it cannot be loaded.")
    return block - codes, 0, vocab


def _params(config: str | Path | Mapping) -> Mapping:
    if not isinstance(config, Mapping):
        path = Path(config)
        try:
            config = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise TesseraeError(f"{path} does not exist: give the YAML of the reference's run.") from None
        except (OSError, ValueError, YAMLError) as error:
            raise TesseraeError(f"{path} is not YAML: {' '.join(str(error).split())}.") from None
    return _get(config, "model.params")


def _get(values: Any, path: str) -> Any:
    """The value at a dotted path. Raises TesseraeError where the config lacks it."""
    for name in path.split("."):
        if not isinstance(values, Mapping) or name not in values:
            raise TesseraeError(f"the reference's config lacks {path!r}: give the YAML file that goes with "
                                "the checkpoint.")
        values = values[name]
    return values


def _below(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights under a prefix, without it; all of them where none has it."""
    found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return found or state


def _vqgan_names(key: str, levels: int) -> list[str]:
    """The reference's names for one of our weights: three where ours holds query, key and value together."""
    if key == "quantizer.idle":
        return []
    # the reference counts its decoder's levels from the highest resolution
    key = re.sub(r"^(decoder\.(?:levels|upsample)\.)(\d+)",
                 lambda match: f"{match[1]}{levels - 1 - int(match[2])}", key)
    return _split_qkv(_renamed(key, _VQGAN_NAMES), ("q", "k", "v"))


def _transformer_names(key: str) -> list[str]:
    fixed = {"prefix_embedding.weight": "prefix_embedding.weight", "token_embedding.weight": "tok_emb.weight",
             "positions": "pos_emb"}
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
    missing = sorted(names - state.keys())
    over = sorted(key for key in state.keys() - names if not _NOT_WEIGHTS.match(key))
    wrong = []
    with torch.no_grad():
        for key, target in model.state_dict().items():
            if not wanted[key] or not state.keys() >= set(wanted[key]):
                continue
            value = torch.cat([state[name] for name in wanted[key]])
            if value.shape != target.shape:
                wrong.append(f"{wanted[key][0]} is {tuple(value.shape)}, not {tuple(target.shape)}")
            else:
                target.copy_(value)
    faults = (("lacks", missing), ("has, unknown here,", over), ("differs:", wrong))
    said = [f"{verb} {_listed(keys)}" for verb, keys in faults if keys]
    if said:
        raise TesseraeError(f"the checkpoint does not fit the config; it {'; it '.join(said)}: give the YAML "
                            "file that goes with the checkpoint.")
    return model.eval()


def _listed(keys: list[str]) -> str:
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(keys[:3]) + more
