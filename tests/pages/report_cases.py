"""Run folders for the tests of the report: drawn cells by the real functions, and small ones whose answers are known."""

from __future__ import annotations

import contextlib
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord, write_records
from cellkit.config.reading import load_config
from cellkit.errors import Quarantined
from cellkit.evaluate.classes import classes_found, count_by_class
from cellkit.evaluate.evaluation import (
    attribute_errors,
    decide,
    predictions_of,
    read_truths,
    score_models,
    summarise,
    write_summary,
)
from cellkit.files import write_frame, write_json
from cellkit.formats.coco import write_coco, write_results
from cellkit.measure.of_run import measure_run
from cellkit.microscope.flags import exclude_flagged
from cellkit.pages import report
from cellkit.run.folder import Run

REPO = Path(__file__).parents[2]
SMALL = {
    "convert.drawn": {
        "images_per_line": 5, "mixed_images": 3, "size_px": 128, "diameter_px": 30, "planes": 2, "defect_images_per_line": 1,
    },
    "evaluate.bootstrap_samples": 50,
    "evaluate.error_images": 2,
}  # fmt: skip


def worsened(truth: Instances, drop: float, shift_px: int, wrong: float, seed: int) -> Instances:
    """True cells with some left out, all moved, some of the wrong class: an answer whose faults are known."""
    rng = np.random.default_rng(seed)
    kept = truth[rng.random(len(truth)) >= drop]
    labels = np.roll(kept.paint(), shift_px, axis=1)
    ids = kept.class_ids[np.unique(labels[labels > 0]) - 1]
    ids = np.where(rng.random(len(ids)) < wrong, 3 - ids, ids) if wrong else 0 * ids
    return Instances.from_labels(labels, ids, rng.uniform(0.6, 1, len(ids)))


def make_run(folder: Path) -> tuple[Run, object]:
    """Run notebook 01's and 04's functions on drawn cells, and write three models' predictions; 06 is left to the caller."""
    from cellkit.models import threshold
    from cellkit.sources.ingest import convert_images, locate_source

    cfg = load_config(REPO / "configs" / "demo.yaml", SMALL)
    run = Run(folder)
    stage = run.start("01_convert", cfg.convert)
    converted = convert_images(cfg.convert, locate_source(cfg.convert, stage), stage.root)
    records = exclude_flagged(converted.images.records)
    stage.quarantine([Quarantined("HEK/broken.ome.tif", "cut short & <unreadable>")])
    stage.done(records=write_records(stage.path("records.csv"), records), images=stage.path("images"))

    stage = run.start("04_cells_to_coco", cfg.coco)
    data = CellDataset(records, converted.images.instances, cfg.classes, folder, list(range(1, len(records) + 1)))
    files = {}
    for split in ("train", "val", "test"):
        part = data.scored(split)
        path = stage.path(f"coco/{split}.json")
        files[f"coco_{split}"] = write_coco(path, part.records, part.instances, cfg.classes, part.ids)
    stage.done(**files)

    stage = run.start("05_train_maskrcnn", cfg.maskrcnn)
    judged = data.subset([record.split in ("val", "test") for record in records])
    otsu = list(threshold.load(None, threshold.Settings(diameter_px=30.0))(judged.images()))
    tuned = [worsened(x, 0.05, 1, 0, k) for k, x in enumerate(judged.instances)]
    maskrcnn = [worsened(x, 0.15, 2, 0.1, k) for k, x in enumerate(judged.instances)]
    paths = {
        f"predictions_{name}": write_results(stage.path(f"predictions/{name}.json"), judged.ids, found)
        for name, found in {"threshold": otsu, "cellpose_tuned": tuned, "maskrcnn": maskrcnn}.items()
    }
    history = "step,loss,score,seconds\n0,nan,0.10,1.0\n50,0.9,0.42,20.0\n100,0.6,0.55,40.0\n"
    (stage.folder / "history.csv").write_text(history)
    stage.done(**paths, history_maskrcnn=stage.folder / "history.csv")
    return run, cfg


def evaluate(run: Run, cfg) -> tuple[object, dict]:
    """Do what notebook 06 does, up to its last cell; return the stage under way and the summary."""
    from cellkit.scores.attribution import gains

    stage = run.start("06_evaluate_map_iou", cfg.evaluate)
    images = CellDataset.from_records(run.find("records"))
    truths = read_truths(run.find_all("coco_*"), run.folder)
    predictions = predictions_of(run.find_all("predictions_*"), images)
    scores = score_models(predictions, truths)
    scores.to_csv(stage.path("scores.csv"), index=False)
    table = summarise(scores, n=cfg.evaluate.bootstrap_samples)
    best = decide(table, "best", "val")
    lost = attribute_errors(truths["val"], predictions[best])
    lost.to_csv(stage.path("attribution.csv"), index=False)
    right = classes_found(predictions, truths)
    counts = count_by_class(predictions["maskrcnn"], images.select("test"), truths["test"])
    counts.to_csv(stage.path("counts.csv"), index=False)
    measured = measure_run(predictions, "maskrcnn", images, cfg.convert, run.folder)
    write_frame(stage.path("cells.csv"), measured.table)
    by_class = summarise(scores, "class_name", 0)
    summary = {
        "best": best,
        "scores": table,
        "by_class": by_class,
        "gains": gains(lost),
        "classes": right,
        "measured": "maskrcnn",
    }
    write_summary(stage.path("summary.json"), truths, **summary)
    return stage, summary


class Page(HTMLParser):
    """Collects what a page holds: its text, its tags, what it would fetch."""

    VOID = {"meta", "img", "br", "hr", "link", "input"}

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.open, self.words, self.fetched, self.alt = [], [], [], [], []
        self.feed(html)
        self.close()
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "action", "srcset", "poster") and not (value or "").startswith(("#", "data:")):
                self.fetched.append(value)
            if name == "alt":
                self.alt.append(value)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A run folder whose report was written by the stage under way, then finished; the summary; the page."""
    run, cfg = make_run(tmp_path_factory.mktemp("runs") / "small & <run>")
    stage, summary = evaluate(run, cfg)
    path = report.write_report(stage)
    assert path == stage.root / "report.html"
    html = path.read_text(encoding="utf-8")
    stage.done(report=path, scores=stage.path("scores.csv"), summary=stage.path("summary.json"))
    return run, summary, html


SHAPE = (24, 32)


def cells_of(k: int, classes: int = 2) -> Instances:
    """Three cells, of the first class, of the first and of the last."""
    labels = np.zeros(SHAPE, int)
    labels[2:10, 2 : 10 + k % 3], labels[13:22, 2:11], labels[4:20, 16 : 26 + k % 4] = 1, 2, 3
    return Instances.from_labels(labels, class_ids=[1, 1, classes], scores=[0.9, 0.8, 0.7])


def small_run(
    folder: Path, images: list[tuple], models: dict, classes=("HEK", "N2a"), proposed=(), decision=None, flagged=()
) -> Run:
    """Write what notebooks 01 to 05 leave: each image is (image_id, cell_type, split), `models` finds cells in its true ones."""
    from conftest import write_png

    cfg, run = load_config(REPO / "configs" / "demo.yaml", {}), Run(folder)
    records = [
        ImageRecord(name, f"images/{k}.png", *SHAPE, cell_type=line, split=split, flags="blurred" * (name in flagged))
        for k, (name, line, split) in enumerate(images)
    ]
    made_by = ["proposed" if name in proposed else "truth" for name, _, _ in images]
    true = [cells_of(k, len(classes)) for k in range(len(images))]
    data = CellDataset(records, true, tuple(classes), folder, list(range(1, len(images) + 1)), made_by)
    stage = run.start("01_convert", cfg.convert)
    for record in records:
        write_png(stage.path(record.path), np.zeros((*SHAPE, 3), np.uint8))
    stage.done(records=write_records(stage.path("records.csv"), records), images=stage.path("images"))
    if decision:
        stage = run.start("03_finetune_cellpose", cfg.finetune)
        stage.done(decision=write_json(stage.path("decision.json"), decision))
    stage = run.start("04_cells_to_coco", cfg.coco)
    written = {}
    for split, part in data.by_split().items():
        part, path = part.scored(split), stage.path(f"coco/{split}.json")
        if len(part):
            how = (part.records, part.instances, part.classes, part.ids)
            written[f"coco_{split}"] = write_coco(path, *how, made_by=part.made_by)
    stage.done(**written)
    stage, held = run.start("05_train_maskrcnn", cfg.maskrcnn), data.held_out()
    found = {
        name: [find(record.image_id, cells) for record, cells in zip(held.records, held.instances, strict=True)]
        for name, find in models.items()
    }
    paths = {name: write_results(stage.path(f"predictions/{name}.json"), held.ids, one) for name, one in found.items()}
    stage.done(**{f"predictions_{name}": path for name, path in paths.items()})
    return run


def notebook_06(run: Run, config: Path, overrides: dict) -> dict:
    """Run notebook 06 on a run folder; return its names."""
    import matplotlib.pyplot as plt

    names: dict = {}
    for cell in json.loads((REPO / "notebooks/06_evaluate_map_iou.ipynb").read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            with contextlib.redirect_stdout(io.StringIO()):
                exec("".join(cell["source"]), names)
        if cell["id"] == "06-02":
            names |= {"config": config, "run_dir": run.folder, "overrides": overrides}
        plt.close("all")
    return names


def page_of(run: Run) -> str:
    """The text of a run's page."""
    return Page((run.folder / "report.html").read_text(encoding="utf-8")).text
