"""An image read window by window: each cell whole and once, numbers independent of the windows, files as of the whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from cellkit.cells.instances import Instances
from cellkit.cells.windows import Window
from cellkit.commands.main import main
from cellkit.errors import UserError
from cellkit.formats.any import read_folder
from cellkit.formats.coco_reading import read_coco
from cellkit.formats.label_images import as_written, read_labels
from cellkit.formats.labels import is_proposed
from cellkit.formats.large_labels import as_written_large
from cellkit.microscope.convert import Conversion
from cellkit.models.shared.contract import Segmenter
from cellkit.predict import large
from cellkit.predict.files import predict_files
from cellkit.predict.model import find_model
from cellkit.scores.iou import overlaps
from cellkit.scores.kaggle import kaggle

NUCLEI = Conversion({"nuclei": "DAPI"})


class Perfect:
    """A model without fault: what a window shows of the true cells; one that its edge cuts is not whole."""

    min_area_px = 0

    def __init__(self, labels: np.ndarray, halo_px: int):
        self.labels, self.halo_px, self.seen = labels, halo_px, []

    def find(self, window: Window):
        self.seen.append(window)
        part = self.labels[window.slices]
        found = Instances.from_labels(part)
        height, width = self.labels.shape
        edge = np.zeros(part.shape, bool)
        edge[:4] |= window.top > 0
        edge[:, :4] |= window.left > 0
        edge[len(part) - 4 :] |= window.bottom < height
        edge[:, part.shape[1] - 4 :] |= window.right < width
        return found, ~np.isin(np.unique(part[part > 0]), np.unique(part[edge]))


def in_windows(finder, shape, side: int, folder: Path):
    """Find, join and paint as a prediction does."""
    todo = large.windows_with_parts(folder, shape, side)
    for core, path in todo:
        large.write_part(path, *large.cells_of_window(finder, core, shape))
    parts = [path for _, path in todo]
    cells = large.joined_cells([core for core, _ in todo], parts, shape)
    return cells, large.paint_labels(folder / "labels.zarr", parts, cells, shape), parts


def by_first_pixel(labels: np.ndarray) -> np.ndarray:
    """Return labels numbered 1 to N by the first pixel of each, row by row."""
    ids, first = np.unique(labels, return_index=True)
    number = np.zeros(labels.max() + 1, int)
    number[ids[ids > 0][np.argsort(first[ids > 0])]] = np.arange(1, (ids > 0).sum() + 1)
    return number[labels]


def scattered(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Cells of all lengths, some longer than any window, each in one piece."""
    labels = np.zeros(shape, int)
    for k in range(1, 40):
        y, x = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        tall, wide = rng.choice([(3, 3), (8, 9), (2, 60), (70, 4), (25, 30), (1, 200), (150, 2)])
        part = labels[y : y + tall, x : x + wide]
        if not part.any():
            part[...] = k
    return labels


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(18, 70), st.integers(4, 12), st.integers(90, 190), st.integers(60, 150))
def test_every_cell_is_whole_and_once_in_any_windows(tmp_path_factory, seed, side, halo, height, width):
    labels = by_first_pixel(scattered(np.random.default_rng(seed), (height, width)))
    cells, painted, parts = in_windows(Perfect(labels, halo), labels.shape, side, tmp_path_factory.mktemp("w"))
    assert np.array_equal(painted[...], labels)
    x, y, w, h = Instances.from_labels(labels).boxes_xywh.T
    assert np.array_equal(cells.boxes, np.stack([x, y, x + w, y + h], axis=1))
    assert not large.left_out_of(parts)


@pytest.mark.parametrize("at", [(64, 64), (64, 20), (20, 64), (63, 63), (65, 62)])
def test_a_cell_on_a_seam_or_corner_is_looked_for_in_one_window(tmp_path, at):
    labels = np.zeros((128, 128), int)
    labels[at[0] - 5 : at[0] + 6, at[1] - 5 : at[1] + 6] = 1
    finder = Perfect(labels, 16)
    cells, painted, _ = in_windows(finder, labels.shape, 64, tmp_path)
    assert np.array_equal(painted[...], labels) and len(cells.boxes) == 1 and not cells.pieced
    assert len(finder.seen) == 4  # no window had to grow


def test_a_cell_that_the_halo_cuts_is_looked_for_in_a_larger_window(tmp_path):
    labels = np.zeros((64, 256), int)
    labels[20:30, 40:150] = 1
    finder = Perfect(labels, 16)
    cells, painted, _ = in_windows(finder, labels.shape, 64, tmp_path)
    assert np.array_equal(painted[...], labels) and not cells.pieced
    assert max(window.shape[1] for window in finder.seen) > 64 + 2 * 16
    labels[20:30, 10:250] = 1
    cells, painted, _ = in_windows(Perfect(labels, 8), labels.shape, 64, tmp_path)
    assert np.array_equal(painted[...], labels) and cells.pieced == 1


def test_a_cell_that_two_windows_see_a_little_differently_is_one(tmp_path):
    labels = np.zeros((64, 128), int)
    labels[20:40, 54:74] = 1

    class Unsteady(Perfect):
        def find(self, window):
            moved = np.roll(self.labels, 1 if window.left else -1, axis=1)
            return Perfect(moved, 16).find(window)

    for shift in range(-3, 4):
        finder = Unsteady(np.roll(labels, shift, axis=1), 16)
        cells, painted, _ = (
            in_windows(finder, labels.shape, 64, tmp_path / str(shift))
            if (tmp_path / str(shift)).mkdir() is None
            else None
        )
        assert len(cells.boxes) == 1, shift


# ---- files ---------------------------------------------------------------------------------------------------------
def blobs(seed: int, shape: tuple[int, int]) -> np.ndarray:
    """Bright discs that touch, of 16 bits, some across the edge of the image."""
    rng = np.random.default_rng(seed)
    values = rng.normal(300, 20, shape)
    y, x = np.mgrid[: shape[0], : shape[1]]
    for _ in range(shape[0] * shape[1] // 500):
        centre, radius = rng.uniform((0, 0), shape), rng.uniform(4, 9)
        away = np.hypot(y - centre[0], x - centre[1])
        values = np.maximum(values, rng.uniform(900, 4000) / (1 + np.exp(2 * (away - radius))))
    return values.astype(np.uint16)


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """A tiled, compressed OME-TIFF of two channels."""
    folder = tmp_path_factory.mktemp("raw")
    planes = np.stack([blobs(0, (190, 260)), blobs(1, (190, 260))])
    metadata = {"axes": "CYX", "Channel": {"Name": ["DAPI", "GFP"]}, "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm"}
    how = {"tile": (64, 64), "compression": "zlib", "photometric": "minisblack"}
    tifffile.imwrite(folder / "slide.ome.tif", planes, metadata=metadata, **how)
    return folder


@pytest.fixture(scope="module")
def whole(raw, tmp_path_factory):
    """The same, predicted in one piece."""
    out = tmp_path_factory.mktemp("whole")
    predict_files(find_model("threshold"), [raw], out / "c.json", out / "labels", conversion=NUCLEI)
    found = read_coco(out / "c.json").instances[0]
    return found[np.argsort(found.starts[found.offsets[:-1]])]


@pytest.mark.parametrize("side", [64, 100])
def test_windows_give_the_prediction_of_the_whole_bit_by_bit(raw, whole, tmp_path, side):
    model, where = find_model("threshold"), (tmp_path / "c.json", tmp_path / "labels", None)
    done = predict_files(model, [raw], *where, NUCLEI, window_px=side, measured=True)
    found = read_coco(done.path)
    assert done.cells == len(whole) > 60
    for name in ("starts", "lengths", "offsets", "scores"):
        assert np.array_equal(getattr(found.instances[0], name), getattr(whole, name)), name
    file = tmp_path / "labels" / "slide.tif"
    assert np.array_equal(read_labels(file), whole.paint()) and as_written(file)
    assert found.made_by == ["proposed"] and is_proposed(file) and as_written_large(file)
    with tifffile.TiffFile(file) as tif:
        assert tif.is_bigtiff and tif.pages[0].is_tiled
    assert found.records[0].um_per_px == 0.5 and not list(tmp_path.glob("*.parts"))
    again = predict_files(model, [raw], *where, NUCLEI, window_px=side)  # as cellkit wrote it: it may be written over
    assert again.cells == done.cells


def test_the_command_measures_and_writes_an_ome_zarr_as_of_the_whole(raw, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(large, "LEAST_WINDOW_PX", 64)
    common = ["predict", "threshold", str(raw), "--nuclei", "DAPI", "--set", "diameter_px=14"]
    tables = []
    for name, more in (("a", []), ("b", ["--window-px", "80", "--format", "ome-zarr"])):
        out = tmp_path / name
        places = ["-o", str(out / "c.json"), "--labels", str(out / "l"), "--cells", str(out / "cells.csv")]
        assert main([*common, *places, *more]) == 0
        tables.append(pd.read_csv(out / "cells.csv"))
    order = np.lexsort((tables[0]["box_x_px"], tables[0]["box_y_px"]))
    one, two = (table.drop(columns="label") for table in (tables[0].iloc[order], tables[1]))
    two = two.iloc[np.lexsort((two["box_x_px"], two["box_y_px"]))]
    pd.testing.assert_frame_equal(one.reset_index(drop=True), two.reset_index(drop=True), check_exact=True)
    side = read_folder(tmp_path / "b" / "l")[0]
    cells = side.instances[0]
    assert side.made_by == ["proposed"]
    assert np.array_equal(cells.paint(), read_coco(tmp_path / "b" / "c.json").instances[0].paint())
    group = zarr.open_group(str(tmp_path / "b" / "l" / "slide.ome.zarr"), mode="r")
    assert np.array_equal(group["0"][...], tifffile.imread(raw / "slide.ome.tif"))


def test_an_image_without_cells_has_none_in_windows_either(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.full((90, 120), 300, np.uint16), tile=(32, 32), compression="zlib")
    where = (tmp_path / "c.json", tmp_path / "labels", None)
    how = Conversion({"nuclei": 0})
    done = predict_files(find_model("threshold"), [tmp_path / "a.tif"], *where, how, window_px=64, measured=True)
    assert done.cells == 0 and not len(done.tables["a"]) and "nearest_px" in done.tables["a"]
    assert not read_labels(tmp_path / "labels" / "a.tif").any()


def test_a_prediction_that_was_stopped_goes_on_with_the_next_window(raw, whole, tmp_path, monkeypatch):
    looked, find = [], large.cells_of_window
    monkeypatch.setattr(
        "cellkit.predict.large_files.cells_of_window", lambda *about: stop_after(3, looked) or find(*about)
    )

    def stop_after(count, looked):
        looked.append(1)
        if len(looked) == count:
            raise KeyboardInterrupt

    how = (find_model("threshold"), [raw], tmp_path / "c.json", None, None, NUCLEI, "tif", 100)
    with pytest.raises(KeyboardInterrupt):
        predict_files(*how)
    assert predict_files(*how).cells == len(whole)
    assert len(looked) == 6 + 1  # six windows, of which the third was begun twice


def test_what_cannot_be_read_in_windows_is_refused_by_name(raw, tmp_path, monkeypatch):
    monkeypatch.setattr("cellkit.machine.memory", lambda: {"total_gb": 1e-6, "free_gb": 1e-6})
    monkeypatch.setattr("cellkit.machine.CHECK_MEMORY_FROM_BYTES", 1)
    model = find_model("threshold")
    assert predict_files(model, [raw], tmp_path / "c.json", conversion=NUCLEI).cells > 60  # chosen by itself
    blind = Segmenter(lambda image, left: None, {}, lambda shape: 10**9, whole_only="it looks at all at once")
    monkeypatch.setattr(type(model), "load", lambda self, scale=1.0: blind)
    with pytest.raises(UserError, match="takes about .* GB of memory.* sees whole images only: it looks"):
        predict_files(model, [raw], tmp_path / "d.json", conversion=NUCLEI)
    monkeypatch.undo()
    with pytest.raises(UserError, match="roi are written of whole images"):
        predict_files(model, [raw], tmp_path / "e.json", tmp_path / "l", None, NUCLEI, "roi", 100)


@pytest.mark.parametrize("scale", [0.5, 1.5])
def test_a_picture_that_is_resized_gives_cells_in_the_pixels_of_its_file(raw, tmp_path, scale, monkeypatch):
    monkeypatch.setattr(large, "CHUNK_PX", 70)
    how = Conversion({"nuclei": "DAPI"}, scale=scale)
    model = find_model("threshold", {"diameter_px": 14})  # of the file
    founds = []
    for name, side in (("whole", None), ("windows", 64)):
        done = predict_files(
            model, [raw], tmp_path / f"{name}.json", tmp_path / name, None, how, window_px=side, measured=True
        )
        founds.append(read_coco(done.path).instances[0])
    whole, found = founds
    assert whole.shape == found.shape == (190, 260) and len(whole) == len(found) > 50
    (iou,) = (kaggle([overlaps(whole, found)], bootstrap=0)["by_threshold"]["0.50"],)
    assert iou == 1.0 and found.starts[found.offsets[:-1]].tolist() == sorted(found.starts[found.offsets[:-1]].tolist())
    painted = read_labels(tmp_path / "windows" / "slide.tif")
    assert (
        np.array_equal(painted, found.paint()) and np.mean(painted.astype(bool) != whole.paint().astype(bool)) < 0.002
    )
    assert done.tables["slide"]["area_px"].tolist() == found.areas_px.tolist()


MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np, zarr
from scipy import ndimage
from cellkit.cells.instances import Instances
from cellkit.cells.windows import taken
from cellkit.formats.zarr_writing import describe, multiscales, new_group
from cellkit.microscope.convert import Conversion
from cellkit.microscope.frames import find_frames, find_images
from cellkit.microscope.file_info import LARGEST_PLANE_PX
from cellkit.models.shared.contract import Segmenter
from cellkit.predict.large_files import find_large

folder, side = Path(sys.argv[1]), 9000
group = new_group(folder / "a.ome.zarr", "0.5")
array = group.create_array("0", shape=(side, side), chunks=(1000, 1000), dtype=np.uint8)
for y in range(0, side, 1000):
    rows = np.zeros((1000, side), np.uint8)
    rows[200:260, 950:1010] = rows[950:, 3000:3060] = rows[:20, 3000:3060] = 200
    array[y : y + 1000] = rows
describe(group, {"multiscales": [multiscales("yx", [1.0, 1.0], 1.0, (side, side), [(side, side)], "0.5", "a")]}, "0.5")

class Bright:
    halo_px, min_area_px = 100, 0
    def __init__(self, whole):
        self.whole = whole
    def find(self, window):
        cells = Instances.from_labels(ndimage.label(taken(self.whole.image, window)[..., 2] > 9)[0])
        x, y, w, h = cells.boxes_xywh.T
        boxes = np.stack([x + window.left, y + window.top, x + window.left + w, y + window.top + h], axis=1)
        return cells, ~window.cuts(boxes, self.whole.shape).any(axis=1)

frames, _ = find_frames(find_images([folder / "a.ome.zarr"]), most_px=LARGEST_PLANE_PX)
segment = Segmenter(None, {}, lambda shape: 8 * shape[0] * shape[1], Bright)
import cellkit.formats.large_labels, cellkit.measure.large, skimage.measure, scipy.spatial, dask.array, pandas
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
how = Conversion({"nuclei": 0}, percentiles=None)
found = find_large(frames[0], segment, how, (), folder / "part.json", 1000, folder / "labels.tif", "tif", True)
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(len(found.table), round(grown))
"""


def test_the_memory_does_not_grow_with_the_image(tmp_path):
    """81 megapixels: as a picture 243 MB, its labels 324 MB; in windows of 1,000 px a part of either."""
    done = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    cells, grown_mb = map(int, done.stdout.split())
    assert cells == 9 + 9 + 1  # the first row of tiles begins with half a cell
    assert grown_mb < 220, grown_mb
