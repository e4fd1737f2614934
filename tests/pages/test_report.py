"""The report of a run: a run folder made by the real functions, and what must and must not be on the page."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from report_cases import REPO, SMALL, Page, evaluated, notebook_06, page_of, small_run  # noqa: F401

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord, write_records
from cellkit.config.reading import load_config
from cellkit.config.sections import section_class
from cellkit.errors import Quarantined, UserError
from cellkit.evaluate.evaluation import score_models
from cellkit.files import write_frame
from cellkit.formats.coco import write_coco, write_results
from cellkit.measure.images import Job, joined, rows_of
from cellkit.pages import images as report_images
from cellkit.pages import report, results, scores
from cellkit.pages.measurements import measurements_chapter
from cellkit.run.folder import Run
from cellkit.show.counts import show_counts
from cellkit.show.style import new_figure


def test_page_is_whole_and_self_contained(evaluated):
    _, _, html = evaluated
    page = Page(html)
    assert not page.open
    assert page.fetched == []
    assert "script" not in page.tags and "link" not in page.tags and "@import" not in html and "url(" not in html
    assert page.tags.count("img") >= 8 and all(page.alt)
    assert "Left out" not in page.text
    assert len(html) < 8_000_000


def test_page_tells_the_scores_with_their_convention(evaluated):
    _, summary, html = evaluated
    text = Page(html).text
    assert "kaggle: IoU > 0.50:0.05:0.95, mean of images" in text
    for line in summary["scores"].itertuples():
        assert results.with_interval(line) in text
    assert "mAP" not in text
    best = next(x for x in summary["scores"].itertuples() if x.model == "cellpose_tuned" and x.split == "test")
    assert summary["best"] == "cellpose_tuned"
    assert f"Cellpose, tuned: {best.score:.3f} [" in text and "test images" in text
    assert "Cellpose, tuned is better than Threshold by" in text
    assert "may have chosen a model's weights, which flatters it" in text
    assert "scores a little differently on another processor" in text and "nan" not in text.lower().split()


def test_page_tells_what_was_run(evaluated):
    run, summary, html = evaluated
    text = Page(html).text
    for stage in ("01_convert", "04_cells_to_coco", "05_train_maskrcnn"):
        assert stage in text
    assert "convert.drawn.size_px 128 256" in text and "classes" in text
    assert "was still running" in text
    assert re.search(r"torch \d+\.\d+", text)
    accuracy = summary["classes"]["maskrcnn"]["test"]
    assert f"{100 * accuracy['accuracy']:.1f} % of {accuracy['cells']} matched cells" in text
    flagged = [record for record in results.RunFiles(run.folder).images.records if record.flags]
    assert flagged and all(record.image_id in text for record in flagged)


def test_settings_are_compared_with_the_defaults_of_their_own_backend(tmp_path):
    own = section_class("finetune", "threshold")
    run = Run(tmp_path)
    run.start("03_finetune_cellpose", own()).done()
    assert report_images.changed_settings(results.RunFiles(tmp_path)) == [
        ["finetune.backend", "threshold", "cellpose_unet"]
    ]


def test_flags_are_told_in_plain_words_with_their_numbers(tmp_path):
    from cellkit.cells.records import ImageRecord
    from cellkit.microscope.flags import flag_records

    (tmp_path / "quality.csv").write_text("image_id,blur_px\na,6.23\n")
    (tmp_path / "quality.json").write_text(json.dumps({"thresholds": flag_records([])[1]}))
    why = report_images._reasons(results.RunFiles(tmp_path))
    record = lambda name, flags: ImageRecord(name, f"{name}.png", 4, 4, flags=flags)  # noqa: E731
    assert why(record("a", "out_of_focus")) == "out of focus: blurred by 6.2 px, limit 2.6 px"
    assert why(record("b", "out_of_focus;new_flag")) == "out of focus, new flag"
    assert why(record("a", "")) == "no reason noted"


def test_a_forecast_that_has_no_time_is_said_once(tmp_path):
    run = Run(tmp_path)
    run.start("01_convert", load_config(REPO / "configs" / "demo.yaml", {}).convert).done()
    files = results.RunFiles(tmp_path)
    files.manifest["forecast"] = {"01_convert": {"peak_bytes": 8e8, "took_seconds": 1.0, "took_peak_bytes": 1e9}}
    said = [block.text for block in report_images.run_chapter(files) if hasattr(block, "text")]
    assert "Forecast before the run, and what it took: memory 800 MB, 1.0 GB." in said


def test_images_the_training_left_out_are_named(evaluated, tmp_path):
    folder = shutil.copytree(evaluated[0].folder, tmp_path / "run")
    files = results.RunFiles(folder, configs={"03_finetune_cellpose": {"min_train_masks": 2}})
    ids = [record.image_id for record in files.images.records if record.split == "train"]
    assert report_images._too_few_cells(files) == [], "without labels.csv nothing is known"
    rows = [f"{name},truth,{k}" for k, name in enumerate(ids)]
    (folder / "labels.csv").write_text("\n".join(["image_id,made_by,cells", *rows]) + "\n")
    (said,) = report_images._too_few_cells(files)
    assert said.text.endswith(f"fewer than 2 labelled cells: {ids[0]}, {ids[1]}.")
    val = [record.image_id for record in files.images.records if record.split == "val"]
    more = [f"{name},{'truth' if k else 'proposed'},1" for k, name in enumerate(val)]
    (folder / "labels.csv").write_text("\n".join(["image_id,made_by,cells", *rows, *more]) + "\n")
    assert report_images._too_few_cells(files) == [said], "validation images teach nothing in three parts"
    (folder / "decision.json").write_text('{"regime": "cross-fitting"}')
    (in_turn,) = report_images._too_few_cells(files)
    assert (
        f"training and validation images with fewer than 2 labelled cells: {ids[0]}, {ids[1]}, {val[1]}" in in_turn.text
    )
    assert val[0] not in in_turn.text, "a proposal judges and teaches nothing there"
    (folder / "decision.json").unlink()
    files.configs["03_finetune_cellpose"]["min_train_masks"] = 0
    assert report_images._too_few_cells(files) == []


def test_page_tells_how_large_and_bright_the_cells_are(evaluated):
    run, _, html = evaluated
    page, cells = Page(html), pd.read_csv(run.folder / "cells.csv")
    whole = cells[~cells["at_border"]]
    assert f"{len(cells)} cells that Mask R-CNN found in {cells['image'].nunique()} images" in page.text
    assert f"The {cells['at_border'].sum()} at a border are left out here" in page.text
    low, middle, high = np.percentile(whole.loc[whole["class"] == "N2a", "diameter_um"], (25, 50, 75))
    assert f"N2a cells {(whole['class'] == 'N2a').sum()} {middle:.3g} ({low:.3g} to {high:.3g})" in page.text
    assert "GFP, mean less background" in page.text and "mixed images" in page.text


def test_text_of_others_is_escaped(evaluated):
    _, _, html = evaluated
    assert "<unreadable>" not in html and "cut short &amp; &lt;unreadable&gt;" in html
    assert "<title>small &amp; &lt;run&gt;: cellkit report</title>" in html


def test_summary_json_has_no_nan_and_reads_back(evaluated):
    run, summary, _ = evaluated
    told = json.loads((run.folder / "summary.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert told["best"] == summary["best"]
    assert told["scores"][0]["score"] == pytest.approx(summary["scores"]["score"].iloc[0])
    assert told["by_class"][0]["low"] is None  # no rounds, no interval


def test_a_finished_run_gives_the_same_numbers_without_help(evaluated, tmp_path):
    run, summary, html = evaluated
    path = report.write_report(run.folder, out=tmp_path / "page.html")
    page = Page(path.read_text(encoding="utf-8"))
    assert "Left out" not in page.text and "was still running" not in page.text
    for line in summary["scores"].itertuples():
        assert results.with_interval(line) in page.text
    assert page.tags.count("img") == Page(html).tags.count("img")
    assert report.write_report(run.folder, out=tmp_path / "again.html").read_bytes() == path.read_bytes()


def test_what_is_missing_is_said_and_the_rest_stays(evaluated, tmp_path):
    import shutil

    run, _, _ = evaluated
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("manifest.json", "records.csv"):
        shutil.copy(run.folder / name, bare / name)
    text = Page(report.page(results.RunFiles(bare))).text
    assert "No scores yet" in text
    assert "bare has no scores.csv; 06_evaluate_map_iou writes it" in text
    assert "bare has no counts.csv" in text and "bare has no attribution.csv" in text
    assert "HEK" in text and "01_convert" in text
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "Left out: manifest.json lists no finished stage" in Page(report.page(results.RunFiles(empty))).text


def test_damaged_tables_do_not_stop_the_page(evaluated, tmp_path):
    import shutil

    run, _, _ = evaluated
    broken = tmp_path / "broken"
    shutil.copytree(run.folder, broken, ignore=shutil.ignore_patterns(".lock", "01_convert"))
    (broken / "counts.csv").write_text("image_id,class_name\na,HEK\n")
    (broken / "predictions" / "cellpose_tuned.json").write_text("[{")
    (broken / "summary.json").write_text("{}")
    page = Page(report.page(results.RunFiles(broken)))
    assert page.text.count("Left out") == 3  # counts, worst images, classes
    assert "is no JSON" in page.text
    assert "Cellpose, tuned: 0." in page.text


def test_empty_and_classless_runs(tmp_path):
    """One model without classes, one image without a cell on either side."""
    from conftest import write_png

    from cellkit.cells.records import ImageRecord

    write_png(tmp_path / "images/dark.png", np.zeros((40, 60, 3), np.uint8))
    record = ImageRecord("dark", "images/dark.png", 40, 60, split="test")
    write_records(tmp_path / "records.csv", [record])
    truth = CellDataset([record], [Instances.empty((40, 60))], ("cell",), tmp_path, [1])
    write_coco(tmp_path / "coco/test.json", truth.records, truth.instances, truth.classes, truth.ids)
    write_results(tmp_path / "predictions/threshold.json", [1], truth.instances)
    scores = score_models({"threshold": {"dark": truth.instances[0]}}, {"test": truth})
    scores.to_csv(tmp_path / "scores.csv", index=False)
    files = results.RunFiles(tmp_path)
    assert (files.best, files.class_model, files.report_split, files.models) == ("threshold", "", "test", ["threshold"])
    text = Page(report.page(files)).text
    assert "Threshold: 1.000 on 1 test image." in text
    assert "no model of this run found a cell of a named class" in text


def test_errors_say_what_to_do(evaluated, tmp_path):
    run, _, _ = evaluated
    with pytest.raises(UserError, match="no run folder"):
        results.RunFiles(tmp_path / "nowhere")
    with pytest.raises(UserError, match="give out="):
        report.write_report(run.folder)
    with pytest.raises(UserError, match="no predictions/unet.json"):
        results.RunFiles(run.folder).predictions("unet")


@pytest.fixture(scope="module")
def unlabelled(evaluated, tmp_path_factory):
    """The same run, its labels marked as proposals, with what 02 writes about them."""
    import json
    import shutil

    run, _, _ = evaluated
    folder = tmp_path_factory.mktemp("runs") / "unlabelled"
    shutil.copytree(run.folder, folder, ignore=shutil.ignore_patterns(".lock", "01_convert", "report.html"))
    for split in ("train", "val", "test"):
        path = folder / f"coco/{split}.json"
        data = json.loads(path.read_text())
        for image in data["images"]:
            image["labels"] = "proposed"
        path.write_text(json.dumps(data))
    names = [record.image_id for record in CellDataset.from_records(folder / "records.csv").records]
    write_results(folder / "proposals.json", [], [])
    first = [f"{name},test,proposed,5,0.7,0.{k}" for k, name in enumerate(names)]
    (folder / "correct_first.csv").write_text(
        "image_id,split,made_by,cells,confidence,disagreement\n" + "\n".join(first)
    )
    changes = f"proposals,{names[0]},corrected,9,5,3,1,2,0.875\n"
    (folder / "label_changes.csv").write_text("since,image_id,made_by,cells,same,changed,added,removed,iou\n" + changes)
    (folder / "labels.csv").write_text("image_id,made_by,cells\n" + "".join(f"{name},proposed,5\n" for name in names))
    return folder, names


def test_a_run_that_nobody_labelled_shows_no_score_but_what_to_correct(unlabelled):
    folder, names = unlabelled
    text = Page(report.page(results.RunFiles(folder))).text
    assert "Accuracy cannot be measured: no image was labelled by a person" in text
    assert "true cells" not in text and "is better than" not in text and "MAP IoU given back" not in text
    assert "agreement with proposals, no accuracy on whole validation images" in text
    assert "proposed by the model: trained on, nothing is scored there" in text
    place = [text.index(f"{name} test proposed 5 0.70") for name in names[:3]]
    assert place == sorted(place)
    assert "From the proposals to the corrections: 1 image" in text and "9 5 3 1 2 0.875" in text


def test_images_with_proposals_are_told_beside_the_scores_of_the_others(unlabelled, evaluated, tmp_path):
    import json
    import shutil

    folder, _ = unlabelled
    half = tmp_path / "half"
    shutil.copytree(folder, half)
    path = half / "coco/test.json"
    data = json.loads(path.read_text())
    data["images"][0]["labels"] = "corrected"
    path.write_text(json.dumps(data))
    files = results.RunFiles(half)
    assert files.no_accuracy == "" and list(files.scored_truths) == ["test"]
    left = len(data["images"]) - 1
    assert (
        f"{left} more {'has' if left == 1 else 'have'} no labels but a model's proposals"
        in Page(report.page(files)).text
    )


def test_models_that_find_no_cell_are_scored_0_and_named(evaluated, tmp_path):
    """What a training of a few steps gives: notebook 06 goes to its end, with report and submission."""
    shutil.copytree(evaluated[0].folder, tmp_path / "run")
    run = Run(tmp_path / "run")
    stage = run.start("05_train_maskrcnn", load_config(REPO / "configs" / "demo.yaml", SMALL).maskrcnn)
    history = stage.folder / "history.csv"
    history.write_text("step,loss,score,seconds\n0,nan,0.0,1.0\n1,0.9,0.0,2.0\n")
    models = ("threshold", "cellpose_tuned", "maskrcnn")
    blind = {f"predictions_{name}": write_results(stage.path(f"predictions/{name}.json"), [], []) for name in models}
    stage.done(**blind, history_maskrcnn=history)
    names = notebook_06(run, REPO / "configs/demo.yaml", SMALL)
    text = page_of(run)
    assert "No cell is found in the test images by Threshold; Cellpose, tuned; Mask R-CNN: train longer" in text
    assert (names["table"]["score"] == 0).all()
    submission = (run.folder / "submission.csv").read_text().splitlines()
    assert len(submission) == 1 + len(names["originals"])


def test_a_model_that_finds_cells_is_not_called_blind(evaluated):
    assert "No cell is found" not in evaluated[2]


def test_lines_called_by_numbers_and_channels_beyond_those_shown_are_told(tmp_path):
    labels, channels = (
        Instances.from_labels(np.pad(np.eye(3, dtype=int), 2)),
        {f"C{k}": np.ones((7, 7)) for k in range(5)},
    )
    records = [ImageRecord(name, f"{name}.png", 7, 7, cell_type=line) for name, line in (("a", "293"), ("b", ""))]
    write_frame(tmp_path / "cells.csv", joined([rows_of(Job(record, labels), channels) for record in records]))
    files = results.RunFiles(tmp_path)
    assert files.cells["line"].tolist() == ["293"] * (len(files.cells) // 2) + [""] * (len(files.cells) // 2)
    words, table, picture = measurements_chapter(files)
    assert [row[0] for row in table.rows] == ["293 images"]
    assert "Of 5 channels the first 4 are shown" in picture.caption


def test_a_page_written_again_tells_its_own_run_and_not_the_one_before(tmp_path):
    run, demo = Run(tmp_path), REPO / "configs" / "demo.yaml"
    run.start("01_convert", load_config(demo, {}).convert).done()

    def written(submit: str, skipped: list, fused: bool) -> tuple[str, list[str]]:
        stage = run.start(
            "06_evaluate_map_iou", load_config(demo, {"evaluate.submit": submit} if submit else {}).evaluate
        )
        stage.quarantine(skipped)
        listed = {"fused": write_results(stage.path("predictions/fused.json"), [], [])} if fused else {}
        page = report.write_report(stage)
        models = results.RunFiles(run.folder, stage.root).models
        text = Page(page.read_text(encoding="utf-8")).text
        stage.done(report=page, **listed)
        return text, models

    first, models = written("fused", [Quarantined("HEK_03", "cut short")], fused=True)
    assert "evaluate.submit fused best" in first and "HEK_03: cut short" in first and models == ["fused"]
    assert "Configuration: demo.yaml, overrides: {'evaluate.submit': 'fused'}." in first
    again, models = written("", [], fused=False)
    assert "evaluate.submit" not in again and "HEK_03" not in again and models == []
    assert "was still running" in again and "06_evaluate_map_iou 0." not in again
    kept = Page(report.page(results.RunFiles(run.folder))).text
    assert "06_evaluate_map_iou 0." in kept and "evaluate.submit" not in kept


def test_who_decided_and_whose_classes_are_counted_are_as_notebook_06_had_it(tmp_path):
    """One labelled image, judged by its quarters: nothing can decide, and the last model names the classes."""
    images = [("va", "mixed", "val"), ("ta", "mixed", "test"), ("tb", "mixed", "test")]
    models = {"maskrcnn": lambda name, cells: cells, "unet_border": lambda name, cells: cells.with_classes(1)}
    told = {"kept": "cellpose_base", "verdict": "base", "sentence": "x", "regime": "quarters", "judges": ["va"]}
    run = small_run(tmp_path / "run", images, models, proposed=("ta", "tb"), decision=told)
    names = notebook_06(run, REPO / "configs/demo.yaml", SMALL)
    assert names["namer"] == "unet_border" and names["counts"]["found"].tolist()[-2:] == [6, 0]
    text = page_of(run)
    assert "Cells of each class in 2 test images of several lines, by U-Net with touching border" in text
    assert "(no image could decide, so it is what 03 kept of Cellpose, or the first model)" in text
    assert "also chose" not in text and "decided on" not in text
    files = results.RunFiles(run.folder)
    files.summary["decided"] = {"by": "images", "images": 1, "in_words": "decided on 1 validation image"}
    assert "These images also chose." in report._headline(files)
    assert any("(decided on 1 validation image)" in getattr(one, "text", "") for one in scores.results_chapter(files))


def test_flagged_images_are_counted_apart_and_are_in_no_measure(tmp_path):
    labels = Instances.from_labels(np.pad(np.eye(3, dtype=int), 2))
    records = [
        ImageRecord("sharp", "a.png", 7, 7, cell_type="HEK", split="test"),
        *(ImageRecord(f"dull{k}", f"{k}.png", 7, 7, "", "HEK", split="test", flags="blurred") for k in range(201)),
    ]
    write_records(tmp_path / "records.csv", records)
    cells = joined([rows_of(Job(record, labels)) for record in records[:3]])
    write_frame(tmp_path / "cells.csv", cells)
    files = results.RunFiles(tmp_path)
    words, table, picture = measurements_chapter(files)
    assert table.rows[0][:2] == ["HEK images", str(len(labels))]
    assert f"{2 * len(labels)} cells of 2 flagged images are left out here." in words.text
    assert "Brightness" not in picture.caption, "none was measured"
    of_kind, aside = report_images.images_chapter(files)[:2]
    assert list(of_kind.columns[1:]) == ["training", "validation", "test", "flagged, not scored", "excluded"]
    assert list(of_kind.rows[0]) == ["HEK", "0", "0", "1", "201", "0"]
    assert len(aside.rows) == 200 and aside.caption == "Flagged or excluded: the first 200 of 201"
    write_frame(tmp_path / "cells.csv", cells[cells["image"] != "sharp"])
    with pytest.raises(UserError, match="all cells of cells.csv are of flagged images"):
        measurements_chapter(results.RunFiles(tmp_path))


def test_images_and_classes_keep_their_names_whatever_they_are(tmp_path):
    """Ids and classes that a spreadsheet would run, lines of digits, an image called "all": notebook 06 to the page."""
    images = [("=1+1", "01", "val"), ("-3", "", "val"), ("all", "01", "test"), ("b", "", "test"), ("tr", "01", "train")]
    run = small_run(tmp_path / "run", images, {"maskrcnn": lambda name, cells: cells}, classes=("-x", "N2a"))
    names = notebook_06(run, REPO / "configs/demo.yaml", SMALL)
    assert names["counts"]["image_id"].tolist() == ["all"] * 2 + ["b"] * 2 + ["all images"] * 2
    files = results.RunFiles(run.folder)
    assert sorted(set(files.scores["cell_type"])) == ["", "01"] and "-x" in set(files.scores["class_name"])
    assert sorted(set(files.attribution["image_id"])) == ["-3", "=1+1"]
    assert len(files.worst(3)[2]) == 2
    table, picture = scores.counts_chapter(files)
    assert [list(row[:2]) for row in table.rows] == [["-x", "4"], ["N2a", "2"]]
    assert table.caption == "Cells of each class in 2 test images, by Mask R-CNN"
    assert "'-x" not in page_of(run) and "=1+1: MAP IoU 1.000" in page_of(run)


def test_where_nothing_is_labelled_or_counted_it_is_said_and_not_shown_as_zeros(tmp_path):
    run = small_run(tmp_path / "run", [("v", "HEK", "val")], {"maskrcnn": lambda name, cells: cells}, proposed=("v",))
    names = notebook_06(run, REPO / "configs/demo.yaml", SMALL)
    assert names["counts"]["found"].tolist() == [0, 0]
    files = results.RunFiles(run.folder)
    with pytest.raises(UserError, match="no test image is counted"):
        scores.counts_chapter(files)
    files.no_accuracy = ""  # as where test images are labelled
    for chapter in (scores.errors_chapter, scores.lost_chapter):
        with pytest.raises(UserError, match="no validation image is labelled by a person"):
            chapter(files)
    ax = show_counts(names["counts"], new_figure(4, 1).subplots())
    assert [text.get_text() for text in ax.texts] == ["there is no image whose cells are counted"]


def test_a_training_that_no_image_chose_of_has_no_ring(tmp_path):
    run = Run(tmp_path)
    stage = run.start("03_finetune_cellpose", load_config(REPO / "configs" / "demo.yaml", {}).finetune)
    (stage.folder / "history.csv").write_text("step,loss,score,seconds\n0,nan,nan,1.0\n50,0.9,nan,20.0\n")
    stage.done(history_cellpose=stage.folder / "history.csv")
    (picture,) = report_images.training_chapter(results.RunFiles(tmp_path))
    assert picture.caption == "03_finetune_cellpose: loss; no image chose its weights."
