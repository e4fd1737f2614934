"""Large label images are read in stretches of rows: the cells are those of the whole, and so is every score of them."""

from __future__ import annotations

import json

import dask.array as da
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from cellkit.cells.instances import Instances
from cellkit.cells.labels import relabel
from cellkit.commands.main import main
from cellkit.errors import UserError
from cellkit.formats import large_cells
from cellkit.formats.any import read_folder
from cellkit.formats.label_images import write_labels
from cellkit.formats.large_cells import read_large_cells
from cellkit.formats.large_labels import write_large_zarr


def scattered(seed: int, shape: tuple[int, int] = (60, 50), cells: int = 25, least: int = 0) -> np.ndarray:
    """Rectangles with gaps between their numbers, some across the whole width, some in pieces."""
    rng, labels = np.random.default_rng(seed), np.zeros(shape, np.int32)
    for number in rng.choice(400, cells, replace=False) + 1:
        y, x = rng.integers(0, shape)
        tall, wide = rng.choice([(3, 3), (9, 4), (2, 50), (20, 5)])
        labels[y : y + tall, x : x + wide] = number
    labels[: least * 4] = np.where(labels[: least * 4] == 0, -least, labels[: least * 4])
    return labels


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(large_cells, "LARGE_PX", 1)
    monkeypatch.setattr(large_cells, "ROWS", 7)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 1))
def test_the_cells_are_those_of_the_whole(tmp_path_factory, seed, unknown):
    labels = scattered(seed, least=unknown)
    path = write_labels(tmp_path_factory.mktemp("l") / "a.tif", labels)
    found = read_large_cells(path)
    assert found.cells == Instances.from_labels(labels)
    assert found.numbers.tolist() == np.unique(labels[labels > 0]).tolist()


def test_an_ome_zarr_says_class_and_score_as_before(tmp_path, monkeypatch):
    labels = relabel(scattered(3))[0]
    count = int(labels.max())
    cells = Instances.from_runs(
        labels.shape, [], [], np.zeros(count + 1), 1 + np.arange(count) % 2, np.full(count, 0.25)
    )
    plane = da.from_array(np.ones(labels.shape, np.uint8))
    write_large_zarr(tmp_path / "a.ome.zarr", [plane], ["DAPI"], 0.5, zarr.array(labels), cells, ("x", "y"))
    large = read_folder(tmp_path)[0]
    monkeypatch.setattr(large_cells, "LARGE_PX", 10**9)
    whole = read_folder(tmp_path)[0]
    assert large.instances[0] == whole.instances[0] and large.numbers[0].tolist() == whole.numbers[0].tolist()
    assert large.classes == whole.classes == ("x", "y") and large.instances[0].scores.tolist() == [0.25] * count


def test_what_has_to_be_seen_as_a_whole_is_left_to_that(tmp_path):
    mask = (scattered(1) > 0).astype(np.uint8)
    assert read_large_cells(write_labels(tmp_path / "mask.tif", mask)) is None
    full = scattered(1).astype(np.uint16)
    full[full == full.max()] = 65_535
    assert read_large_cells(write_labels(tmp_path / "full.tif", full)) is None
    tifffile.imwrite(tmp_path / "stack.tif", np.stack([full, full]), photometric="minisblack")
    assert read_large_cells(tmp_path / "stack.tif") is None
    assert read_large_cells(tmp_path / "none.png") is None
    with pytest.raises(UserError, match="ids from -7"):
        tifffile.imwrite(tmp_path / "odd.tif", np.array([[1, 2], [-7, 0]], np.int32))
        read_large_cells(tmp_path / "odd.tif")


def test_a_grey_picture_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.random.default_rng(0).integers(1, 900, (40, 40)).astype(np.uint16))
    with pytest.raises(UserError, match="grey picture"):
        read_folder(tmp_path)


def test_scores_and_measurements_are_those_of_the_whole(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(5)
    for name in ("one", "two"):
        truth = scattered(int(name == "two"), (90, 80), 40)
        for side, labels in (("truth", truth), ("found", np.roll(truth, 1, axis=1))):
            (tmp_path / side).mkdir(exist_ok=True)
            write_labels(tmp_path / side / f"{name}.tif", labels)
        (tmp_path / "images").mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / "images" / f"{name}.tif", rng.integers(0, 4000, (90, 80)).astype(np.uint16))
    told = []
    for large_px in (1, 10**9):
        monkeypatch.setattr(large_cells, "LARGE_PX", large_px)
        assert main(["score", str(tmp_path / "truth"), str(tmp_path / "found"), "--json"]) == 0
        table = tmp_path / f"{large_px}.csv"
        assert main(["measure", str(tmp_path / "images"), str(tmp_path / "truth"), "-o", str(table)]) == 0
        told.append((json.loads(capsys.readouterr().out.splitlines()[0]), table.read_text()))
    assert told[0] == told[1] and "label" in told[0][1]
