"""`cellkit measure`: raw files and labels in, one row a cell out."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from measure_cases import assert_as_regionprops, drawn

from cellkit.__main__ import main
from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError
from cellkit.formats.any import write_folder
from cellkit.formats.coco import write_coco
from cellkit.formats.label_images import write_labels
from cellkit.formats.measured import read_measured
from cellkit.measure.dictionary import columns_of
from cellkit.measure.images import Job, joined, measure_files, rows_of, write_cells
from cellkit.measure.nuclei import nuclear_parts
from cellkit.measure.table import measure
from cellkit.microscope.convert import Conversion


def write_raw(path: Path, stack: np.ndarray, axes: str = "CYX", um: float = 0.5, names=("DAPI", "GFP")) -> Path:
    """Write an OME-TIFF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"axes": axes, "Channel": {"Name": list(names)}}
    about |= {"PhysicalSizeX": um, "PhysicalSizeY": um} if um else {}
    tifffile.imwrite(path, stack, ome=True, photometric="minisblack", metadata=about)
    return path


@pytest.fixture(scope="module")
def field() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and nuclei (H, W), and the raw file's channels (2, H, W) uint16."""
    labels, nuclei, image = drawn(1)
    return labels, nuclei, np.ascontiguousarray(np.moveaxis(image, 2, 0))


@pytest.fixture
def folder(tmp_path, field) -> Path:
    """raw/HEK/a.ome.tif and labels/HEK/a.tif."""
    write_raw(tmp_path / "raw" / "HEK" / "a.ome.tif", field[2])
    (tmp_path / "labels" / "HEK").mkdir(parents=True)
    write_labels(tmp_path / "labels" / "HEK" / "a.tif", field[0])
    return tmp_path


def run(*arguments) -> int:
    return main(["measure", *map(str, arguments)])


def test_label_images(folder, field, capfd):
    assert run(folder / "raw", folder / "labels", "-o", folder / "cells.csv") == 0
    table = pd.read_csv(folder / "cells.csv", keep_default_na=False, na_values=[""])
    assert capfd.readouterr().out == f"{folder}/cells.csv: {field[0].max()} cells of 1 image\n"
    assert table.columns.tolist() == columns_of(["DAPI", "GFP"])
    assert_as_regionprops(table, field[0], {"DAPI": field[2][0], "GFP": field[2][1]})
    assert (table["image"] == "HEK/a").all() and (table["um_per_px"] == 0.5).all()
    np.testing.assert_allclose(table["area_um2"], table["area_px"] / 4)
    np.testing.assert_allclose(table["nearest_um"], table["nearest_px"] / 2)


def test_intensities_are_those_of_the_raw_file_not_of_its_8_bit_picture(tmp_path):
    labels = np.kron([[1, 0, 2], [0, 0, 0], [3, 0, 4]], np.ones((6, 6), int))
    raw = np.full((18, 18), 100, np.uint16)
    for label, value in enumerate((60_003, 60_002, 60_001, 65_535), 1):  # 8 bits hold one value for the first three
        raw[labels == label] = value
    raw[0, 0] = 0
    picture = np.clip((raw / 65_535 * 255).round(), 0, 255).astype(np.uint8)
    assert len(np.unique(picture[(labels > 0) & (labels < 4)][1:])) == 1
    write_raw(tmp_path / "raw" / "a.ome.tif", raw, "YX", names=["DAPI"])
    (tmp_path / "labels").mkdir()
    write_labels(tmp_path / "labels" / "a.tif", labels)
    table = measure_files([tmp_path / "raw"], tmp_path / "labels").table
    assert table["median_DAPI"].tolist() == [60_003, 60_002, 60_001, 65_535]
    assert table["median_DAPI"].rank().tolist() == [3, 2, 1, 4]
    assert table["background_DAPI"].unique().tolist() == [100]
    assert table["integrated_corrected_DAPI"].tolist()[2] == (60_001 - 100) * 36


def test_ids_are_those_of_the_label_image(tmp_path, field):
    labels = np.where(field[0] == 3, 0, 7 * field[0])
    write_raw(tmp_path / "raw" / "a.ome.tif", field[2])
    (tmp_path / "labels").mkdir()
    write_labels(tmp_path / "labels" / "a.tif", labels)
    table = measure_files([tmp_path / "raw"], tmp_path / "labels").table
    assert table["label"].tolist() == np.unique(labels)[1:].tolist()
    assert_as_regionprops(table, labels, {"DAPI": field[2][0], "GFP": field[2][1]})


def test_a_coco_file_with_classes_scores_and_overlaps(tmp_path, field):
    write_raw(tmp_path / "raw" / "a.ome.tif", field[2])
    cells = Instances.from_labels(field[0])
    moved = np.roll(field[0], 5, 1)
    both = Instances.concatenate([cells, Instances.from_labels(moved)])
    both = both.with_classes(np.arange(len(both)) % 2 + 1).with_scores(np.linspace(0.3, 0.9, len(both)))
    record = ImageRecord("a", "a.ome.tif", *both.shape, cell_type="=mixed", group="well 3")
    write_coco(tmp_path / "found.json", [record], [both], ["HEK", "@N2a"], with_scores=True)
    assert run(tmp_path / "raw", tmp_path / "found.json", "-o", tmp_path / "cells.csv") == 0
    table = measure_files([tmp_path / "raw"], tmp_path / "found.json").table
    channels = {"DAPI": field[2][0], "GFP": field[2][1]}
    for part, labels in ((table[: len(cells)], field[0]), (table[len(cells) :], moved)):
        own = part.assign(label=np.unique(labels)[1:])
        assert_as_regionprops(own.reset_index(drop=True), labels, channels)
    assert table["class"].tolist()[:3] == ["HEK", "@N2a", "HEK"]
    assert table["label"].tolist() == list(range(1, len(both) + 1)) and (table["group"] == "well 3").all()
    np.testing.assert_allclose(table["score"], both.scores, atol=1e-6)
    text = (tmp_path / "cells.csv").read_text(encoding="utf-8")
    assert ",'=mixed," in text and ",'@N2a," in text and ",=mixed," not in text


def test_no_scale_leaves_micrometres_empty_and_a_given_one_is_taken(tmp_path, field, capfd):
    write_raw(tmp_path / "raw" / "a.ome.tif", field[2], um=0)
    (tmp_path / "labels").mkdir()
    write_labels(tmp_path / "labels" / "a.tif", field[0])
    assert run(tmp_path / "raw", tmp_path / "labels", "-o", tmp_path / "cells.csv") == 0
    assert "no pixel size is known" in capfd.readouterr().out
    table = pd.read_csv(tmp_path / "cells.csv")
    assert table[[name for name in table if "um" in name.split("_") or name.endswith("um2")]].isna().all(axis=None)
    assert run(tmp_path / "raw", tmp_path / "labels", "-o", tmp_path / "b.csv", "--um-per-px", 0.25) == 0
    np.testing.assert_allclose(pd.read_csv(tmp_path / "b.csv")["area_um2"], table["area_px"] / 16)


def test_nucleus_against_cytoplasm(folder, field):
    labels, nuclei, raw = field
    (folder / "nuclei" / "HEK").mkdir(parents=True)
    write_labels(folder / "nuclei" / "HEK" / "a.tif", nuclei)
    table = measure_files([folder / "raw"], folder / "labels", folder / "nuclei").table
    assert table.columns.tolist() == columns_of(["DAPI", "GFP"], nuclei=True)
    for row in table.itertuples():
        inside = (labels == row.label) & (nuclei == row.label)
        around = (labels == row.label) & ~inside
        assert (row.nuclei, row.nucleus_area_px) == (int(inside.any()), inside.sum())
        if inside.any():
            assert row.nucleus_mean_DAPI == pytest.approx(raw[0][inside].mean(), rel=1e-12)
            assert row.cytoplasm_mean_DAPI == pytest.approx(raw[0][around].mean(), rel=1e-12)
            back = np.median(raw[0][labels == 0])
            ratio = (raw[0][inside].mean() - back) / (raw[0][around].mean() - back)
            assert row.nucleus_to_cytoplasm_DAPI == pytest.approx(ratio, rel=1e-9)
        else:
            assert math.isnan(row.nucleus_mean_DAPI) and math.isnan(row.nucleus_to_cytoplasm_DAPI)


@pytest.mark.parametrize("how", ["max", "mean", 1, "focus"])
def test_z_planes_are_projected_as_for_the_picture(tmp_path, field, how):
    planes = np.stack([field[2] // 2, field[2], field[2] // 4])
    blurred = planes.copy()
    blurred[[0, 2]] = blurred[[0, 2]].mean(axis=(2, 3), keepdims=True)  # the second plane is sharp
    write_raw(tmp_path / "raw" / "a.ome.tif", blurred, "ZCYX")
    (tmp_path / "labels").mkdir()
    write_labels(tmp_path / "labels" / "a.tif", field[0])
    table = measure_files([tmp_path / "raw"], tmp_path / "labels", conversion=Conversion(projection=how)).table
    wanted = {"max": blurred.max(axis=0), "mean": blurred.mean(axis=0)}.get(how, blurred[1])
    assert_as_regionprops(table, field[0], {"DAPI": wanted[0], "GFP": wanted[1]})


def test_a_bad_image_is_skipped_named_and_the_rest_goes_on(folder, field, capfd):
    labels, _, raw = field
    for name in ("b", "c", "d"):
        write_labels(folder / "labels" / "HEK" / f"{name}.tif", labels)
    path = write_raw(folder / "raw" / "HEK" / "b.ome.tif", raw)
    path.write_bytes(path.read_bytes()[:9000])
    write_raw(folder / "raw" / "HEK" / "c.ome.tif", raw[:, :-4])
    write_raw(folder / "raw" / "HEK" / "e.ome.tif", raw)
    assert run(folder / "raw", folder / "labels", "-o", folder / "cells.csv") == 3
    out, err = capfd.readouterr()
    assert out.endswith("cells of 1 image\n") and pd.read_csv(folder / "cells.csv")["image"].unique().tolist() == [
        "HEK/a"
    ]
    assert "b.ome.tif" in err and "cut short" in err
    assert "c.ome.tif" in err and f"its cells were found in {labels.shape[0]} x {labels.shape[1]} px" in err
    assert "HEK/d: " in err and "no image given is called so" in err
    assert "no cells are known of 1 image (HEK_e)" in err
    assert run(folder / "raw", folder / "labels", "-o", folder / "cells.csv", "--allow-skips") == 0


def test_float_values_that_are_no_numbers_are_refused(tmp_path, field, capfd):
    raw = field[2].astype(np.float32)
    raw[0, tuple(np.argwhere(field[0] == 2)[0])[0], tuple(np.argwhere(field[0] == 2)[0])[1]] = np.nan
    write_raw(tmp_path / "raw" / "a.ome.tif", raw)
    (tmp_path / "labels").mkdir()
    write_labels(tmp_path / "labels" / "a.tif", field[0])
    assert run(tmp_path / "raw", tmp_path / "labels", "-o", tmp_path / "cells.csv") == 2
    assert "no numbers (nan or infinite)" in capfd.readouterr().err and not (tmp_path / "cells.csv").exists()


def test_the_same_for_any_number_of_workers_and_channels_that_an_image_lacks(folder, field):
    labels, _, raw = field
    write_labels(folder / "labels" / "HEK" / "b.tif", labels)
    write_labels(folder / "labels" / "HEK" / "empty.tif", np.zeros_like(labels))
    write_raw(folder / "raw" / "HEK" / "b.ome.tif", raw[:1], names=["DAPI"])
    write_raw(folder / "raw" / "HEK" / "empty.ome.tif", raw)
    one = measure_files([folder / "raw"], folder / "labels")
    two = measure_files([folder / "raw"], folder / "labels", workers=2)
    pd.testing.assert_frame_equal(one.table, two.table)
    assert one.table.groupby("image")["mean_GFP"].count().to_dict() == {"HEK/a": labels.max(), "HEK/b": 0}
    assert one.table.columns.tolist() == columns_of(["DAPI", "GFP"])


def test_no_cells_at_all_is_a_table_without_rows(tmp_path, field):
    write_raw(tmp_path / "raw" / "a.ome.tif", field[2])
    (tmp_path / "labels").mkdir()
    write_labels(tmp_path / "labels" / "a.tif", np.zeros_like(field[0]))
    assert run(tmp_path / "raw", tmp_path / "labels", "-o", tmp_path / "cells.csv") == 0
    assert pd.read_csv(tmp_path / "cells.csv").columns.tolist() == columns_of(["DAPI", "GFP"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "cells.txt"], "end it with .csv or .parquet"),
        (["-o", "cells.csv", "--um-per-px", "-1"], "above 0"),
        (["-o", "cells.csv", "--workers", "0"], "1 or more"),
        (["-o", "cells.csv", "--z", "7"], "planes count from 0"),
        (["-o", "cells.csv", "--z", "sum"], "choose max, mean, focus"),
        (["-o", "cells.csv", "--z", "²"], "projection is '²'"),
    ],
)
def test_what_is_refused_says_what_to_do(folder, arguments, words, capfd):
    assert run(folder / "raw", folder / "labels", *arguments) == 2
    assert words in capfd.readouterr().err and not Path("cells.csv").exists()


def test_cells_of_other_images_are_refused(folder, field, capfd):
    write_raw(folder / "other" / "x.ome.tif", field[2])
    assert run(folder / "other", folder / "labels", "-o", folder / "cells.csv") == 2
    err = capfd.readouterr().err
    assert "none of the images" in err and "HEK/a" in err and "give the images in which these cells were found" in err


def test_parquet_holds_the_same_table(folder):
    pytest.importorskip("pyarrow")
    assert run(folder / "raw", folder / "labels", "-o", folder / "cells.parquet") == 0
    table = measure_files([folder / "raw"], folder / "labels").table
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "cells.parquet"), table)


def test_parquet_without_pyarrow_is_refused_before_anything_is_measured(folder, monkeypatch, capfd):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run("nowhere", "nothing", "-o", folder / "cells.parquet") == 2
    assert "pyarrow" in capfd.readouterr().err


@pytest.mark.parametrize("form", ["roi", "geojson", "seg", "png"])
def test_other_formats_keep_the_numbers_of_their_cells(folder, field, form):
    from cellkit.formats.geojson import write_geojson
    from cellkit.formats.labels import write_label_png
    from cellkit.formats.roi import write_rois

    cells, place = Instances.from_labels(field[0]), folder / form
    place.mkdir()
    numbers = 2 * np.arange(len(cells)) + 5
    if form == "roi":
        write_rois(place / "a_rois.zip", cells, numbers=numbers)
    elif form == "geojson":
        write_geojson(place / "a.geojson", cells, numbers=numbers)
    elif form == "png":
        write_label_png(place / "a.png", cells.paint(numbers))
    else:
        np.save(place / "a_seg.npy", {"masks": cells.paint(), "img": None, "filename": "a.ome.tif"}, allow_pickle=True)
        numbers = np.arange(1, len(cells) + 1)
    table = measure_files([folder / "raw" / "HEK"], place).table
    assert table["label"].tolist() == numbers.tolist()
    assert_as_regionprops(table, cells.paint(numbers), {"DAPI": field[2][0], "GFP": field[2][1]})


def square(folder: Path, name: str = "a") -> Path:
    """Write an object as QuPath exports it, which does not say how large its image is."""
    corners = [[2, 2], [9, 2], [9, 8], [2, 8], [2, 2]]
    drawn_by_hand = {"type": "Feature", "properties": {"objectType": "detection"}}
    drawn_by_hand |= {"geometry": {"type": "Polygon", "coordinates": [corners]}}
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [drawn_by_hand]}))
    return folder


@pytest.mark.parametrize("image", ["raw", "raw/HEK/a.ome.tif", "raw/*/*.tif"])
def test_objects_of_qupath_have_the_size_of_their_image_however_it_is_named(folder, field, image):
    labels = square(folder / "q")
    for given in (labels, labels / "a.geojson"):
        table = measure_files([folder / image], given).table
        assert table[["area_px", "centroid_x_px", "centroid_y_px"]].values.tolist() == [[42, 5, 4.5]]
        assert table["mean_DAPI"].tolist() == [pytest.approx(field[2][0, 2:8, 2:9].mean())]


@pytest.mark.parametrize("form", ["roi", "geojson"])
def test_files_of_the_times_of_one_image_are_matched_with_them(tmp_path, field, form):
    write_raw(tmp_path / "raw" / "a.ome.tif", np.stack([field[2], field[2] + 5]), "TCYX")
    cells = Instances.from_labels(field[0])
    records = [ImageRecord(name, f"{name}.png", *field[0].shape) for name in ("a_t0", "a_t1")]
    write_folder(tmp_path / "cells", records, [cells, cells], form=form)
    table = measure_files([tmp_path / "raw"], tmp_path / "cells").table
    first, second = (table[table["image"] == name]["mean_DAPI"].to_numpy() for name in ("a_t0", "a_t1"))
    assert len(first) == len(cells)
    np.testing.assert_allclose(second - first, 5)


def test_a_damaged_picture_is_named_where_others_tell_their_sizes(folder):
    labels = square(square(folder / "q"), "b")
    (folder / "raw" / "HEK" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    done = measure_files([folder / "raw"], labels)
    assert len(done.table) == 1 and all("b." in one.item for one in done.quarantined) and done.quarantined


def test_an_image_without_a_cell_is_named(folder, field, capfd):
    write_raw(folder / "raw" / "HEK" / "b.ome.tif", field[2])
    write_labels(folder / "labels" / "HEK" / "b.tif", np.zeros_like(field[0]))
    assert run(folder / "raw", folder / "labels", "-o", folder / "cells.csv") == 0
    assert "1 image without a cell, and so without a row (HEK/b)" in capfd.readouterr().err


def test_names_that_look_like_numbers_or_like_nothing_come_back(tmp_path, field):
    cells = Instances.from_labels(field[0])
    records = [ImageRecord(name, f"{name}.png", *field[0].shape) for name in ("001", "NA", "=1")]
    tables = [rows_of(Job(record, cells.with_classes(1), ("None",))) for record in records]
    write_cells(tmp_path / "cells.csv", joined(tables))
    found = read_measured(tmp_path / "cells.csv", CellDataset(records, [cells] * 3, path=tmp_path / "cells.json"))
    for own in found:
        assert own["area_px"].tolist() == cells.areas_px.tolist() and "class" not in own
    write_cells(tmp_path / "one.csv", tables[0])
    (only,) = read_measured(tmp_path / "one.csv", CellDataset(records[:1], [cells], path=tmp_path / "cells.json"))
    assert only["area_px"].tolist() == cells.areas_px.tolist()


def test_cells_of_another_file_are_told_by_their_areas(tmp_path, field):
    cells, record = Instances.from_labels(field[0]), ImageRecord("a", "a.png", *field[0].shape)
    table = rows_of(Job(record, cells))
    images = CellDataset([record], [cells], path=tmp_path / "cells.json")
    write_cells(tmp_path / "cells.csv", table)
    assert read_measured(tmp_path / "cells.csv", images)[0]["area_px"].tolist() == cells.areas_px.tolist()
    table.loc[1, "area_px"] += 1
    write_cells(tmp_path / "cells.csv", table)
    with pytest.raises(UserError, match="cells of a have other areas"):
        read_measured(tmp_path / "cells.csv", images)


def test_an_image_without_a_file_of_nuclei_is_skipped_and_named(folder, field):
    for name in ("b", "c"):
        write_raw(folder / "raw" / "HEK" / f"{name}.ome.tif", field[2])
        write_labels(folder / "labels" / "HEK" / f"{name}.tif", field[0])
    (folder / "nuclei" / "HEK").mkdir(parents=True)
    write_labels(folder / "nuclei" / "HEK" / "a.tif", field[1])
    (folder / "nuclei" / "HEK" / "b.tif").write_bytes(b"II*\0 cut short")
    done = measure_files([folder / "raw"], folder / "labels", folder / "nuclei")
    assert done.table["image"].unique().tolist() == ["HEK/a"] and "nuclei" in done.table
    assert [(one.item, "lacks its nuclei" in one.reason) for one in done.quarantined] == [
        ("HEK/b.tif", False),
        ("HEK/b", True),
        ("HEK/c", True),
    ]
    only = measure_files([folder / "raw" / "HEK" / "a.ome.tif"], folder / "labels", folder / "nuclei")
    assert len(only.table) == len(done.table)
    with pytest.raises(UserError, match="has no image of"):
        measure_files([folder / "raw" / "HEK" / "c.ome.tif"], folder / "labels", folder / "nuclei")


def test_measurements_come_back_from_parquet_too(tmp_path, field):
    pytest.importorskip("pyarrow")
    cells, record = Instances.from_labels(field[0]), ImageRecord("001", "001.png", *field[0].shape)
    write_cells(tmp_path / "cells.parquet", rows_of(Job(record, cells)))
    (found,) = read_measured(tmp_path / "cells.parquet", CellDataset([record], [cells], path=tmp_path / "cells.json"))
    assert found["area_px"].tolist() == cells.areas_px.tolist() and "image" not in found


def test_a_folder_is_no_table(folder, capfd):
    (folder / "cells.csv").mkdir()
    assert run("nowhere", "nothing", "-o", folder / "cells.csv") == 2
    assert "is a folder" in capfd.readouterr().err


@pytest.mark.parametrize("form", ["roi", "geojson"])
def test_cells_keep_their_numbers_where_some_were_deleted_and_others_drawn(folder, field, form):
    cells, place = Instances.from_labels(field[0])[:6], folder / form
    write_folder(place, [ImageRecord("a", "a.png", *field[0].shape)], [cells], form=form)
    if form == "geojson":  # as QuPath saves it: without what cellkit noted, and with an object that has no number
        features = json.loads((place / "a.geojson").read_text())["features"]
        features[3]["properties"] = {"objectType": "annotation"}
        (place / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features[2:]}))
    else:
        with zipfile.ZipFile(place / "a_rois.zip") as file:
            rois = {name: file.read(name) for name in file.namelist()}
        with zipfile.ZipFile(place / "a_rois.zip", "w") as file:
            for name in sorted(rois)[2:]:
                file.writestr("0012-0034.roi" if name == "0004.roi" else name, rois[name])
    table = measure_files([folder / "raw" / "HEK"], place).table.set_index("label")
    assert sorted(table.index) == [3, 5, 6, 7]
    for number, cell in ((3, 2), (7, 3), (5, 4), (6, 5)):
        assert table.loc[number, "area_px"] == cells.areas_px[cell]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cells": np.eye(4, dtype=int)}, "Instances.from_labels"),
        ({"labels": [1]}, "1 label of 4 cells"),
        ({"channels": {"RGB": np.ones((4, 4, 3))}}, r"shape \(4, 4, 3\)"),
        ({"channels": {"wave": np.ones((4, 4), complex)}}, "complex128"),
    ],
)
def test_what_python_gives_wrongly(change, words):
    with pytest.raises(UserError, match=words):
        measure(**{"cells": Instances.from_labels(np.diag([1, 2, 3, 4]))} | change)


def test_cells_of_qupath_bring_their_nuclei(folder, field):
    cells, nuclei = (Instances.from_labels(labels) for labels in field[:2])
    inner = nuclear_parts(cells, nuclei)[1]
    record = ImageRecord("a", "a.png", *field[0].shape)
    write_folder(folder / "q", [record], [cells], form="geojson", nuclei=[inner])
    write_folder(folder / "n", [record], [inner[inner.areas_px > 0]], form="geojson")
    images = [folder / "raw" / "HEK"]
    table = measure_files(images, folder / "q", folder / "q").table
    assert table["nucleus_area_px"].tolist() == inner.areas_px.tolist()
    pd.testing.assert_frame_equal(table, measure_files(images, folder / "q", folder / "n").table)
    write_coco(folder / "cells.json", [record], [cells], ("cell",))
    to_qupath = ["labels", str(folder / "cells.json"), "--format", "geojson", "-o"]
    for place in ("q", "n"):
        assert main([*to_qupath, str(folder / f"out_{place}"), "--nuclei", str(folder / place)]) == 0
    assert (folder / "out_q/a.geojson").read_bytes() == (folder / "out_n/a.geojson").read_bytes()


def test_an_image_that_cannot_be_opened_is_named_once_and_not_called_missing(folder, field):
    (folder / "raw" / "HEK" / "b.ome.tif").write_bytes(b"II*\0 cut short")
    write_labels(folder / "labels" / "HEK" / "b.tif", field[0])
    done = measure_files([folder / "raw"], folder / "labels")
    assert [Path(one.item).name for one in done.quarantined] == ["b.ome.tif"]
    with pytest.raises(UserError, match="none could be used; .*b.ome.tif cannot be read as TIFF"):
        measure_files([folder / "raw" / "HEK" / "b.ome.tif"], folder / "labels")


@pytest.mark.parametrize("form", ["seg", "roi", "geojson"])
def test_files_of_cells_beside_their_images_are_found(tmp_path, field, form):
    tifffile.imwrite(tmp_path / "a.tif", field[2][0])
    cells, record = Instances.from_labels(field[0]), ImageRecord("a", "a.tif", *field[0].shape)
    write_folder(tmp_path, [record], [cells], form=form, images=tmp_path if form == "seg" else None)
    assert measure_files([tmp_path], tmp_path).table["area_px"].tolist() == cells.areas_px.tolist()
    write_labels(
        tmp_path / "a_cp_masks.tif", np.where(field[0] > 1, field[0], 0)
    )  # a label image goes before other files
    assert len(measure_files([tmp_path], tmp_path).table) == len(cells) - 1
