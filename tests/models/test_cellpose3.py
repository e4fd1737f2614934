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


@pytest.fixture(scope="module", params=[30.0, 17.0])
def published(request, tmp_path_factory):
    """A network of random numbers and its size model, as Cellpose saves them."""
    to = tmp_path_factory.mktemp("cellpose") / f"cyto{request.param:g}"
    return cellpose3.random_model(to, seed=int(request.param), diam_mean_px=request.param)


def test_maps_are_those_of_cellpose(published):
    planes = np.random.default_rng(1).normal(0.4, 0.5, (2, 2, 64, 96)).astype(np.float32)
    maps, styles = cellpose3.forward(published[0], planes)
    network, card = load_network(published[0])
    assert card == {} and network.diam_mean.item() == float(published[0].name.removeprefix("cyto"))
    with torch.no_grad():
        x = torch.from_numpy(planes).to(next(network.parameters()).device)
        ours, style = network(x).cpu().numpy(), network.style(x).cpu().numpy()
    np.testing.assert_allclose(ours, maps, atol=1e-5)
    np.testing.assert_allclose(style, styles, atol=1e-5)
    assert maps.std() > 0.05 and styles.std() > 0.01, "random numbers, and not nothing"
    changed = network.state_dict()["upsample.up.res_up_0.conv.conv_2.conv.0.running_var"]
    changed *= 1.1
    with torch.no_grad():
        assert not np.allclose(network(x).cpu().numpy(), maps, atol=1e-5), "one wrong batch norm is seen"


def test_style_and_diameter_are_those_of_cellpose(published):
    """Small images, and one of several tiles; where nothing is found, the mean diameter of the training is taken."""
    weights, size_file = published
    images = [picture((150, 130), 12), picture((260, 300), 20, seed=1)]
    diameters, of_style = cellpose3.diameters_of(weights, size_file, images)
    network, _ = load_network(weights)
    size_model = sizes.read_size_model(size_file)
    found = [
        sizes.estimate_diameter(network, size_model, image, "both", lambda part, px: unet_maps.segment_image(
            network, part, px, 0.4, 0.0, 15)) for image in images
    ]  # fmt: skip
    np.testing.assert_allclose([px for _, px in found], of_style, rtol=1e-5)
    np.testing.assert_allclose([px for px, _ in found], diameters, rtol=0.02)
    assert of_style.min() > 5 and np.ptp(of_style) > 0.01 * of_style.mean()


def test_diameters_of_found_cells_are_those_of_cellpose(tmp_path):
    """The second pass with trained weights, which find the cells; masks differ as the manual says, by a pixel."""
    network, _ = load_network(find_weights("starter"))
    weights = cellpose3.save_weights(network, tmp_path / "starter")
    style = sizes.style_of(network, two_channels(picture((220, 220), 15)))
    regression = {"A": np.zeros(network.widths[-1]), "smean": style, "ymean": np.log(28 / 30), "diam_mean": 30.0}
    np.save(tmp_path / "starter_size.npy", regression)
    image = picture((220, 220), 15, seed=2)
    (diameter,), (of_style,) = cellpose3.diameters_of(weights, tmp_path / "starter_size.npy", [image])
    assert of_style == pytest.approx(28, rel=1e-5) and 24 < diameter < 36
    assert unet.estimate_diameter(weights, [image]) == pytest.approx(diameter, rel=0.02)
