"""Truth with classes, as other programs draw it: GeoJSON of QuPath, labels in an OME-Zarr."""

import json

import numpy as np
import pytest
from layout_cases import LABELS, config, listed, save

from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.commands.main import main
from cellkit.errors import UserError
from cellkit.formats.any import write_folder
from cellkit.formats.geojson import write_geojson
from cellkit.formats.label_images import write_labels
from cellkit.sources.ingest import detect_kind
from cellkit.sources.inspection import classes_of

TRUTH = Instances.from_labels(LABELS)
TWO_CLASSES = TRUTH.with_classes([1, 2, 0])


def by_qupath(path, found, classes):
    """Write what QuPath would save: without what cellkit notes."""
    data = json.loads(write_geojson(path, found, classes).read_text(encoding="utf-8"))
    del data["cellkit"]
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize("name", ["a.geojson", "a.png.geojson", "labels/a.geojson", "masks/a.geojson"])
def test_geojson_of_qupath_is_truth_with_classes(tmp_path, name):
    save(tmp_path / "a.png")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    by_qupath(tmp_path / name, TWO_CLASSES, ("A", "B"))
    assert (detect_kind(tmp_path), classes_of(tmp_path, "folder")) == ("folder", ("A", "B"))
    items = listed(tmp_path, config("folder", classes=("B", "A")))
    assert list(items) == ["a"]
    assert items["a"].load().instances == TRUTH.with_classes([2, 1, 0])


def test_geojson_that_says_otherwise_than_a_mask_is_refused(tmp_path):
    save(tmp_path / "a.png")
    by_qupath(tmp_path / "a.geojson", TWO_CLASSES, ("A", "B"))
    write_labels(tmp_path / "a_masks.tif", LABELS)
    cfg = config("folder", classes=("A", "B"))
    assert listed(tmp_path, cfg)["a"].load().instances == TWO_CLASSES
    write_labels(tmp_path / "a_masks.tif", LABELS * (LABELS < 2))
    with pytest.raises(UserError, match="differ from a.geojson"):
        listed(tmp_path, cfg)["a"].load()
    by_qupath(tmp_path / "a.png.geojson", TWO_CLASSES, ("A", "B"))
    with pytest.raises(UserError, match="several files of cells"):
        listed(tmp_path, cfg)["a"].load()


def test_proposals_an_unknown_class_and_objects_that_are_no_cells(tmp_path):
    save(tmp_path / "a.png")
    cfg = config("folder", classes=("A", "B"))
    write_geojson(tmp_path / "a.geojson", TWO_CLASSES, ("A", "B"), made_by="proposed")
    with pytest.raises(UserError, match="a model's proposals"):
        listed(tmp_path, cfg)["a"].load()
    by_qupath(tmp_path / "a.geojson", TWO_CLASSES, ("A", "C"))
    with pytest.raises(UserError, match="'C'"):
        listed(tmp_path, cfg)["a"].load()
    data = json.loads(by_qupath(tmp_path / "a.geojson", TWO_CLASSES, ("A", "B")).read_text())
    point = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 1]}, "properties": {}}
    (tmp_path / "a.geojson").write_text(json.dumps(data["features"] + [point]))
    made = listed(tmp_path, cfg)["a"].load()
    assert made.instances == TWO_CLASSES
    assert "of type Point: it has no area" in made.left_out[0]


@pytest.mark.parametrize("form", ["ome-zarr", "ome-zarr-0.4"])
def test_labels_in_an_ome_zarr_bring_their_classes(tmp_path, form):
    save(tmp_path / "p/a.png")
    record = ImageRecord("a", "a.png", *LABELS.shape)
    about = [record], [TWO_CLASSES], ("A", "B"), form, tmp_path / "p"
    write_folder(tmp_path / "z", *about)
    assert classes_of(tmp_path / "z", "folder") == ("A", "B")
    cfg = config("folder", classes=("B", "A"))
    assert listed(tmp_path / "z", cfg)["a"].load().instances == TRUTH.with_classes([2, 1, 0])
    write_folder(tmp_path / "z", *about, made_by=["proposed"])
    with pytest.raises(UserError, match="a model's proposals"):
        listed(tmp_path / "z", cfg)["a"].load()


def test_the_command_line_takes_geojson_there_and_back(tmp_path, capfd):
    save(tmp_path / "p/a.png")
    write_labels(tmp_path / "masks/a.tif", LABELS)
    assert main(["coco", str(tmp_path / "masks"), "-o", str(tmp_path / "t.json"), "--images", str(tmp_path / "p")]) == 0
    assert main(["labels", str(tmp_path / "t.json"), "-o", str(tmp_path / "q"), "--format", "geojson"]) == 0
    by_qupath(tmp_path / "q/a.geojson", TRUTH.with_classes(1), ("cell",))
    capfd.readouterr()
    assert main(["score", str(tmp_path / "t.json"), str(tmp_path / "q"), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["conventions"]["kaggle"]["score"] == 1
    assert main(["score", str(tmp_path / "q"), str(tmp_path / "t.json"), "--images", str(tmp_path / "p")]) == 0
    assert main(["score", str(tmp_path / "q"), str(tmp_path / "t.json")]) == 2
    assert "give the folder of the images" in capfd.readouterr().err


def test_nuclei_and_measurements_go_with_their_cells(tmp_path, capfd):
    nuclei = np.where(np.unique(LABELS)[2] == LABELS, 0, LABELS)
    for name, labels in (("cells", LABELS), ("nuclei", nuclei)):
        write_labels(tmp_path / name / "a.tif", labels)
        assert main(["coco", str(tmp_path / name), "-o", str(tmp_path / f"{name}.json")]) == 0
    (tmp_path / "m.csv").write_text("image,label,class,area_px,mean_DAPI\na,1,cell,63,7.5\na,3,cell,1,\n")
    more = ["--nuclei", str(tmp_path / "nuclei.json"), "--measurements", str(tmp_path / "m.csv")]
    command = ["labels", str(tmp_path / "cells.json"), "-o", str(tmp_path / "q"), *more]
    assert main([*command, "--format", "geojson"]) == 0
    first, second, third = json.loads((tmp_path / "q/a.geojson").read_text())["features"]
    assert [one["properties"]["objectType"] for one in (first, second, third)] == ["cell", "detection", "cell"]
    assert first["properties"]["measurements"] == {"label": 1, "score": 1.0, "area_px": 63.0, "mean_DAPI": 7.5}
    assert third["properties"]["measurements"] == {"label": 3, "score": 1.0, "area_px": 1.0}
    assert main(["coco", str(tmp_path / "q"), "-o", str(tmp_path / "n.json"), "--nuclei"]) == 0
    capfd.readouterr()
    assert main(["score", str(tmp_path / "nuclei.json"), str(tmp_path / "n.json"), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["conventions"]["kaggle"]["score"] == 1
    assert main([*command, "--format", "roi"]) == 2
    assert "files 'roi' do not keep nuclei" in capfd.readouterr().err


def test_nuclei_of_more_images_are_taken_and_of_fewer_refused(tmp_path, capfd):
    for name in ("a", "b"):
        write_labels(tmp_path / f"both/{name}.tif", LABELS)
    write_labels(tmp_path / "one/a.tif", LABELS)
    for name in ("both", "one"):
        assert main(["coco", str(tmp_path / name), "-o", str(tmp_path / f"{name}.json")]) == 0
    command = ["labels", "-o", str(tmp_path / "q"), "--format", "geojson"]
    assert main([*command, str(tmp_path / "one.json"), "--nuclei", str(tmp_path / "both.json")]) == 0
    capfd.readouterr()
    assert main([*command, str(tmp_path / "both.json"), "--nuclei", str(tmp_path / "one.json")]) == 2
    assert "lacks the nuclei of 1 image (b)\ngive those of every image" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label,area\n1,2\n", "lacks the column image"),
        ("image,label\nb,1\n", "has cells of b"),
        ("image,label\na,9\n", "a row of another"),
        ("image,label\na,1\na,1\n", "two of one"),
        ("", "is no CSV"),
    ],
)
def test_a_table_that_is_not_of_these_cells(tmp_path, capfd, text, message):
    write_labels(tmp_path / "cells/a.tif", LABELS)
    assert main(["coco", str(tmp_path / "cells"), "-o", str(tmp_path / "c.json")]) == 0
    (tmp_path / "m.csv").write_text(text)
    command = ["labels", str(tmp_path / "c.json"), "-o", str(tmp_path / "q"), "--format", "geojson"]
    assert main([*command, "--measurements", str(tmp_path / "m.csv")]) == 2
    assert message in capfd.readouterr().err
