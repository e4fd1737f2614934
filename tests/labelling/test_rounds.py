"""Which images to correct first, and what a person changed since the proposals and since the last round."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.files import write_frame
from cellkit.formats.labels import write_label_png
from cellkit.formats.roi import write_rois
from cellkit.labelling.annotate import Labelled, write_chosen
from cellkit.labelling.rounds import (
    CHANGE_COLUMNS,
    change,
    correct_first,
    label_changes,
    next_images,
    tell_proposed,
    write_rounds,
)

SHAPE = (8, 12)


def cells(count: int, score: float = 1.0) -> Instances:
    labels = np.zeros(SHAPE, np.int32)
    for k in range(count):
        labels[1:4, 3 * k : 3 * k + 2] = k + 1
    return Instances.from_labels(labels).with_scores(score)


@pytest.fixture
def images(tmp_path):
    records = [ImageRecord(n, f"images/{n}.png", *SHAPE, split="train") for n in "abcd"]
    return CellDataset(records, [Instances.empty(SHAPE)] * 4, (), tmp_path, [1, 2, 3, 4])


def stage_of(images, use: str) -> SimpleNamespace:
    run = SimpleNamespace(folder=images.root / "run")
    return SimpleNamespace(path=images.root.joinpath, run=run, settings={"use": use})


def test_disagreement_and_doubt_come_first_and_corrected_images_not_at_all(images):
    proposals = [cells(4, 0.9), cells(4, 0.9), cells(4, 0.5), cells(0)]
    others = [cells(4), cells(1), cells(1), cells(0)]
    chosen = [Labelled(n, x.paint(), how) for n, x, how in zip("abc", proposals[:3], ("proposed",) * 3, strict=True)]
    table = correct_first(images, proposals, others, chosen, "doubt")
    assert table["image_id"].tolist() == ["c", "b", "d", "a"]
    assert table["made_by"].tolist() == ["proposed", "proposed", "", "proposed"], "d has no labels at all"
    assert table["cells"].tolist() == [4, 4, 0, 4]
    np.testing.assert_allclose(table["disagreement"], [0.6, 0.6, 0, 0])
    np.testing.assert_allclose(table["confidence"], [0.5, 0.9, np.nan, 0.9])
    corrected = [Labelled(n, x.paint(), "corrected") for n, x in zip("abcd", proposals, strict=True)]
    assert correct_first(images, proposals, others, corrected).empty
    told = tell_proposed(chosen, table)
    assert told.startswith("proposals, no truth: the labels of 3 of 3 images are the model's own")
    assert "\ncorrect first: c, b, d, ... (correct_first.csv has all, in order)" in told
    assert "to judge by" not in told, "there is no validation image"
    by_cells = correct_first(images, proposals, others, chosen)
    assert by_cells["image_id"].tolist() == ["a", "b", "c", "d"], "the rule of `cellkit plan`: most cells, then by name"
    assert by_cells["why"].iloc[0] == "most cells; 4 cells expected"
    told = tell_proposed(chosen, by_cells)
    assert tell_proposed(corrected, correct_first(images, proposals, others, corrected)) == ""
    stage = stage_of(images, "proposed")
    assert write_rounds(stage, images, proposals, others, chosen) == told
    assert pd.read_csv(images.root / "correct_first.csv")["image_id"].tolist() == ["a", "b", "c", "d"]
    assert pd.read_csv(images.root / "label_changes.csv").empty
    assert next_images(stage, 2)["image_id"].tolist() == ["a", "b"]


def test_a_name_of_digits_or_with_a_sign_stays_a_name(tmp_path):
    table = pd.DataFrame(
        {"image_id": ["001", "=2"], "split": ["train", "val"], "cell_type": ["1", "-2"], "group": ["01", ""]}
    )
    write_frame(tmp_path / "correct_first.csv", table)
    shown = next_images(SimpleNamespace(path=lambda name: tmp_path / name))
    assert shown[["image_id", "cell_type", "group"]].to_numpy().tolist() == [["001", "1", "01"], ["=2", "-2", ""]]


def test_images_that_judge_are_in_random_order_and_stand_below(images):
    splits = dict(zip("abcd", ("val", "val", "test", "train"), strict=True))
    images = images.with_records([replace(r, split=splits[r.image_id]) for r in images.records])
    proposals = [cells(4), cells(3), cells(2), cells(1)]
    chosen = [Labelled(n, x.paint(), "proposed") for n, x in zip("abcd", proposals, strict=True)]
    table = correct_first(images, proposals, proposals, chosen)
    assert table["image_id"].iloc[0] == "d" and set(table["rule"].iloc[1:]) == {"random"}
    fewer = [cells(1), cells(2), cells(3), cells(4)]
    again = correct_first(images, fewer, proposals, chosen)
    assert again["image_id"].tolist() == table["image_id"].tolist(), "what judges is not chosen by what is found there"
    told = tell_proposed(chosen, table)
    assert "\ncorrect first: d (correct_first.csv" in told
    (line,) = [line for line in told.splitlines() if line.startswith("to judge by, chosen at random: ")]
    assert {"a", "b"} == set(line.split(": ")[1].split(";")[0].split(", "))
    flagged = images.with_records([replace(r, flags="debris") for r in images.records])
    assert correct_first(flagged, proposals, proposals, chosen).empty


def test_changes_are_counted_against_proposals_and_the_last_round(images, tmp_path):
    proposals = [cells(3)] * 4
    moved = cells(4).paint()
    moved[1, 0:2] = 0  # the first cell lost a row, a fourth was drawn
    first = [Labelled(n, cells(3).paint(), "proposed") for n in "abcd"]
    write_chosen(first, tmp_path / "labels", tmp_path / "labels.csv")
    second = [Labelled("a", moved, "corrected"), *first[1:3], Labelled("d", cells(2).paint(), "corrected")]
    table = label_changes(images, proposals, second, tmp_path / "labels")
    assert list(table.columns) == list(CHANGE_COLUMNS)
    rows = [tuple(row) for row in table.drop(columns=["made_by", "iou"]).itertuples(index=False)]
    told = [("a", 4, 2, 1, 1, 0), ("d", 2, 2, 0, 0, 1)]
    assert rows == [("proposals", *one) for one in told] + [("last round", *one) for one in told]
    np.testing.assert_allclose(table["iou"], [(2 + 2 / 3) / 3, 1] * 2)
    assert label_changes(images, proposals, first, tmp_path / "labels").empty, "nothing was changed"
    of_another_diameter = [Labelled(n, cells(2).paint(), "proposed") for n in "abcd"]
    assert label_changes(images, [cells(2)] * 4, of_another_diameter, tmp_path / "labels").empty, "by no person"
    (tmp_path / "labels/labels.json").write_text("{")
    assert set(label_changes(images, proposals, second, tmp_path / "labels")["since"]) == {"proposals"}
    assert set(label_changes(images, proposals, second, tmp_path / "nowhere")["since"]) == {"proposals"}


def test_a_correction_is_compared_with_the_proposal_that_was_opened_for_it(images):
    """Its files are those of the model that 03 kept; the proposals of this round are another model's."""
    folder, name = images.root / "mine", "a"
    write_rois(folder / f"{name}_rois.zip", cells(3), made_by="proposed")
    write_label_png(folder / f"{name}_masks.png", cells(2).paint())
    chosen = [Labelled(n, cells(2).paint(), "corrected" if n == name else "proposed") for n in "abcd"]
    told = write_rounds(stage_of(images, str(folder)), images, [cells(1)] * 4, [cells(1)] * 4, chosen)
    table = pd.read_csv(images.root / "label_changes.csv")
    assert table[["image_id", "same", "changed", "added", "removed"]].to_numpy().tolist() == [[name, 2, 0, 0, 1]]
    assert f"in order), save them in {folder}" in told and "set label.use" not in told


def test_nothing_before_and_nothing_after():
    assert change(cells(0), cells(2))[:4] == (0, 0, 2, 0)
    assert change(cells(2), cells(0))[:4] == (0, 0, 0, 2)
    assert np.isnan(change(cells(0), cells(0))[4])
