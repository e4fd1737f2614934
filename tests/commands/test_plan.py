"""`cellkit plan`: which images to label next, in a run and in a folder, the files to correct, and what comes back."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from conftest import write_png

from cellkit.cells.records import write_records
from cellkit.config.sections import ConvertConfig, LabelConfig
from cellkit.formats.label_images import stamp_of, write_labels
from cellkit.formats.seg import read_seg
from cellkit.labelling.annotate import Labelled, write_chosen
from cellkit.labelling.corrections import read_corrections
from cellkit.run.folder import Run
from cellkit.sources.unlabelled import NO_TRUTH


@pytest.fixture(scope="module")
def made(drawn, tmp_path_factory) -> Path:
    """A run of 01 and 02 whose labels are proposals, but for one training image; another one is flagged."""
    folder = tmp_path_factory.mktemp("plan") / "run"
    records = [replace(record, split="train", group=f"w{k % 2}") for k, record in enumerate(drawn.records[:5])]
    records = [*records, replace(drawn.records[5], split="val")]
    records[4] = replace(records[4], flags="debris", split="")
    stage = Run(folder).start("01_convert", ConvertConfig(classes=("HEK", "N2a")))
    for record in records:
        shutil.copy(drawn.root / record.path, stage.path(record.path))
    stage.done(records=write_records(stage.path("records.csv"), records), images=stage.path("images"))
    stage = Run(folder).start("02_label_with_cellpose", LabelConfig(use="proposed", diameter_px=30.0))
    pairs = zip(records, drawn.instances, ("corrected", *("proposed",) * 3, "", "proposed"), strict=True)
    chosen = [Labelled(r.image_id, cells.paint(), maker) for r, cells, maker in pairs if maker]
    labels = write_chosen(chosen, stage.path("labels"), stage.path("labels.csv"), drawn.with_records(records))
    stage.done(labels=labels / "labels.json", label_images=labels, labels_table=stage.path("labels.csv"))
    return folder


@pytest.fixture
def run_dir(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def ranked(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "plan.csv", dtype={"image_id": str}, keep_default_na=False)


def test_a_run_says_what_to_label_next_writes_it_and_offers_nothing_twice(run_dir, drawn, said):
    code, out, _ = said("plan", run_dir, "-n", "2")
    assert code == 0
    assert "3 training images to label, 1 labelled by a person, 1 flagged and not offered" in out
    table, folder = ranked(run_dir / "to_correct"), run_dir / "to_correct"
    assert set(table["image_id"]) == {"1", "2", "3"} and set(table["rule"]) == {"densest"}
    assert table["cell_type"].iloc[0] == "N2a", "HEK has had its turn: image 0 is labelled"
    top = table["image_id"].head(2).tolist()
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["plan.csv", *(f"{name}{ending}" for name in top for ending in (".png", "_rois.zip", "_seg.npy"))]
    )
    cells = {name: len(read_seg(folder / f"{name}_seg.npy").instances) for name in top}
    assert [cells[name] for name in top] == table["cells"].head(2).tolist() and all(cells.values())
    assert "to judge by, chosen at random: 5" in out
    assert "what more images would gain cannot be told yet: no score of a trained model is given" in out
    assert "label 3 images first" in out, "of one labelled image no curve is measured"

    unchanged = {path.name: path.read_bytes() for path in folder.iterdir()}
    said("plan", run_dir, "-n", "2")
    assert unchanged == {path.name: path.read_bytes() for path in folder.iterdir()}, "the same again"
    (folder / "confirmed.csv").write_text(f"image_id\n{top[0]}\n")  # a person says: right as it is
    _, out, _ = said("plan", run_dir, "--json")
    told = json.loads(out)
    assert told["labelled"] == 2 and {row["image_id"] for row in told["images"]} == {"1", "2", "3"} - {top[0]}
    images = drawn.subset([1, 2, 3])
    found, unused, _ = read_corrections(images, images.instances, folder)
    assert [name for name, one in found.items() if one.by_person] == [top[0]] and not unused, "plan.csv is no label"


def test_images_that_a_run_left_out_for_want_of_labels_are_left_to_label(run_dir, said):
    manifest = json.loads((run_dir / "manifest.json").read_text())
    skipped = [{"item": "HEK/9.tif", "reason": NO_TRUTH}, {"item": "HEK/8.tif", "reason": "is empty"}]
    manifest["stages"]["01_convert"]["quarantined"] = skipped
    (run_dir / "manifest.json").write_text(json.dumps(manifest))
    code, out, _ = said("plan", run_dir, "-n", "1", "--model", "threshold")
    assert code == 0 and "1 image has no labels, and is not in the run: HEK/9.tif; label them where" in out
    assert json.loads(said("plan", run_dir, "--model", "threshold", "--json")[1])["not_in_run"] == ["HEK/9.tif"]


def test_where_nothing_is_left_the_cost_is_of_images_like_the_labelled_ones(run_dir, drawn, said):
    (run_dir / "learning_curve.csv").write_text("images,score\n1,0.5\n2,0.6\n3,0.65\n5,0.7\n")
    assert said("plan", run_dir, "-n", "3")[0] == 0
    (run_dir / "to_correct" / "confirmed.csv").write_text("image_id\n1\n2\n3\n")  # right as they are
    code, out, _ = said("plan", run_dir)
    cells = 5 * len(drawn.instances[0])
    assert code == 0 and "nothing is left to label" in out
    assert f"about {cells} cells, {cells * 5 / 60 + 5:.0f} minutes" in out, out


@pytest.mark.parametrize("out", [".", "labels", "labels/mine", "images", "notebooks", "records.csv"])
def test_nothing_is_written_where_the_run_keeps_its_own_files(run_dir, said, out):
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    code, _, err = said("plan", run_dir, "-n", "1", "-o", run_dir / out)
    assert code == 2 and "is a place where the run keeps its own files" in err
    assert before == {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}


@pytest.mark.parametrize("rule", ["farthest_first", "kmeans_centres", "disagreement_x_coverage"])
def test_rules_that_look_at_the_images(rule, run_dir, said):
    code, _, _ = said("plan", run_dir, "--rule", rule, "-n", "1", "-o", run_dir.parent / rule)
    table = ranked(run_dir.parent / rule)
    assert code == 0 and set(table["rule"]) == {rule}
    assert (table["distance"] > 0).all(), "to the labelled image"
    disagreements = {"disagreement_flips", "disagreement_thresholds"}
    assert disagreements <= set(table) if "disagreement" in rule else not disagreements & set(table)


def test_a_backend_without_style_is_told_so(run_dir, said):
    code, _, err = said("plan", run_dir, "--model", "threshold", "--rule", "farthest_first")
    assert code == 2 and "Threshold has none" in err and "densest" in err
    code, out, _ = said("plan", run_dir, "--model", "threshold", "--rule", "disagreement")
    assert code == 0 and "two readings of the model differ most" in out


def test_a_folder_of_pictures_is_planned_with_a_named_model(drawn, tmp_path, said):
    pictures, out = tmp_path / "pictures", tmp_path / "next"
    (pictures / "a").mkdir(parents=True)
    for record in drawn.records[:4]:
        shutil.copy(drawn.root / record.path, pictures / "a" / f"{record.image_id}.png")
    tifffile.imwrite(pictures / "a/1_masks.tif", drawn.instances[1].paint().astype(np.uint16))
    (pictures / "torn.png").write_bytes(b"no picture")
    code, text, err = said("plan", pictures, "--model", "threshold", "-o", out, "-n", "1")
    assert code == 3 and "torn.png" in err and "3 training images to label, 1 labelled by a person" in text
    assert set(ranked(out)["image_id"]) == {"a_0", "a_2", "a_3"}
    assert len(list(out.glob("*_seg.npy"))) == 1


@pytest.mark.parametrize(
    ("pictures", "labels"),
    [("images", "masks"), ("images/w", "labels/w"), ("train_images", "train_masks"), ("images", "images/masks")],
)
def test_what_a_run_on_the_folder_reads_as_truth_is_labelled(pictures, labels, drawn, tmp_path, said):
    """Label images called as their pictures, in folders of their own; a model's proposal is none."""
    root, out = tmp_path / "data", tmp_path / "next"
    for k in range(4):
        write_png(root / pictures / f"{k}.png", drawn.image(k))
        write_png(root / f"images/other/{k}.png", drawn.image(k) // 2)  # of the same names, without labels
    (root / labels).mkdir(parents=True, exist_ok=True)
    for k in (0, 1):
        tifffile.imwrite(root / labels / f"{k}.tif", drawn.instances[k].paint().astype(np.uint16))
    proposed = drawn.instances[2].paint()
    write_labels(root / labels / "2.tif", proposed, stamp_of(proposed, proposed=True))
    code, text, _ = said("plan", root, "--model", "threshold", "-o", out, "-n", "1")
    assert code == 0 and "6 training images to label, 2 labelled by a person" in text
    offered = {name.rpartition("_")[2] for name in ranked(out)["image_id"] if "other" not in name}
    assert offered == {"2", "3"}


def test_start_weights_look_with_the_diameter_of_the_cells_there(drawn, tmp_path, said):
    """Pictures enlarged twice: at the 30 px of the card their cells are not told apart as well."""
    for k in range(2):
        write_png(tmp_path / f"p/{k}.png", drawn.image(k).repeat(2, axis=0).repeat(2, axis=1))
        write_png(tmp_path / f"whole/{k}.png", drawn.image(k))
    for name in ("p", "whole"):
        assert said("plan", tmp_path / name, "--model", "starter_light", "-o", tmp_path / f"to_{name}")[0] == 0
    cells = [ranked(tmp_path / f"to_{name}").set_index("image_id")["cells"] for name in ("p", "whole")]
    for twice, once in zip(*(one.sort_index() for one in cells), strict=True):
        assert abs(twice - once) <= 0.1 * once
    from cellkit.commands.planning import _unsized
    from cellkit.predict.model import find_model

    assert "diameter_px" not in _unsized(find_model("starter_light")).config
    path = find_model("starter_light").checkpoint
    assert _unsized(find_model(path)).config["diameter_px"] == 30.0, "a checkpoint has the diameter it was tuned with"


@pytest.mark.parametrize(
    ("flags", "problem", "remedy"),
    [
        (("--rule", "densets"), "no rule 'densets' (did you mean 'densest'?)", "choose from"),
        (("-n", "0"), "--count 0", "1 image or more"),
        (("--seconds-per-cell", "0"), "--seconds-per-cell 0", "a time above 0"),
        (("--curve", "nowhere.csv"), "no file at nowhere.csv", "columns images, score"),
    ],
)
def test_bad_usage(flags, problem, remedy, run_dir, said):
    code, _, err = said("plan", run_dir, "--model", "threshold", *flags)
    assert code == 2 and problem in err and remedy in err


def test_files_need_a_model_and_a_place(tmp_path, said):
    write_png(tmp_path / "p/a.png", np.zeros((20, 20, 3), np.uint8))
    assert "no model is named" in said("plan", tmp_path / "p")[2]
    assert "no folder for the files to correct" in said("plan", tmp_path / "p", "--model", "threshold")[2]


def test_a_curve_says_how_many_more_are_worth_it(run_dir, said):
    (run_dir / "learning_curve.csv").write_text("images,score\n1,0.5\n2,0.6\n3,0.64\n5,0.67\n")
    _, out, _ = said("plan", run_dir, "--model", "threshold")
    assert "5 more images: +0.0" in out and "cells," in out and "by the curve the next" in out
