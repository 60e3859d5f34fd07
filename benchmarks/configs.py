"""The sizes of a case as both sides read them: the reference's YAML as mappings, and our own configurations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tesserae.codebook_params import downsampling
from tesserae.models.transformer import TransformerConfig


def code_side(size: Mapping[str, Any]) -> int:
    """Codes a side: of the pictures' maps where the case has pictures, else of the transformer's window."""
    return size["image_size"] // downsampling(1, size["channel_mult"]) if "image_size" in size else size["side"]


def prefix_of(size: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens in front of the codes, and the values that they take: a class, or a second map of codes."""
    if size.get("condition") == "codes":
        return code_side(size) ** 2, size["codebook_size"]
    return 1, size["classes"]


def vqgan_params(size: Mapping[str, Any], loss: str = "DummyLoss", **loss_params: Any) -> dict[str, Any]:
    """`params` of the reference's VQModel: as its custom_vqgan.yaml, attention at the lowest level."""
    return {
        "embed_dim": size["codebook_dim"], "n_embed": size["codebook_size"],
        "ddconfig": {"double_z": False, "z_channels": size["z_channels"], "resolution": size["image_size"],
                     "in_channels": 3, "out_ch": 3, "ch": size["channels"], "ch_mult": size["channel_mult"],
                     "num_res_blocks": size["res_blocks"], "attn_resolutions": [code_side(size)], "dropout": 0.0},
        "lossconfig": {"target": f"taming.modules.losses.{loss}", "params": loss_params},
    }


def gpt_params(size: Mapping[str, Any]) -> dict[str, Any]:
    """`params` of the reference's GPT: one table for condition and codes, room for both but the last code."""
    length, vocab = prefix_of(size)
    return {"vocab_size": max(size["codebook_size"], vocab), "block_size": length + code_side(size) ** 2 - 1,
            "n_layer": size["n_layer"], "n_head": size["n_head"], "n_embd": size["n_embd"]}


def transformer_params(size: Mapping[str, Any]) -> dict[str, Any]:
    """`params` of the reference's Net2NetTransformer; without pictures its first stage has the smallest network."""
    pictures = {"image_size": 16 * code_side(size), "channels": 32, "channel_mult": [1] * 5, "res_blocks": 1,
                "z_channels": 32, "codebook_dim": 32, **size}
    first = {"target": "taming.models.vqgan.VQModel", "params": vqgan_params(pictures)}
    label = {"target": "taming.modules.util.Labelator", "params": {"n_classes": size.get("classes")}}
    return {
        "transformer_config": {"target": "taming.modules.transformer.mingpt.GPT", "params": gpt_params(size)},
        "first_stage_config": first,
        "cond_stage_config": "__is_first_stage__" if size.get("condition") == "codes" else label,
        "first_stage_key": "image", "cond_stage_key": "class_label",
    }


def transformer_config(size: Mapping[str, Any]) -> TransformerConfig:
    """The same network as ours."""
    (length, vocab), side = prefix_of(size), code_side(size)
    return TransformerConfig(codebook_size=gpt_params(size)["vocab_size"], prefix_vocab=vocab, prefix_length=length,
                             max_tokens=side**2, n_layer=size["n_layer"], n_head=size["n_head"],
                             n_embd=size["n_embd"])
