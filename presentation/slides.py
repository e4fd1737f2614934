"""The slides: one function each, from a run folder to a page. Every number and every picture comes from the run.

A function whose files are not there raises UserError; its slide is left out and the reason is told.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import figures
import numpy as np
import pandas as pd
from deck import Deck, Slide

from cellkit.cells.dataset import AGREEMENT, CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.records import OVERALL, SPLIT_IMAGES, channel_names
from cellkit.errors import UserError, counted
from cellkit.evaluate.classes import rows_over_all
from cellkit.evaluate.evaluation import CONVENTION
from cellkit.machine import here
from cellkit.models import model_name, order_models
from cellkit.pages.measurements import brightness_words, measured_words, shown_cells
from cellkit.pages.results import RunFiles, in_words, with_interval
from cellkit.pages.scores import PROCESSORS, comparisons, kept_words, who_saw
from cellkit.pages.stored import FAULTS, why_left_out
from cellkit.scores.attribution import gains
from cellkit.scores.matching import THRESHOLDS, match_pairs
from cellkit.scores.table import paired_bootstrap, per_image
from cellkit.show.charts import show_curves, show_gains, show_history, show_scores
from cellkit.show.conversion import show_channels, show_conversion
from cellkit.show.counts import show_counts
from cellkit.show.explained import flow_colours, show_convolution
from cellkit.show.measurements import groups_of, measures_of, show_measures
from cellkit.show.overlays import show_errors, show_overlay, verdicts
from cellkit.show.sheets import show_sheet
from cellkit.show.style import class_name


def make_slides(run_dir: str | Path) -> Deck:
    """Return the deck of a run folder.

    Raises
    ------
    UserError
        No such folder, or nothing in it that a slide could be made of.
    """
    files = RunFiles(here(run_dir))
    made, left_out = [], []
    for make in (unlabelled, *SLIDES) if files.unlabelled else SLIDES:
        try:
            made.append(make(files))
        except FAULTS as error:
            left_out.append((make.__name__.strip("_"), why_left_out(error)))
    if not made:
        raise UserError(f"'{run_dir}' holds nothing to show: {left_out[0][1]}", "make a run: cellkit run CONFIG")
    return Deck(f"cellkit: {files.folder.resolve().name}", tuple(made), tuple(left_out))


# ---- what the numbers come from ------------------------------------------------------------------------------------
def data_name(files: RunFiles) -> str:
    """Return how the data set of a run is called."""
    source, path = files.setting("convert.source", ""), files.setting("convert.path", "")
    lines = sorted({r.cell_type for r in files.images.records if r.cell_type not in ("", "mixed")}) or list(
        files.classes
    )
    kind = {"drawn": "drawn cells"}.get(source, path or source or "images")
    return f"{kind} ({', '.join(lines)})" if lines else kind


def foot(files: RunFiles, split: str = "", score: bool = False) -> str:
    """Return the line at the bottom of a page: run, data set, split, convention."""
    parts = [f"run {files.folder.resolve().name}", f"data: {data_name(files)}"]
    if split:
        n = sum(record.split == split for record in files.images.records)
        parts.append(f"{n} {SPLIT_IMAGES.get(split, split)}")
    return "  ·  ".join([*parts, *([CONVENTION] if score else [])])


def scored_truth(files: RunFiles) -> tuple[str, CellDataset]:
    """Return the split that is reported and its truth."""
    files.need_accuracy()
    split = files.report_split
    if split not in files.scored_truths:
        raise UserError(f"{files.folder.name} has no coco/{split}.json; 04_cells_to_coco writes it")
    return split, files.scored_truths[split]


def example(data: CellDataset) -> int:
    """Return the position of an image to show: most classes, then a number of cells near the median."""
    counts = np.array([len(cells) for cells in data.instances])
    kinds = np.array([len(set(cells.class_ids.tolist())) for cells in data.instances])
    return int(np.lexsort((np.abs(counts - np.median(counts)), -kinds))[0])


def part_of(data: CellDataset, k: int, cells: Instances, diameters: float) -> figures.Crop:
    """Return a square of an image, so many cell diameters wide, where its truth has most cells."""
    side = max(64, figures.typical_side(data.instances, diameters))
    side = min(side, *cells.shape)
    centre = figures.busiest(data.instances[k], side)
    return figures.crop(data.image(k), cells, centre, side, data.records[k].um_per_px)


def need(model: str, files: RunFiles) -> list[Instances]:
    """Return what a model found in the images that are reported."""
    if model not in files.models:
        raise UserError(f"{files.folder.name} has no predictions/{model}.json")
    return files.of_images(model, scored_truth(files)[1])


def duration(files: RunFiles) -> str:
    """Say how long all finished notebooks took together."""
    seconds = sum(entry.get("seconds", 0.0) for entry in files.stages.values())
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} minutes"


# ---- slides --------------------------------------------------------------------------------------------------------
def idea(files: RunFiles) -> Slide:
    """Show the loop, each step a picture of this run."""
    split, data = scored_truth(files)
    k, best, detector = example(data), files.best, files.class_model
    truth, found = data.instances[k], files.of_images(best, data)[k]
    part = part_of(data, k, truth, 7)
    pictures = [
        ("images", part.image),
        (
            "labels",
            painted(part, truth, data, k, lambda ax, image, cells: outlined(ax, image, cells.with_classes(0), 0.35)),
        ),
        ("fine-tuning", painted(part, truth, data, k, lambda ax, image, cells: flowing(ax, cells))),
        ("cells", painted(part, found, data, k, lambda ax, image, cells: outlined(ax, image, cells.with_classes(0)))),
    ]
    if detector:
        named = files.of_images(detector, data)[k]
        pictures.append(("lines", painted(part, named, data, k, outlined)))
    pictures.append(("score", error_picture(part, found, data, k)))
    line = files.line(best, split)
    n = len(files.images)
    devices = ", ".join(sorted({entry.get("device", "cpu") for entry in files.stages.values()}))
    points = [
        "A model that has seen many cells has not seen yours. A few labelled images move it towards them; the score says "
        "whether it worked and where to label next.",
        f"This run: {counted(n, 'image')}, {data_name(files)}.",
        f"{len(files.stages)} notebooks, one command, {duration(files)} ({devices}).",
        f"{model_name(best)}: MAP IoU {with_interval(line)} on {counted(line.images, SPLIT_IMAGES[split].removesuffix('s'))}.",
    ]
    alt = f"A ring of pictures: {', '.join(name for name, _ in pictures)}, and back to images."
    title = "Adapt a model to the cells in front of you"
    draw = lambda f: figures.draw_loop(f, pictures, part.um_per_px)  # noqa: E731
    return Slide("idea", title, points, draw, alt, foot(files, split, True))


def painted(part: figures.Crop, cells: Instances, data: CellDataset, k: int, draw: Callable) -> np.ndarray:
    """Return a small picture of the same square with other cells in it."""
    side, (row, column) = part.image.shape[0], part.origin
    other = figures.crop(data.image(k), cells, (row + side // 2, column + side // 2), side)
    return figures.picture_of(lambda ax: draw(ax, other.image, other.cells), other.image.shape[:2])


def outlined(ax, image: np.ndarray, cells: Instances, fill: float = 0.0) -> None:
    """Draw outlines wide enough for a small picture."""
    show_overlay(image, cells, ax=ax, legend=False, line_px=10, fill=fill)


def flowing(ax, cells: Instances) -> None:
    """Draw the flows of cells as colours."""
    from cellkit.models.shared.flows import target_of

    flow_y, flow_x, _ = target_of(cells.paint())
    ax.imshow(flow_colours(flow_y, flow_x))
    ax.set_axis_off()


def error_picture(part: figures.Crop, found: Instances, data: CellDataset, k: int) -> np.ndarray:
    """Return a small error map of the square."""
    side, (row, column) = part.image.shape[0], part.origin
    window = (slice(row, row + side), slice(column, column + side))

    def draw(ax):
        show_errors(data.image(k), data.instances[k], found.with_classes(0), ax=ax, legend=False)
        ax.set(xlim=(column - 0.5, column + side - 0.5), ylim=(row + side - 0.5, row - 0.5))

    return figures.picture_of(draw, data.image(k)[window].shape[:2])


def images(files: RunFiles) -> Slide:
    """Show the data of the run."""
    records = files.images.records
    if "train" not in files.truths:
        raise UserError(f"{files.folder.name} has no coco/train.json; 04_cells_to_coco writes it")
    train = files.truths["train"]
    points = []
    for kind in sorted({r.cell_type for r in records}):
        of_kind = [r for r in records if r.cell_type == kind]
        counts = {split: sum(r.split == split for r in of_kind) for split in ("train", "val", "test")}
        listed = ", ".join(f"{n} {SPLIT_IMAGES[split].split()[0]}" for split, n in counts.items() if n)
        points.append(f"{kind or 'Images'}: {counted(len(of_kind), 'image')} ({listed or 'all excluded'}).")
    ids = np.concatenate([cells.class_ids for cells in train.instances]).tolist()
    named = ", ".join(f"{ids.count(k)} {class_name(k, train.classes) or 'of unknown class'}" for k in sorted(set(ids)))
    left = len(files.proposed("train"))
    whose = f" (in {left} of {counted(len(train), 'image')} as the model proposed them)" if left else ""
    points.append(f"Cells to train on: {named}{whose}.")
    flagged = [r for r in records if r.flags]
    if flagged:
        flags = sorted({flag.replace("_", " ") for r in flagged for flag in r.flags.split(";")})
        points.append(f"Neither trained on nor scored: {counted(len(flagged), 'flagged image')} ({', '.join(flags)}).")
    points.append("A split is by whole image, never by cell." if files.setting("convert.split_by", "image") == "image" else
                  "A split is by group: no plate, well or donor on both sides.")  # fmt: skip
    alt = "A sheet of training images with the outlines of their cells in the colours of the classes."
    draw = lambda f: show_sheet(train, figure=f, n=6, columns=3)  # noqa: E731
    return Slide("images", "The images of this run", points, draw, alt, foot(files))


def conversion(files: RunFiles) -> Slide:
    """Show the step from the microscope's file to a picture."""
    records = [record for record in files.images.records if record.split] or files.images.records
    record = records[0]
    low, high = files.setting("convert.percentiles", (0.3, 99.8))
    source = locate_source(files)
    named = ", ".join(f"{name} in {colour}" for colour, name in channel_names(record.channels).items())
    raw = source is not None and (source / record.source.split(" ")[0]).is_file()
    points = [
        "A microscope stores what it measured: many bits, several planes, channels in any order. A network wants 8 bits, "
        f"nuclei in blue, cytoplasm in green. Each channel is stretched from its percentile {low:g} to {high:g}; here: "
        f"{named or 'grey'}; z planes: {files.setting('convert.projection', 'max')}. "
        "A wrong channel map is the one mistake that no later number shows, so it is looked at."
    ]
    image = CellDataset([record], [Instances.empty((record.height_px, record.width_px))], (), files.folder, [1]).image(
        0
    )

    def draw(figure):
        if raw:
            show_conversion(files.folder, source, record, figure=figure)
        else:
            show_channels(image, record.channels, figure, record.image_id, record.um_per_px)

    alt = f"{record.image_id}: the channels of the file, how many pixels hold which value, and the colour picture."
    return Slide("conversion", "From the microscope to a picture", points, draw, alt, foot(files), wide=True)


def locate_source(files: RunFiles) -> Path | None:
    """Return the folder the images were converted from, if it is still there."""
    inputs = files.stages.get("01_convert", {}).get("inputs", {})
    outside = [Path(one["path"]) for one in inputs.values() if one.get("outside")]
    own = files.path("microscope")
    return next((folder for folder in [*([own] if own else []), *outside] if folder.is_dir()), None)


def convolution(files: RunFiles) -> Slide:
    """Show what a convolution does to an image of this run."""
    data = next(iter(files.truths.values()), None)
    if data is None:
        raise UserError(f"{files.folder.name} has no coco/*.json; 04_cells_to_coco writes them")
    k = example(data)
    part = part_of(data, k, data.instances[k], 6)
    points = [
        "A convolution replaces every pixel by a weighted sum of it and its neighbours. Nine weights blur, or answer to "
        "edges on one side. A convolutional network is many of these in a row with a simple bend between them; nobody "
        "chooses the weights: training does, by making the answer on labelled images a little less wrong, again and again."
    ]
    alt = "Nine pixels of an image, three sets of nine weights, and what each makes of the image."
    title = "What a convolution is"
    return Slide(
        "convolution", title, points, lambda f: show_convolution(part.image, figure=f), alt, foot(files), wide=True
    )


def network(files: RunFiles) -> Slide:
    """Show the run's own network at work."""
    kept = next(
        (e["outputs"]["cellpose_checkpoint"] for e in files.stages.values() if "cellpose_checkpoint" in e["outputs"]),
        None,
    )
    path = None if kept is None else files.path(kept["path"])
    if path is None:
        raise UserError(f"{files.folder.name} has no cellpose_checkpoint; 03_finetune_cellpose writes it")
    split, data = scored_truth(files)
    k = example(data)
    diameter = files.setting("finetune.diameter_px") or figures.typical_side(data.instances, 1.0)
    channels = files.setting("finetune.channels", "both")
    sight = figures.look_inside(path, data.image(k), float(diameter), channels)
    widths = ", ".join(str(len(maps)) for maps in sight.down)
    seen, side = figures.seen_side(sight.influence), sight.influence.shape[0]
    points = [
        f"Cellpose's network, {sight.parameters / 1e6:.1f} million weights. Down the left side maps become smaller and more "
        f"({widths}): less about where, more about what. Up the right side they grow again, helped by the maps handed "
        f"across. The square, {seen} px wide, holds 90 % of what its middle looks at within these {side} px; a cell is about 30."
    ]
    alt = (
        "A U of feature maps: two planes in, smaller maps going down, larger ones coming up, flows and probability out."
    )
    title = "A convolutional network, looked into"
    note = f"{foot(files, split)}  ·  {data.records[k].image_id}"
    return Slide("network", title, points, lambda f: figures.draw_network(f, sight), alt, note, wide=True)


def flows(files: RunFiles) -> Slide:
    """Show how Cellpose turns pixels into cells."""
    data = files.truths.get("train") or next(iter(files.truths.values()), None)
    if data is None:
        raise UserError(f"{files.folder.name} has no coco/*.json; 04_cells_to_coco writes them")
    k = example(data)
    part = part_of(data, k, data.instances[k], 5)
    points = [
        "Cells that touch cannot be told apart by asking each pixel whether it is a cell. Cellpose asks where the middle of "
        "its cell is: a flow, heat spreading from the middle outwards, followed backwards. Pixels that walk to the same "
        "place are one cell. It is trained on flows made from labels, as here; afterwards it answers with flows for images "
        "that have none."
    ]
    alt = "Four pictures of the same cells: outlines, flows in colour, paths of pixels, and pixels coloured by where they end."
    note = f"{foot(files)}  ·  {data.records[k].image_id}  ·  flows: Stringer et al., Nature Methods 2021"
    return Slide(
        "flows", "What Cellpose's flows are", points, lambda f: figures.draw_tracking(f, part), alt, note, wide=True
    )


def training(files: RunFiles) -> Slide:
    """Show the fine-tuning."""
    stage = "03_finetune_cellpose"
    if stage not in files.histories():
        raise UserError(f"{files.folder.name} has no history of {stage}")
    rows = files.history(stage)
    scored = rows["score"].notna().any()
    kept = rows[rows["kept"] == 1] if "kept" in rows else rows.iloc[:0]
    best = kept.iloc[0] if len(kept) else rows.loc[rows["score"].idxmax()] if scored else rows.iloc[-1]
    train = files.truths.get("train")
    cells = f", {sum(map(len, train.instances))} cells" if train is not None else ""
    setting = lambda name: files.setting(f"finetune.{name}")  # noqa: E731
    is_scored = "val" in files.scored_truths or "val" not in files.truths
    verb = "scored" if is_scored else "compared with their proposals"
    points = [
        f"Start: {setting('base')}. {counted(sum(r.split == 'train' for r in files.images.records), 'training image')}{cells}.",
        f"Each step: {setting('batch_size')} crops of {setting('crop_px')} px, turned, flipped, scaled, brighter or darker, so "
        "that few images go a long way.",
        f"Whole validation images are {verb} on the way: {in_words(float(rows['score'].iloc[0]))} at the start, "
        f"{in_words(float(best['score']))} at step {best['step']:.0f} of {rows['step'].iloc[-1]:.0f}, whose weights are taken."
        if scored
        else "No image chose its weights.",
        f"{files.stages[stage].get('seconds', 0) / 60:.1f} minutes on {files.stages[stage].get('device', 'cpu')}.",
        kept_words(files),
    ]
    alt = "Training loss over the steps"
    alt += ", and below it the score on validation images with the best step marked." if scored else "."
    draw = lambda f: show_history(rows, f, score="MAP IoU" if is_scored else AGREEMENT)  # noqa: E731
    return Slide("training", "Fine-tuning", [p for p in points if p], draw, alt, foot(files, "val", is_scored))


def before_after(files: RunFiles) -> Slide:
    """Show one image before and after the fine-tuning."""
    split, data = scored_truth(files)
    found = {name: need(name, files) for name in ("cellpose_base", "cellpose_tuned")}
    rows = files.scores[files.scores["split"] == split]
    tables = {name: rows[rows["model"] == name] for name in found}
    own = {name: per_image(table).set_index("image_id")["score"] for name, table in tables.items()}
    gain = (own["cellpose_tuned"] - own["cellpose_base"]).reindex([r.image_id for r in data.records])
    if not gain.notna().any():
        raise UserError(f"scores.csv has no image of {split} with a score before and after")
    k = int(gain.fillna(-1).to_numpy().argmax())
    change = paired_bootstrap(*tables.values(), n=int(files.setting("evaluate.bootstrap_samples", 1000)))
    names = [model_name(name) for name in found]
    image_id, um, truth = data.records[k].image_id, data.records[k].um_per_px, data.instances[k].with_classes(0)
    threshold, why = seen_at(truth, *(cells[k] for cells in found.values()))
    most = "the image that gained most" if gain.iloc[k] > 0 else "the image that lost least, as none gained"
    points = [
        f"{change.sentence(*names)}. Shown: {image_id}, {most}.{why} At IoU {threshold:g}, blue is hit, striped is missed, "
        "orange is invented."
    ]

    def draw(figure):
        for ax, (name, cells) in zip(figure.subplots(1, 3), [("", []), *found.items()], strict=True):
            if name:
                title = f"{model_name(name)}: MAP IoU {own[name][image_id]:.3f}"
                show_errors(data.image(k), truth, cells[k], ax=ax, title=title, threshold=threshold)
            else:
                show_overlay(data.image(k), truth, ax=ax, title=f"{image_id}: truth", legend=False, um_per_px=um)

    alt = f"{image_id}: the true cells, the errors of the base model, the errors of the tuned model."
    return Slide("before_after", "Before and after", points, draw, alt, foot(files, split, True), wide=True)


def seen_at(truth: Instances, before: Instances, after: Instances) -> tuple[float, str]:
    """Return the IoU at which a gain can be seen in an error map, and what to say where that is not 0.5.

    Fewer cells missed or invented at 0.5 can be seen there. Where there are no fewer, what is gained are outlines: the
    threshold from 0.75 on at which most is gained shows them.
    """
    wrong = {
        at: [len(truth) + len(cells) - 2 * len(match_pairs(truth, cells, at)[0]) for cells in (before, after)]
        for at in (0.5, 0.75, 0.8, 0.85, 0.9)
    }
    if wrong[0.5][1] < wrong[0.5][0]:
        return 0.5, ""
    at = max(wrong, key=lambda one: wrong[one][0] - wrong[one][1])
    if at == 0.5 or wrong[at][1] >= wrong[at][0]:
        return 0.5, ""
    return (
        at,
        " At IoU 0.5 no fewer cells are wrong than before: what was gained are outlines, so a stricter one is shown.",
    )


def detector(files: RunFiles) -> Slide:
    """Show Mask R-CNN in one picture."""
    name = files.class_model
    if not name:
        raise UserError("no model of this run names classes")
    split, data = scored_truth(files)
    k = example(data)
    part = part_of(data, k, files.of_images(name, data)[k], 5)
    true = part_of(data, k, data.instances[k], 5).cells
    right_classes = (files.summary.get("classes") or {}).get(name, {}).get(split)
    right = (
        f"{100 * right_classes['accuracy']:.1f} % of {right_classes['cells']} matched cells have the right class."
        if right_classes and right_classes["cells"]
        else ""
    )
    backbone = {"cellpose_unet": "the tuned Cellpose network"}.get(
        files.setting("maskrcnn.backbone", ""), "a ResNet-50"
    )
    points = [
        f"Flows say where a cell is, not which line it belongs to. {model_name(name)} says both: an encoder (here "
        f"{backbone}) makes maps of the image; a first network proposes boxes; a second names what is in each box, with a "
        f"score; a third draws the mask. Boxes that cover each other are thinned out by score. {right}"
    ]
    alt = "Cells with boxes, class names and scores; the same cells with masks."
    title = f"{model_name(name)} in one picture"
    note = f"{foot(files, split)}  ·  {data.records[k].image_id}"
    return Slide(
        "detector", title, points, lambda f: figures.draw_detection(f, part, true, data.classes), alt, note, wide=True
    )


def metric(files: RunFiles) -> Slide:
    """Show how MAP IoU is counted, on a pair of this run."""
    split, data = scored_truth(files)
    found, k = need(files.best, files), example(data)
    pair = figures.example_pair(data.instances[k], found[k])
    if pair is None:
        raise UserError(f"{model_name(files.best)} matches no cell in {data.records[k].image_id}")
    points = [
        "IoU: the pixels two outlines share, over the pixels in either.",
        f"A cell is hit when its IoU is above the threshold. Ten thresholds, {float(THRESHOLDS[0]):.2f} to "
        f"{float(THRESHOLDS[-1]):.2f}: a rough outline passes the first, a perfect one all.",
        "At each threshold TP / (TP + FP + FN): a missed cell and an invented one both cost. The mean over thresholds, then "
        "over images, is the MAP IoU.",
        f"Shown: {model_name(files.best)} on {data.records[k].image_id}.",
    ]
    alt = f"A true and a found cell with IoU {pair.iou:.3f}; the thresholds it passes; the image's counts at each threshold."
    um = data.records[k].um_per_px
    draw = lambda f: figures.draw_metric(f, data.image(k), data.instances[k], found[k], pair, um)  # noqa: E731
    return Slide("metric", "How it is scored", points, draw, alt, foot(files, split, True))


def results(files: RunFiles) -> Slide:
    """Show the table of scores."""
    files.need_accuracy()
    split, table = files.report_split, files.score_summary
    splits = [split, *(s for s in ("val", "train") if s in set(table["split"]) and s != split)][:2]
    models = order_models(table["model"].unique())
    rows = [[model_name(m), *_score_cells(files, m, splits)] for m in models]
    columns = ["", f"{SPLIT_IMAGES[split]}: MAP IoU", "at 0.50", "at 0.75", *(SPLIT_IMAGES[s] for s in splits[1:])]
    mark = models.index(files.best) if files.best in models else -1
    points = [f"{text}." for text in comparisons(files, split)]
    points.append(f"In brackets: 95 % intervals from resampling images. {PROCESSORS}")
    if len(splits) > 1 and splits[1] == "val" and (seen := who_saw(files)):
        points.append(f"{SPLIT_IMAGES['val'].capitalize()}{seen}; test images chose nothing.")

    def draw(figure):
        above, below = figure.subfigures(2, 1, height_ratios=[0.3 * (len(rows) + 1), 2.6])
        figures.draw_table(above.subplots(), columns, rows, mark)
        show_scores(table[table["split"] == split], ax=below.subplots(), title=f"{SPLIT_IMAGES[split]}")

    alt = "; ".join(f"{row[0]}: {row[1]}" for row in rows)
    return Slide("results", "How good", points, draw, alt, foot(files, split, True))


def _score_cells(files: RunFiles, model: str, splits: list[str]) -> list[str]:
    line = files.line(model, splits[0])
    rough = [in_words(float(getattr(line, name, float("nan")))) for name in ("ap50", "ap75")]
    return [with_interval(line), *rough, *(with_interval(files.line(model, split)) for split in splits[1:])]


def curves(files: RunFiles) -> Slide:
    """Show the score over the thresholds."""
    files.need_accuracy()
    split = files.report_split
    rows = files.scores[files.scores["split"] == split]
    table = files.score_summary[files.score_summary["split"] == split].set_index("model")
    best = table.loc[files.best]
    points = [
        "On the left it is enough to find a cell, on the right its outline must be right to a few pixels.",
        f"{model_name(files.best)}: {in_words(float(best.get('ap50')))} at 0.50, {in_words(float(best.get('ap90')))} at 0.90.",
        "A curve that starts low misses or invents cells: more images of the kind that fails help. One that starts high and "
        "falls early finds them with loose outlines: better labels help.",
    ]
    alt = "; ".join(
        f"{model_name(m)}: MAP IoU {in_words(float(table.loc[m, 'score']))}" for m in order_models(table.index)
    )
    draw = lambda f: show_curves(rows, f.subplots(), SPLIT_IMAGES[split])  # noqa: E731
    return Slide("curves", "How strict is the threshold?", points, draw, alt, foot(files, split, True))


def counts(files: RunFiles) -> Slide:
    """Show how many of each line there are."""
    table = files.counts
    split = files.setting("evaluate.report_split", "test")
    mixed = [r.image_id for r in files.images.records if r.cell_type == "mixed"]
    rows = table[table["image_id"].isin(mixed)]
    if rows.empty:
        rows, what = table.drop(rows_over_all(table).index), SPLIT_IMAGES.get(split, "images")
    else:
        what = "mixed images"
    if rows.empty or not files.class_model:
        raise UserError("counts.csv has no image, or no model names classes")
    n, rows = rows["image_id"].nunique(), with_sum(rows)
    total = rows_over_all(rows).set_index("class_name")
    found = ", ".join(f"{line.found} {name} ({100 * line.share:.1f} %)" for name, line in total.iterrows())
    points = ["Only a model that names classes can answer this.", f"{model_name(files.class_model)} finds {found}."]
    if "truth" in rows:
        known = ", ".join(f"{line.truth} {name} ({100 * line.true_share:.1f} %)" for name, line in total.iterrows())
        points.append(f"True: {known}.")
    points.append(f"{counted(n, what.removesuffix('s'))}; none of them was trained on.")
    alt = f"Bars of the share of each class, per image and over all. {' '.join(points[1:])}"
    draw = lambda f: show_counts(rows, f.subplots(), images=6)  # noqa: E731
    return Slide("counts", "How many of each line?", points, draw, alt, foot(files, split))


def measurements(files: RunFiles) -> Slide:
    """Show how large, how round and how bright the cells of each line are."""
    cells = shown_cells(files)
    column, title = next(iter(measures_of(cells).items()))
    medians = ", ".join(
        f"{name} {group[column].median():.3g} (n = {len(group)})"
        for name, group in groups_of(cells).items()
        if len(group)
    )
    points = [f"{measured_words(files)} Median {title}: {medians}.{brightness_words(cells)}"]
    alt = f"Distributions of size, shape and brightness by line and class. Median {title}: {medians}."
    draw = lambda f: show_measures(cells, f, files.classes)  # noqa: E731
    return Slide("measurements", "How large and how bright", points, draw, alt, foot(files), wide=True)


def with_sum(rows: pd.DataFrame) -> pd.DataFrame:
    """Add the sum over the images as rows of their own, as `count_by_class` has them."""
    numbers = [name for name in ("found", "truth") if name in rows]
    total = rows.groupby("class_name", sort=False)[numbers].sum().reset_index()
    total["image_id"] = OVERALL[OVERALL[0] in set(rows["image_id"])]
    for name, share in (("found", "share"), ("truth", "true_share")):
        if name in total:
            total[share] = total[name] / max(total[name].sum(), 1)
    return pd.concat([rows, total], ignore_index=True)


def failures(files: RunFiles) -> Slide:
    """Show where it fails."""
    files.need_accuracy()
    data, found, worst = files.worst(2)
    table = files.attribution
    if not worst:
        raise UserError("attribution.csv names no image")
    split = data.records[0].split
    scores = table.drop_duplicates("image_id").set_index("image_id")["score"]
    most = gains(table).iloc[0]
    points = [
        f"The {SPLIT_IMAGES.get(split, split)} with the lowest scores of {model_name(files.best)}.",
        f"Most would come back by repairing '{most['kind']}': MAP IoU +{most['gain']:.3f} over all these images "
        f"({counted(int(most['cells']), 'cell')}).",
        ADVICE[most["kind"]],
        missed_at_border(data, found),
    ]

    def draw(figure):
        grid = figure.add_gridspec(2, 2, height_ratios=[1.75, 1])
        for place, k in enumerate(worst):
            name = data.records[k].image_id
            ax = figure.add_subplot(grid[0, place] if len(worst) > 1 else grid[0, :])
            how = {"title": f"{name}: MAP IoU {scores[name]:.3f}", "um_per_px": data.records[k].um_per_px}
            show_errors(data.image(k), data.instances[k], found[k], ax=ax, **how)
        show_gains(table, figure.add_subplot(grid[1, :]))

    alt = f"Error maps of {', '.join(data.records[k].image_id for k in worst)}; bars of what each kind of fault costs."
    return Slide("failures", "Where it fails", points, draw, alt, foot(files, split, True))


def missed_at_border(data: CellDataset, found: list[Instances]) -> str:
    """Say how many of the cells missed at IoU 0.5 are cut by the border of their image, and of those that are not cut."""
    missed, cut = [], []
    for truth, cells in zip(data.instances, found, strict=True):
        x, y, width, height = truth.boxes_xywh.T
        cut.append((x == 0) | (y == 0) | (x + width == truth.shape[1]) | (y + height == truth.shape[0]))
        missed.append(verdicts(truth, cells)[0] == "missed")
    lost, at_border = np.concatenate(missed).astype(bool), np.concatenate(cut).astype(bool)
    shares = [f"{(lost & kind).sum()} of {counted(int(kind.sum()), 'cell')}" for kind in (at_border, ~at_border)]
    return f"Missed at IoU 0.5: {shares[0]} cut by the border, {shares[1]} inside."


ADVICE = {
    "missed": "Missed cells: label images of the kind where they are missed; lower the cell probability threshold.",
    "invented": "Invented cells: label images with debris and empty ones; raise the thresholds.",
    "split": "Cells in pieces: check the cell diameter; label large and odd cells.",
    "merged": "Cells run together: label crowded images; check that touching cells have labels of their own.",
    "boundary": "Loose outlines: correct the outlines of a few images with care; train longer, at full scale.",
    "class": "Right cell, wrong class: more images of the lines that are confused.",
}


def again(files: RunFiles) -> Slide:
    """Show how to do it again, and what next."""
    if not files.stages:
        raise UserError("manifest.json lists no finished stage")
    took = [(name, entry.get("seconds", 0.0) / 60) for name, entry in files.stages.items()]
    alt = "; ".join(f"{name}: {value:.1f} minutes" for name, value in took)
    versions = list(files.stages.values())[-1].get("versions", {})
    names = [name for name in ("python", "cellkit", "torch", "cellpose") if name in versions]
    note = "  ·  ".join([foot(files), *(f"{name} {versions[name]}" for name in names)])
    draw = lambda f: figures.draw_minutes(f.subplots(), took)  # noqa: E731
    return Slide("again", "Again, and further", [*commands(files), *weakest(files)], draw, alt, note)


def unlabelled(files: RunFiles) -> Slide:
    """Say that accuracy cannot be measured, and where to begin with correcting."""
    table = files.table("correct_first.csv").head(6)
    train = files.truths.get("train") or next(iter(files.truths.values()))
    points = [
        f"{files.no_accuracy[0].upper()}{files.no_accuracy[1:]}.",
        f"Correct first: {', '.join(table['image_id'])}; `correct_first.csv` says why, and which validation images to add.",
        "A corrected image in validation and one in test are the least with which anything can be measured; about six of each "
        "tell models apart.",
    ]
    alt = "A sheet of images with the outlines that the model proposed."
    draw = lambda f: show_sheet(train, figure=f, n=6, columns=3, title="proposals")  # noqa: E731
    return Slide("unlabelled", "Accuracy cannot be measured yet", points, draw, alt, foot(files))


OF_ONE_SET = ("sartorius", "bbbc039", "hepg2_huh7", "livecell", "two_lines", "dsb2018")  # layouts of published sets


def commands(files: RunFiles) -> list[str]:
    """Return what to type to make this run, its slides, its model's answer to new images, and a run on other images."""
    last_run = files.manifest.get("run") or {}
    config = f"configs/{Path(last_run['config']).name}" if last_run.get("config") else "CONFIG"
    overrides = "".join(f" --set {shlex.quote(f'{k}={v}')}" for k, v in (last_run.get("overrides") or {}).items())
    run = files.folder.resolve().name
    source = files.setting("convert.source", "drawn")
    source = "microscope" if source == "drawn" else "folder" if source in OF_ONE_SET else source
    lines = ["This run again, from the images to this deck:", f"$ cellkit run {config}{overrides} --run runs/{run}"]
    lines.append(f"$ python presentation/build.py runs/{run} -o slides")
    try:
        predict = f"$ cellkit predict runs/{run}:{files.best} FOLDER -o found.json"
        lines += ["New images through its best model:", predict]
    except UserError:
        pass  # nothing was scored, so there is no best model
    return [
        *lines,
        "The six notebooks on your own images:",
        f"$ cellkit run {config} --set convert.source={source} --set data=FOLDER",
    ]


def weakest(files: RunFiles) -> list[str]:
    """Say which line has the lowest score: label that one next; nothing where there is no score or one line."""
    try:
        table = files.score_parts("cell_type")
    except UserError:
        return []
    split = files.choose_split if files.choose_split in set(table["split"]) else files.report_split
    rows = table[(table["model"] == files.best) & (table["split"] == split) & (table["cell_type"] != "")]
    if len(rows) < 2:
        return []
    low: Any = rows.sort_values("score").iloc[0]
    score = f"{in_words(float(low['score']))}, {SPLIT_IMAGES[split]}"
    return [f"Next: label more images of {low['cell_type']}, lowest of the lines ({score})."]


SLIDES = (
    idea,
    images,
    conversion,
    convolution,
    network,
    flows,
    training,
    before_after,
    detector,
    metric,
    results,
    curves,
    counts,
    measurements,
    failures,
    again,
)
