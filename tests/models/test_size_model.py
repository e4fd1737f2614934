"""Cellpose's size model: read without running anything, used where it lies beside a checkpoint, on crops of large images."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.models import cellpose_unet as unet
from cellkit.models import size_model as sizes
from cellkit.models import weights
from cellkit.models.shared import diameter
from cellkit.models.shared.diameter import First
from cellkit.models.unet_network import CellposeUNet, load_start

NARROW = (4, 8, 12, 16)


@pytest.fixture
def narrow(tmp_path):
    """A narrow network of random numbers, as a torch file."""
    path = tmp_path / "mine"
    torch.save(load_start("scratch", 0, NARROW).state_dict(), path)
    return path


def write(path, **changes):
    """A size model that says 36 px of every style."""
    plain = {"A": np.zeros(16), "smean": np.zeros(16, np.float32), "ymean": np.log(1.2), "diam_mean": 30.0}
    np.save(path, plain | changes)
    return path


@pytest.mark.parametrize("name", ["mine_size.npy", "size_mine.npy"])
def test_it_is_found_beside_a_checkpoint(narrow, name):
    assert sizes.size_model_beside(narrow) is None
    path = write(narrow.with_name(name))
    assert sizes.size_model_beside(narrow) == sizes.size_model_beside(narrow.with_suffix(".safetensors")) == path


def test_the_diameter_comes_from_it(narrow, monkeypatch):
    """36 px of the style; then that of the cells that are found with it: none in an empty picture."""
    write(narrow.with_name("mine_size.npy"))
    looked = []
    real = sizes.segment_image

    def noting(network, image, px, **settings):
        looked.append((px, settings["min_area_px"]))
        return real(network, image, px, **settings)

    monkeypatch.setattr(sizes, "segment_image", noting)
    image = np.zeros((40, 50, 3), np.uint8)
    assert unet.estimate_diameter(narrow, [image], unet.Settings(cellprob_threshold=12)) == 30
    assert looked == [(pytest.approx(36), 15)]


def test_an_image_without_cells_does_not_make_a_set_one_of_unlike_sizes(narrow, monkeypatch):
    """It gets the mean diameter of the training, which is nobody's."""
    write(narrow.with_name("mine_size.npy"))
    cells = Instances.from_boxes([[90 * k, 0, 70, 70] for k in range(6)], (70, 600))
    monkeypatch.setattr(sizes, "segment_image", lambda network, image, *_, **__: cells if image.any() else cells[:0])
    full, empty = np.full((40, 50, 3), 9, np.uint8), np.zeros((40, 50, 3), np.uint8)
    px = unet.estimate_diameter(narrow, [full, full, full, empty], unet.Settings())
    assert px == pytest.approx(79, abs=0.1) and not isinstance(px, First)


@pytest.mark.parametrize(("cells", "blank"), [(6, 2), (6, 4), (3, 4)])
def test_images_without_cells_do_not_move_the_diameter(narrow, monkeypatch, caplog, cells, blank):
    """However many they are; where no image has many cells those that have some count, and the diameter is doubtful."""
    write(narrow.with_name("mine_size.npy"))
    found = Instances.from_boxes([[90 * k, 0, 70, 70] for k in range(cells)], (70, 600))
    monkeypatch.setattr(sizes, "segment_image", lambda network, image, *_, **__: found if image.any() else found[:0])
    full, empty = np.full((40, 50, 3), 9, np.uint8), np.zeros((40, 50, 3), np.uint8)
    with caplog.at_level("INFO"):
        px = unet.estimate_diameter(narrow, [full, full, full, *[empty] * blank], unet.Settings())
    assert px == pytest.approx(79, abs=0.1) and not isinstance(px, First)
    assert ("about 79 px is doubtful" in caplog.text) == (cells < 5)


def test_no_cell_in_any_image_is_said(narrow, caplog):
    write(narrow.with_name("mine_size.npy"))
    empty = np.zeros((40, 50, 3), np.uint8)
    with caplog.at_level("INFO"):
        assert unet.estimate_diameter(narrow, [empty] * 3, unet.Settings(cellprob_threshold=12)) == 30
    assert "the size model leads to no cell; 30 px is taken" in caplog.text


def test_of_a_large_image_crops_are_looked_at(narrow, monkeypatch):
    """Cells of 15 px in 6,000 px would be 12,000 px at network scale."""
    shown: list[tuple[int, ...]] = []

    def nothing(network, x):
        shown.append(tuple(x.shape[2:]))
        return torch.zeros(1, 3, *x.shape[2:]) - 5

    def at_network_scale(planes, shape, smaller):
        shown.append(tuple(shape))
        return np.zeros((2, *shape), np.float32)

    monkeypatch.setattr(CellposeUNet, "forward", nothing)
    monkeypatch.setattr("cellkit.models.unet_maps.resized", at_network_scale)
    image = np.zeros((6000, 400, 3), np.uint8)
    image[5000:5015, 200:215] = 200
    assert unet.estimate_diameter(narrow, [image]) == 30
    assert len(shown) > 10 and np.max(shown) <= 256 + 2 * 16, "eight cells of 30 px, and the frame"
    shown.clear()
    write(narrow.with_name("mine_size.npy"), ymean=np.log(0.5))
    assert unet.estimate_diameter(narrow, [image]) == 30
    assert np.max(shown) == sizes.LARGEST_PX + 2 * 16


def test_the_brightest_part_of_a_large_image_is_found():
    image = np.zeros((2500, 3000, 3), np.uint8)
    image[2400:2500, 2900:3000, 1] = 9
    assert diameter.bright_part(image, 100)[..., 1].mean() > 8.5
    assert diameter.bright_part(image, 9000).shape == image.shape


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"A": np.zeros(256)}, "for a network of 256 styles, this one has 16"),
        ({"ymean": np.nan}, "numbers that are none"),
        ({"diam_mean": 0.0}, "numbers that are none"),
        ({"smean": "text"}, "is no size model"),
        ({"ymean": [1.0, 2.0]}, "is no size model"),
    ],
)
def test_another_file_is_refused(tmp_path, changes, why):
    with pytest.raises(UserError, match=why):
        sizes.read_size_model(write(tmp_path / "size.npy", **changes), 16)
    np.save(tmp_path / "none.npy", {"A": np.zeros(16)})
    with pytest.raises(UserError, match="is no size model"):
        sizes.read_size_model(tmp_path / "none.npy", 16)


def test_nothing_in_it_is_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    np.save(tmp_path / "size.npy", {"A": Trap()}, allow_pickle=True)
    with pytest.raises(UserError):
        sizes.read_size_model(tmp_path / "size.npy")
    assert not (tmp_path / "sprung").exists()


def test_a_checkpoint_of_cellpose_1_is_taken_in_under_its_name(tmp_path):
    tensors = CellposeUNet(widths=NARROW).state_dict()
    torch.save({k: v for k, v in tensors.items() if not k.startswith("diam_")}, tmp_path / "cytotorch_0")
    with pytest.raises(UserError, match=r"does not say to which diameter.*\n.*cellkit fetch cyto --from FILE"):
        unet.load(tmp_path / "cytotorch_0")
    assert weights.load_tensors(tmp_path / "cytotorch_0")
