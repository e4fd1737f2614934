"""Every reader hands out windows: the pixels of the whole plane, and pictures in the light of the whole image."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import tifffile
from PIL import Image

from cellkit.cells.windows import Window, taken
from cellkit.errors import UserError
from cellkit.formats.zarr_writing import describe, multiscales, new_group
from cellkit.microscope.convert import Conversion, convert_frame
from cellkit.microscope.open import open_file
from cellkit.microscope.windows import large_picture, light_of, plane_array

WINDOWS = (Window(0, 0, 5, 7), Window(13, 40, 90, 61), Window(99, 119, 100, 120), Window(0, 0, 100, 120))


def planes(count: int, dtype: str = "uint16") -> np.ndarray:
    values = np.random.default_rng(3).gamma(2, 400, (count, 100, 120))
    return values.astype(dtype)


def tiff(path: Path, **how) -> Path:
    two = planes(2)
    if how.pop("planar", False):
        tifffile.imwrite(path, two, photometric="minisblack", metadata={"axes": "CYX"}, ome=True, **how)
    elif how.pop("rgb", False):
        tifffile.imwrite(path, planes(3, "uint8").transpose(1, 2, 0).copy(), photometric="rgb", **how)
    elif how.pop("palette", False):
        table = np.arange(3 * 256, dtype=np.uint16).reshape(3, 256) * 80
        tifffile.imwrite(path, planes(1, "uint8")[0], photometric="palette", colormap=table, **how)
    elif how.pop("white", False):
        tifffile.imwrite(path, planes(1, "uint8")[0], photometric="miniswhite", **how)
    else:
        tifffile.imwrite(path, two[0], photometric="minisblack", **how)
    return path


def ome_zarr(path: Path) -> Path:
    group = new_group(path, "0.5")
    array = group.create_array("0", shape=(2, 3, 100, 120), chunks=(1, 1, 32, 50), dtype=np.uint16)
    array[...] = np.stack([planes(3), planes(3)[::-1]])
    axes = [{"name": axis, "type": "space"} for axis in "czyx"]
    scales = multiscales("yx", [1.0, 1.0], 1.0, (100, 120), [(100, 120)], "0.5", "a") | {"axes": axes}
    scales["datasets"] = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1.0] * 4}]}]
    describe(group, {"multiscales": [scales]}, "0.5")
    return path


KINDS = {
    "mapped": lambda folder: tiff(folder / "a.tif"),
    "strips": lambda folder: tiff(folder / "a.tif", compression="zlib", rowsperstrip=7),
    "tiles": lambda folder: tiff(folder / "a.tif", compression="zlib", tile=(16, 32), planar=True),
    "big end first": lambda folder: tiff(folder / "a.tif", compression="zlib", tile=(16, 32), byteorder=">"),
    "colours": lambda folder: tiff(folder / "a.tif", compression="zlib", tile=(16, 32), rgb=True),
    "palette": lambda folder: tiff(folder / "a.tif", compression="zlib", rowsperstrip=7, palette=True),
    "white is zero": lambda folder: tiff(folder / "a.tif", compression="zlib", rowsperstrip=7, white=True),
    "ome-zarr": lambda folder: ome_zarr(folder / "a.ome.zarr"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_is_that_of_the_plane(kind, tmp_path):
    path = KINDS[kind](tmp_path)
    with open_file(path) as opened:
        series = opened.info.series[0]
        for channel in range(len(series.channels)):
            for z in range(series.size("Z")):
                whole = opened.plane(0, 0, z, channel)
                for window in WINDOWS:
                    part = opened.window(0, 0, z, channel, *window.slices)
                    assert part.dtype == whole.dtype and np.array_equal(part, whole[window.slices]), window


@pytest.mark.skipif(find_spec("pylibCZIrw") is None, reason="the extra czi is not installed")
def test_a_window_of_a_czi_is_read_alone(tmp_path):
    from pylibCZIrw import czi

    values = planes(2)
    with czi.create_czi(str(tmp_path / "a.czi")) as file:
        for channel, plane in enumerate(values):
            file.write(plane[..., None], plane={"C": channel}, location=(-30, 7))
    with open_file(tmp_path / "a.czi") as opened:
        for window in WINDOWS:
            assert np.array_equal(opened.window(0, 0, 0, 1, *window.slices), values[1][window.slices])


def test_a_picture_that_is_decoded_whole_says_so(tmp_path):
    Image.fromarray(planes(1, "uint8")[0]).save(tmp_path / "a.png")
    with open_file(tmp_path / "a.png") as opened, pytest.raises(UserError, match="PNG, which is decoded as a whole"):
        plane_array(opened, 0, 0, 0)


@pytest.mark.parametrize(
    ("projection", "percentiles"), [("max", (0.3, 99.8)), ("mean", (5, 60)), (1, (0, 100)), (2, (0.3, 99.8))]
)
def test_a_window_of_a_picture_is_that_of_the_converted_frame(tmp_path, projection, percentiles, monkeypatch):
    for place in ("cells", "microscope"):
        monkeypatch.setattr(f"cellkit.{place}.windows.BLOCK_PX", 64)
    conversion = Conversion({"nuclei": 1, "cytoplasm": 0}, projection=projection, percentiles=percentiles)
    with open_file(ome_zarr(tmp_path / "a.ome.zarr")) as opened:
        whole, large = convert_frame(opened, 0, 0, conversion), large_picture(opened, 0, 0, conversion)
        for window in WINDOWS:
            assert np.array_equal(taken(large.image, window), whole.image[window.slices])
        assert [(a.colour, a.channel, a.low, a.high) for a in large.levels] == [
            (b.colour, b.channel, b.low, b.high) for b in whole.levels
        ]
        assert large.channels == whole.channels
        blue = large.light["blue"]
        assert np.array_equal(np.bincount(whole.image[..., 2].ravel())[blue.values.astype(int)], blue.counts)


@pytest.mark.parametrize("scale", [0.5, 0.37, 1.6])
def test_a_window_of_a_resized_picture_is_that_of_the_converted_frame_to_a_grey_level(tmp_path, scale, monkeypatch):
    for place in ("cells", "microscope"):
        monkeypatch.setattr(f"cellkit.{place}.windows.BLOCK_PX", 64)
    conversion = Conversion({"nuclei": 1}, scale=scale)
    with open_file(ome_zarr(tmp_path / "a.ome.zarr")) as opened:
        whole, large = convert_frame(opened, 0, 0, conversion).image, large_picture(opened, 0, 0, conversion)
    assert large.image.shape == whole.shape
    height, width = whole.shape[:2]
    parts = [Window(0, 0, height, width), Window(3, 11, height - 5, 24), Window(height - 1, width - 1, height, width)]
    with open_file(tmp_path / "a.ome.zarr") as opened:
        image = large_picture(opened, 0, 0, conversion).image
        for window in parts:
            assert np.abs(taken(image, window).astype(int) - whole[window.slices]).max() <= 1
        seen = taken(image, parts[0])[..., 2]
    assert np.array_equal(np.bincount(seen.ravel())[large.light["blue"].values.astype(int)], large.light["blue"].counts)


def test_the_sharpest_plane_is_that_of_the_whole(tmp_path, monkeypatch):
    for place in ("cells", "microscope"):
        monkeypatch.setattr(f"cellkit.{place}.windows.BLOCK_PX", 64)
    for channels in ({"nuclei": 0}, {"nuclei": 1}, {"nuclei": 1, "cytoplasm": 0}):
        conversion = Conversion(channels, projection="focus")
        with open_file(ome_zarr(tmp_path / "a.ome.zarr")) as opened:
            whole, large = convert_frame(opened, 0, 0, conversion), large_picture(opened, 0, 0, conversion)
            assert whole.planes == f"z {large.projection} (sharpest of 3)"
            assert np.array_equal(taken(large.image, WINDOWS[-1]), whole.image)
        with open_file(tmp_path / "a.ome.zarr") as opened, pytest.raises(UserError, match="sharpest of 3 planes"):
            plane_array(opened, 0, 0, 0, "focus")


def test_light_is_counted_the_same_in_any_blocks(monkeypatch):
    values = planes(1)[0]
    monkeypatch.setattr("cellkit.cells.windows.BLOCK_PX", 31)
    found = light_of(da.from_array(values, chunks=(13, 50)))
    assert np.array_equal(found.values, np.unique(values)) and found.counts.sum() == values.size
