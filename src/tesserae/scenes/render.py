"""The built-in data: landscapes rendered with their exact segmentation, depth and class.

    python -m tesserae.scenes --params params.yaml
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from tesserae.data.workers import cores, in_order, print_tenths
from tesserae.errors import TesseraeError, command
from tesserae.scenes.ground import draw_ground
from tesserae.scenes.maths import log, power
from tesserae.scenes.names import SEGMENT_NAMES, SEGMENT_PALETTE
from tesserae.scenes.noise import Noise
from tesserae.scenes.relief import FAR, NEAR
from tesserae.scenes.sky import draw_sky
from tesserae.scenes.trees import draw_trees
from tesserae.scenes.view import View
from tesserae.scenes.water import draw_water
from tesserae.scenes.world import CLASSES, draw_world

__all__ = ["CLASSES", "SEGMENT_NAMES", "SEGMENT_PALETTE", "Scene", "ScenesError", "render_scene", "write_scenes"]

FEW = 24  # that many scenes are rendered without starting processes


@dataclass(frozen=True)
class Scene:
    """A landscape with what is known of each pixel.

    image: (H,W,3) uint8. segmentation: (H,W) uint8, indices into SEGMENT_NAMES. depth: (H,W) float32, from 0
    (near) by the logarithm of the distance to 0.98; the sky is 1. label: one of CLASSES.
    """

    image: np.ndarray
    segmentation: np.ndarray
    depth: np.ndarray
    label: str


def render_scene(seed: int, index: int, size: int | tuple[int, int]) -> Scene:
    """The landscape (seed, index): the same one at any size, an int or (height, width)."""
    height, width = (size, size) if isinstance(size, int) else size
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, index])))
    label = CLASSES[index % len(CLASSES)]
    world, noise = draw_world(generator, label), Noise(generator)
    view = View.of(world, height, width)
    canvas = draw_sky(world, noise, view, generator)
    draw_ground(world, noise, view, canvas)
    draw_trees(world, noise, view, canvas)
    draw_water(world, noise, view, canvas)
    depth = np.clip(log(canvas.distance / NEAR) / log(FAR / NEAR), 0, 0.98)
    depth[np.isinf(canvas.distance)] = 1
    return Scene(_developed(canvas.colour, world.light.hour == "night"), canvas.segment,
                 depth.astype(np.float32), label)


def _developed(colour: np.ndarray, dark: bool) -> np.ndarray:
    """Linear light (3,H,W) -> bytes (H,W,3), through a film's curve. By night eyes see little colour, and blue."""
    grey = 0.25 * colour[0] + 0.6 * colour[1] + 0.15 * colour[2]
    keep = 0.72 if dark else 1.08
    tint = np.array([0.7, 0.95, 1.4] if dark else [1, 1, 1], np.float32)[:, None, None]
    x = np.maximum(grey * tint + (colour - grey * tint) * keep, 0)
    x = x * (2.51 * x + 0.03) / (x * (2.43 * x + 0.59) + 0.14)
    x = power(np.clip(x, 0, 1), 1 / 2.2) * 255
    return np.ascontiguousarray((x + 0.5).astype(np.uint8).transpose(1, 2, 0))


class ScenesError(TesseraeError):
    """The landscapes cannot be written there."""


def write_scenes(folder: str | Path, count: int, size: int | tuple[int, int], seed: int,
                 progress: Callable[[int, int], None] | None = None) -> None:
    """Render scenes 0 .. count - 1 as an imagefolder: it is there in whole, or not at all.

    <class>/scene-00000.png, segmentation/scene-00000.png (palette, SEGMENT_NAMES), depth/scene-00000.png
    (16 bit) and metadata.jsonl, which pairs them. `progress(done, count)` is called as pictures come.
    Raises ScenesError when `folder` exists or cannot be written.
    """
    folder = Path(folder)
    if folder.exists():
        raise ScenesError(f"{folder} exists already: remove it to have the landscapes rendered again.")
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        for name in (*CLASSES, "segmentation", "depth"):
            (aside / name).mkdir(parents=True)
        rows = []
        for row in _in_processes(partial(_write_scene, aside, size, seed), count):
            rows.append(row)
            if progress:
                progress(len(rows), count)
        for name in CLASSES[count:]:
            (aside / name).rmdir()
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (aside / "metadata.jsonl").write_text(lines, encoding="utf-8")
        aside.rename(folder)
    except OSError as error:
        reason = error.strerror or error
        raise ScenesError(f"{folder} cannot be written ({reason}): see to the disk and its rights.") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write_scene(folder: Path, size: int | tuple[int, int], seed: int, index: int) -> dict[str, str]:
    """Write the three files of a scene; returns its line of metadata.jsonl."""
    scene = render_scene(seed, index, size)
    name = f"scene-{index:05d}.png"
    Image.fromarray(scene.image).save(folder / scene.label / name)
    mask = Image.fromarray(scene.segmentation)
    mask.putpalette([value for colour in SEGMENT_PALETTE for value in colour])
    mask.save(folder / "segmentation" / name)
    Image.fromarray(np.rint(scene.depth * 65535).astype(np.uint16)).save(folder / "depth" / name)
    return {"file_name": f"{scene.label}/{name}", "segmentation_file_name": f"segmentation/{name}",
            "depth_file_name": f"depth/{name}", "label": scene.label}


def _in_processes(function: Callable, count: int):
    """function(0), ..., function(count - 1), in order, on all cores."""
    workers = min(cores(), count)
    if workers < 2 or count <= FEW:
        yield from map(function, range(count))
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield from in_order(pool, function, range(count), 8 * workers)


def main(arguments: list[str] | None = None) -> None:
    """The command: render the landscapes into data/ beside the parameters file, unless it is there."""
    from tesserae.params import load_params

    parser = argparse.ArgumentParser("python -m tesserae.scenes", description="Render the landscapes.")
    parser.add_argument("--params", default="params.yaml", help="the parameters file (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="the folder to write (default: data, beside that file)")
    options = parser.parse_args(arguments)
    folder = options.out or Path(options.params).resolve().parent / "data"
    if folder.exists():
        print(f"{folder.name}/ is there already and stays as it is.")
        return
    with command():
        scenes = load_params(options.params).scenes
        write_scenes(folder, scenes.count, scenes.size, scenes.seed, print_tenths("landscapes"))
