"""Faults of labels, names, COCO files and hostile text, met as a user meets them; the table is in test_faults.py."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
from fault_cases import CELL, CELLS, GREY, coco_file, config, refused, save, table  # noqa: F401

from cellkit.errors import UserError
from cellkit.formats.label_images import write_labels
from cellkit.sources.ingest import convert_images

# ---- labels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["a_masks.jpg", "labels/a.jpeg"])
def test_row_13_jpeg_labels_are_refused_and_not_passed_over(tmp_path, place):
    save(tmp_path / "in" / "a.png"), save(tmp_path / "in" / "b.png")
    write_labels(tmp_path / "in" / "b_masks.tif", CELLS)
    save(tmp_path / "in" / place, CELLS.astype(np.uint8))
    made = convert_images(config(), tmp_path / "in", tmp_path / "run")
    assert [record.image_id for record in made.images.records] == ["b"]
    assert "cannot hold labels" in made.quarantined[0].reason and made.quarantined[0].item == "a.png"


def test_row_13_resampled_labels(tmp_path):
    save(tmp_path / "in" / "a.png")
    smooth = (CELLS[:, 1:] + CELLS[:, :-1]) / 2  # what a linear resize makes of ids
    tifffile.imwrite(tmp_path / "in" / "a_masks.tif", smooth)
    with pytest.raises(UserError, match="a_masks.tif holds .* float64.*integers"):
        convert_images(config(), tmp_path / "in", tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.png"))


def test_row_20_images_without_cells_stay_and_few_cells_are_a_choice(tmp_path):
    from cellkit.cells.dataset import CellDataset

    for name, labels in (("none", CELLS * 0), ("one", (CELLS == 1).astype(np.int32)), ("three", CELLS)):
        save(tmp_path / "in" / f"{name}.png")
        write_labels(tmp_path / "in" / f"{name}_masks.tif", labels)
    made = convert_images(config(), tmp_path / "in", tmp_path / "run")
    everything = CellDataset(made.images.records, made.images.instances, ("cell",), tmp_path / "run", [1, 2, 3])
    assert {r.image_id: len(cells) for r, cells in zip(made.images.records, made.images.instances, strict=True)} == {
        "none": 0, "one": 1, "three": 3,
    }  # fmt: skip
    for least, left in ((0, ["none", "one", "three"]), (1, ["one", "three"]), (2, ["three"])):
        assert [record.image_id for record in everything.with_at_least(least).records] == left


# ---- names ---------------------------------------------------------------------------------------------------------


def test_row_23_files_of_one_name(said, refused, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        tifffile.imwrite(tmp_path / "in" / folder / "1.tif", GREY + len(folder))
    assert said("convert", tmp_path / "in", "-o", tmp_path / "one", "--nuclei", 0)[0] == 0
    assert sorted(path.name for path in (tmp_path / "one").glob("*.png")) == ["a_1.png", "b_1.png"]
    both = [tmp_path / "in" / "a", tmp_path / "in" / "b"]
    code, _, err = said("convert", *both, "-o", tmp_path / "two", "--nuclei", 0)
    assert code == 0 and len(list((tmp_path / "two").glob("*.png"))) == 2, err
    tifffile.imwrite(tmp_path / "in" / "a_1.tif", GREY)
    told = refused("convert", tmp_path / "in", "-o", tmp_path / "three", "--nuclei", 0)
    assert "a/1.tif" in told and "a_1.tif" in told and not list(tmp_path.glob("three/*.png"))


# ---- COCO ----------------------------------------------------------------------------------------------------------

RESULT = {"image_id": 1, "category_id": 1, "segmentation": CELL["segmentation"], "score": 0.5}

BAD_TRUTH = {
    26: [({"segmentation": {"size": [3, 4], "counts": [3, 20, 7]}}, "12"),
         ({"segmentation": {"size": [3, 4], "counts": [-3, 8, 7]}}, "")],
    27: [({"segmentation": {"size": [3, 4], "counts": [3, 2]}}, "covers 5 px, its image has 12")],
    28: [({"segmentation": [[0, 0, 1e300, 1, 1, 1]]}, ""), ({"segmentation": [[0, 0, 1, 1]]}, "")],
    30: [({"id": 0}, ""), ({"image_id": 0}, "")],
    31: [({"image_id": 7}, "1 annotation of images that are not there, e.g. image_id 7")],
}  # fmt: skip


@pytest.mark.parametrize(("row", "change", "words"), [(r, *c) for r, cases in BAD_TRUTH.items() for c in cases])
def test_row_26_to_31_at_the_command_line(said, tmp_path, row, change, words):
    good = coco_file(tmp_path / "good.json", CELL)
    bad = coco_file(tmp_path / "bad.json", CELL | change)
    code, out, err = said("score", bad, good, "--bootstrap", 0)
    if row == 30 and code == 0:  # annotation ids from 0 do no harm here: they are numbered anew
        assert "1.0" in out
        return
    assert (code, out) == (2, "") and len(err.splitlines()) == 2, err
    assert "bad.json" in err and words in err


def test_row_33_to_34_empty_results_and_scores_that_are_no_number(said, refused, tmp_path):
    truth = coco_file(tmp_path / "truth.json", CELL)
    results = tmp_path / "results.json"
    results.write_text("[]")
    code, out, _ = said("score", truth, results, "--bootstrap", 0, "--json")
    assert code == 0 and '"kaggle"' in out and not re.search(r"NaN|Infinity", out)
    for score in ("NaN", "Infinity", '"high"'):
        results.write_text(json.dumps([RESULT]).replace("0.5", score))
        assert "results.json" in refused("score", truth, results, "--bootstrap", 0)


# ---- hostile text --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "name: !!python/object/apply:os.system [touch pwned]",
        "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
        "name: x\n#" + "x" * 300_000,
        "finetune: {stpes: 3}",
    ],
)
def test_row_45_hostile_config(refused, tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(text)
    assert "c.yaml" in refused("run", "c.yaml", "--run", "r")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.yaml"]


def test_row_46_names_that_are_formulas(said, tmp_path):
    names = ["=cmd()", "+1", "-1+2", "@SUM(A1)"]
    for name in names:
        tifffile.imwrite(tmp_path / f"{name}.tif", GREY)
    assert said("convert", tmp_path, "-o", tmp_path / "out", "--nuclei", 0)[0] == 0
    rows = [row.values() for row in table(tmp_path / "out" / "conversion.csv")]
    assert len(rows) == len(names)
    assert all(cell[:1] not in ("=", "+", "-", "@", "\t", "\r") for row in rows for cell in row)
    assert sum(cell.startswith("'") for row in rows for cell in row) >= len(names)
