"""The chapters of a report about scores: how good, over thresholds, by part, counts, classes, errors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from cellkit.cells.records import MIXED, SPLIT_IMAGES, SPLIT_TITLES
from cellkit.errors import UserError, counted
from cellkit.evaluate.classes import rows_over_all
from cellkit.evaluate.evaluation import CONVENTION
from cellkit.evaluate.untaught import describe_untaught
from cellkit.evaluate.verdict import unseen_words
from cellkit.models import model_name, order_models
from cellkit.models.gate import THREE_PARTS
from cellkit.pages.results import RunFiles, Table, Words, drawn, in_words, percent, with_interval
from cellkit.scores.attribution import gains
from cellkit.scores.table import paired_bootstrap
from cellkit.show.charts import confusion_size, show_confusion, show_curves, show_gains, show_scores
from cellkit.show.counts import counts_size, show_counts
from cellkit.show.overlays import show_errors, show_overlay
from cellkit.show.style import aspect_of

if TYPE_CHECKING:
    import pandas


def results_chapter(files: RunFiles) -> list:
    """How good every model is, and how sure that is."""
    files.need_accuracy()
    table, split = files.score_summary, files.report_split
    blocks: list = []
    for name in sorted(set(table["split"]), key=lambda one: (one != split, one)):
        rows = table[table["split"] == name].set_index("model")
        models = order_models(rows.index)
        texts = [_score_row(model_name(model), rows.loc[model]) for model in models]
        caption = f"{SPLIT_IMAGES.get(name, name).capitalize()}"
        caption += who_saw(files) if name == "val" else ""
        mark = frozenset([models.index(files.best)]) if files.best in models else frozenset()
        blocks.append(Table(SCORE_COLUMNS, texts, caption, mark))
    blocks.append(
        Words(
            f"{CONVENTION}: a cell is hit when its overlap is strictly above the threshold; TP / (TP + FP + FN), mean of "
            "ten thresholds, then of images; an image with nothing on either side counts 1. In brackets the 95 % interval "
            f"over {_drawn_units(table)}. In bold: {model_name(files.best)}, which is handed in "
            f"({files.decided['in_words']}). {kept_words(files)}".rstrip()
            + files.boxes_words
        )
    )
    blocks.append(Words(PROCESSORS))
    height = 1.0 + 0.42 * len(table) + 0.5 * table["split"].nunique()
    blocks.append(drawn(lambda f: show_scores(table, ax=f.subplots()), 7.4, height, "MAP IoU with 95 % intervals."))
    return [*blocks, *[Words(f"{SPLIT_IMAGES[split].capitalize()}: {text}.") for text in comparisons(files, split)]]


def _drawn_units(table: Any) -> str:
    """Say what the intervals of a table were drawn from: images, or whole groups."""
    kinds = table.get("interval_of", [])
    return " and ".join(dict.fromkeys(str(units) for units in kinds)) or "images"


def kept_words(files: RunFiles) -> str:
    """Return what 03 decided, in its own words: was the tuned model better than its base, and which of them is kept?"""
    decision = files.json("decision.json", "kept", "sentence")
    if not decision:
        return ""
    is_tuned = decision.get("verdict", "tuned" if decision["kept"].endswith("tuned") else "base") == "tuned"
    kept = "the tuned model is kept" if is_tuned else "the base is kept"
    sentence = decision["sentence"][0].upper() + decision["sentence"][1:]
    words = f"{sentence} (judged on what neither taught nor chose it): {kept}."
    who = f" Who judged: {decision['regime_in_words']}." if "regime_in_words" in decision else ""
    more = [f" {decision[key]}" for key in ("tuned_in_words", "what_would_change") if decision.get(key)]
    if untaught := decision.get("untaught"):
        warned = describe_untaught(untaught).partition("\n")[0]
        more.append(f" {warned[0].upper()}{warned[1:]}.")
    return words + who + "".join(more)


def who_saw(files: RunFiles) -> str:
    """Return what must be said beside scores of validation images: who may have seen them."""
    decision = files.json("decision.json")
    if decision.get("regime", THREE_PARTS) == THREE_PARTS:
        return ": some of them may have chosen a model's weights, which flatters it a little"
    unseen = unseen_words(decision)  # so few choose no model's weights
    return f": {unseen}" if unseen else ""


PROCESSORS = (
    "The same run scores a little differently on another processor, as networks compute there in float32 or in bfloat16: on "
    "the drawn cells by up to 0.004 (Cellpose) and 0.03 (Mask R-CNN)."
)
SCORE_COLUMNS = ("Model", "MAP IoU", "at 0.50", "at 0.75", "at 0.90", "true cells", "found cells", "images")


def _score_row(name: str, line: Any) -> list[str]:
    parts = [in_words(float(line.get(key, math.nan))) for key in ("ap50", "ap75", "ap90")]
    return [name, with_interval(line), *parts, *(str(int(line[k])) for k in ("truth_cells", "found_cells", "images"))]


def comparisons(files: RunFiles, split: str) -> list[str]:
    """Return a sentence per other model: is the best one better, on the same images?"""
    rows = files.scores[files.scores["split"] == split]
    own = rows[rows["model"] == files.best]
    others = [name for name in order_models(rows["model"].unique()) if name != files.best]
    if own.empty:
        return []
    return [
        paired_bootstrap(rows[rows["model"] == name], own, n=files._rounds).sentence(
            model_name(name), model_name(files.best)
        )
        for name in others
    ]


def curves_chapter(files: RunFiles) -> list:
    """The score at each IoU threshold."""
    if files.no_accuracy:
        return []
    scores, split = files.scores, files.report_split
    rows = scores[scores["split"] == split]
    text = f"TP / (TP + FP + FN) at each IoU threshold, {SPLIT_IMAGES.get(split, split)}."
    return [drawn(lambda f: show_curves(rows, f.subplots()), 7.0, 4.9, text)]


def parts_chapter(files: RunFiles) -> list:
    """Scores by cell type, class and size."""

    if files.no_accuracy:
        return []
    split, blocks = files.report_split, []
    for by, what in (("cell_type", "cell type of the image"), ("class_name", "class of the cell"), ("size", "size")):
        try:
            table = files.score_parts(by)
        except UserError:
            continue
        rows = table[table["split"] == split]
        if len(rows):
            caption = f"MAP IoU by {what}, {SPLIT_IMAGES.get(split, split)}"
            caption += ": thirds of all true areas" if by == "size" else ""
            caption += ": a hit must be of the class, so this is stricter" if by == "class_name" else ""
            blocks.append(_wide(rows, by, caption))
    return blocks or [Words("Left out: scores.csv has no parts.")]


def _wide(rows: pandas.DataFrame, by: str, caption: str) -> Table:
    """Return a table of scores: a row per part, a column per model."""
    models = order_models(rows["model"].unique())
    texts = []
    for part in dict.fromkeys(rows[by]):
        of_part = rows[rows[by] == part].set_index("model")
        cells = [with_interval(of_part.loc[model]) if model in of_part.index else "–" for model in models]
        texts.append([str(part) or "unknown", str(int(of_part["truth_cells"].max())), *cells])
    return Table((by.replace("_name", "").replace("_", " "), "true cells", *map(model_name, models)), texts, caption)


def counts_chapter(files: RunFiles) -> list:
    """How many cells of each class there are.

    Raises
    ------
    UserError
        No image was counted, or no model found a cell of a named class.
    """
    counts, split = files.counts, files.setting("evaluate.report_split", "test")
    total = rows_over_all(counts)
    single = counts.drop(total.index)
    if single.empty:
        raise UserError(f"no {SPLIT_TITLES.get(split, split)} image is counted")
    if not files.class_model and not total["found"].any():
        raise UserError("no model of this run found a cell of a named class, so that no line is counted")
    known = "truth" in counts
    rows = [
        [line.class_name, str(line.found), percent(line.share)]
        + ([str(line.truth), percent(line.true_share)] if known else [])
        for line in total.itertuples()
    ]
    columns = ("Class", "found", "share", *(("truth", "share") if known else ()))
    n = single["image_id"].nunique()
    who = model_name(files.class_model) or "the model handed in"
    where = counted(n, f"{SPLIT_TITLES.get(split, split)} image") + _of_several_lines(files, set(single["image_id"]))
    caption = f"Cells of each class in {where}, by {who}"
    text = "Share of each class, over all and per image."
    picture = drawn(lambda f: show_counts(counts, f.subplots()), *counts_size(counts), text)
    return [Table(columns, rows, caption), picture]


def _of_several_lines(files: RunFiles, counted_images: set[str]) -> str:
    """Say that images of several lines alone are counted, where it is so."""
    records = [] if files.path("records.csv") is None else files.images.records
    lines = {record.cell_type for record in records if record.image_id in counted_images}
    return " of several lines" if lines == {MIXED} else ""


def classes_chapter(files: RunFiles) -> list:
    """The confusion matrix of the classes.

    Raises
    ------
    UserError
        No model found a cell of a named class.
    """
    import pandas as pd

    accuracy = files.summary.get("classes")
    if not accuracy:
        raise UserError("no model of this run found a cell of a named class")
    if files.no_accuracy:
        return []
    blocks: list = []
    for model, splits in accuracy.items():
        for split, one in splits.items():
            share = "–" if one["accuracy"] is None else percent(one["accuracy"])
            text = f"{model_name(model)}, {SPLIT_IMAGES.get(split, split)}: {share} of {counted(one['cells'], 'matched cell')} "
            text += f"(IoU > 0.5) {'has' if one['cells'] == 1 else 'have'} the right class. Rows are the true line, or "
            text += "invented; columns the one found, or missed."
            table = pd.DataFrame(**one.get("errors", one["confusion"]))
            if not one["cells"]:
                blocks.append(Words(text))
                continue
            blocks.append(drawn(lambda f, t=table: show_confusion(t, f.subplots()), *confusion_size(table), text))
    return blocks


def errors_chapter(files: RunFiles) -> list:
    """The images of lowest score, with their errors.

    Raises
    ------
    UserError
        No image is labelled in which errors could be told.
    """
    if files.no_accuracy:
        return []
    _need_attribution(files)
    data, found, worst = files.worst(int(files.setting("evaluate.error_images", 3)))
    if not worst:
        return [Words("Left out: evaluate.error_images is 0.")]
    split = SPLIT_IMAGES.get(data.records[0].split, "images")
    scores = dict(files.attribution[["image_id", "score"]].itertuples(index=False))
    blocks: list = [
        Words(
            f"The {split} where {model_name(files.best)} scores lowest. Left: found (line) and truth (dashed). Right, at "
            "IoU 0.5: what was hit, missed (striped), invented."
        )
    ]
    for k in worst:

        def draw(figure, k=k):
            left, right = figure.subplots(1, 2)
            image, um = data.image(k), data.records[k].um_per_px
            show_overlay(image, found[k], data.instances[k], left, classes=data.classes, um_per_px=um)
            show_errors(image, data.instances[k], found[k], right, um_per_px=um)

        high = 4.7 * aspect_of(data.instances[k].shape) + 0.4
        name = data.records[k].image_id
        blocks.append(drawn(draw, 9.6, high, f"{name}: MAP IoU {in_words(scores[name])}" if name in scores else name))
    return blocks


def _need_attribution(files: RunFiles) -> None:
    if files.attribution.empty:
        where = SPLIT_TITLES.get(files.choose_split, files.choose_split)
        raise UserError(f"no {where} image is labelled by a person")


def lost_chapter(files: RunFiles) -> list:
    """What repairing one kind of fault would give back.

    Raises
    ------
    UserError
        No image is labelled in which errors could be told.
    """
    if files.no_accuracy:
        return []
    _need_attribution(files)
    table = files.attribution
    split = table["split"].iloc[0]
    rows = [[line.kind, str(line.cells), str(line.images), in_words(line.gain)] for line in gains(table).itertuples()]
    caption = (
        f"{model_name(files.best)}, {counted(table['image_id'].nunique(), f'{SPLIT_TITLES.get(split, split)} image')}"
    )
    text = (
        "What the MAP IoU of all images would gain if one kind of fault alone were repaired; the gains do not add up."
    )
    picture = drawn(lambda f: show_gains(table, f.subplots()), 7.4, 3.2, text)
    return [Table(("Fault", "cells", "images", "MAP IoU given back"), rows, caption), picture]
