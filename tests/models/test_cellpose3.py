"""Our U-Net, its style and its size model against Cellpose 3.1.1.3 itself, which runs apart: see benchmarks/cellpose3.py."""

from __future__ import annotations

import cellpose3
import cv2
import numpy as np
import pytest
import torch

from cellkit.fetch.find import find_weights
from cellkit.models import cellpose_unet as unet
from cellkit.models import size_model as sizes
from cellkit.models import unet_maps
from cellkit.models.shared.inputs import two_channels
from cellkit.models.unet_network import load_network

pytestmark = pytest.mark.skipif(bool(cellpose3.missing()), reason=cellpose3.missing())


def picture(shape: tuple[int, int], radius: int, seed: int = 0) -> np.ndarray:
    """Discs of one size in both colours, on noise, (H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 20, (*shape, 3), dtype=np.uint8)
    step = 3 * radius
    for y in range(step // 2, shape[0] - radius, step):
        for x in range(step // 2, shape[1] - radius, step):
            cv2.circle(image, (x, y), radius, (0, 120, 90), -1)
            cv2.circle(image, (x, y), radius // 2, (0, 130, 220), -1)
    return image


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Networks of random numbers for cells of 30 and 17 px, and their size models, as Cellpose saves them."""
    folder = tmp_path_factory.mktemp("cellpose")
    return [cellpose3.random_model(folder / f"cyto{px}", seed=px, diam_mean_px=px) for px in (30, 17)]


@pytest.mark.parametrize("which", [0, 1])
def test_maps_and_styles_are_those_of_cellpose(published, which):
    planes = np.random.default_rng(1).normal(0.4, 0.5, (2, 2, 64, 96)).astype(np.float32)
    maps, styles = cellpose3.forward(published[which][0], planes)
    network, card = load_network(published[which][0], "float32")
    assert card == {} and network.diam_mean.item() == (30, 17)[which]
    x = network.arithmetic.placed(torch.from_numpy(planes))
    with torch.no_grad():
        ours, style = network(x).cpu().numpy(), network.style(x).cpu().numpy()
    np.testing.assert_allclose(ours, maps, atol=1e-5)
    np.testing.assert_allclose(style, styles, atol=1e-5)
    assert maps.std() > 0.05 and styles.std() > 0.01, "random numbers, and not nothing"
    network.state_dict()["upsample.up.res_up_0.conv.conv_2.conv.0.running_var"].mul_(1.1)
    with torch.no_grad():
        assert not np.allclose(network(x).cpu().numpy(), maps, atol=1e-5), "one wrong batch norm is seen"


def test_diameters_are_those_of_cellpose(published, tmp_path):
    """Of images of one tile and of several; with random numbers, and with the starter weights, which do find the cells.

    The first pass is the same to rounding; masks, and so the second, differ by what the manual says of them. Cellpose takes
    more than a second for a tile of 224 px: the image of several is a strip, and a network of random numbers sees one image.
    """
    one, several = picture((150, 130), 12), picture((260, 72), 15, seed=1)
    network, _ = load_network(find_weights("starter"), "float32")
    starter = cellpose3.save_weights(network, tmp_path / "starter")
    style = sizes.style_of(network, two_channels(several))
    regression = {"A": np.full(256, 0.1), "smean": style, "ymean": np.log(28 / 30), "diam_mean": 30.0}
    np.save(tmp_path / "starter_size.npy", regression)
    ours = (starter, tmp_path / "starter_size.npy")
    cases = [(*published[0], one), (*published[1], several), (*ours, one), (*ours, several)]
    diameters, of_style = cellpose3.diameters_of(cases)
    for (weights, size_file, image), expected, expected_of_style in zip(cases, diameters, of_style, strict=True):
        network, _ = load_network(weights, "float32")

        def find(part, px, network=network):
            return unet_maps.segment_image(network, part, px, 0.4, 0.0, 15)

        found = sizes.estimate_diameter(network, sizes.read_size_model(size_file), image, "both", find)
        np.testing.assert_allclose(found[1], expected_of_style, rtol=1e-4)
        np.testing.assert_allclose(found[0], expected, rtol=0.02)
    assert of_style[3] == pytest.approx(28, rel=1e-4) and 24 < diameters[3] < 36, "discs of 30 px"
    assert np.ptp(of_style[:2]) > 1 and np.ptp(of_style[2:]) > 0.1
    assert unet.estimate_diameter(starter, [several], unet.Settings(precision="float32")) == pytest.approx(
        diameters[3], rel=0.02
    )
