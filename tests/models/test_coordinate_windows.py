"""Coordinates of an image that is read window by window: the square, the points and the cells of the whole image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_coordinate import discs
from window_cases import whole_of

from cellkit.cells.instances import Instances
from cellkit.models import coordinate
from cellkit.models.coordinate_network import built, squared
from cellkit.models.coordinate_windows import squared_in_blocks
from cellkit.models.weights import save_checkpoint
from cellkit.predict import large
from cellkit.scores.iou import overlaps

SETTINGS = {"square_px": 96, "diameter_px": 14.0, "peak_threshold": 0.3, "peak_distance_px": 2, "min_area_px": 15}


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """Touching and lone discs on noise, brighter to the right, some of them green."""
    rng = np.random.default_rng(0)
    circles = [
        (x + rng.integers(5), y + rng.integers(5), 5 + rng.integers(3))
        for x in range(8, 256, 15)
        for y in range(8, 186, 15)
    ]
    made, _ = discs(*circles, shape=(190, 260))
    ramp = np.linspace(0.5, 1, 260)[None, :, None]
    noisy = made * ramp + rng.normal(0, 4, made.shape)
    noisy[..., 1] += 0.5 * np.roll(noisy[..., 2], 3, axis=0)
    return noisy.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, image):
    """Untaught: what it says of a coordinate follows the brightness around it, which is enough to have hundreds of peaks."""
    network = built(1, "float32")
    with torch.no_grad():  # away from 0.5 on both sides
        network.last.weight *= 40
        network.last.bias -= network.eval().map(torch.from_numpy(squared(image, "both", 96))[None]).mean()
    path = tmp_path_factory.mktemp("coordinate") / "untaught.safetensors"
    return save_checkpoint(path, network.state_dict(), coordinate.NAME, config=SETTINGS | {"precision": "float32"})


@pytest.mark.parametrize("shape", [(190, 260), (96, 96), (61, 400), (50, 40)])
def test_the_square_is_that_of_the_whole_image(tmp_path, monkeypatch, shape):
    monkeypatch.setattr("cellkit.models.coordinate_windows.BLOCK_PX", 70)
    image = np.random.default_rng(1).integers(0, 200, (*shape, 3), np.uint8)
    for channels in ("both", "nuclei"):
        found, wanted = squared_in_blocks(whole_of(image, tmp_path), channels, 96), squared(image, channels, 96)
        np.testing.assert_allclose(found, wanted, atol=3e-4)


@pytest.mark.parametrize("outline", ["probability", "nuclei", "both"])
@pytest.mark.parametrize("side", [60, 130])
def test_the_cells_are_those_of_the_whole_image(tmp_path, monkeypatch, image, checkpoint, outline, side):
    monkeypatch.setattr("cellkit.models.coordinate_windows.BLOCK_PX", 70)
    segment = coordinate.load(checkpoint, coordinate.Settings(outline=outline))
    (whole,) = segment([image])
    finder, todo = segment.in_windows(whole_of(image, tmp_path)), large.windows_with_parts(tmp_path, whole.shape, side)
    for core, path in todo:
        large.write_part(path, *large.cells_of_window(finder, core, whole.shape))
    windows, parts = zip(*todo, strict=True)
    cells = large.joined_cells(windows, parts, whole.shape)
    labels = large.paint_labels(tmp_path / "labels.zarr", parts, cells, whole.shape)
    pairs = overlaps(whole, Instances.from_labels(np.asarray(labels[...])))
    best = np.zeros(len(whole))
    np.maximum.at(best, pairs.truth, pairs.iou)
    assert len(cells.scores) == len(whole) > 60
    assert (best == 1).all(), "pixel by pixel"


def test_the_square_is_asked_once_and_what_it_cannot_show_is_said(tmp_path, image, checkpoint, monkeypatch, capsys):
    segment = coordinate.load(checkpoint)
    finder = segment.in_windows(whole_of(image, tmp_path))
    assert "cells of 14 px" not in capsys.readouterr().err, "5 px wide in the square"
    monkeypatch.setattr("cellkit.models.coordinate_windows.squared_in_blocks", None)
    assert np.array_equal(segment.in_windows(whole_of(image, tmp_path)).inside, finder.inside), "kept on disk"
    monkeypatch.undo()
    (tmp_path / "large").mkdir()
    segment.in_windows(whole_of(np.tile(image, (4, 4, 1)), tmp_path / "large"))
    assert "cells of 14 px are 1.3 px wide in the square of 96 px" in capsys.readouterr().err
