"""The chapters of a report about images, labels and how the run was made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cellkit.cells.dataset import AGREEMENT, CellDataset
from cellkit.cells.records import SPLIT_TITLES, ImageRecord, channel_names, is_scored
from cellkit.config.recipes import RECIPES, recipe_name, recipe_sections
from cellkit.config.sections import BACKEND_SECTIONS, STAGES, Config, section_class
from cellkit.errors import UserError, counted
from cellkit.forecast.words import summed_up
from cellkit.labelling.rounds import CHANGE_WORDS, FIRST_WORDS
from cellkit.microscope.flags import reasons
from cellkit.models import is_backend
from cellkit.models.gate import CROSS_FITTING, IN_QUARTERS
from cellkit.pages.results import Picture, RunFiles, Table, Words, drawn, in_words
from cellkit.show.charts import show_history
from cellkit.show.counts import data_size, show_data
from cellkit.show.overlays import show_overlay
from cellkit.show.sheets import show_flagged, show_sheet
from cellkit.show.style import aspect_of
from cellkit.sources.statistics import class_table, remarks


def images_chapter(files: RunFiles) -> list:
    """How many images of what there are, and examples."""
    records = files.images.records
    kinds = sorted({record.cell_type for record in records})
    columns = [*SPLIT_TITLES.values(), "flagged, not scored", "excluded"]
    places = [_place(record) for record in records]
    if "flagged, not scored" not in places:
        columns.remove("flagged, not scored")
    of_kind = {kind: [p for r, p in zip(records, places, strict=True) if r.cell_type == kind] for kind in kinds}
    rows = [[kind or "unknown", *(str(own.count(column)) for column in columns)] for kind, own in of_kind.items()]
    blocks: list = [Table(("Images of", *columns), rows, counted(len(records), "image"))]
    if files.truths:
        cells = [[name, *_cells_of(data)] for name, data in ((SPLIT_TITLES[s], d) for s, d in files.truths.items())]
        blocks.append(Table(("Cells in", *files.classes, "of unknown class"), cells, "Cells of the labels in use"))
    blocks += _makers(files)
    maps = sorted({_channel_words(record.channels) for record in records if record.channels})
    if maps:
        blocks.append(Words(f"Channels: {'; or '.join(maps[:4])}{' …' if len(maps) > 4 else ''}."))
    flagged = [record for record in records if record.flags or not record.split]
    if flagged:
        why = _reasons(files)
        rows = [[r.image_id, why(r), SPLIT_TITLES.get(r.split, "excluded")] for r in flagged]
        blocks.append(_first(("Image", "Why", "Split"), rows, "Flagged or excluded"))
    if "train" in files.truths:
        data = files.truths["train"]
        size = 9.6, 0.5 + (2.35 * aspect_of(data.instances[0].shape) + 0.4) * -(-min(8, len(data)) // 4)
        left = len(files.proposed("train"))
        whose = "their labels" + (f", {left} of {len(data)} as the model proposed them" if left else "")
        blocks.append(drawn(lambda f: show_sheet(data, figure=f), *size, f"Training images with {whose}."))
    return blocks


def _place(record: ImageRecord) -> str:
    """Return in which column of the table of images a record counts."""
    used = is_scored(record) or record.split not in SPLIT_TITLES
    return SPLIT_TITLES.get(record.split, "excluded") if used else "flagged, not scored"


def _first(columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> Table:
    """Return a table that is cut after `MOST_ROWS`, and says so."""
    left = f": the first {MOST_ROWS} of {len(rows)}" if len(rows) > MOST_ROWS else ""
    return Table(columns, rows[:MOST_ROWS], caption + left)


MOST_ROWS = 200


def _reasons(files: RunFiles) -> Callable[[ImageRecord], str]:
    """Return what says why an image is flagged: with numbers and limits where quality.csv and quality.json hold them."""
    known = files.path("quality.csv") is not None and files.path("quality.json") is not None
    measured = files.table("quality.csv").set_index("image_id").to_dict("index") if known else {}
    thresholds = files.json("quality.json", "thresholds")["thresholds"] if known else {}

    def why(record: ImageRecord) -> str:
        plain = record.flags.replace(";", ", ").replace("_", " ") or "no reason noted"
        try:
            return "; ".join(reasons(measured[record.image_id], thresholds, record.flags)) or plain
        except KeyError:  # a flag of another version, or an image that was not measured
            return plain

    return why


def _channel_words(channels: str) -> str:
    """Say what is in which colour.

    Examples
    --------
    >>> _channel_words("red=;green=GFP;blue=DAPI")
    'GFP in green, DAPI in blue'
    """
    return ", ".join(f"{name} in {colour}" for colour, name in channel_names(channels).items())


def _makers(files: RunFiles) -> list:
    """Count the images of each split by who made their labels."""
    if files.path("labels.csv") is None:
        return []
    made_by = dict(files.table("labels.csv")[["image_id", "made_by"]].itertuples(index=False))
    rows = []
    for maker, words in MAKERS.items():
        own = [record.split for record in files.images.records if made_by.get(record.image_id) == maker]
        if own:
            rows.append([words, *(str(own.count(split)) for split in SPLIT_TITLES)])
    return [Table(("Labels", "training", "validation", "test"), rows, "Who made the labels")] if rows else []


MAKERS = {
    "truth": "came with the images",
    "corrected": "corrected by a person",
    "proposed": "proposed by the model: trained on, nothing is scored there",
}


def first_chapter(files: RunFiles) -> list:
    """Where a person's correction pays most."""
    if files.path("correct_first.csv") is None:
        return []
    table = files.table("correct_first.csv")
    if table.empty:
        return []
    rows = [
        [
            line.image_id,
            SPLIT_TITLES.get(line.split, "excluded"),
            {"": "none"}.get(line.made_by, line.made_by),
            str(line.cells),
            in_words(float(line.confidence), 2),
            in_words(float(line.disagreement), 2),
        ]
        for line in table.head(20).itertuples()
    ]
    columns = ("Image", "split", "labels", "cells proposed", "confidence", "disagreement")
    caption = f"{counted(len(table), 'image')} without a person's labels" + (
        ", the first 20" if len(table) > 20 else ""
    )
    blocks: list = [Words(FIRST_WORDS), Table(columns, rows, caption)]
    path = files.path("proposals.json")
    if path is None or "threshold" not in files.models:
        return blocks
    first = str(table["image_id"].iloc[0])
    k, proposed, floor = files.images.index(first), files.cells_of(path)[first], files.predictions("threshold")[first]

    def draw(figure):
        names, um = ("proposed", "threshold"), files.images.records[k].um_per_px
        show_overlay(files.images.image(k), proposed, floor, figure.subplots(), names=names, um_per_px=um)

    high = 6.4 * aspect_of(proposed.shape) + 0.4
    return [*blocks, drawn(draw, 6.4, high, f"{first}: proposed (line), threshold (dashed).")]


def changes_chapter(files: RunFiles) -> list:
    """What corrections changed."""
    if files.path("label_changes.csv") is None:
        return []
    table = files.table("label_changes.csv")
    blocks: list = []
    for since, words in (
        ("proposals", "From the proposals to the corrections"),
        ("last round", "Since the last round"),
    ):
        part = table[table["since"] == since]
        if part.empty:
            continue
        counts = ("cells", "same", "changed", "added", "removed")
        rows = [
            [line.image_id, line.made_by, *(str(getattr(line, name)) for name in counts), in_words(float(line.iou))]
            for line in part.itertuples()
        ]
        total = [str(int(part[name].sum())) for name in counts]
        rows.append([f"all {len(rows)}", "", *total, in_words(float(part["iou"].astype(float).mean()))])
        caption = f"{words}: {counted(len(part), 'image')}"
        blocks.append(Table(("Image", "labels", *counts, "mean IoU"), rows, caption, frozenset([len(rows) - 1])))
    return [Words(CHANGE_WORDS), *blocks] if blocks else []


def flags_chapter(files: RunFiles) -> list:
    """Which images are flagged, and why."""
    quality_notes = files.json("quality.json", "words", "copies", "thresholds")
    if not quality_notes:
        return []
    blocks: list = [Words(f"{words[0].upper()}{words[1:]}.") for words in quality_notes["words"]]
    if quality_notes["copies"]:
        rows = [
            [one["first"], one["second"], one["how"], in_words(one["likeness"], 2)] for one in quality_notes["copies"]
        ]
        blocks.append(_first(("Image", "shows the field of", "how", "likeness"), rows, "One field twice"))
    records = [record for record in files.images.records if record.flags]
    if not records:
        return [*blocks, Words("No image is flagged.")]
    measured = files.table("quality.csv").set_index("image_id", drop=False).to_dict("index")
    quality = [measured[record.image_id] for record in records]
    shown = min(12, len(records))
    size = 2.4 * min(4, shown), 0.4 + 3.0 * -(-shown // 4)
    draw = lambda figure: show_flagged(files.images.root, records, quality, quality_notes["thresholds"], 12, 4, figure)  # noqa: E731
    return [*blocks, drawn(draw, *size, f"{len(records)} of {counted(len(files.images.records), 'image')} flagged.")]


def sheet_chapter(files: RunFiles) -> list:
    """The data-set sheet."""
    sheet = files.json("sheet.json")
    if not sheet:
        return []
    table = class_table(sheet)
    rows = [
        [name, *(in_words(float(v), 0 if float(v).is_integer() else 1) for v in row)] for name, row in table.iterrows()
    ]
    caption = f"{counted(sheet['cells'], 'cell')} in {counted(sheet['images'], 'image')}"
    blocks: list = [Table(("Class", *table.columns), rows, caption)]
    if remarks(sheet):
        blocks.append(Words("; ".join(remarks(sheet)) + "."))
    return [
        *blocks,
        drawn(
            lambda figure: show_data(sheet, figure),
            *data_size(sheet),
            "Thin line: all; thick: 5 to 95 %; bar: half; dot: median.",
        ),
    ]


def _cells_of(data: CellDataset) -> list[str]:
    ids = [int(k) for cells in data.instances for k in cells.class_ids]
    return [str(ids.count(k)) for k in [*range(1, len(data.classes) + 1), 0]]


def training_chapter(files: RunFiles) -> list:
    """Loss and score over the steps of each training.

    Raises
    ------
    UserError
        No training left a history.
    """
    histories = files.histories()
    if not histories:
        raise UserError("no training of this run left a history.csv")
    blocks = []
    for name in histories:
        what = "MAP IoU, mean of classes" if "maskrcnn" in name else "MAP IoU"
        what = AGREEMENT if "val" in files.truths and "val" not in files.scored_truths else what
        history = files.history(name)
        scored = "score" not in history or history["score"].notna().any()
        text = f"{name}: loss, and {what} on whole validation images; the ring marks the weights that were kept."
        text = text if scored else f"{name}: loss; no image chose its weights."
        blocks.append(drawn(lambda f, history=history, what=what: show_history(history, f, score=what), 6.2, 4.8, text))
    return blocks + _too_few_cells(files)


def _too_few_cells(files: RunFiles) -> list:
    """Say which images the fine-tuning left out, by the rule of `CellDataset.with_at_least`.

    Where images judge in turn (see `cellkit.models.gate.regime_of`), validation images that a person labelled teach too.
    """
    least = files.setting("finetune.min_train_masks")
    in_turn = files.json("decision.json").get("regime") in (CROSS_FITTING, IN_QUARTERS)
    least = max(least or 0, 1) if in_turn else least
    if not least or files.path("labels.csv") is None:
        return []
    table = files.table("labels.csv")
    cells, made_by = (dict(zip(table["image_id"], table[name], strict=True)) for name in ("cells", "made_by"))
    teach = [
        r.image_id
        for r in files.images.records
        if r.split == "train" or in_turn and r.split == "val" and made_by.get(r.image_id, "proposed") != "proposed"
    ]
    left = [name for name in teach if cells.get(name, 0) < least]
    which = "training and validation images" if in_turn else "training images"
    text = f"Fine-tuning left out {which} with fewer than {counted(least, 'labelled cell')}: {', '.join(left)}."
    return [Words(text)] if left else []


def run_chapter(files: RunFiles) -> list:
    """Stages, settings and versions of the run.

    Raises
    ------
    UserError
        The manifest lists no finished stage.
    """
    if not files.stages:
        raise UserError("manifest.json lists no finished stage")
    rows = [
        [
            name,
            f"{entry.get('seconds', 0) / 60:.1f}",
            entry.get("device", "–"),
            entry.get("finished", "–"),
            entry["code_sha256"][:12],
        ]
        for name, entry in files.stages.items()
    ]
    total = sum(entry.get("seconds", 0) for entry in files.stages.values()) / 60
    blocks: list = [
        Table(("Notebook", "minutes", "device", "finished (UTC)", "code"), rows, f"{total:.1f} minutes in all")
    ]
    forecast = files.manifest.get("forecast", {})
    if took := summed_up({name: one for name, one in forecast.items() if name in files.stages}):
        took = took.removeprefix("forecast, and taken: ")
        blocks.append(Words(f"Forecast before the run, and what it took: {took}."))
    if files.staged is not None:
        blocks.append(Words("The notebook that writes this page is not listed: it was still running."))
    under_way = files.manifest["attempts"].get(files.staged.name, {}) if files.staged is not None else {}
    last_run = under_way.get("run") or files.manifest.get("run")
    if last_run:
        blocks.append(
            Words(f"Configuration: {Path(last_run['config']).name}, overrides: {last_run['overrides'] or 'none'}.")
        )
    different = changed_settings(files)
    blocks.append(
        Table(("Setting", "value", "default"), different, "What differs from the defaults")
        if different
        else Words("Every setting is the default.")
    )
    versions: dict[str, str] = {}
    for entry in files.stages.values():
        for name, version in entry.get("versions", {}).items():
            versions[name] = version if versions.get(name, version) == version else f"{versions[name]}, then {version}"
    return [*blocks, Table(("Package", "version"), [[n, v] for n, v in versions.items()], "Versions")]


def changed_settings(files: RunFiles) -> list[list[str]]:
    """Return (dotted key, value, default) of every setting that is not the default, of finished stages and the one under way."""
    rows, seen, recipes = [], set(), recipe_sections()
    for stage, config in files.settings.items():
        recipe = recipe_name(stage)
        section = STAGES.get(stage) or (f"{RECIPES}.{recipe}" if recipe in recipes else None)
        if section is None or not isinstance(config, dict):
            continue
        usual_settings = (recipes[recipe]() if recipe in recipes else Config().section(section)).fingerprint()
        backend = config.get("backend")
        if section in BACKEND_SECTIONS and is_backend(backend):  # its own settings, not those of the usual backend
            own = section_class(section, backend)().fingerprint()
            usual_settings = own | {"backend": usual_settings["backend"]}
        for key, value, usual in _leaves(config, usual_settings):
            shared = key in ("seed", "classes")
            name = key if shared else f"{section}.{key}"
            if value != usual and name not in seen and not key.endswith("_code"):  # hashes
                seen.add(name)
                rows.append([name, str(value), str(usual)])
    return [row for row in rows if "." not in row[0]] + [row for row in rows if "." in row[0]]


def _leaves(value: Any, default: Any, key: str = ""):
    """Yield (key, value, default) of every plain value."""
    if isinstance(value, dict) and isinstance(default, dict) and default:
        for name, one in value.items():
            yield from _leaves(one, default.get(name), f"{key}.{name}" if key else name)
    else:
        yield key, value, default


def figures_chapter(files: RunFiles) -> list:
    """Pictures that notebooks saved."""
    folders = [folder / "figures" for folder in (files.folder, files.staged) if folder is not None]
    files.path("figures")  # noted as read
    found = sorted(path for folder in folders if folder.is_dir() for path in folder.glob("*.png"))
    paths = [path for path in found if files.path(f"figures/{path.name}") == path]
    if not paths:
        return []
    return [Picture(path.read_bytes(), path.stem.replace("_", " "), 900) for path in paths]
