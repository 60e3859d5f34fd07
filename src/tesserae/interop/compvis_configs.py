"""The YAML of the reference and of latent-diffusion as our configurations; what ours lacks is refused by its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from torch import Tensor

from tesserae.codebook_params import downsampling
from tesserae.errors import TesseraeError
from tesserae.models.transformer import TransformerConfig
from tesserae.models.vqgan import VQGANConfig

VQ_MODELS = ("VQModel", "VQModelInterface", "VQSegmentationModel", "VQNoDiscModel", "GumbelVQ", "EMAVQ")
# The reference's permuters -> our orders.
ORDERS = {"Identity": "row", "Subsample": "subsample", "ZCurve": "z_curve", "SpiralOut": "spiral_out",
          "SpiralIn": "spiral_in", "AlternateParsing": "alternate"}
CONDITIONS = ("Labelator", "CoordStage", "SOSProvider", "DummyCondStage", *VQ_MODELS)
_SIZES = {"z_channels", "resolution", "in_channels", "out_ch", "ch", "ch_mult", "num_res_blocks", "attn_resolutions",
          "dropout"}
# Keys of a ddconfig that have to be what our network is -> that, and what any other value means.
_FIXED: dict[str, tuple[tuple, str]] = {
    "double_z": ((False,), "doubles the encoder's output, as KL models do, which have no codebook"),
    "attn_type": (("vanilla", "vanilla-xformers", "none"), "is another kind of attention"),
    "use_linear_attn": ((False,), "is another kind of attention"),
    "resamp_with_conv": ((True,), "changes sizes without convolutions"),
    "give_pre_end": ((False,), "ends the decoder before its last layer"),
    "tanh_out": ((False,), "ends the decoder in a tanh"),
}
_GO_TOGETHER = "give the YAML file that goes with the checkpoint"


def model_block(config: str | Path | Mapping) -> Mapping:
    """`model` of a YAML, a path or what was read from it: its `target`, where it has one, and its `params`."""
    if not isinstance(config, Mapping):
        path = Path(config)
        try:
            config = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise TesseraeError(f"{path} does not exist: give the YAML of the reference's run.") from None
        except (OSError, ValueError, YAMLError) as error:
            raise TesseraeError(f"{path} is not YAML: {' '.join(str(error).split())}.") from None
    if isinstance(config, Mapping) and "model" not in config and "params" in config:
        config = {"model": config}  # a block by itself, such as a first_stage_config
    if not isinstance(_get(config, "model.params"), Mapping):
        raise TesseraeError(f"the config's model.params = {config['model']['params']!r} describes no model: "
                            f"{_GO_TOGETHER}.")
    return config["model"]


def stage_block(block: Mapping, stage: str) -> Mapping:
    """The block of a VQGAN: the model's own, or that of a `stage`, "first" or "cond", of what is built on VQGANs.

    Raises TesseraeError where it is no VQ model.
    """
    params, name = block["params"], "model"
    if "first_stage_config" in params:
        name = f"{stage}_stage_config"
        block = params["first_stage_config"] if params.get(name) == "__is_first_stage__" else params.get(name)
        if not isinstance(block, Mapping):
            raise TesseraeError(f"the config's {name} = {block!r} is no VQGAN: there is nothing to load.")
    kind = kind_of(block)
    if kind and kind not in VQ_MODELS:
        raise TesseraeError(f"the config's {name} {_unknown(kind)}: only {', '.join(VQ_MODELS)} can be loaded.")
    return {**block, "target": str(block.get("target") or ""), "params": _get(block, "params")}


def kind_of(block: Any) -> str:
    """The class that a block's target names; "" where it has none."""
    return str(block.get("target") or "").rsplit(".", 1)[-1] if isinstance(block, Mapping) else ""


def vqgan_config(params: Mapping, target: str = "", weights: Mapping[str, Tensor] | None = None) -> VQGANConfig:
    """`model.params` of a VQ model -> our config.

    target: its class, with its module. weights: the checkpoint's, which tell the quantizer and the colours of
    classes. Raises TesseraeError where the model has a part that ours lacks.
    """
    weights = weights or {}
    network = _get(params, "ddconfig")
    _check_network(network)
    if params.get("remap"):
        raise TesseraeError(f"the config's remap = {params['remap']!r} gives the codes other indices: take remap out "
                            "of the config and quantize.used out of the checkpoint, and the model is loaded with all "
                            "codes under their own indices.")
    mult, resolution = _wholes(network, "ch_mult", 1), _whole(network, "resolution")
    attended, attention = _wholes(network, "attn_resolutions", 0), _has_attention(network, target, weights)
    return VQGANConfig(
        **_view(params, target, network, weights.get("colorize")),
        channels=_whole(network, "ch"), channel_mult=mult, res_blocks=_whole(network, "num_res_blocks"),
        attention=attention,
        attention_levels=tuple(n for n in range(len(mult)) if attention and resolution // 2**n in attended),
        z_channels=_whole(network, "z_channels"), dropout=_fraction(network, "dropout"),
        quantizer=_quantizer(weights), codebook_size=_whole(params, "n_embed"),
        codebook_dim=_whole(params, "embed_dim"),
    )


def transformer_config(block: Mapping) -> tuple[TransformerConfig, int]:
    """`model` of a Net2NetTransformer -> our config, and the first row of its condition in the common table.

    Raises TesseraeError where it is another model, or has a part that ours lacks.
    """
    params, kind = block["params"], kind_of(block)
    if "transformer_config" not in params and ("ddconfig" in params or "first_stage_config" in params):
        raise TesseraeError(f"the config is that of {kind or 'a VQGAN'}, which has no transformer over codes: "
                            "load_vqgan loads its VQGAN.")
    sizes, network = _get(params, "transformer_config.params"), kind_of(params["transformer_config"])
    if network not in ("GPT", ""):
        raise TesseraeError(f"the config's transformer {network} is not known here: only GPT can be loaded.")
    vocab, positions = _whole(sizes, "vocab_size"), _whole(sizes, "block_size")
    length, first, rows = _prefix(params, vocab, positions)
    if length > positions:
        raise TesseraeError(f"the config's block_size = {positions} has no room for codes and a condition of "
                            f"{length} tokens: {_GO_TOGETHER}.")
    if first + rows > vocab:
        raise TesseraeError(f"the config's condition counts to {first + rows}, and its vocab_size = {vocab} has no "
                            f"room for that: {_GO_TOGETHER}.")
    unmasked = _whole({"n_unmasked": 0, **sizes}, "n_unmasked", 0)
    if unmasked not in (0, 1, length):
        raise TesseraeError(f"the config's n_unmasked = {unmasked} is not the length of its prefix, {length} tokens: "
                            f"only {length} (prefix_attention: full) and 0 (causal) can be loaded.")
    return TransformerConfig(
        codebook_size=vocab, prefix_vocab=rows, prefix_length=length, max_tokens=positions - length + 1,
        n_layer=_whole({"n_layer": 12, **sizes}, "n_layer"), n_head=_whole({"n_head": 8, **sizes}, "n_head"),
        n_embd=_whole({"n_embd": 256, **sizes}, "n_embd"), dropout=_fraction(sizes, "resid_pdrop"),
        prefix_attention="full" if unmasked == length else "causal", order=_order(params),
    ), first


def _unknown(kind: str) -> str:
    if kind.startswith("AutoencoderKL"):
        return f"{kind} is a KL model, which has continuous latents and no codebook"
    return f"{kind} is not known here"


def _check_network(network: Any) -> None:
    """Raise TesseraeError at the first key of a ddconfig that ours does not honour."""
    if not isinstance(network, Mapping):
        raise TesseraeError(f"the config's ddconfig = {network!r} does not describe a network: {_GO_TOGETHER}.")
    for key, value in network.items():
        if key in _FIXED and value not in _FIXED[key][0]:
            known, meaning = _FIXED[key]
            raise TesseraeError(f"the config's ddconfig.{key} = {value!r} {meaning}: only models with {key} = "
                                f"{' or '.join(map(repr, known))} can be loaded.")
        if key not in _FIXED and key not in _SIZES:
            raise TesseraeError(f"the config's ddconfig.{key} = {value!r} is not known here: take it out of the "
                                "config if it does not change the network.")


def _has_attention(network: Mapping, target: str, weights: Mapping[str, Tensor]) -> bool:
    """Whether there is any. latent-diffusion knows `attn_type`; in the reference the key has no effect."""
    if target.startswith("taming.") and weights:
        return "encoder.mid.attn_1.q.weight" in weights
    return network.get("attn_type") != "none"


def _quantizer(weights: Mapping[str, Tensor]) -> str:
    """Ours, by what the checkpoint holds: a projection to logits, moving averages, or codes alone."""
    if any(key.startswith("quantize.proj.") for key in weights):
        return "gumbel"
    averages = any(key in weights for key in ("quantize.embedding.cluster_size", "quantize.cluster_size"))
    return "ema" if averages else "nearest"


def _view(params: Mapping, target: str, network: Mapping, colorize: Tensor | None) -> dict[str, Any]:
    """What the network reads: pictures, one-hot masks (then it gives logits), or one channel, as depth."""
    given, made = _whole(network, "in_channels"), _whole(network, "out_ch")
    view: dict[str, Any] = {"in_channels": given, "out_channels": made}
    key, loss = params.get("image_key"), kind_of(params.get("lossconfig"))
    masks = target.endswith("VQSegmentationModel") or loss.startswith("BCELoss") or (
        key == "segmentation" and made > 3)
    if masks and given != made:
        raise TesseraeError(f"the config's in_channels = {given} and out_ch = {made} of a model of masks are not the "
                            f"same number of classes: {_GO_TOGETHER}.")
    if masks:
        return view | {"view": "segmentation", "column": "segmentation", "colours": _colours(made, colorize)}
    return view | ({"view": "depth", "column": "depth"} if given == made == 1 else {})


def _colours(classes: int, colorize: Tensor | None) -> tuple[int, ...]:
    """The reference's colours of classes, 0xRRGGBB: normal numbers, which its checkpoint keeps, scaled to bytes."""
    if colorize is None or colorize.numel() != 3 * classes:
        colorize = torch.randn(3, classes, generator=torch.Generator().manual_seed(0))
    numbers = colorize.detach().double().reshape(3, classes)
    numbers = (numbers - numbers.min()) / (numbers.max() - numbers.min()).clamp_min(1e-6)
    red, green, blue = (numbers * 255).round().long()
    return tuple((red << 16 | green << 8 | blue).tolist())


def _order(params: Mapping) -> str:
    permuter = str((params.get("permuter_config") or {}).get("target", "Identity"))
    order = ORDERS.get(permuter.rsplit(".", 1)[-1])
    if order is None:
        raise TesseraeError(f"the config's permuter {permuter} is an order that is not known here: only "
                            f"{', '.join(ORDERS)} can be loaded.")
    return order


def _prefix(params: Mapping, vocab: int, positions: int) -> tuple[int, int, int]:
    """Tokens that the condition takes, its first row in the common table, and the number of its rows."""
    stage = params.get("cond_stage_config")
    if params.get("unconditional") or stage == "__is_unconditional__":
        return 1, _whole({"sos_token": 0, **params}, "sos_token", 0), 1
    if stage == "__is_first_stage__":
        stage = _get(params, "first_stage_config")
    inner = stage.get("params") or {} if isinstance(stage, Mapping) else {}
    kind = kind_of(stage) or ("VQModel" if "ddconfig" in inner else str(_get(params, "cond_stage_config.target")))
    if kind == "SOSProvider":
        return 1, _whole(inner, "sos_token", 0), 1
    if kind == "Labelator":
        return 1, 0, _whole(inner, "n_classes")
    if kind == "CoordStage":
        network = _get(params, "first_stage_config.params.ddconfig")
        side = _whole(network, "resolution") // _whole(inner, "down_factor")
        return side**2, 0, min(_whole(inner, "n_embed") + 1, vocab)  # it rounds up to n_embed itself
    if kind in VQ_MODELS:
        return _codes(inner, params.get("downsample_cond_size")), 0, _whole(inner, "n_embed")
    if kind != "DummyCondStage":
        raise TesseraeError(f"the config's condition {_unknown(kind)}: only {', '.join(CONDITIONS)} can be loaded.")
    codes = _codes(_get(params, "first_stage_config.params"))
    if codes >= positions:
        raise TesseraeError(f"the config's condition {kind} takes what codes leave of block_size, and block_size = "
                            f"{positions} leaves nothing beside {codes} codes: {_GO_TOGETHER}.")
    return positions - codes, 0, vocab


def _codes(params: Mapping, side: Any = None) -> int:
    """Codes of a VQGAN's map of pictures of `side` pixels, or of the size that its config names."""
    network = _get(params, "ddconfig")
    if not isinstance(side, int) or side <= 0:  # the reference's -1: no other size
        side = _whole(network, "resolution")
    return (side // downsampling(1, _wholes(network, "ch_mult", 1))) ** 2


def _get(values: Any, path: str) -> Any:
    """The value at a dotted path. Raises TesseraeError where the config lacks it."""
    for name in path.split("."):
        if not isinstance(values, Mapping) or name not in values:
            raise TesseraeError(f"the reference's config lacks {path!r}: {_GO_TOGETHER}.")
        values = values[name]
    return values


def _whole(values: Any, name: str, least: int = 1) -> int:
    value = _get(values, name)
    if not _is_whole(value, least):
        raise TesseraeError(f"the config's {name} = {value!r} is not a whole number from {least}: {_GO_TOGETHER}.")
    return value


def _wholes(values: Any, name: str, least: int) -> tuple[int, ...]:
    value = _get(values, name)
    listed = isinstance(value, Sequence) and not isinstance(value, str) and len(value) >= least
    if not listed or not all(_is_whole(each, 1) for each in value):
        raise TesseraeError(f"the config's {name} = {value!r} is not a list of whole numbers from 1: {_GO_TOGETHER}.")
    return tuple(value)


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _fraction(values: Mapping, name: str) -> float:
    value = values.get(name, 0.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise TesseraeError(f"the config's {name} = {value!r} is not a number from 0 to 1: {_GO_TOGETHER}.")
    return float(value)
