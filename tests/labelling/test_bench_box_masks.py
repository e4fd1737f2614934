"""The benchmark of masks made from boxes: its rows for one drawn image, and no row made twice."""

import sys

import box_masks as bench
import pytest
from jobs import add_rows, rows_of


@pytest.fixture(scope="module")
def drawn_once(tmp_path_factory):
    return bench.drawn(tmp_path_factory.mktemp("drawn"), 1, "nuclei")


def test_masks_are_compared_with_the_outlines_they_were_made_without(drawn_once):
    train, test = drawn_once
    assert (len(train), len(test)) == (1, 1) and train.records[0].image_id != test.records[0].image_id
    rows = {way: bench.masks_row(train, way) for way in (bench.OUTLINES, *bench.BOX_WAYS)}
    assert rows[bench.OUTLINES][1] == {"mask_iou": 1.0, "mask_map_iou": 1.0, "otherwise": 0}
    assert rows[bench.OUTLINES][0] is train
    iou = {way: row["mask_iou"] for way, (_, row) in rows.items()}
    assert 0.7 < iou["box"] < iou["watershed"] < 1 and iou["box"] < iou["ellipse"] < 1
    assert rows["ellipse"][0].made_by == ["proposed"]


def test_without_steps_nothing_is_trained(drawn_once):
    assert set(bench.trained_row(*drawn_once, 0).values()) == {"-"}


def test_a_row_that_is_there_is_not_made_again(tmp_path, monkeypatch, capsys):
    rows = [
        dict.fromkeys(bench.COLUMNS, "0") | {"data": "drawn", "way": way, "steps": "80"}
        for way in (bench.OUTLINES, *bench.BOX_WAYS)
    ]
    add_rows(tmp_path / "made.csv", bench.COLUMNS, rows)
    command = [
        "box_masks.py",
        "--sets",
        "drawn",
        "--images",
        "1",
        "--out",
        str(tmp_path / "made.csv"),
        "--work",
        str(tmp_path),
    ]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(bench, "prepare", lambda device: None)
    bench.main()
    assert len(rows_of(tmp_path / "made.csv")) == 4
    assert "| drawn | watershed | 80 | 0 | 0 | 0 | 0 | 0 / 0 |" in capsys.readouterr().out
