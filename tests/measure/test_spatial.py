"""cells.csv as AnnData, and as a table that SpatialData takes."""

import numpy as np
import pandas as pd
import pytest

from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError
from cellkit.measure.images import Job, joined, rows_of, write_cells
from cellkit.measure.spatial import to_anndata

pytestmark = pytest.mark.filterwarnings("ignore")  # anndata and spatialdata speak of their own future
LABELS = np.array([[1, 1, 0, 0], [1, 1, 0, 2], [0, 0, 0, 2]])
CHANNELS = {"DAPI": np.arange(12, dtype=np.uint16).reshape(3, 4) * 1000, "mean_x": np.ones((3, 4), np.uint8)}


@pytest.fixture
def table():
    cells = Instances.from_labels(LABELS, [1, 0])
    jobs = [Job(ImageRecord(name, f"{name}.png", 3, 4, cell_type="HEK"), cells, ("HEK",)) for name in ("a", "b")]
    return joined([rows_of(job, CHANNELS) for job in jobs])


def test_a_table_becomes_anndata(table):
    found = to_anndata(table)
    assert found.shape == (4, 16)
    assert found.obs_names.tolist() == ["a/1", "a/2", "b/1", "b/2"]
    assert found.obs["region"].tolist() == ["a", "a", "b", "b"]
    assert found.obs["instance_id"].tolist() == [1, 2, 1, 2]
    assert found.obs["class"].tolist() == ["HEK", "", "HEK", ""]
    assert found[:, "mean_DAPI"].X.ravel().tolist() == [2500.0, 9000.0] * 2
    assert found.var.loc["mean_corrected_DAPI"].tolist() == ["mean_corrected", "DAPI"]
    assert found.var.loc["sd_mean_x"].tolist() == ["sd", "mean_x"]
    assert found.obsm["spatial"].tolist() == [[0.5, 0.5], [3, 1.5]] * 2
    assert found.uns["spatialdata_attrs"] == {
        "region": ["a", "b"],
        "region_key": "region",
        "instance_key": "instance_id",
    }
    assert set(found.obs) | set(found.var_names) >= set(table.columns)


def test_a_row_of_no_cell_is_refused(table):
    table["label"] = table["label"].astype(float)
    table.loc[2, "label"] = np.nan
    with pytest.raises(UserError, match="row 3 of the table"):
        to_anndata(table)


def test_images_and_classes_that_are_called_as_nothing_is_keep_their_names(tmp_path):
    cells = Instances.from_labels(LABELS, [1, 1])
    jobs = [Job(ImageRecord(name, f"{name}.png", 3, 4), cells, ("None",)) for name in ("001", "NA", "nan")]
    found = to_anndata(write_cells(tmp_path / "cells.csv", joined([rows_of(job, CHANNELS) for job in jobs])))
    assert found.obs_names.tolist() == ["001/1", "001/2", "NA/1", "NA/2", "nan/1", "nan/2"]
    assert found.obs["class"].tolist() == ["None"] * 6


def test_it_is_written_and_read_by_anndata(table, tmp_path):
    import anndata

    to_anndata(write_cells(tmp_path / "cells.csv", table)).write_h5ad(tmp_path / "cells.h5ad")
    back = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert np.array_equal(back.X, to_anndata(table).X, equal_nan=True)
    assert back.obs["region"].tolist() == ["a", "a", "b", "b"]


def test_spatialdata_takes_it_as_a_table_of_its_label_images(table):
    spatialdata = pytest.importorskip("spatialdata")
    labels = {name: spatialdata.models.Labels2DModel.parse(LABELS, dims=("y", "x")) for name in ("a", "b")}
    checked = spatialdata.models.TableModel.parse(to_anndata(table))
    data = spatialdata.SpatialData(labels=labels, tables={"cells": checked})
    one, rows = spatialdata.join_spatialelement_table(
        sdata=data, spatial_element_names="a", table_name="cells", how="left"
    )
    assert rows.obs["instance_id"].tolist() == [1, 2]


def test_what_is_no_table_of_cells(table, tmp_path):
    with pytest.raises(UserError, match="lacks the column label"):
        to_anndata(table.drop(columns="label"))
    with pytest.raises(UserError, match="two rows of a/1"):
        to_anndata(pd.concat([table, table[:1]]))
    with pytest.raises(UserError, match="no table at"):
        to_anndata(tmp_path / "none.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(UserError, match="cannot be read"):
        to_anndata(tmp_path / "empty.csv")


def test_without_anndata_it_says_how_to_get_it(table, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "anndata", None)
    with pytest.raises(UserError, match="anndata is not installed"):
        to_anndata(table)
