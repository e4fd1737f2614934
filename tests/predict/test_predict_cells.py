"""`cellkit predict --cells`: what was found, measured in the files that went in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from predict_cases import stack  # noqa: F401  a fixture

from cellkit.__main__ import main
from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.formats.coco_reading import read_coco
from cellkit.formats.label_images import read_labels
from cellkit.measure.dictionary import columns_of
from cellkit.measure.table import measure


def test_every_cell_found_has_a_row_measured_in_the_raw_planes(stack, tmp_path, capfd):  # noqa: F811
    given = ["predict", "threshold", str(stack), "-o", str(tmp_path / "found.json"), "--nuclei", "DAPI", "--cytoplasm",
             "actin", "--labels", str(tmp_path / "labels"), "--cells", str(tmp_path / "cells.csv")]  # fmt: skip
    assert main(given) == 0
    coco, table = read_coco(tmp_path / "found.json"), pd.read_csv(tmp_path / "cells.csv")
    assert f"{tmp_path}/cells.csv: a row for each" in capfd.readouterr().out
    assert table.columns.tolist() == columns_of(["actin", "DAPI"]) and len(table) == coco.cells > 4
    raw = tifffile.imread(stack).max(axis=2)
    for time, (record, cells) in enumerate(zip(coco.records, coco.instances, strict=True)):
        part = table[table["image"] == record.image_id]
        labels = read_labels(tmp_path / "labels" / f"{record.image_id}.tif")
        assert part["label"].tolist() == np.unique(labels)[1:].tolist() == list(range(1, len(cells) + 1))
        for channel, name in enumerate(("actin", "DAPI")):
            wanted = [raw[time, channel][labels == k].mean() for k in part["label"]]
            np.testing.assert_allclose(part[f"mean_{name}"], wanted, rtol=1e-12)
        assert (part["um_per_px"] == 0.5).all()


def test_a_name_that_is_no_table_is_refused_before_anything_is_found(stack, tmp_path, capfd):  # noqa: F811
    given = ["predict", "threshold", str(stack), "-o", str(tmp_path / "found.json"), "--cells", "cells.xlsx"]
    assert main(given) == 2 and not (tmp_path / "found.json").exists()
    assert ".csv or .parquet" in capfd.readouterr().err


@pytest.fixture
def with_nan(tmp_path) -> Path:
    """Two files, whose second channel nobody looks at; in one of them it holds a pixel that is no number."""
    (tmp_path / "in").mkdir()
    y, x = np.mgrid[:600, :560]
    nuclei = (np.hypot(y % 60 - 30, x % 56 - 28) < 12).astype(np.float32) * 1000 + x % 7
    for name, other in (("bad", np.nan), ("good", 3.0)):
        planes = np.stack([nuclei, np.full_like(nuclei, 3.0)])
        planes[1, 0, 0] = other
        how = {"metadata": {"axes": "CYX", "Channel": {"Name": ["DAPI", "GFP"]}}, "tile": (64, 64)}
        tifffile.imwrite(tmp_path / "in" / f"{name}.ome.tif", planes, photometric="minisblack", **how)
    return tmp_path / "in"


@pytest.mark.parametrize("windows", [(), ("--window-px", "512")])
def test_a_channel_that_cannot_be_measured_costs_the_table_alone_also_in_windows(with_nan, tmp_path, capfd, windows):
    given = ["predict", "threshold", "--nuclei", "DAPI", *windows]
    both = [*given, str(with_nan), "-o", str(tmp_path / "a.json"), "--cells", str(tmp_path / "a.csv")]
    assert main(both) == 3
    said = capfd.readouterr().err
    assert "bad.ome.tif: channel GFP: pixels outside the cells are no numbers (nan or infinite); replace them" in said
    coco = read_coco(tmp_path / "a.json")
    found = {record.image_id: len(cells) for record, cells in zip(coco.records, coco.instances, strict=True)}
    assert found["bad"] == found["good"] > 50
    assert set(pd.read_csv(tmp_path / "a.csv")["image"]) == {"good"}
    alone = [*given, str(with_nan / "bad.ome.tif"), "-o", str(tmp_path / "b.json"), "--cells", str(tmp_path / "b.csv")]
    assert main([*alone, "--labels", str(tmp_path / "labels")]) == 2
    said = capfd.readouterr().err.strip().splitlines()[-2:]
    assert said == [
        "of 1 image none could be measured; channel GFP: pixels outside the cells are no numbers (nan or infinite)",
        "replace them by a number, or give the file without that channel",
    ]
    assert read_coco(tmp_path / "b.json").cells == found["bad"] and (tmp_path / "labels" / "bad.tif").is_file()
    assert not (tmp_path / "b.csv").exists()


def test_a_cell_of_no_numbers_is_told_of_with_its_channel():
    cells = Instances.from_labels(np.array([[1, 1, 0]]))
    with pytest.raises(UserError, match="^channel GFP: a cell has pixels that are no numbers"):
        measure(cells, {"DAPI": np.ones((1, 3)), "GFP": np.array([[np.nan, 1, 1]])})
