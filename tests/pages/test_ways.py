"""Which way wins: small runs whose answers are known by hand, and what the tables say of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cellkit.cells.dataset import CellDataset, predict_all
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord, write_records
from cellkit.config.reading import load_config
from cellkit.errors import Quarantined, UserError
from cellkit.files import read_json, write_json
from cellkit.formats.any import read_side
from cellkit.formats.coco import write_coco, write_predictions
from cellkit.manifest import read_manifest
from cellkit.outdated import unused_models
from cellkit.pages.costs import cost_of, finding_of, needed_stages
from cellkit.pages.report import page
from cellkit.pages.results import RunFiles
from cellkit.pages.ways import compare_runs, conventions_of, off, without_unknown
from cellkit.pages.ways_tables import BEGIN, END, about, grids_of, read_parts, to_markdown, write_markdown
from cellkit.run.folder import Run
from cellkit.under_way import measured

REPO = Path(__file__).parents[2]
SHAPE = (24, 32)
LINES = ("HEK", "N2a")
SPLITS = {"train": 2, "val": 4, "test": 6}


def cells_of(k: int) -> Instances:
    """Three cells, two of the first class and one of the second; their sizes depend on the image."""
    labels = np.zeros(SHAPE, int)
    labels[2:10, 2 : 10 + k % 3], labels[13:22, 2:11], labels[4:20, 16 : 26 + k % 4] = 1, 2, 3
    return Instances.from_labels(labels, class_ids=[1, 1, 2], scores=[0.9, 0.8, 0.7])


def blurred(cells: Instances, by_px: int) -> Instances:
    """The same cells, each moved to the right: outlines that are a little wrong."""
    return Instances.from_labels(np.roll(cells.paint(), by_px, axis=1), cells.class_ids, cells.scores)


def make_run(folder: Path, models: dict, person: bool = True) -> Run:
    """Write what notebooks 01, 04 and 05 write: images, true cells, and what each model finds (a function of image and truth)."""
    cfg = load_config(REPO / "configs" / "demo.yaml", {})
    run, names = Run(folder), [(split, f"{split}{k}") for split, count in SPLITS.items() for k in range(count)]
    records = [
        ImageRecord(name, f"images/{name}.png", *SHAPE, cell_type="mixed", group="", split=split)
        for split, name in names
    ]
    truth = [cells_of(k) for k in range(len(records))]
    data = CellDataset(
        records,
        truth,
        LINES,
        folder,
        list(range(1, len(records) + 1)),
        ["truth" if person else "proposed"] * len(records),
    )
    stage = run.start("01_convert", cfg.convert)
    stage.done(records=write_records(stage.path("records.csv"), records))
    stage = run.start("04_cells_to_coco", cfg.coco)
    run.find("records")
    coco = {}
    for split in SPLITS:
        part = data.select(split)
        coco[f"coco_{split}"] = write_coco(
            stage.path(f"coco/{split}.json"), part.records, part.instances, LINES, part.ids, made_by=part.made_by
        )
    stage.done(**coco)
    stage, held = run.start("05_train_maskrcnn", cfg.maskrcnn), data.held_out()
    run.find_all("coco_*")
    written = {}
    for name, find in models.items():
        with stage.measured(name):
            sum(range(1000))
        with measured(name, "find", len(held) * SHAPE[0] * SHAPE[1] / 1e6):
            found = [find(k, cells) for k, cells in enumerate(held.instances)]
        written[f"predictions_{name}"] = write_predictions(stage, name, held, found)
    stage.done(**written)
    return run


MODELS = {
    "perfect": lambda k, cells: cells,
    "shifted": lambda k, cells: blurred(cells, 1),
    "plain": lambda k, cells: cells[:2].with_classes(0),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return make_run(tmp_path_factory.mktemp("ways") / "mine", MODELS)


@pytest.fixture(scope="module")
def comparison(run):
    (one,), left_out = compare_runs([run.folder], bootstrap=200)
    assert left_out == []
    return one


def row_of(comparison, name: str) -> dict:
    return next(row for row in comparison.rows if row["name"] == name)


def test_every_model_has_a_row_with_what_is_known_of_it(comparison):
    assert [row["name"] for row in comparison.rows] == ["perfect", "plain", "shifted"]
    assert (comparison.split, comparison.images, comparison.labelled) == ("test", 6, {"train": 2, "val": 4})
    perfect, plain = row_of(comparison, "perfect"), row_of(comparison, "plain")
    assert (perfect["score"], perfect["f1_50"], perfect["class_right"], perfect["class_cells"]) == (1.0, 1.0, 1.0, 18)
    assert perfect["voc_ap50"] == {"HEK": 1.0, "N2a": 1.0}
    assert perfect["point"] == {"recall": 1.0, "precision": 1.0}
    assert plain["score"] == pytest.approx(2 / 3)
    assert (plain["f1_50"], plain["class_right"], plain["voc_ap50"], plain["counts"]) == (0.8, None, None, [])
    assert [(one["class_name"], one["found"], one["truth"], one["off"]) for one in perfect["counts"]] == [
        ("HEK", 12, 12, 0.0),
        ("N2a", 6, 6, 0.0),
    ]


def test_validation_images_choose_and_test_images_tell_what_is_worse(comparison):
    assert (comparison.chosen, comparison.decided_on) == ("perfect", 4)
    plain = row_of(comparison, "plain")
    assert plain["gain"] == pytest.approx(-1 / 3)
    assert (plain["worse"], plain["better"]) == (True, False)
    assert row_of(comparison, "perfect")["gain"] is None
    assert "perfect is chosen by 4 validation images" in comparison.verdict
    assert comparison.verdict.endswith("worse: plain / shifted.") and "flatters" not in comparison.verdict


def test_models_of_another_state_of_the_run_are_named_not_compared(run, tmp_path, capsys):
    folder = tmp_path / "again"
    shutil.copytree(run.folder, folder)
    again, cfg = Run(folder), load_config(REPO / "configs" / "demo.yaml", {})
    stage, images = again.start("02_label_with_cellpose", cfg.label), RunFiles(folder).images.held_out()
    stage.done(predictions_base=write_predictions(stage, "base", images, [cells_of(0)[:0]] * len(images)))
    stage, coco = again.start("04_cells_to_coco", cfg.coco), sorted((run.folder / "coco").glob("*.json"))
    for path in coco:
        shutil.copy(path, stage.path(f"coco/{path.name}"))
    with open(stage.root / "coco" / "train.json", "a") as file:
        file.write("\n")  # other training images, and the same to score
    stage.done(**{f"coco_{path.stem}": stage.root / "coco" / path.name for path in coco})
    (one,), left_out = compare_runs([folder], bootstrap=20)
    assert [row["name"] for row in one.rows] == ["base"]
    why = "05_train_maskrcnn is outdated: it read another coco_train than 04_cells_to_coco has written since"
    assert left_out == [Quarantined(f"again:{name}", why) for name in sorted(MODELS)]
    assert set(RunFiles(folder).unused) == set(MODELS) and "Out of date" in page(RunFiles(folder))
    assert RunFiles(folder, folder / "unfinished" / "06_evaluate_map_iou").models == ["base", *sorted(MODELS)]
    before = ("01_convert", "02_label_with_cellpose", "04_cells_to_coco")
    assert RunFiles(folder, folder / "unfinished" / "06_evaluate_map_iou", before=before).models == ["base"]


def test_models_that_the_evaluation_left_out_are_no_part_of_the_run(run):
    manifest = read_manifest(run.folder)
    left = {"outputs": {"predictions_old": {"path": "predictions/old.json", "sha256": "1"}}, "inputs": {}}
    manifest["stages"]["03_finetune_cellpose"] = left | {"status": "finished", "finished": "2026-01-01"}
    read = {"status": "finished", "started": "2026-01-02", "inputs": {}, "outputs": {}}
    keys = [f"predictions_{name}" for name in MODELS]
    manifest["stages"]["06_evaluate_map_iou"] = read | {"patterns": {"predictions_*": keys}}
    assert unused_models(manifest) == {"old": "03_finetune_cellpose was left out when the run was evaluated"}
    manifest["stages"]["03_finetune_cellpose"]["finished"] = "2026-01-03"
    assert unused_models(manifest) == {}, "made since: the evaluation is to be repeated"


def test_what_validation_images_choose_is_named_even_where_test_images_say_otherwise(tmp_path):
    turned = {"a": lambda k, cells: cells if k < 4 else blurred(cells, 2), "b": lambda k, cells: blurred(cells, 1)}
    (one,), _ = compare_runs([make_run(tmp_path / "turned", turned).folder], bootstrap=200)
    assert one.chosen == "a"
    assert row_of(one, "b")["better"]
    assert "better than it beyond doubt: b" in one.verdict


def test_equal_ways_cannot_be_told_apart_and_the_cheaper_is_named(tmp_path):
    twins = {"a": lambda k, cells: blurred(cells, 1), "b": lambda k, cells: blurred(cells, 1)}
    (one,), _ = compare_runs([make_run(tmp_path / "twins", twins).folder], bootstrap=200)
    assert not row_of(one, "b")["better"] and not row_of(one, "b")["worse"]
    assert "cannot be told from it: b" in one.verdict
    assert "Cheapest of those that cannot be told apart: a, " in one.verdict
    resumed = replace(one, rows=[row | {"resumed": True} for row in one.rows])
    assert "told apart: a, ≥ " in resumed.verdict


def test_where_too_few_images_are_reported_no_way_is_the_cheapest_of_equals(run, tmp_path, monkeypatch):
    monkeypatch.setitem(SPLITS, "test", 2)
    (one,), _ = compare_runs([make_run(tmp_path / "few", MODELS).folder], bootstrap=200)
    assert about(replace(one, labelled={"val": 1}, images=1)).endswith(
        "Labelled: 1 validation image. Scored: 1 test image, intervals over 2 images (few)."
    )
    assert one.verdict.endswith("In the test images nothing tells which way is better: 2 images are too few.")
    assert row_of(one, "plain")["untold"] == "2 images are too few" and row_of(one, "perfect")["untold"] == ""
    (one,), _ = compare_runs([run.folder], bootstrap=0)
    assert one.verdict.endswith("nothing tells which way is better: no interval was drawn.")


def test_what_a_run_spends_is_in_its_manifest_and_in_the_table(run, comparison):
    costs = read_manifest(run.folder)["stages"]["05_train_maskrcnn"]["costs"]
    assert sorted(costs) == ["perfect", "plain", "shifted"]
    assert costs["plain"]["find"]["mpx"] == pytest.approx(10 * 24 * 32 / 1e6, abs=1e-3)
    assert set(costs["plain"]["train"]) == {"seconds", "processor_s", "mpx", "peak_bytes"}
    row = row_of(comparison, "plain")
    assert row["train_s"] == costs["plain"]["train"]["processor_s"]
    assert row["whole_s"] >= row["stage_s"] > 0
    assert row["peak_bytes"] > 1e6
    assert row["resumed"] is False


def test_finding_is_measured_under_the_name_of_the_model_and_not_within_a_training(tmp_path):
    cfg, run = load_config(REPO / "configs" / "demo.yaml", {}), Run(tmp_path / "run")
    images = CellDataset([], [])
    stage = run.start("03_finetune_cellpose", cfg.finetune)
    predict_all(lambda stream: iter(()), images, "alone")
    with stage.measured("tuned"):
        predict_all(lambda stream: iter(()), images, "within")
    with pytest.raises(ZeroDivisionError), stage.measured("failed"):
        raise ZeroDivisionError
    predict_all(lambda stream: iter(()), images, "after")
    stage.done()
    predict_all(lambda stream: iter(()), images, "no stage")
    costs = read_manifest(run.folder)["stages"]["03_finetune_cellpose"]["costs"]
    assert {name: list(of) for name, of in costs.items()} == {"alone": ["find"], "tuned": ["train"], "after": ["find"]}


def test_a_stage_that_goes_on_says_so(tmp_path):
    cfg, run = load_config(REPO / "configs" / "demo.yaml", {}), Run(tmp_path / "run")
    run.start("01_convert", cfg.convert)
    stage = run.start("01_convert", cfg.convert)  # as after a kill
    stage.done()
    assert read_manifest(run.folder)["stages"]["01_convert"]["resumed"] is True
    run.start("01_convert", cfg.convert).done()
    assert read_manifest(run.folder)["stages"]["01_convert"]["resumed"] is False


STAGES = {
    "01": {"outputs": {"images": {"path": "images"}}, "processor_s": 10.0, "peak_bytes": 5},
    "02": {"outputs": {"labels": {"path": "labels/labels.json"}}, "inputs": {"i": {"path": "images"}}, "processor_s": 20.0},
    "03": {"outputs": {"x": {"path": "x"}}, "inputs": {"l": {"path": "images"}}, "processor_s": 40.0, "resumed": True},
    "05": {
        "outputs": {"predictions_a": {"path": "predictions/a.json"}, "predictions_b": {"path": "predictions/b.json"}},
        "inputs": {"l": {"path": "labels/labels.json"}, "w": {"path": "/w", "outside": True}},
        "processor_s": 80.0, "peak_bytes": 7, "device": "cpu", "arithmetic": {"number_type": "float32", "threads": 1},
    },
}  # fmt: skip


def test_all_notebooks_that_a_model_needs_are_counted_and_no_other():
    assert needed_stages(STAGES, "05") == ["01", "02", "05"]
    cost = cost_of(STAGES, "a")
    assert (cost["stage"], cost["whole_s"], cost["peak_bytes"], cost["resumed"]) == ("05", 110.0, 7, False)
    assert (cost["train_s"], cost["find_s"], cost["shared"]) == (
        None,
        None,
        True,
    )  # a run of before: nothing of a single model was noted
    assert cost["device"] == "cpu, float32, 1 thread"
    assert cost_of(STAGES, "nobody")["whole_s"] is None


def test_a_model_that_is_not_trained_cost_no_training():
    costs = {"a": {"find": {"processor_s": 6.0, "mpx": 2.0}}, "b": {"train": {"processor_s": 50.0}}}
    stages = STAGES | {"05": STAGES["05"] | {"costs": costs}}
    assert [cost_of(stages, name)["train_s"] for name in "ab"] == [0.0, 50.0]
    assert [cost_of(stages, name)["find_s"] for name in "ab"] == [3.0, None]
    assert [cost_of(stages, name)["whole_s"] for name in "ab"] == [60.0, 110.0]
    assert not any(cost_of(stages, name)["shared"] for name in "ab")


def test_the_cells_with_a_class_cost_their_outlines_too():
    spent = lambda seconds: {"find": {"processor_s": seconds, "mpx": 2.0}}  # noqa: E731
    named = {"outputs": {"predictions_cellpose_classes": {"path": "p"}}, "costs": {"cellpose_classes": spent(1.0)}}
    checkpoints = {
        f"cellpose_{name}checkpoint": {"path": path} for name, path in (("", "t"), ("tuned_", "t"), ("base_", "b"))
    }
    written = {"predictions_cellpose_tuned": {"path": "q"}, "predictions_cellpose_base": {"path": "r"}}
    found = {"outputs": checkpoints | written, "costs": {"cellpose_base": spent(9.0), "cellpose_tuned": spent(4.0)}}
    assert finding_of({"03": found, "05": named}, "cellpose_classes") == 2.5
    assert finding_of({"03": found | {"costs": {}}, "05": named}, "cellpose_classes") is None


def test_runs_of_the_same_labels_are_one_comparison_and_the_same_predictions_one_row(run, tmp_path):
    more = make_run(tmp_path / "more", {"perfect": MODELS["perfect"], "shifted": lambda k, cells: blurred(cells, 2)})
    (one,), _ = compare_runs([run.folder, more.folder], bootstrap=200)
    assert [row["name"] for row in one.rows] == ["perfect", "plain", "mine: shifted", "more: shifted"]
    assert row_of(one, "more: shifted")["score"] < row_of(one, "mine: shifted")["score"]


def test_runs_of_other_labels_are_compared_apart(run, tmp_path):
    other = make_run(tmp_path / "other", {"perfect": lambda k, cells: cells})
    manifest = read_json(other.folder / "manifest.json")
    for stage, kind in (("04_cells_to_coco", "outputs"), ("05_train_maskrcnn", "inputs")):
        manifest["stages"][stage][kind]["coco_test"]["sha256"] = "0" * 64
    write_json(other.folder / "manifest.json", manifest)
    comparisons, _ = compare_runs([run.folder, other.folder], bootstrap=0)
    assert len(comparisons) == 2
    for folder in (run.folder, other.folder):  # nor where no notebook lists the true cells
        copy = shutil.copytree(folder, tmp_path / "unlisted" / folder.name)
        manifest = read_json(copy / "manifest.json")
        del manifest["stages"]["04_cells_to_coco"]
        write_json(copy / "manifest.json", manifest)
    path = tmp_path / "unlisted/other/coco/test.json"
    data = read_json(path)
    write_json(path, data | {"annotations": data["annotations"][1:]})
    comparisons, _ = compare_runs([tmp_path / "unlisted/mine", tmp_path / "unlisted/other"], bootstrap=0)
    assert len(comparisons) == 2


def test_a_run_without_anything_to_compare_is_left_out_with_the_reason(run, tmp_path):
    Run(tmp_path / "new").start("01_convert", load_config(REPO / "configs" / "demo.yaml", {}).convert).done()
    proposed = make_run(tmp_path / "proposed", MODELS, person=False)
    comparisons, left_out = compare_runs([run.folder, tmp_path / "new", proposed.folder], bootstrap=0)
    assert len(comparisons) == 1
    assert [(item.item, item.reason.split(" (")[0].split(":")[0]) for item in left_out] == [
        ("new", "no model has found cells yet"),
        ("proposed", "accuracy cannot be measured"),
    ]
    with pytest.raises(UserError, match="nothing to compare: new: no model"):
        compare_runs([tmp_path / "new"])
    with pytest.raises(UserError, match="--split is 'tset' \\(did you mean 'test'"):
        compare_runs([run.folder], "tset")


def test_validation_images_can_be_reported_and_choose_nothing_more_then(run):
    (one,), _ = compare_runs([run.folder], "val", bootstrap=200)
    assert (one.split, one.images) == ("val", 4)
    assert "which flatters it" in one.verdict
    assert row_of(one, "perfect")["counts"][0]["corrected"] is None  # no other images tell the errors


def test_where_the_true_cells_are_boxes_what_needs_outlines_is_left_out():
    records = [ImageRecord("a", "images/a.png", *SHAPE, split="test")]
    truth = CellDataset(records, [cells_of(0).as_boxes()], LINES)
    told = conventions_of(truth, {"a": cells_of(0).as_boxes()})
    assert told["voc_ap50"] == {"HEK": 1.0, "N2a": 1.0} and told["class_right"] == 1.0
    assert told["caicedo"] is None


def test_a_cell_found_where_the_class_is_unknown_is_in_no_count():
    truth = cells_of(0).with_classes([1, 0, 2])
    assert len(without_unknown(truth, cells_of(0))) == 2
    assert len(without_unknown(truth, cells_of(0)[:1])) == 1
    assert off(97, 100) == -0.03


def test_the_tables_hold_the_numbers_and_the_page_keeps_its_words(comparison, tmp_path):
    main, more, counts = grids_of(comparison)
    rows = {row[0]: dict(zip(main.columns, row, strict=True)) for row in main.rows}
    assert rows["perfect"]["against the chosen"] == "chosen"
    assert rows["perfect"]["MAP IoU"] == "1.000 [1.000, 1.000]"
    assert rows["plain"]["MAP IoU"].startswith("0.667")
    assert rows["plain"]["class right"] == "–"
    assert rows["perfect"]["class right"] == "100.0 % of 18"
    assert more.columns[-2:] == ["VOC AP@.5, HEK", "VOC AP@.5, N2a"]
    assert counts.title == "Cells of each class in 6 images"
    assert all(len(row) == len(grid.columns) for grid in (main, more, counts) for row in grid.rows)
    page = tmp_path / "page.md"
    page.write_text(f"# My words\n\n{BEGIN}\nyesterday\n{END}\n\nMore.\n")
    write_markdown(page, [comparison])
    text = page.read_text()
    assert text.startswith("# My words\n") and text.endswith(f"{END}\n\nMore.\n") and "yesterday" not in text
    assert to_markdown([comparison]) in text
    assert str(tmp_path) not in text and str(comparison.runs[0].folder.parent) not in text  # no machine path on a page
    write_markdown(page, [comparison])
    assert page.read_text() == text
    page.write_text("mine")
    with pytest.raises(UserError, match="no place for the tables"):
        write_markdown(page, [comparison])


def test_parts_of_a_page_that_are_not_made_again_stay(comparison, tmp_path):
    page = tmp_path / "page.md"
    assert read_parts(page) == ([], [])
    write_markdown(page, [comparison], [Quarantined("dkfz, detectron2", "not there: install it")])
    parts, lacking = read_parts(page)
    assert len(parts) == 1 and lacking == [Quarantined("dkfz, detectron2", "not there: install it")]
    before = page.read_text()
    write_markdown(page, [], lacking, parts)
    assert page.read_text() == before


def test_the_command_prints_tables_writes_the_page_and_says_what_was_left_out(said, run, tmp_path):
    Run(tmp_path / "new").start("01_convert", load_config(REPO / "configs" / "demo.yaml", {}).convert).done()
    page = tmp_path / "ways.md"
    code, out, err = said("compare", run.folder, tmp_path / "new", "--markdown", page)
    assert code == 3
    assert "skipped: new: no model has found cells yet" in err
    assert "perfect  1.000 [1.000, 1.000]" in out
    assert "- new: no model has found cells yet" in page.read_text()
    code, out, _ = said("compare", run.folder, "--json")
    assert code == 0
    assert [way["name"] for way in json.loads(out)["sets"][0]["ways"]] == ["perfect", "plain", "shifted"]
    code, _, err = said("compare", tmp_path / "nowhere")
    assert code == 2 and "there is no run folder" in err


def test_runs_in_which_a_recipe_writes_the_true_cells_are_told_apart_by_them(tmp_path, monkeypatch):
    runs = [make_run(tmp_path / "one", {"unet": lambda k, cells: cells})]
    monkeypatch.setitem(SPLITS, "test", 3)
    runs.append(make_run(tmp_path / "other", {"unet": lambda k, cells: cells}))
    for run in runs:
        manifest = read_manifest(run.folder)
        manifest["stages"]["31_blood_cells"] = manifest["stages"].pop("04_cells_to_coco")
        write_json(run.folder / "manifest.json", manifest)
    compared, left_out = compare_runs([run.folder for run in runs], bootstrap=0)
    assert [one.images for one in compared] == [6, 3] and not left_out


def test_whoever_reads_outdated_predictions_is_told(run, tmp_path, capsys):
    folder = tmp_path / "again"
    shutil.copytree(run.folder, folder)
    names = sorted(MODELS)
    read_side(folder / "predictions" / f"{names[0]}.json", of=read_side(folder / "coco" / "test.json"), common=True)
    assert "not of the present state" not in capsys.readouterr().err
    stage, coco = Run(folder), sorted((folder / "coco").glob("*.json"))
    stage = stage.start("04_cells_to_coco", load_config(REPO / "configs" / "demo.yaml", {}).coco)
    for path in coco:
        (stage.path(f"coco/{path.name}")).write_bytes(path.read_bytes() + b"\n" * (path.stem == "train"))
    stage.done(**{f"coco_{path.stem}": stage.root / "coco" / path.name for path in coco})
    read_side(folder / "predictions" / f"{names[0]}.json", of=read_side(folder / "coco" / "test.json"), common=True)
    told = capsys.readouterr().err
    assert (
        f"{names[0]}.json is not of the present state of the run: 05_train_maskrcnn is outdated: it read another"
        in told
    )
