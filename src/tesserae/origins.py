"""What belongs together: models, code maps and pictures that were made of each other, or one sentence that says how.

Models and code maps carry fingerprints of what they were made of (`origin`). Where one is not recorded, as of older
versions and of models from elsewhere, nothing is compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from tesserae.data.codes import CodeMaps
from tesserae.data.conditions import Label, conditions_of
from tesserae.data.paired import PairedMaps
from tesserae.data.pictures import Pictures
from tesserae.errors import TesseraeError
from tesserae.models.transformer import LatentTransformer
from tesserae.models.vqgan import VQGAN


class OriginError(TesseraeError, ValueError):
    """Two things were opened that were not made of each other. The message names what makes one of them again."""


def check_vqgan(name: str, model: VQGAN, wanted: object, pictures: Pictures | None = None) -> None:
    """A VQGAN belongs to its parameters, and to the training pictures: else OriginError.

    wanted: the VQGANConfig that the parameters ask for. pictures: of the training split.
    """
    remedy = f"run dvc repro vqgan@{name}"
    _same_config(f"models/vqgan-{name}", model, wanted, f"vqgan.{name}", remedy)
    if pictures and _differ(model.origin.get("pictures"), lambda: pictures.fingerprint_of(model.config.column)):
        raise OriginError(f"models/vqgan-{name} was trained on other pictures than prepared/ holds: {remedy}.")


def check_codes(maps: Mapping[str, CodeMaps], vqgans: Mapping[str, VQGAN], pictures: Pictures | None = None) -> None:
    """Code maps of one split by name belong to the VQGANs of these names, and all to the same pictures.

    pictures: of that split. Raises OriginError.
    """
    for name, each in maps.items():
        made, remedy = each.origin, f"run dvc repro codebook@{name}"
        if _differ(made.get("vqgan"), lambda: vqgans[name].fingerprint):  # noqa: B023
            raise OriginError(f"codes/{name} was made by another VQGAN than models/vqgan-{name}: {remedy}.")
        if pictures and _differ(made.get("pictures"), lambda: pictures.fingerprint):
            raise OriginError(f"codes/{name} was made of other pictures than prepared/ holds: {remedy}.")
    first, *others = maps
    for name in others:
        if _differ(maps[name].origin.get("pictures"), lambda: maps[first].origin.get("pictures")):
            raise OriginError(f"codes/{name} and codes/{first} were made of different pictures: run dvc repro "
                              f"codebook@{name} codebook@{first}.")


def origin_of(data: PairedMaps, name: str) -> dict:
    """What a transformer of the codes of `name`, on these training maps, keeps of where it comes from."""
    maps = {name: data.maps, **data.others}
    return {"codes": {key: each.fingerprint for key, each in maps.items()},
            "vqgans": {key: each.origin.get("vqgan", "") for key, each in maps.items()},
            "class_names": data.maps.class_names}


def check_transformer(name: str, model: LatentTransformer, wanted: object, data: PairedMaps, vqgan: str) -> None:
    """A transformer belongs to its parameters and to the training maps of `vqgan` and of its conditions.

    wanted: the TransformerConfig that parameters and maps ask for. Raises OriginError.
    """
    remedy = f"run dvc repro transformer@{name}"
    known = model.origin.get("codes", {})
    for key, each in {vqgan: data.maps, **data.others}.items():
        if _differ(known.get(key), lambda: each.fingerprint):  # noqa: B023
            raise OriginError(f"models/transformer-{name} was trained on other codes than codes/{key} holds: "
                              f"{remedy}.")
    _same_config(f"models/transformer-{name}", model, wanted, f"transformer.{name}", remedy)


def check_sampling(name: str, model: LatentTransformer, wanted: object, vqgans: Mapping[str, VQGAN],
                   maps: Mapping[str, PairedMaps], pictures: Mapping[str, Pictures]) -> None:
    """All that a transformer is sampled with belongs together: `check_codes` of each split, `check_transformer`.

    vqgans: by name, first that of the codes it models. maps, pictures: by split. Raises OriginError.
    """
    first = next(iter(vqgans))
    for split, each in maps.items():
        check_codes({first: each.maps, **each.others}, vqgans, pictures.get(split))
    check_transformer(name, model, wanted, maps["train"], first)


def check_decoding(name: str, model: LatentTransformer, vqgans: Mapping[str, VQGAN]) -> None:
    """A transformer's VQGANs by name are those whose codes it was trained on, else OriginError; name: its folder."""
    for key, vqgan in vqgans.items():
        if _differ(model.origin.get("vqgans", {}).get(key), lambda: vqgan.fingerprint):  # noqa: B023
            raise OriginError(f"models/{name} was trained on codes of another VQGAN than models/vqgan-{key}: run dvc "
                              f"repro {name.replace('-', '@', 1)}.")


def check_decoders(name: str, model: LatentTransformer, vqgans: Mapping[str, VQGAN], pictures: Pictures) -> None:
    """A transformer's VQGANs by name are those whose codes it was trained on, and its classes the pictures'.

    For those who open models without code maps. Raises OriginError.
    """
    check_decoding(f"transformer-{name}", model, vqgans)
    labelled = any(isinstance(condition, Label) for condition in conditions_of(model.config.conditions))
    if labelled and _differ(model.origin.get("class_names"), lambda: pictures.class_names):
        raise OriginError(f"models/transformer-{name} was trained with other classes than prepared/ has: "
                          f"run dvc repro transformer@{name}.")


def _same_config(folder: str, model: VQGAN | LatentTransformer, wanted: object, block: str, remedy: str) -> None:
    """Compare the configs of models that this project trained; others are as they are."""
    if not model.origin:
        return
    for field in fields(wanted):
        found, asked = getattr(model.config, field.name), getattr(wanted, field.name)
        if found != asked:
            raise OriginError(f"{folder} has {field.name} = {_shown(found)}, and {block} of the parameters asks for "
                              f"{_shown(asked)}: {remedy}.")


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        value = [each.get("name", each["kind"]) if isinstance(each, dict) else each for each in value]
    return str(value).replace("'", "")


def _differ(recorded: object, found) -> bool:
    """Whether something is recorded, and is not what is found; which is looked for only then."""
    if not recorded:
        return False
    value = found()
    return bool(value) and recorded != value
