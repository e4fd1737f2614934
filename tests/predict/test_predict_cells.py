"""`cellkit predict --cells`: what was found, measured in the files that went in."""

from __future__ import annotations

import numpy as np
import pandas as pd
import tifffile
from predict_cases import stack  # noqa: F401  a fixture

from cellkit.__main__ import main
from cellkit.formats.coco_reading import read_coco
from cellkit.formats.label_images import read_labels
from cellkit.measure.dictionary import columns_of


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
