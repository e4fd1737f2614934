"""Models that see an image window by window: the limit, the maps and the cells of the whole image."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from window_cases import whole_of

from cellkit.cells.instances import Instances
from cellkit.cells.resampling import nearest_of, resampled, source_of, weights
from cellkit.cells.windows import Window
from cellkit.fetch.find import find_weights
from cellkit.models import cellpose_unet, threshold, unet_maps, unet_windows
from cellkit.models.shared import maps_windows
from cellkit.models.shared.in_windows import WholeImage
from cellkit.models.shared.inputs import NORMALISE
from cellkit.models.shared.thresholds import AS_CELLPOSE
from cellkit.models.threshold_steps import brighter, depth_of, parted, pieces_of, smoothed
from cellkit.models.unet_network import load_network
from cellkit.scores.iou import overlaps


def picture(seed: int, shape: tuple[int, int], radius=(5, 10)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.normal(20, 4, shape)
    y, x = np.mgrid[: shape[0], : shape[1]]
    for _ in range(shape[0] * shape[1] // 700):
        centre, size = rng.uniform((0, 0), shape), rng.uniform(*radius)
        values = np.maximum(
            values,
            rng.uniform(90, 230) / (1 + np.exp(np.clip(2 * (np.hypot(y - centre[0], x - centre[1]) - size), -50, 50))),
        )
    image = np.zeros((*shape, 3), np.uint8)
    image[..., 2] = np.clip(values, 0, 255)
    return image


@pytest.mark.parametrize("diameter_px", [None, 14.0])
def test_the_threshold_is_that_of_the_whole(tmp_path, monkeypatch, diameter_px):
    from skimage.filters import threshold_otsu

    monkeypatch.setattr("cellkit.models.threshold_windows.BLOCK_PX", 64)
    image = picture(1, (150, 210))
    finder = threshold.ThresholdInWindows(whole_of(image, tmp_path), diameter_px, 15)
    grey = smoothed(image)
    assert finder.limit == float(threshold_otsu(grey))
    cells = brighter(grey, finder.limit)
    truth = parted(grey, pieces_of(cells), depth_of(cells), finder.limit, finder.diameter_px)
    found, sure = finder.find(Window(0, 0, 150, 210))
    assert sure.all() and np.array_equal(found.starts, truth.starts)
    window = Window(20, 30, 120, 170)
    part, sure = finder.find(window)
    pairs = overlaps(Instances.from_labels(truth.paint()[window.slices]), part[sure])
    assert (pairs.iou == 1).sum() == sure.sum() > 2
    again = threshold.ThresholdInWindows(WholeImage(None, (None,) * 3, tmp_path), diameter_px, 15)  # reads nothing anew
    assert (again.limit, again.diameter_px) == (finder.limit, finder.diameter_px)


def test_an_even_image_has_no_cells(tmp_path):
    finder = threshold.ThresholdInWindows(whole_of(np.full((50, 60, 3), 7, np.uint8), tmp_path), None, 15)
    assert not len(finder.find(Window(0, 0, 20, 20))[0])


# ---- resizing ------------------------------------------------------------------------------------------------------
@settings(max_examples=40, deadline=None)
@given(st.integers(20, 300), st.floats(0.2, 3), st.integers(0, 2**31))
def test_a_window_of_a_resized_side_is_that_of_opencv(large, scale, seed):
    size = max(8, round(large * scale))
    rng = np.random.default_rng(seed)
    line = rng.random((3, large)).astype(np.float32)
    begin = int(rng.integers(0, size))
    end = int(rng.integers(begin + 1, size + 1))
    first, last = source_of(begin, end, size, large)
    for smaller, how in ((False, cv2.INTER_LINEAR), (True, cv2.INTER_AREA)):
        if smaller and size > large:
            continue
        wanted = cv2.resize(line, (size, 3), interpolation=how)[:, begin:end]
        rows, _ = weights(0, 3, 3, 3, False)
        columns, at = weights(begin, end, size, large, smaller)
        assert at == first
        np.testing.assert_allclose(resampled(line[:, first:last], rows[:, :3], columns), wanted, atol=2e-4)
    wanted = cv2.resize(np.arange(large, dtype=np.float64)[None], (size, 1), interpolation=cv2.INTER_NEAREST_EXACT)[0]
    assert np.abs(nearest_of(begin, end, size, large) - wanted[begin:end]).max() <= (0 if size == large else 1)


# ---- the U-Net -----------------------------------------------------------------------------------------------------
@pytest.fixture
def small_tiles(monkeypatch):
    for module in (unet_maps, unet_windows):
        monkeypatch.setattr(module, "TILE_PX", 128)
        monkeypatch.setattr(module, "OVERLAP_PX", 48)


def folder_in(parent: Path, name: str) -> Path:
    (parent / name).mkdir(exist_ok=True)
    return parent / name


def unet(image: np.ndarray, folder: Path, **more):
    segment = cellpose_unet.load(find_weights("starter_light"), cellpose_unet.Settings(channels="nuclei", **more))
    return segment, segment.in_windows(whole_of(image, folder))


@pytest.mark.parametrize(("diameter_px", "off"), [(30.0, 0), (44.0, 0.02), (21.0, 0.02)])
def test_the_maps_are_those_of_the_whole_image(tmp_path, small_tiles, diameter_px, off):
    image = picture(2, (170, 230), radius=(0.3 * diameter_px, 0.5 * diameter_px))
    segment, finder = unet(image, tmp_path, diameter_px=diameter_px)
    network = load_network(find_weights("starter_light"))[0]
    wanted = unet_maps.predict_maps(network, image, diameter_px, "nuclei", NORMALISE)
    assert finder.maps.shape == wanted.shape and wanted[2].max() > 0
    assert np.abs(finder.maps[...].astype(np.float32) - wanted).max() <= off
    (truth,) = segment([image])
    window = Window(15, 20, 160, 215)
    found, sure = finder.find(window)
    pairs = overlaps(Instances.from_labels(truth.paint()[window.slices]), found[sure])
    best = np.zeros(int(sure.sum()))
    np.maximum.at(best, pairs.found, pairs.iou)
    assert len(best) > 3 and (best > 0.9).all() and (best == 1).mean() > 0.5


def test_rows_of_tiles_that_are_done_are_not_done_again(tmp_path, small_tiles, monkeypatch):
    image = picture(3, (400, 150), radius=(8, 14))
    _, finder = unet(image, folder_in(tmp_path, "a"), diameter_px=30.0)
    write, count = maps_windows.write_json, []

    def stop(path, value):
        write(path, value)
        count.append(value["rows"])
        if len(count) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(maps_windows, "write_json", stop)
    with pytest.raises(KeyboardInterrupt):
        unet(image, folder_in(tmp_path, "b"), diameter_px=30.0)
    again = unet(image, folder_in(tmp_path, "b"), diameter_px=30.0)[1]
    assert count == list(range(1, len(count) + 1)) and len(count) > 3
    assert np.array_equal(again.maps[...], finder.maps[...])


@pytest.mark.parametrize(("assumed_px", "passes"), [(50.0, 3), (20.0, 2), (29.0, 1)])
def test_an_image_of_its_own_diameter_is_looked_at_again(tmp_path, small_tiles, monkeypatch, assumed_px, passes):
    monkeypatch.setattr("cellkit.models.shared.in_windows.BLOCK_PX", 100)
    image = picture(4, (150, 210), radius=(12, 16))
    network = load_network(find_weights("starter_light"))[0]
    shown = (assumed_px, "nuclei", NORMALISE, "image")
    wanted = unet_maps.maps_to_read(network, image, *shown)
    used = AS_CELLPOSE | dict(zip(("diameter_px", "channels", "normalise", "diameter_of"), shown, strict=True))
    finder = unet_windows.unet_in_windows(network, whole_of(image, folder_in(tmp_path, "twice")), **used)
    assert finder.whole.folder.name == ("twice", "own_diameter_0", "own_diameter_1")[passes - 1]
    assert finder.maps.shape == wanted.shape and np.abs(finder.maps[...].astype(np.float32) - wanted).max() < 0.03
    again = unet_windows.unet_in_windows(network, whole_of(image, tmp_path / "twice"), **used)
    assert np.array_equal(again.maps[...], finder.maps[...]), "kept, and not looked at again"
