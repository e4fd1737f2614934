"""Points, classes, outlines and seconds in one table."""

from __future__ import annotations

import numpy as np
import pytest

from cellkit.cells.instances import Instances
from cellkit.evaluate import points
from cellkit.models import cell_classes, threshold
from cellkit.models.shared.contract import Segmenter
from cellkit.scores.point import centre_points, point


def predictions(data, found) -> dict:
    return dict(zip([record.image_id for record in data.records], found, strict=True))


def test_the_shares_are_those_of_the_convention(drawn):
    val = drawn.held_out()
    rng = np.random.default_rng(0)
    found = [cells[rng.random(len(cells)) < 0.7].with_classes(1) for cells in val.instances]
    found[0] = Instances.concatenate([found[0], Instances.from_labels(np.eye(128, dtype=int), class_ids=[2])])
    scores = points.score_points({"mine": predictions(val, found)}, {"val": val}, {"mine": 0.25}, n=200)
    (row,) = scores.to_dict("records")
    told = point(val.instances, [centre_points(x) for x in found], None, [x.class_ids for x in found])
    assert (row["recall"], row["precision"], row["class_right"]) == pytest.approx(
        (told["recall"], told["precision"], told["accuracy"])
    )
    assert all(row[f"{k}_low"] <= row[k] <= row[f"{k}_high"] for k in ("recall", "precision", "class_right", "map_iou"))
    assert row["recall_low"] < row["recall"] < 1 and (row["seconds"], row["images"]) == (0.25, 3)
    assert points.points_table(scores).iloc[0]["seconds per image"] == "0.25"


def test_without_classes_cells_or_images_there_is_nothing_to_tell(drawn):
    val = drawn.held_out()
    bare = [Instances.empty(cells.shape) for cells in val.instances]
    (row,) = points.score_points({"mine": predictions(val, bare)}, {"val": val}, n=20).to_dict("records")
    assert row["recall"] == 0 and np.isnan([row["precision"], row["class_right"], row["seconds"]]).all()
    none = points.score_points({"mine": {}}, {"kept aside": val.subset([])})
    assert none.empty and points.points_table(none).empty
    assert points.points_table(points.score_points({}, {"val": val})).empty


def test_cells_get_a_class_and_models_are_opened_with_it(drawn, tmp_path):
    val = drawn.held_out()
    checkpoint = threshold.train(drawn.select("train"), val, threshold.TrainSettings(), tmp_path)
    namer = lambda image, cells: cells.with_classes(2)  # noqa: E731
    keys = {"coordinates_checkpoint": checkpoint, "maskrcnn_checkpoint": checkpoint}
    models = points.open_models(keys, namer)
    assert list(models) == ["coordinates", "crops_coordinates", "maskrcnn"] and set(points.open_models(keys)) < set(
        models
    )
    found = points.predict_models(models, val)
    plain, named = found["coordinates"], found["crops_coordinates"]
    assert all((named[key].class_ids == 2).all() and named[key].with_classes(0) == plain[key] for key in plain)
    again = points.name_found(namer, val, plain)
    assert again == list(named.values()) and points.name_found(namer, val, None) is None
    more = points.with_named({"coordinates": plain}, val, crops_coordinates=again, crops_cellpose=None)
    assert more == {"coordinates": plain, "crops_coordinates": named}
    assert points.predict_models(models, val.subset([])) == {}


def test_a_class_follows_each_image_of_a_stream():
    shapes = [(4, 4), (6, 6), (8, 8)]
    segment = Segmenter(lambda image, left: Instances.from_labels(np.ones(image.shape[:2], int)), {})
    named = cell_classes.named_by(segment, lambda image, cells: cells.with_classes(len(image)))
    assert [x.class_ids.tolist() for x in named(np.zeros((*s, 3), np.uint8) for s in shapes)] == [[4], [6], [8]]


def test_seconds_are_those_of_an_image_and_the_first_one_is_not_counted(drawn, monkeypatch):
    asked = []

    def segment(images):
        for image in images:
            asked.append(image.shape)
            yield Instances.empty(image.shape[:2])

    monkeypatch.setattr("cellkit.models.shared.cost.clock", iter([10.0, 16.0]).__next__)
    assert points.seconds_per_image(segment, drawn.held_out()) == 2.0 and len(asked) == 4
    assert np.isnan(points.seconds_per_image(segment, drawn.subset([])))
