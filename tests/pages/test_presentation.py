"""The slides: built from one run folder made by the real functions; every number from it, every page readable."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_cases import Page, evaluate, make_run, worsened

from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.evaluate.evaluation import CONVENTION
from cellkit.formats.coco import write_results
from cellkit.formats.coco_reading import read_coco
from cellkit.models.training_state import History
from cellkit.pages.results import RunFiles
from cellkit.pages.scores import PROCESSORS

REPO = Path(__file__).parents[2]
sys.path.insert(0, str(REPO / "presentation"))

import build  # noqa: E402
import deck as decks  # noqa: E402
import figures  # noqa: E402
from slides import SLIDES, commands, make_slides  # noqa: E402


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with all that the slides show; stage 03 lists the starter weights as its checkpoint."""
    from cellkit.fetch.find import find_weights
    from cellkit.models.weights import copy_checkpoint

    run, cfg = make_run(tmp_path_factory.mktemp("runs") / "small")
    stage = run.start("03_finetune_cellpose", cfg.finetune)
    weights = copy_checkpoint(find_weights("starter"), stage.folder / "cellpose_base")
    rows = [{"step": k, "loss": 1 / (k + 1), "score": 0.4 + k / 500, "seconds": 1.0 * k} for k in (0, 50, 100)]
    judged = [read_coco(run.folder / f"coco/{split}.json", run.folder) for split in ("val", "test")]
    cells = [worsened(x, 0.1, 3, 0, k) for data in judged for k, x in enumerate(data.instances)]
    ids = [i for data in judged for i in data.ids]
    stage.done(
        predictions_cellpose_base=write_results(stage.path("predictions/cellpose_base.json"), ids, cells),
        cellpose_checkpoint=weights,
        cellpose_tuned_checkpoint=weights,
        history_cellpose=History(rows).write(stage.folder / "history.csv"),
    )
    stage, _ = evaluate(run, cfg)
    stage.done(scores=stage.path("scores.csv"), summary=stage.path("summary.json"))
    return run.folder


@pytest.fixture(scope="module")
def deck(run):
    return make_slides(run)


def test_every_slide_is_made(deck):
    assert deck.left_out == ()
    assert len(deck) == len(SLIDES) == 16
    assert len({slide.name for slide in deck}) == 16
    assert all(slide.points and slide.alt and slide.foot for slide in deck)


def test_text_fits_and_no_text_leaves_the_page(deck):
    from matplotlib.text import Text

    for number, slide in enumerate(deck, 1):
        assert slide.text_scale >= 0.7, slide.name
        figure = slide.page(number, len(deck))
        figure.set_dpi(60)
        figure.canvas.draw()
        width, height = figure.bbox.size
        for text in figure.findobj(Text):
            if text.get_visible() and text.get_text().strip() and not text.get_clip_on():
                box = text.get_window_extent()
                inside = box.x0 > -2 and box.y0 > -2 and box.x1 < width + 2 and box.y1 < height + 2
                assert inside or box.width == 0, (slide.name, text.get_text())
        legends = [ax.get_legend().get_window_extent() for ax in figure.axes if ax.get_legend()]
        assert [pair for pair in combinations(legends, 2) if pair[0].overlaps(pair[1])] == [], slide.name
        pictures = [ax.get_window_extent() for ax in figure.axes if ax.images]
        if slide.name == "failures":
            assert all(box.width > 0.15 * width for box in pictures), "a legend must not make pictures small"


def test_numbers_come_from_the_run(run, deck, tmp_path):
    summary = json.loads((run / "summary.json").read_text())
    told = " ".join(deck["results"].points) + deck["results"].alt
    line = next(x for x in summary["scores"] if x["model"] == "maskrcnn" and x["split"] == "test")
    assert f"Mask R-CNN: {line['score']:.3f} [{line['low']:.3f}, {line['high']:.3f}]" in told
    right = summary["classes"]["maskrcnn"]["test"]
    assert f"{100 * right['accuracy']:.1f} % of {right['cells']} matched cells" in deck["detector"].points[0]
    assert PROCESSORS in told
    assert all(CONVENTION in deck[name].foot for name in ("idea", "metric", "results", "curves", "failures"))
    assert "test images" in deck["results"].foot and "drawn cells (HEK, N2a)" in deck["results"].foot

    cells = pd.read_csv(run / "cells.csv")
    round_cells = cells[~cells["at_border"] & (cells["class"] == "N2a")]["diameter_um"]
    told = f"N2a cells {round_cells.median():.3g} (n = {len(round_cells)})"
    assert f"{len(cells)} cells that Mask R-CNN found" in deck["measurements"].points[0]
    assert told in deck["measurements"].points[0] and told in deck["measurements"].alt

    other = tmp_path / "other"
    shutil.copytree(run, other, ignore=shutil.ignore_patterns(".lock", "microscope"))
    scores = pd.read_csv(other / "scores.csv")
    lost = scores["model"] == "maskrcnn"
    scores.loc[lost, ["tp", "fn"]] = np.stack([0 * scores["tp"][lost], scores["fn"][lost] + scores["tp"][lost]], axis=1)
    scores.to_csv(other / "scores.csv", index=False)
    summary.pop("scores")
    (other / "summary.json").write_text(json.dumps(summary))
    assert "Mask R-CNN: 0.000 [0.000, 0.000]" in make_slides(other)["results"].alt


def test_a_training_that_no_image_chose_of_is_shown_without_a_best_step(run, tmp_path):
    from slides import training

    other = tmp_path / "other"
    shutil.copytree(run, other, ignore=shutil.ignore_patterns(".lock", "microscope"))
    path = other / "03_finetune_cellpose/history.csv"
    pd.read_csv(path).assign(score=np.nan).drop(columns="kept", errors="ignore").to_csv(path, index=False)
    slide = training(RunFiles(other))
    assert "No image chose its weights." in slide.points and slide.alt == "Training loss over the steps."


def test_a_run_that_nobody_labelled_has_no_slide_with_a_score(run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other, ignore=shutil.ignore_patterns(".lock", "microscope"))
    for path in (other / "coco").glob("*.json"):
        data = json.loads(path.read_text())
        data["images"] = [image | {"labels": "proposed"} for image in data["images"]]
        path.write_text(json.dumps(data))
    (other / "correct_first.csv").write_text(
        "image_id,split,made_by,cells,confidence,disagreement\nx7,val,proposed,3,0.5,0.2\n"
    )
    deck = make_slides(other)
    names = [slide.name for slide in deck]
    assert names[0] == "unlabelled" and {"images", "flows", "training", "counts", "again"} <= set(names)
    assert not {"idea", "before_after", "metric", "results", "curves", "failures"} & set(names)
    text = " ".join(point for slide in deck for point in slide.points)
    assert "Accuracy cannot be measured" in text and "x7" in text
    assert "MAP IoU" not in text and "better" not in text


def test_html_is_one_file_with_all_slides(deck, tmp_path):
    html = decks.write_html(deck, tmp_path / "slides.html").read_text(encoding="utf-8")
    page = Page(html)
    assert not page.open and page.fetched == []
    assert page.tags.count("section") == page.tags.count("img") == 16 == len(page.alt)
    assert page.tags.count("script") == 1 and "link" not in page.tags
    assert not re.search(r"https?://|@import|url\(", re.sub(r"base64,[A-Za-z0-9+/=]+", "", html))
    for slide in deck:
        assert slide.title in page.text and f'id="{slide.name}"' in html
    assert all(f"{key}:" in html for key in ("ArrowRight", "ArrowLeft", "PageDown", "Home"))
    assert len(html) < 25_000_000
    assert deck["metric"].svg == replace(deck["metric"]).svg  # drawn a second time


def test_pdf_has_a_wide_page_per_slide(deck, tmp_path):
    some = replace(deck, slides=tuple(deck[name] for name in ("idea", "training", "metric", "results", "again")))
    raw = decks.write_pdf(some, tmp_path / "slides.pdf").read_bytes()
    assert raw.startswith(b"%PDF") and len(re.findall(rb"/Type /Page\b", raw)) == 5
    boxes = set(re.findall(rb"/MediaBox \[ ?0 0 ([\d.]+) ([\d.]+) ?\]", raw))
    assert all(float(w) / float(h) == pytest.approx(16 / 9, rel=0.002) for w, h in boxes) and len(boxes) == 1
    assert b"CreationDate" not in raw


def test_build_says_what_is_missing_and_goes_on(run, tmp_path, capsys):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("manifest.json", "records.csv", "images"):
        source = run / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, bare / name)
    assert build.main([str(bare), "-o", str(tmp_path / "out")]) == 0
    told = capsys.readouterr()
    assert "slides.html: 2 slides" in told.out and "slides.pdf: 2 slides" in told.out
    assert "left out results: bare has no scores.csv; 06_evaluate_map_iou writes it" in told.err
    assert Page((tmp_path / "out" / "slides.html").read_text()).tags.count("section") == 2


def test_a_slide_of_a_damaged_file_is_left_out_and_the_others_are_made(run, tmp_path, monkeypatch):
    import slides

    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns(".lock"))
    (copy / "attribution.csv").write_text("a,b\n1,2\n")
    (copy / "03_finetune_cellpose" / "history.csv").write_text("step,loss\n0,low\n")
    monkeypatch.setattr(slides, "SLIDES", (slides.training, slides.results, slides.failures))
    made = make_slides(copy)
    assert [slide.name for slide in made.slides] == ["results"]
    assert dict(made.left_out) == {
        "training": "run/03_finetune_cellpose/history.csv is damaged: column loss holds 'low', no number; "
        "03_finetune_cellpose writes it",
        "failures": "run/attribution.csv is damaged: it has no column image_id; 06_evaluate_map_iou writes it",
    }


def test_build_refuses_what_is_no_run(tmp_path, capsys):
    assert build.main([str(tmp_path / "nowhere")]) == 2
    assert "no run folder" in capsys.readouterr().err
    assert build.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err.strip().split("\n")
    assert len(error) == 2 and "nothing to show" in error[0]


def test_notebook_is_thin_and_builds_the_deck(run, tmp_path, monkeypatch):
    content = json.loads((REPO / "presentation" / "slides.ipynb").read_text())
    cells = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    parameters = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
    assert len(parameters) == 1 and not any(cell["outputs"] for cell in cells)
    assert all(len("".join(cell["source"]).splitlines()) <= 8 for cell in cells)
    monkeypatch.chdir(REPO / "presentation")
    names: dict = {}
    for cell in cells:
        source = "".join(cell["source"])
        if cell is parameters[0]:
            exec(source, names)
            source = f"run_dir, out = {str(run)!r}, {str(tmp_path)!r}"
        if "order =" in source:
            source = source.replace("[slide.name for slide in deck]", '["curves", "counts"]')
        exec(source, names)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["slides.html", "slides.pdf"]
    assert len(names["talk"]) == 2
    with pytest.raises(KeyError, match="no slide 'flow'; there are idea"):
        names["deck"]["flow"]


# ---- parts ---------------------------------------------------------------------------------------------------------
def test_too_much_text_is_refused():
    short = decks.Slide("a", "A", ["one"], lambda figure: None, "nothing")
    assert short.text_scale == 1.0
    assert decks.Slide("a", "A", ["word " * 160], lambda figure: None, "nothing").text_scale < 1
    with pytest.raises(UserError, match="more text than its page"):
        _ = decks.Slide("a", "A", ["word " * 2000], lambda figure: None, "nothing").text_scale


@settings(max_examples=20, deadline=None)
@given(st.lists(st.text("abcdefgW.%", min_size=1, max_size=30), min_size=1, max_size=12), st.floats(0.5, 4))
def test_wrapped_lines_hold_all_words_and_fit(words, width_in):
    lines = decks.wrap(" ".join(words), width_in, 11.5)
    assert "".join(lines).replace(" ", "") == "".join(words)
    from matplotlib.figure import Figure

    figure = Figure(dpi=150)
    for line in lines:
        drawn = figure.text(0, 0, line, size=11.5, family="DejaVu Sans").get_window_extent().width / 150
        assert drawn <= 1.03 * width_in or len(line) == 1


def test_every_pixel_of_a_disc_walks_to_its_middle():
    from cellkit.models.shared.flows import target_of

    y, x = np.mgrid[:41, :61]
    labels = ((y - 20) ** 2 + (x - 15) ** 2 <= 144).astype(np.int32) + 2 * ((y - 20) ** 2 + (x - 44) ** 2 <= 100)
    rows, columns = np.nonzero(labels)
    ends = figures.follow(target_of(labels.astype(np.int32))[:2] / 5, np.stack([rows, columns], axis=1), 40)[-1]
    middle = np.where(labels[rows, columns] == 1, 15, 44)
    assert np.hypot(ends[:, 0] - 20, ends[:, 1] - middle).max() < 2.5


def test_crop_is_moved_into_the_image_and_keeps_classes():
    labels = np.zeros((50, 80), np.int32)
    labels[2:8, 2:8], labels[30:40, 60:75] = 1, 2
    cells = Instances.from_labels(labels, [2, 1], [0.5, 0.9])
    part = figures.crop(np.zeros((50, 80, 3), np.uint8), cells, (0, 0), 20)
    assert part.image.shape == (20, 20, 3) and part.origin == (0, 0)
    assert part.cells.class_ids.tolist() == [2] and part.cells.scores.tolist() == [0.5]
    assert figures.busiest(cells, 20)[0] in range(10, 41)
    assert figures.busiest(Instances.empty((50, 80)), 20) == (25, 40)


def test_example_pair_is_the_whole_cell_nearest_to_the_wanted_iou():
    truth, found = np.zeros((40, 60), np.int32), np.zeros((40, 60), np.int32)
    truth[10:20, 10:20], found[10:20, 10:18] = 1, 5  # IoU .8
    truth[10:20, 30:40], found[10:20, 30:40] = 2, 6  # IoU 1
    truth[0:10, 50:60], found[0:8, 50:60] = 3, 7  # IoU .8, cut by the border
    pair = figures.example_pair(Instances.from_labels(truth), Instances.from_labels(found))
    assert (pair.truth, pair.found, pair.iou) == (0, 0, pytest.approx(0.8))
    assert figures.example_pair(Instances.from_labels(truth), Instances.empty((40, 60))) is None


def test_a_gain_in_outlines_is_shown_at_a_threshold_where_it_can_be_seen():
    from slides import seen_at

    def cell(columns: int) -> Instances:
        return Instances.from_labels(np.pad(np.ones((10, columns), int), ((0, 0), (0, 20 - columns))))

    truth, nothing = cell(10), Instances.empty((10, 20))
    assert seen_at(truth, nothing, cell(10)) == (0.5, "")  # found only afterwards: seen at 0.5
    at, why = seen_at(truth, cell(7), cell(10))  # IoU 0.7, then 1: a hit both times
    assert at == 0.75 and "outlines" in why
    assert seen_at(truth, cell(10), cell(10)) == (0.5, "")
    assert seen_at(truth, cell(10), cell(7)) == (0.5, "")


@pytest.mark.parametrize(
    ("source", "own"),
    [("drawn", "microscope"), ("microscope", "microscope"), ("coco", "coco"), ("sartorius", "folder")],
)
def test_the_last_command_names_the_layout_of_ones_own_images(source, own):
    files = SimpleNamespace(manifest={}, folder=Path("run"), best="a", setting=lambda key, default: source)
    assert commands(files)[-1] == f"$ cellkit run CONFIG --set convert.source={own} --set data=FOLDER"


def test_seen_side():
    influence = np.zeros((21, 21))
    influence[10, 10], influence[7, 10] = 0.5, 0.5
    assert figures.seen_side(influence, 0.5) == 1
    assert figures.seen_side(influence, 0.9) == 7
