"""Cellpose's cells with a class, in a run: when it is done, with which model, and what is said where it is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cellkit.cells.dataset import predict_all
from cellkit.evaluate.cell_classes import describe_named, name_cells, train_classes
from cellkit.evaluate.classes import classes_found, errors_table
from cellkit.evaluate.evaluation import rejected_models
from cellkit.formats.coco import write_results
from cellkit.models import threshold
from cellkit.models.cell_classes import Settings


@pytest.fixture(scope="module")
def kept(drawn, tmp_path_factory):
    """What 03 lists where it has adapted a threshold: a model without a base."""
    out = tmp_path_factory.mktemp("03")
    path = threshold.train(drawn.select("train"), drawn.select("val"), threshold.TrainSettings(diameter_px=30), out)
    return {"cellpose_checkpoint": path, "cellpose_tuned_checkpoint": path}


def test_the_cells_of_the_kept_model_are_named_and_judged(drawn, kept, tmp_path, capsys):
    path = train_classes(kept, drawn.select("train"), Settings(), tmp_path)
    told = "Cellpose's cells get a class by their texture and the features of starter_light, learned from"
    assert told in capsys.readouterr().err
    held = drawn.held_out()
    found = predict_all(threshold.load(kept["cellpose_checkpoint"]), held)
    files = {"predictions_cellpose_tuned": write_results(tmp_path / "found.json", held.ids, found)}
    named = name_cells(path, drawn, files, kept)
    assert list(map(len, named)) == list(map(len, found)) and describe_named(named, drawn.classes).startswith(
        "Cellpose, with a class: "
    )
    predictions = {"cellpose_classes": dict(zip([r.image_id for r in held.records], named, strict=True))}
    right = classes_found(predictions, {"val": drawn.select("val"), "test": drawn.select("test")})
    table = errors_table(right, "val")
    assert list(table.index.get_level_values("truth")) == ["HEK", "N2a", "invented"]
    val = drawn.select("val")
    classes = np.concatenate([c.class_ids for c in val.instances])
    assert table.iloc[:2].sum(axis=1).tolist() == [(classes == 1).sum(), (classes == 2).sum()]
    assert table.drop(columns="missed").to_numpy().sum() == sum(len(named[k]) for k in range(2))
    assert errors_table(right, "train").empty
    assert rejected_models(kept | {"cellpose_classes_checkpoint": path}) == [], (
        "named cells are no model that 03 judged"
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"classes": ("HEK",)}, "1 class, nothing to tell apart"),
        ({"classes": ("HEK", "N2a", "CHO")}, "no training cell of CHO"),
        ({}, "03 kept no Cellpose model"),
    ],
)
def test_where_nothing_is_done_it_is_said(drawn, tmp_path, capsys, change, told):
    train = replace(drawn.select("train"), **change)
    assert train_classes({}, train, Settings(), tmp_path) is None
    assert f"Cellpose's cells get no class: {told}" in capsys.readouterr().err
    assert (
        name_cells(None, drawn, {}, {}) is None
        and describe_named(None, drawn.classes) == "Cellpose's cells have no class"
    )
    assert not list(tmp_path.iterdir())


def test_it_can_be_switched_off(drawn, kept, tmp_path, capsys):
    assert train_classes(kept, drawn.select("train"), Settings(train=False), tmp_path) is None
    assert "maskrcnn.cell_classes.train is false" in capsys.readouterr().err
