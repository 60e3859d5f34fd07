"""Near-copies stay on one side of the split, and pictures that are merely alike do not chain."""

import io
from collections import Counter

import datasets
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from tesserae.data.prepare import prepare
from tesserae.data.splitting import SIDE, groups_of, look_of, near_copies
from tesserae.params import PrepareParams
from tesserae.scenes.render import render_scene

COUNT = 60


def params(**changes):
    values = {"source": "data", "image_size": 64, "fit": "cover", "holdout": 0.3, "min_side": 8, "max_rejected": 0.5}
    return PrepareParams(**values | changes)


def scene(number, size=(150, 180)):
    return Image.fromarray(render_scene(5, number, size).image)


def again(picture, **how):
    """The picture, saved as a JPEG and opened again."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", **how)
    return Image.open(buffer).convert("RGB")


def cut(picture, left, top, right, bottom):
    width, height = picture.size
    return picture.crop((round(width * left), round(height * top), round(width * (1 - right)),
                         round(height * (1 - bottom))))


COPIES = {
    "JPEG": lambda picture: again(picture, quality=50),
    "half the size": lambda picture: picture.resize((picture.width // 2, picture.height // 2)),
    "twice the size": lambda picture: picture.resize((picture.width * 2, picture.height * 2)),
    "a frame cut off": lambda picture: cut(picture, 0.04, 0.04, 0.04, 0.04),
    "the left cut off": lambda picture: cut(picture, 0.06, 0, 0, 0),
    "a corner cut off": lambda picture: cut(picture, 0, 0.05, 0.05, 0),
    "brighter": lambda picture: ImageEnhance.Brightness(picture).enhance(1.2),
    "darker": lambda picture: ImageEnhance.Brightness(picture).enhance(0.7),
    "more contrast": lambda picture: ImageEnhance.Contrast(picture).enhance(1.3),
    "mirrored": ImageOps.mirror,
    "all of it": lambda picture: again(ImageEnhance.Brightness(cut(picture, 0.03, 0.03, 0.03, 0.03)).enhance(1.1)
                                       .resize((120, 100)), quality=70),
}


@pytest.fixture(scope="module")
def scenes():
    return [scene(number) for number in range(COUNT)]


def held_out(out):
    return {path: split == "validation" for split in ("train", "validation")
            for path in datasets.load_from_disk(str(out / split))["path"]}


def save(folder, name, picture):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_on_one_side(tmp_path, scenes, kind):
    for number, picture in enumerate(scenes):
        save(tmp_path / "data", f"{number:02d}.png", picture)
        save(tmp_path / "data", f"copy-{number:02d}.png", COPIES[kind](picture))
    report = prepare(tmp_path / "data", tmp_path / "out", params(), 0)
    found = held_out(tmp_path / "out")
    parted = [number for number in range(COUNT) if found[f"{number:02d}.png"] != found[f"copy-{number:02d}.png"]]
    assert len(found) == 2 * COUNT
    assert len(parted) <= COUNT // 50, parted
    assert 0.1 < report.counts["validation"] / (2 * COUNT) < 0.5
    assert any("near-copies of others" in note or parted for note in report.notes)


def looks_of(pictures):
    looks = [np.frombuffer(look_of(picture.resize((64, 64))), np.uint8) for picture in pictures]
    return np.stack(looks).reshape(-1, SIDE, SIDE, 3)


def sizes(looks):
    """Sizes of the groups, the largest first."""
    return sorted(Counter(groups_of(len(looks), *near_copies(looks)).tolist()).values(), reverse=True)


def nights(count):
    """Dark pictures of one street: the same sky and road, lamps and noise of their own."""
    generator = np.random.default_rng(0)
    for _ in range(count):
        picture = Image.fromarray(np.repeat(np.linspace(2, 12, 64).astype(np.uint8)[:, None], 64, 1)).convert("RGB")
        draw = ImageDraw.Draw(picture)
        for x, y in generator.integers(4, 60, (3, 2)).tolist():
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=(220, 190, 120))
        noise = generator.normal(0, 2, (64, 64, 3))
        yield Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))


def bursts(count, each):
    """Series of pictures of one scene, the camera of which moves a little."""
    for number in range(count):
        whole = scene(number, (100, 100))
        for step in range(each):
            yield whole.crop((step, step // 2, 90 + step, 90 + step // 2))


def fixed_camera(count):
    whole, generator = np.asarray(scene(1, (64, 64)), float), np.random.default_rng(0)
    for _ in range(count):
        yield Image.fromarray(np.clip(whole + generator.normal(0, 4, whole.shape), 0, 255).astype(np.uint8))


def flat(count):
    for number in range(count):
        yield Image.new("RGB", (64, 64), (number % 7, number % 5, 3))


def dark_noise(count):
    generator = np.random.default_rng(0)
    for _ in range(count):
        yield Image.fromarray(generator.integers(0, 9, (64, 64, 3), dtype=np.uint8))


@pytest.mark.parametrize(("pictures", "largest"), [
    (nights(1000), 8), (dark_noise(1000), 1), (flat(1000), 1), (fixed_camera(1000), 125), (bursts(20, 5), 5)],
    ids=["nights", "dark noise", "flat", "fixed camera", "bursts"])
def test_pictures_that_are_alike_do_not_chain(pictures, largest):
    assert sizes(looks_of(pictures))[0] <= largest


def test_bursts_stay_together():
    looks = looks_of(bursts(12, 5))
    groups = groups_of(len(looks), *near_copies(looks)).reshape(12, 5)
    assert (groups == groups[:, :1]).mean() > 0.9
    assert len(set(groups[:, 0].tolist())) == 12


def test_the_builtin_landscapes_are_no_copies_of_each_other(scenes):
    assert sizes(looks_of(scenes)) == [1] * COUNT


def test_a_long_chain_is_cut():
    pairs = np.stack([np.arange(999), np.arange(1, 1000)], 1)
    for sure in (False, True):
        found = Counter(groups_of(1000, pairs, np.full(999, sure)).tolist())
        assert max(found.values()) <= (125 if sure else 32)
    assert set(groups_of(5, np.array([[3, 4], [1, 3]]), np.zeros(2, bool)).tolist()) == {0, 1, 2}


def test_many_copies_of_one_picture_are_one_group(scenes):
    looks = looks_of([*(again(scenes[0], quality=quality) for quality in range(50, 98)), *scenes[1:]])
    assert sizes(looks)[:2] == [48, 1]


def test_the_order_of_the_files_does_not_matter(tmp_path, scenes):
    for number, picture in enumerate(scenes[:30]):
        save(tmp_path / "one", f"{number:02d}.png", picture)
        save(tmp_path / "one", f"a{number:02d}.jpg", picture)
        save(tmp_path / "two", f"{97 - number:02d}.png", picture)
        save(tmp_path / "two", f"z{number:02d}.jpg", picture)
    splits = []
    for name in ("one", "two"):
        prepare(tmp_path / name, tmp_path / f"out {name}", params(), 0)
        splits.append({sha: split for split in ("train", "validation")
                       for sha in datasets.load_from_disk(str(tmp_path / f"out {name}" / split))["sha"]})
    assert splits[0] == splits[1]


def test_own_splits_are_kept_and_copies_across_them_are_counted(tmp_path, scenes):
    for number, picture in enumerate(scenes[:20]):
        save(tmp_path / "data", f"{'train' if number < 14 else 'val'}/{number:02d}.png", picture)
    for number in range(3):
        save(tmp_path / "data", f"val/copy-{number}.jpg", scenes[number])
    report = prepare(tmp_path / "data", tmp_path / "out", params(), 0)
    assert report.counts == {"train": 14, "validation": 9}
    note = "3 of 9 held-out pictures have near-copies among those to train on, since the data's own splits are kept"
    assert any(note in each for each in report.notes), report.notes
