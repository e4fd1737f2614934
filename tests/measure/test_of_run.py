"""The cells of a run, measured in the files of its source."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tifffile
from measure_cases import assert_as_regionprops

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.config.reading import load_config
from cellkit.errors import UserError
from cellkit.log import LOG
from cellkit.measure.dictionary import columns_of
from cellkit.measure.images import Job, _of_file
from cellkit.measure.of_run import measure_run
from cellkit.microscope.convert import Conversion
from cellkit.microscope.frames import Frame
from cellkit.sources.drawn.files import write_fields
from cellkit.sources.ingest import convert_images

REPO = Path(__file__).parents[2]
DRAWN = {
    "convert.drawn": {
        "images_per_line": 3, "mixed_images": 1, "size_px": 96, "diameter_px": 24, "planes": 3, "defect_images_per_line": 0,
    },
}  # fmt: skip


def config_of(**changes):
    return load_config(REPO / "configs" / "demo.yaml", DRAWN | {f"convert.{k}": v for k, v in changes.items()}).convert


def converted(folder: Path, config) -> CellDataset:
    """Draw the microscope files of a run folder, if they are not there, and convert them."""
    if not (folder / "microscope").is_dir():
        write_fields(folder / "microscope", lines=config.classes, seed=config.seed, **config.drawn.model_dump())
    return convert_images(config, folder / "microscope", folder).images


@pytest.fixture(scope="module")
def drawn_run(tmp_path_factory) -> tuple[Path, CellDataset]:
    folder = tmp_path_factory.mktemp("run")
    return folder, converted(folder, config_of())


def found_in(images: CellDataset) -> dict:
    return {"model": {r.image_id: cells for r, cells in zip(images.records, images.instances, strict=True)}}


def raw_of(folder: Path, record) -> np.ndarray:
    """Return the raw file's stack, (Z, C, H, W)."""
    with tifffile.TiffFile(folder / "microscope" / record.file) as file:
        axes, stack = file.series[0].axes, file.asarray()
    return np.moveaxis(stack, [axes.index(letter) for letter in "ZCYX"], range(4))


def test_brightness_is_that_of_the_raw_files_projected_as_the_pictures_were(drawn_run):
    folder, images = drawn_run
    done = measure_run(found_in(images), "model", images, config_of(), folder)
    assert done.quarantined == [] and done.table.columns.tolist() == columns_of(["DAPI", "GFP"])
    assert len(done.table) == images.cells > 20
    for record, cells in zip(images.records, images.instances, strict=True):
        part = done.table[done.table["image"] == record.image_id].reset_index(drop=True)
        raw = raw_of(folder, record).max(axis=0)
        assert raw.dtype == np.uint16 and raw.max() > 255
        assert_as_regionprops(part, cells.paint(), {"DAPI": raw[0], "GFP": raw[1]})
        assert (part["line"] == record.cell_type).all() and (part["um_per_px"] == record.um_per_px).all()
        assert part["class"].tolist() == [config_of().classes[k - 1] for k in cells.class_ids]


@pytest.mark.parametrize("how", ["mean", "focus", 2])
def test_every_projection_is_that_of_the_picture(drawn_run, how):
    folder, _ = drawn_run
    config = config_of(projection=how)
    images = converted(folder, config)
    record, cells = images.records[0], images.instances[0]
    table = measure_run({"m": {record.image_id: cells}}, "m", images, config, folder).table
    raw = raw_of(folder, record)
    plane = int(record.planes.split()[1]) if how != "mean" else None
    wanted = raw.mean(axis=0) if how == "mean" else raw[plane]
    assert_as_regionprops(table, cells.paint(), {"DAPI": wanted[0], "GFP": wanted[1]})


def test_pictures_of_half_the_size_are_measured_in_the_full_file(drawn_run):
    folder, _ = drawn_run
    config = config_of(scale=0.5)
    images = converted(folder, config)
    record, cells = images.records[1], images.instances[1]
    table = measure_run({"m": {record.image_id: cells}}, "m", images, config, folder).table
    large = np.kron(cells.paint(), np.ones((2, 2), int))
    raw = raw_of(folder, record).max(axis=0)[0]
    np.testing.assert_allclose(table["mean_DAPI"], [raw[large == k].mean() for k in table["label"]], rtol=1e-12)
    assert table["area_px"].tolist() == cells.areas_px.tolist()
    np.testing.assert_allclose(table["area_um2"], cells.areas_px * record.um_per_px**2)


def test_a_damaged_file_is_named_and_its_cells_keep_size_and_shape(drawn_run, tmp_path):
    folder, images = drawn_run
    shutil.copytree(folder, tmp_path / "run")
    record = images.records[2]
    path = tmp_path / "run" / "microscope" / record.file
    path.write_bytes(path.read_bytes()[:5000])
    (tmp_path / "run" / "microscope" / images.records[0].file).unlink()
    done = measure_run(found_in(images), "model", images, config_of(), tmp_path / "run")
    assert [one.item for one in done.quarantined] == [images.records[0].image_id, record.image_id]
    assert "has no image" in done.quarantined[0].reason and "cut short" in done.quarantined[1].reason
    assert len(done.table) == images.cells and done.table["area_px"].notna().all()
    dark = done.table["image"].isin([one.item for one in done.quarantined])
    assert done.table.loc[dark, "mean_DAPI"].isna().all() and done.table.loc[~dark, "mean_DAPI"].notna().all()


def test_without_the_raw_folder_size_and_shape_are_measured_and_it_is_said(drawn_run, tmp_path, capfd):
    _, images = drawn_run
    done = measure_run(found_in(images), "model", images, config_of(), tmp_path)
    assert done.quarantined == [] and done.table.columns.tolist() == columns_of()
    assert "without their brightness: there is no folder" in capfd.readouterr().err


def test_what_01_has_said_of_the_source_is_not_said_again(drawn_run, monkeypatch, capfd):
    folder, images = drawn_run

    def read(*_):
        LOG.warning("few images: 1 moved")
        return []

    monkeypatch.setattr("cellkit.measure.of_run.load", lambda *_: SimpleNamespace(read=read))
    measure_run(found_in(images), "model", images, config_of(), folder)
    assert "few images" not in capfd.readouterr().err


def test_the_same_for_any_number_of_workers(drawn_run):
    folder, images = drawn_run
    tables = [
        measure_run(found_in(images), "model", images, config_of().model_copy(update={"workers": n}), folder).table
        for n in (1, 2)
    ]
    pd.testing.assert_frame_equal(*tables, check_exact=True)


def test_a_model_that_was_not_run_and_boxes_are_refused(drawn_run):
    folder, images = drawn_run
    with pytest.raises(UserError, match="evaluate.measure is 'modle'.*did you mean 'model'"):
        measure_run(found_in(images), "modle", images, config_of(), folder)
    boxes = Instances.from_boxes([[0, 0, 9, 9]], images.instances[0].shape)
    with pytest.raises(UserError, match="only boxes"):
        measure_run({"m": {images.records[0].image_id: boxes}}, "m", images, config_of(), folder)


def test_a_model_that_finds_nothing_gives_a_table_without_rows(drawn_run):
    folder, images = drawn_run
    empty = {record.image_id: Instances.empty((96, 96)) for record in images.records}
    table = measure_run({"m": empty}, "m", images, config_of(), folder).table
    assert len(table) == 0 and table.columns.tolist() == columns_of()


def test_images_put_together_of_two_files_have_no_brightness(tmp_path, capfd):
    rng = np.random.default_rng(0)
    labels = np.zeros((40, 40), np.uint16)
    labels[5:15, 3:12], labels[20:35, 24:36] = 1, 2
    for line in ("HEK", "N2a"):
        for split, names in (("train", "abc"), ("test", "de")):
            for name in names:
                place = tmp_path / "data" / line
                for kind, pixels in (("images", rng.integers(0, 60_000, (40, 40), np.uint16)), ("labels", labels)):
                    (place / kind / split).mkdir(parents=True, exist_ok=True)
                    tifffile.imwrite(place / kind / split / f"{name}.tif", pixels)
    channels = {"nuclei": 0, "cytoplasm": None}
    settings = {"source": "two_lines", "path": ".", "channels": channels, "mixed_images": 2}
    changed = {"data": str(tmp_path / "data")} | {f"convert.{key}": value for key, value in settings.items()}
    config = load_config(REPO / "configs" / "demo.yaml", changed).convert
    images = convert_images(config, tmp_path / "data", tmp_path / "run").images
    done = measure_run(found_in(images), "model", images, config, tmp_path / "run")
    mixed = done.table["line"] == "mixed"
    assert mixed.any() and done.table.loc[mixed, "mean_channel_0"].isna().all()
    assert done.table.loc[~mixed, "mean_channel_0"].notna().all() and done.quarantined == []
    assert "put together from two files (mixed_01, mixed_02)" in capfd.readouterr().err


def test_a_pixel_size_that_is_given_is_that_of_the_files_also_where_pictures_were_resized(tmp_path):
    labels = np.zeros((20, 20), np.int32)
    labels[4:8, 4:8] = 1
    tifffile.imwrite(tmp_path / "a.tif", np.full((40, 40), 9, np.uint8))
    frame = Frame(tmp_path / "a.tif", "a.tif", "a")
    job = Job(ImageRecord("a", "a.tif", 20, 20), Instances.from_labels(labels), scale=0.5, um_per_px=0.25, frame=frame)
    (row,) = _of_file(job, Conversion()).itertuples()
    assert (row.um_per_px, row.area_px, row.area_um2) == (0.5, 16, 4.0)
