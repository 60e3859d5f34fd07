"""Windows and seams of large pictures whose answer is known."""

import math

import pytest
import torch
import torch.nn.functional as F

from tesserae.data.batches import to_unit
from tesserae.errors import TesseraeError
from tesserae.evaluation.features import FeatureNetwork
from tesserae.evaluation.large_pictures import seam_ratio, window_frechet


def pictures(count, seed=0, size=(64, 64)):
    """Smooth random pictures, (N,3,H,W) in [-1,1], alike at every place: a margin of flat edges is cut away."""
    sides = [side // 7 + 3 for side in size]
    coarse = torch.rand(count, 3, *sides, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse * 2 - 1, scale_factor=7, mode="bilinear")[..., 5:5 + size[0], 5:5 + size[1]]


def texture(images):
    """Averages of 4 x 4 positions and how they change: (B,3,16,16) -> (B,D)."""
    small = F.adaptive_avg_pool2d(images, 4)
    return torch.cat([small.flatten(1), images.diff(dim=3).abs().mean((1, 2))], 1)


def with_seams(images, every, share=1.0):
    """Each cell from another of the pictures, so that nothing fits where cells meet; mixed with the picture."""
    torn, number = images.clone(), 0
    for top in range(0, images.shape[2], every):
        for left in range(0, images.shape[3], every):
            cell = (..., slice(top, top + every), slice(left, left + every))
            torn[cell] = images.roll(number, 0)[cell]
            number += 1
    return images + share * (torn - images)


SIZES = [(64, 64), (32, 128)]  # borders both ways, and down alone


def network(extract=texture):
    """Features of pictures in [-1,1], as if they were a network's."""
    return FeatureNetwork("texture", "", "texture", "", torch.device("cpu"), lambda x: (extract(to_unit(x)), None))


def frechet(made, real, **how):
    found = window_frechet(made, real.split(5), 16, 32, network(), **how).values
    return {name.replace("texture_", ""): value for name, value in found.items() if name[-4:] not in ("_low", "high")}


@pytest.mark.parametrize("size", SIZES)
def test_seams_show_across_borders_and_not_inside(size):
    real, made = pictures(80, 1, size), pictures(40, 2, size)
    plain, seamed = frechet(made, real), frechet(with_seams(made, 32), real)
    assert plain["frechet_across"] == pytest.approx(plain["frechet_inside"], rel=0.3)
    assert plain["frechet_inside"] == pytest.approx(plain["frechet_real"], rel=0.3)
    assert seamed["frechet_inside"] == pytest.approx(plain["frechet_inside"], rel=0.1)
    assert seamed["frechet_across"] > 1.5 * seamed["frechet_inside"]


def test_scenes_of_another_size_serve_as_far_as_they_go():
    made = pictures(20, 2, (32, 128))
    for size in ((64, 64), (16, 16), (24, 24)):
        found = frechet(made, pictures(60, 1, size))
        assert set(found) == {"frechet_inside", "frechet_across", "frechet_real"}
        assert all(math.isfinite(value) and value >= 0 for value in found.values())


def test_windows_are_cut_at_the_places_that_are_promised():
    """Pictures that tell rows and columns by their values."""
    seen = []

    def noted(pixels):
        seen.append((pixels[:, 0, 0, 0], pixels[:, 1, 0, 0]))
        return pixels.float().mean((2, 3)), None

    rows, columns = torch.arange(64, dtype=torch.uint8), torch.arange(64, dtype=torch.uint8)
    scene = torch.stack([rows[:, None].expand(64, 64), columns.expand(64, 64), columns.expand(64, 64)])
    own = FeatureNetwork("places", "", "places", "", torch.device("cpu"), noted)
    window_frechet(scene.repeat(9, 1, 1, 1), [scene.repeat(40, 1, 1, 1)], 16, 32, own)
    places = [set(zip(part[0].tolist(), part[1].tolist())) for part in seen]
    inside = {(top, left) for top in (8, 40) for left in (8, 40)}
    across = {(24, 8), (24, 40), (8, 24), (40, 24), (24, 24)}
    assert inside in places
    assert across in places
    assert set().union(*places) == inside | across


def test_too_few_windows_have_no_distance_and_too_large_ones_are_refused():
    assert frechet(pictures(1, size=(32, 32)), pictures(9, 1)) == {}
    assert frechet(pictures(9), pictures(1, 1)) == {}
    with pytest.raises(TesseraeError, match="do not fit between borders"):
        window_frechet(pictures(4), [pictures(4)], 40, 32, network())
    with pytest.raises(TesseraeError, match="hold no window of 16"):
        frechet(pictures(4), pictures(4, 1, (8, 64)))


def test_windows_too_small_for_vgg_have_no_distance_and_that_is_said():
    vgg = FeatureNetwork("vgg16", "", "VGG16", "", torch.device("cpu"), lambda x: (texture(to_unit(x)), None))
    made, real = pictures(9), pictures(20, 1)
    found = window_frechet(made, [real], 8, 8, vgg)
    assert found.values == {}
    assert found.notes == ["Distances between windows are left out: windows of 8 pixels a side are too small for "
                           "VGG16, which needs 16."]
    assert window_frechet(made, [real], 16, 32, vgg).values


@pytest.mark.parametrize("size", SIZES)
def test_the_seam_ratio_is_one_without_seams_and_grows_with_them(size):
    images = pictures(60, size=size)
    ratios = [seam_ratio(with_seams(images, 32, share), 32) for share in (0.0, 0.1, 1.0)]
    assert ratios[0] == pytest.approx(1, abs=0.1)
    assert ratios[0] < ratios[1] < ratios[2]
    assert ratios[2] > 4


def test_code_borders_are_compared_with_code_borders():
    """Each patch of 8 pixels in one colour: every border of patches is a step, that of windows no larger one."""
    blocks = F.interpolate(torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(0)), scale_factor=8)
    assert seam_ratio(blocks, 32) > 3
    assert seam_ratio(blocks, 32, grid_pixels=8) == pytest.approx(1, abs=0.1)


def test_without_a_border_there_is_no_ratio():
    assert math.isnan(seam_ratio(pictures(2), 64))
