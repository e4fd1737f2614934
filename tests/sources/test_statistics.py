"""The data-set sheet: every number of a set small enough to count by eye, every label fault found, and empty sets."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from conftest import write_png

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError
from cellkit.files import write_json
from cellkit.sources.statistics import FAULTS, class_table, describe, measure_image, remarks

SHAPE = (40, 50)


def square(top, left, side, shape=SHAPE):
    mask = np.zeros(shape, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def a_set(tmp_path, images):
    """Make a data set of (image, Instances, cell_type, split, flags)."""
    records = []
    for k, (picture, _, kind, split, flags) in enumerate(images):
        write_png(tmp_path / f"{k}.png", picture)
        records.append(
            ImageRecord(
                str(k), f"{k}.png", *picture.shape[:2], "red=;green=GFP;blue=DAPI", kind, f"w{k % 2}", split, 0.5, flags
            )
        )
    cells = [one[1] for one in images]
    return CellDataset(records, cells, ("A", "B"), tmp_path, list(range(1, len(records) + 1)))


@pytest.fixture
def small(tmp_path):
    """Two training images and an empty validation image."""
    picture = np.zeros((*SHAPE, 3), np.uint8)
    picture[..., 2] = 10
    picture[square(2, 2, 10)] = (0, 0, 110)
    picture[square(20, 20, 6)] = (0, 0, 60)
    cells = Instances.from_masks([square(2, 2, 10), square(20, 20, 6)], SHAPE, class_ids=[1, 2])
    other = Instances.from_masks([square(5, 5, 4)], SHAPE, class_ids=[0])
    empty = Instances.empty(SHAPE)
    return a_set(
        tmp_path,
        [
            (picture, cells, "A", "train", ""),
            (picture, other, "B", "train", ""),
            (picture * 0 + 7, empty, "A", "val", ""),
            (picture, cells, "A", "", "debris"),
        ],
    )


def test_the_numbers_of_a_set_counted_by_eye(small):
    sheet = describe(small)
    assert (sheet["images"], sheet["cells"], sheet["set_aside"], sheet["flags"]) == (4, 5, 1, {"debris": 1})
    assert sheet["groups"] == {"groups": 2, "images_without": 0}
    assert sheet["classes_by_split"] == {
        "train": {"A": 1, "B": 1, "unknown": 1},
        "val": {"A": 0, "B": 0, "unknown": 0},
        "": {"A": 1, "B": 1, "unknown": 0},
    }
    assert sheet["balance"] == 1.0
    assert (sheet["height_px"], sheet["width_px"], sheet["um_per_px"]) == ([40] * 3, [50] * 3, [0.5] * 3)
    assert {name: points[3] for name, points in sheet["area_px"].items()} == {"A": 100, "B": 36, "unknown": 16}
    assert sheet["diameter_px"]["A"] == pytest.approx(2 * math.sqrt(100 / math.pi), abs=0.05)
    assert sheet["light"]["A"]["blue"] == [110] * 7 and sheet["light"]["B"]["blue"] == [60] * 7
    assert sheet["ground"]["blue"][3] == 10
    assert sheet["by_split"][0] == {
        "cell_type": "A", "split": "train", "images": 1, "empty": 0, "cells": 2, "cells_per_image": [2, 2, 2],
    }  # fmt: skip
    assert [row["empty"] for row in sheet["by_split"]] == [0, 1, 0, 0]
    assert sheet["channels"] == ["red=;green=GFP;blue=DAPI"]


def test_a_sheet_is_json_and_the_same_for_any_number_of_workers(small, tmp_path):
    sheet = describe(small)
    path = write_json(tmp_path / "sheet.json", sheet)
    assert json.loads(path.read_text()) == sheet == describe(small, workers=2)


def test_every_label_fault_is_found():
    ring = square(20, 2, 9) & ~square(23, 5, 3)
    split = square(2, 30, 3) | square(10, 30, 3)
    masks = [square(1, 1, 2), split, ring, square(20, 30, 5), square(25, 30, 5), square(36, 10, 4)]
    twice = square(30, 40, 6)
    cells = Instances.from_masks([*masks, twice, twice, square(33, 43, 6)], SHAPE)
    faults = measure_image(np.zeros((*SHAPE, 3), np.uint8), cells, tiny_px=10)["faults"]
    assert set(faults) == set(FAULTS)
    assert (faults["pieces"], faults["holes"], faults["border"], faults["twice"]) == (1, 1, 1, 1)
    assert faults["overlapping"] == 3, "the two that are one, and the one that laps over them"
    assert faults["touching"] == 4, "the two squares one above the other, and the first of the three that overlap"
    assert faults["tiny"] == 1


def test_what_is_as_it_should_be_is_not_mentioned(small):
    assert remarks(describe(small.subset([0]))) == []
    told = remarks(describe(small, tiny_px=20))
    assert told == ["1 of 5 cells (20.0 %): smaller than the least area (20 px)", "1 of 4 images without a cell",
                    "1 image flagged: debris"]  # fmt: skip
    ones = replace(small, instances=[x.with_classes(1) for x in small.instances])
    assert "the smallest class has 0 of the cells of the largest" in remarks(describe(ones))


def test_the_table_of_classes(small):
    table = class_table(describe(small))
    assert list(table.index) == ["A", "B", "unknown"]
    assert table.loc["A", ["training", "validation", "excluded", "area_px (median)", "DAPI (median)"]].tolist() == [
        1, 0, 1, 100, 110,
    ]  # fmt: skip


def test_sizes_are_in_um_where_every_pixel_size_is_known_and_channels_have_their_names(small):
    from cellkit.show.counts import show_data
    from cellkit.show.style import new_figure

    known = [
        replace(r, um_per_px=0.5 + (k == 1), channels="red=;green=GFP;blue=DAPI") for k, r in enumerate(small.records)
    ]
    sheet = describe(replace(small, records=known))
    assert sheet["area_um2"]["A"][3] == 0.25 * sheet["area_px"]["A"][3]
    table = class_table(sheet)
    assert table.loc["A", ["area_um2 (median)", "diameter_um", "DAPI (median)"]].tolist() == [25, 5.6, 110]
    axes = show_data(sheet, new_figure(10, 6))
    assert axes[0, 1].get_xlabel() == "area of a cell (µm²)"
    assert "A, DAPI" in [label.get_text() for label in axes[1, 0].get_yticklabels()]
    sheet = describe(replace(small, records=[*known[:-1], replace(known[-1], um_per_px=float("nan"))]))
    assert sheet["area_um2"] == {} and "diameter_um" not in class_table(sheet)
    axes = show_data(sheet, new_figure(10, 6))
    assert axes[0, 1].get_xlabel() == "area of a cell (px)"
    old = {key: value for key, value in sheet.items() if key != "area_um2"}
    assert show_data(old, new_figure(10, 6)).shape == (2, 2)  # a sheet of a run of before


@pytest.mark.parametrize("most", [101, 400, 900, 5_000, 90_000])
def test_the_axis_of_sizes_has_several_ticks(most):
    from cellkit.show.counts import _log_axis
    from cellkit.show.style import new_figure

    ax = new_figure(4, 3).subplots()
    ax.plot([100, most], [0, 0])
    _log_axis(ax, [100, most])
    low, high = ax.get_xlim()
    assert 2 <= sum(low <= tick <= high for tick in ax.get_xticks()) <= 9


def test_sets_without_cells_and_without_images(small):
    bare = replace(small, instances=[Instances.empty(SHAPE)] * 4)
    sheet = describe(bare)
    assert (sheet["cells"], sheet["balance"], sheet["light"], sheet["area_px"]["A"]) == (
        0,
        None,
        {"A": {}, "B": {}},
        [],
    )
    assert remarks(sheet)[0] == "4 of 4 images without a cell"
    nothing = describe(small.subset([]))
    assert (nothing["images"], nothing["by_split"], nothing["height_px"]) == (0, [], [])
    assert class_table(sheet).shape[0] == 2


def test_a_cell_that_fills_the_image_leaves_no_ground():
    seen = measure_image(np.full((4, 5, 3), 9, np.uint8), Instances.from_masks([np.ones((4, 5), bool)], (4, 5)))
    assert seen["light"].tolist() == [[9, 9, 9]] and np.isnan(seen["ground"]).all()


def test_an_image_that_is_gone_is_named(small):
    (small.root / "1.png").unlink()
    with pytest.raises(UserError, match=r"1\.png"):
        describe(small)


def test_the_picture_of_a_sheet_and_of_what_was_set_aside(small):
    from cellkit.microscope.flags import flag_records
    from cellkit.microscope.quality import measure
    from cellkit.show.counts import show_data
    from cellkit.show.sheets import show_flagged
    from cellkit.show.style import new_figure, to_png

    for sheet in (describe(small), describe(replace(small, instances=[Instances.empty(SHAPE)] * 4))):
        axes = show_data(sheet, new_figure(10, 6))
        assert axes.shape == (2, 2) and to_png(axes)[:4] == b"\x89PNG"
    texts = [text.get_text() for text in show_data(describe(small), new_figure(10, 6))[0, 0].texts]
    assert texts[0] == "3 cells, 2 images"
    quality = [measure(image) | {"debris": 9.0} for image in small.images()]
    _, thresholds = flag_records(quality)
    axes = show_flagged(small.root, small.records, quality, thresholds, figure=new_figure(8, 4))
    assert axes.shape == (1, 1)
    assert axes[0, 0].get_title(loc="left") == "3\ndebris: a glow in both channels 9 times\nas bright as cells, limit 3"
    none = [replace(record, flags="") for record in small.records]
    axes = show_flagged(small.root, none, quality, thresholds, figure=new_figure(8, 4))
    assert axes.shape == (1, 1)
    assert axes[0, 0].texts[0].get_text() == f"none of {len(none)} images is flagged"


def test_drawing_does_not_switch_off_what_jupyter_switched_on():
    """Its backend turns interactive with the first figure; reset, no later figure of a notebook would be shown."""
    import matplotlib

    from cellkit.show.overlays import show_image
    from cellkit.show.style import new_figure

    def first(*args, **kwargs):
        matplotlib.interactive(True)
        return new_figure(2, 2).subplots()

    before = matplotlib.is_interactive()
    try:
        show_image.__globals__["styled"](first)()
        assert matplotlib.is_interactive() and matplotlib.rcParams["axes.titlelocation"] == "center"
    finally:
        matplotlib.interactive(before)
