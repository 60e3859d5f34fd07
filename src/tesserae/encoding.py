"""Code maps of the whole set, once: piece by piece, by one process or many, and gone on with after a stop.

    python -m tesserae.encoding --params params.yaml --target image
    torchrun --nproc_per_node 2 -m tesserae.encoding --params params.yaml --target image

Memory holds one piece, however large the set. Pieces lie beside the checkpoints, under a hash of the VQGAN, the
pictures and the code that computes, so a later run takes up those that are there: the notebook those of the command
line, too.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from tesserae.data.codes import CodeMaps, save_codes
from tesserae.data.pictures import Pictures
from tesserae.data.splitting import SPLIT
from tesserae.data.views import view_of
from tesserae.data.workers import eta, in_order, pieces_of
from tesserae.devices import make_accelerator
from tesserae.files import write_atomically
from tesserae.fingerprints import checkpoint_folder, code_of
from tesserae.models.saving import fingerprint_of
from tesserae.models.vqgan import VQGAN
from tesserae.origins import check_vqgan
from tesserae.stage import Stage, stage_of_command
from tesserae.training.vqgan import model_config

MIN_PIECE = 1024  # pictures a piece, which is what a stop may lose


def encode_pieces(model: VQGAN, pictures: Pictures, batch_size: int, folder: Path, accelerator: Accelerator,
                  mirrored: bool = True, progress: Callable[[int, int], None] | None = None) -> list[Path]:
    """Write this process's part of the pieces of a split's code maps that `folder` lacks; all paths, in order.

    A piece is a .npy file (n,V,h,w) int32 of the model's own view of n pictures; V = 2, as they are and mirrored, or
    V = 1. progress(done, total) counts this process's pictures. Raises DiskFullError.
    """
    side = pictures.size // model.config.downsampling
    shape = (2 if mirrored else 1, side, side)
    pieces = {folder / f"{piece.start:010d}.npy": piece for piece in pieces_of(len(pictures), MIN_PIECE, batch_size)}
    folder.mkdir(parents=True, exist_ok=True)
    missing = [path for path, piece in pieces.items() if not _whole(path, (len(piece), *shape))]
    accelerator.wait_for_everyone()  # until all have listed what is missing
    mine = missing[accelerator.process_index::accelerator.num_processes]
    done, total = 0, sum(len(pieces[path]) for path in mine)
    for path in mine:
        found = np.empty((len(pieces[path]), *shape), np.int32)
        for chosen, maps in _encoded(model, pictures, pieces[path], batch_size, mirrored):
            found[chosen.start - pieces[path].start:chosen.stop - pieces[path].start] = maps
            done += len(chosen)
            if progress:
                progress(done, total)
        write_atomically(path, _npy(found), flush=True)
    accelerator.wait_for_everyone()
    return list(pieces)


def encode_set(stage: Stage, model: VQGAN, pictures: Mapping[str, Pictures], accelerator: Accelerator,
               progress: Callable[[int, int], None] | None = None) -> dict[str, CodeMaps]:
    """Encode the splits of a codebook's stage, or what is missing of them; leave them in codes/<target>.

    model: of models/vqgan-<target>, on the accelerator's device. Every process takes part and gets the code maps,
    which are mapped from their files. Raises OriginError where the model belongs to other pictures or parameters.
    """
    requested = stage.params.vqgan[stage.target]
    wanted = replace(model_config(requested, view_of(model.config)), view=requested.view, column=requested.column)
    check_vqgan(stage.target, model, wanted, pictures.get("train"))
    made_by = model.fingerprint or fingerprint_of(stage.root / "models" / f"vqgan-{stage.target}")
    folder, batch_size = stage.path("codes", stage.target), stage.block.batch_size
    for split, each in pictures.items():
        inputs = {"model": made_by, "config": json.dumps(asdict(model.config), sort_keys=True),
                 "data": each.fingerprint_of(model.config.column), "batch_size": str(batch_size),
                 "code": code_of("tesserae.encoding")}
        paths = encode_pieces(model, each, batch_size, checkpoint_folder(stage.home, stage.name, inputs), accelerator,
                              progress=progress)
        if accelerator.is_main_process:
            save_codes(folder, split, [np.load(path, mmap_mode="r") for path in paths], each.labels,
                       each.class_names, model.config.codebook_size,
                       {"vqgan": made_by, "pictures": each.fingerprint})
    accelerator.wait_for_everyone()
    return {split: CodeMaps.load(folder, split) for split in pictures}


@torch.no_grad()
def _encoded(model: VQGAN, pictures: Pictures, piece: range, batch_size: int,
             mirrored: bool) -> Iterator[tuple[range, np.ndarray]]:
    """The code maps (B,V,h,w) of each batch of a piece; the pictures of the next one are read meanwhile."""
    view, device = view_of(model.config), next(model.parameters()).device
    batches = [range(start, min(start + batch_size, piece.stop)) for start in piece[::batch_size]]
    with ThreadPoolExecutor(1) as reader:
        for chosen, raw in zip(batches, in_order(reader, partial(view.raw, pictures), batches, ahead=2)):
            images = view.network_input(raw.to(device))  # (B,C,H,W)
            views = [images, images.flip(-1)] if mirrored else [images]
            yield chosen, torch.stack([model.encode(each) for each in views], 1).cpu().numpy()


def _whole(path: Path, shape: tuple[int, ...]) -> bool:
    """Whether a piece of that shape lies there, undamaged as far as its length tells."""
    try:
        found = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    return found.shape == shape and found.dtype == np.int32


def _npy(maps: np.ndarray) -> bytes:
    """What a .npy file of them holds."""
    content = io.BytesIO()
    np.save(content, maps)
    return content.getvalue()


def main() -> None:
    """Encode without a notebook; see the module's first lines."""
    with stage_of_command("codebook", "image", "Encode the prepared set by a trained VQGAN.") as stage:
        accelerator = make_accelerator("fp32", stage.params.threads)
        model = VQGAN.from_pretrained(stage.root / "models" / f"vqgan-{stage.target}").to(accelerator.device)
        pictures = {split: Pictures.load(stage.path("prepared"), split, hold=0) for split in SPLIT}
        maps = encode_set(stage, model, pictures, accelerator,
                          eta("pictures") if accelerator.is_main_process else None)
        if accelerator.is_main_process:
            for split, each in maps.items():
                print(f"{split}: {tuple(each.indices.shape)} codes (pictures, views, rows, columns)")


if __name__ == "__main__":
    main()
