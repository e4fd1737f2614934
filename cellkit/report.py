"""One page per run: what was done to which images, how good the answers are, and where they are wrong.

`RunFiles` opens what a run folder holds, for this page and for the slides. `write_report` makes one HTML file with every
picture in it: no network, no script. A file that is not there leaves its section out with a sentence.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellkit.errors import UserError
from cellkit.files import read_json, write_json, write_text

if TYPE_CHECKING:
    import pandas

    from cellkit.dataset import CellDataset
    from cellkit.instances import Instances
    from cellkit.records import ImageRecord
    from cellkit.run import Stage

CONVENTION = "MAP IoU (kaggle: IoU > 0.50:0.05:0.95, mean of images)"
SPLITS = {"train": "training", "val": "validation", "test": "test"}
SUMMARY_COLUMNS = ("score", "low", "high", "images", "truth_cells", "found_cells")
STAGE_OF = {
    "records.csv": "01_convert",
    "coco": "04_cells_to_coco",
    "predictions": "02 to 05",
    "scores.csv": "06_evaluate_map_iou",
    "counts.csv": "06_evaluate_map_iou",
    "attribution.csv": "06_evaluate_map_iou",
    "summary.json": "06_evaluate_map_iou",
    "correct_first.csv": "02_label_with_cellpose",
    "label_changes.csv": "02_label_with_cellpose",
}


# ---- what a run folder holds ---------------------------------------------------------------------------------------
class RunFiles:
    """What a page about a run reads, opened when it is asked for.

    Parameters
    ----------
    run_dir : path
        The run folder.
    staged : path, optional
        A folder that stands for the run folder while a stage is under way (``stage.root``): looked into first.
    configs : mapping, optional
        Stage -> settings, of stages that the manifest does not list yet.

    Raises
    ------
    UserError
        No such folder; later, when something is asked for that is not there or cannot be read.
    """

    def __init__(self, run_dir: str | Path, staged: str | Path | None = None, configs: Mapping[str, Any] | None = None):
        self.configs = dict(configs or {})
        self.folder, self.staged = Path(run_dir), None if staged is None else Path(staged)
        if not self.folder.is_dir():
            raise UserError(f"there is no run folder '{run_dir}'", "make one with: cellkit run CONFIG --run FOLDER")

    def path(self, name: str) -> Path | None:
        """Return the path of a file of the run, None if it is not there."""
        from cellkit.manifest import note_reading

        places = [self.folder / name] if self.staged is None else [self.staged / name, self.folder / name]
        path = next((place for place in places if place.exists()), None)
        note_reading(path or places[-1])
        return path

    def need(self, name: str) -> Path:
        """Return the path of a file of the run; say which notebook writes it if it is not there."""
        path = self.path(name)
        if path is None:
            maker = STAGE_OF.get(name.split("/")[0], "a later notebook")
            raise UserError(f"{self.folder.name} has no {name}; {maker} writes it")
        return path

    def table(self, name: str) -> pandas.DataFrame:
        """Read a CSV of the run; text stays text, an empty cell of text is ""."""
        import pandas as pd

        table = pd.read_csv(
            self.need(name), dtype={"image_id": str, "class_name": str}, keep_default_na=False, na_values=[""]
        )
        for column in table.columns[[not pd.api.types.is_numeric_dtype(kind) for kind in table.dtypes]]:
            table[column] = table[column].fillna("").astype(str)
        for column in {"cell_type", "group", "split", "class_name", "size"} & set(table.columns):
            table[column] = table[column].astype(object).fillna("").astype(str)
        return table

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The manifest; empty when there is none."""
        from cellkit.manifest import read_manifest

        return read_manifest(self.folder)

    @cached_property
    def stages(self) -> dict[str, dict[str, Any]]:
        """Manifest entries of finished stages, in order."""
        from cellkit.manifest import finished_entries

        return finished_entries(self.manifest)

    @cached_property
    def images(self) -> CellDataset:
        """All images of the run, without cells."""
        from cellkit.dataset import CellDataset
        from cellkit.instances import Instances
        from cellkit.records import read_records

        records = read_records(self.need("records.csv"))
        nothing = [Instances.empty((r.height_px, r.width_px)) for r in records]
        return CellDataset(records, nothing, (), self.folder, list(range(1, len(records) + 1)))

    @cached_property
    def truths(self) -> dict[str, CellDataset]:
        """Split -> its images with true cells, as far as there are any."""

        found = {split: self.path(f"coco/{split}.json") for split in SPLITS}
        from cellkit.coco import read_coco

        return {split: read_coco(path, self.folder) for split, path in found.items() if path is not None}

    @cached_property
    def judged(self) -> dict[str, CellDataset]:
        """Split -> its images whose labels no model proposed: what may be scored against."""
        kept = {split: data.without_proposed() for split, data in self.truths.items()}
        return {split: data for split, data in kept.items() if len(data)}

    def need_accuracy(self) -> None:
        """Refuse to speak of accuracy in a run in which a model proposed all labels that it could be told from."""
        if self.no_accuracy:
            raise UserError(self.no_accuracy)

    @cached_property
    def no_accuracy(self) -> str:
        """Why no accuracy can be told; "" where it can, or where nothing was labelled yet."""
        from cellkit.dataset import NO_ACCURACY

        asked = [split for split in self.truths if split != "train"]
        return NO_ACCURACY if asked and not any(split in self.judged for split in asked) else ""

    @property
    def unlabelled(self) -> bool:
        """Whether it is known that no accuracy can be told."""
        try:
            return bool(self.no_accuracy)
        except (UserError, OSError):
            return False

    def proposed(self, split: str) -> list[str]:
        """Return the images of a split whose labels a model proposed."""
        data = self.truths.get(split)
        if data is None:
            return []
        return [r.image_id for r, maker in zip(data.records, data.made_by, strict=True) if maker == "proposed"]

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in order."""
        return next((data.classes for data in self.truths.values()), ())

    @cached_property
    def models(self) -> list[str]:
        """Names of the predictions files, in the order of every table."""
        from cellkit.show_style import order_models

        folders = [folder / "predictions" for folder in (self.folder, self.staged) if folder is not None]
        return order_models({path.stem for folder in folders for path in folder.glob("*.json")})

    def predictions(self, model: str) -> dict[str, Instances]:
        """Return image_id -> cells that a model found, for all images of the run."""
        if model not in self._predictions:
            found = self.cells_of(self.need(f"predictions/{model}.json"))
            names = [record.image_id for record in self.images.records]
            self._predictions[model] = dict(zip(names, found, strict=True))
        return self._predictions[model]

    def cells_of(self, path: Path) -> list[Instances]:
        """Read a results list of this run: the cells of every image, in the order of the records."""
        from cellkit.coco import read_results

        shapes = {k: (r.height_px, r.width_px) for k, r in zip(self.images.ids, self.images.records, strict=True)}
        return read_results(path, shapes)

    @cached_property
    def _predictions(self) -> dict[str, dict[str, Instances]]:
        return {}

    def of_images(self, model: str, data: CellDataset) -> list[Instances]:
        """Return what a model found in the given images, in their order."""
        found = self.predictions(model)
        return [found[record.image_id] for record in data.records]

    @cached_property
    def scores(self) -> pandas.DataFrame:
        """scores.csv: model and the columns of `score_table`."""
        return self.table("scores.csv")

    @cached_property
    def counts(self) -> pandas.DataFrame:
        """counts.csv, of `evaluation.count_lines`."""
        return self.table("counts.csv")

    @cached_property
    def attribution(self) -> pandas.DataFrame:
        """attribution.csv, of `attribution.attribute`."""
        return self.table("attribution.csv")

    @cached_property
    def summary(self) -> dict[str, Any]:
        """summary.json; empty when there is none."""
        path = self.path("summary.json")
        return {} if path is None else read_json(path)

    def setting(self, key: str, default: Any = None) -> Any:
        """Return a setting such as ``evaluate.report_split`` as the stage was run with it, else `default`."""
        from cellkit.config import STAGES

        section, name = key.split(".")
        stage = next(stage for stage, one in STAGES.items() if one == section)
        told = self.configs.get(stage) or self.stages.get(stage, {}).get("config") or {}
        return told.get(name, default)

    @cached_property
    def report_split(self) -> str:
        """The split that is reported: test where its truth was scored, else the one that chose."""
        scored = set(self.scores["split"])
        wanted = [
            self.setting("evaluate.report_split", "test"),
            "test",
            self.setting("evaluate.choose_split", "val"),
            "val",
        ]
        return next((split for split in wanted if split in scored), next(iter(sorted(scored)), ""))

    @cached_property
    def choose_split(self) -> str:
        """The split that decides which model is best."""
        return self.setting("evaluate.choose_split", "val")

    @cached_property
    def score_summary(self) -> pandas.DataFrame:
        """One row per model and split: MAP IoU with its 95 % interval; as in summary.json where it is told there."""
        import pandas as pd

        from cellkit.evaluation import summarise

        told = pd.DataFrame(self.summary.get("scores") or [])
        if {"model", "split", *SUMMARY_COLUMNS} <= set(told.columns):
            numbers = [name for name in told.columns if name not in ("model", "split", "interval_of")]
            return told.assign(**{name: pd.to_numeric(told[name]) for name in numbers})
        return summarise(self.scores, n=self._rounds)

    def score_parts(self, by: str) -> pandas.DataFrame:
        """One row per model, split and part (cell_type, class_name, size)."""
        from cellkit.evaluation import summarise

        rows = self.scores
        if by == "class_name":
            rows = rows[rows["model"].isin(rows.loc[rows["class_name"] != "", "model"])]
        if by == "size" and not (rows["size"] != "").any() or rows.empty:
            raise UserError(f"scores.csv does not tell {by} apart")
        return summarise(rows, by, n=self._rounds)

    @property
    def _rounds(self) -> int:
        return int(self.setting("evaluate.bootstrap_samples", 1000))

    @cached_property
    def best(self) -> str:
        """The model that was handed in; without a summary the best by MAP IoU on the deciding split."""
        from cellkit.evaluation import decide

        if self.summary.get("best"):
            return str(self.summary["best"])
        known = set(self.score_summary["split"])
        return decide(
            self.score_summary, "best", self.choose_split if self.choose_split in known else self.report_split
        )

    def line(self, model: str, split: str) -> Any:
        """Return the row of `score_summary` of a model and split; None where it was not scored."""
        table = self.score_summary
        rows = list(table[(table["model"] == model) & (table["split"] == split)].itertuples())
        return rows[0] if rows else None

    @cached_property
    def class_model(self) -> str:
        """The model that names classes best, "" where none names any: as notebook 06 chooses it."""
        from cellkit.evaluation import class_model, classes_found

        right = self.summary.get("classes")
        if right is None:
            right = classes_found({model: self.predictions(model) for model in self.models}, list(self.judged.values()))
        return class_model(right, self.choose_split)

    def worst(self, n: int) -> tuple[CellDataset, list[Instances], list[int]]:
        """Return a truth, what the best model found there, and the positions of the `n` worst images, worst first."""
        from cellkit.attribution import worst_images

        rows = worst_images(self.attribution, n)
        split = next(iter(rows["split"]), self.choose_split)
        if split not in self.truths:
            raise UserError(f"{self.folder.name} has no coco/{split}.json; {STAGE_OF['coco']} writes it")
        data = self.judged.get(split, self.truths[split].subset([]))
        place = {record.image_id: k for k, record in enumerate(data.records)}
        return data, self.of_images(self.best, data), [place[name] for name in rows["image_id"] if name in place]

    def histories(self) -> dict[str, Path]:
        """Return stage -> the ``history.csv`` of its training."""
        found = {name: self.path(f"{name}/history.csv") for name in self.stages}
        return {name: path for name, path in found.items() if path is not None}


def in_words(value: Any, digits: int = 3) -> str:
    """Return a number for print; an undefined one is a dash.

    Examples
    --------
    >>> in_words(0.71249), in_words(float("nan")), in_words(None), in_words(12)
    ('0.712', '–', '–', '12')
    """
    if value is None or isinstance(value, float) and not math.isfinite(value):
        return "–"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def with_interval(line: Any, digits: int = 3) -> str:
    """Return "0.712 [0.650, 0.768]" of a row with score, low and high; the score alone where there is no interval."""
    if line is None:
        return "–"
    low, high = in_words(float(line.low), digits), in_words(float(line.high), digits)
    return in_words(float(line.score), digits) + (f" [{low}, {high}]" if "–" not in (low, high) else "")


# ---- the page ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Table:
    """A table of texts; `mark` = the rows to set in bold."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    mark: frozenset[int] = frozenset()
    kind: str = field(default="table", init=False)


@dataclass(frozen=True)
class Picture:
    """A picture inside the page."""

    png: bytes
    caption: str
    width_px: int
    kind: str = field(default="picture", init=False)

    @property
    def data(self) -> str:
        """The picture as base64 text."""
        return base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True)
class Words:
    """A paragraph."""

    text: str
    kind: str = field(default="words", init=False)


@dataclass(frozen=True)
class Chapter:
    """A heading and what stands below it."""

    name: str
    title: str
    blocks: Sequence[Table | Picture | Words]


def write_report(
    run: Stage | str | Path,
    summary: Mapping[str, Any] | None = None,
    *,
    counts: pandas.DataFrame | None = None,
    worst: Sequence[int] | None = None,
    judge: CellDataset | None = None,
    found: Sequence[Instances] | None = None,
    out: str | Path | None = None,
) -> Path:
    """Write the page about a run; and, from a stage under way, ``summary.json`` beside it.

    Parameters
    ----------
    run : Stage or path
        A stage under way (what it has written so far counts as the run's), or a run folder.
    summary : mapping, optional
        "best" (a model's name), "classes" (`evaluation.classes_found`), and any tables worth keeping in summary.json.
    counts : DataFrame, optional
        `evaluation.count_lines`; default counts.csv.
    worst, judge, found : optional
        Positions in `judge` of the images whose errors are shown, its truth, and what the best model found there;
        default the worst of attribution.csv.
    out : path
        Default ``report.html`` of the stage; needed for a run folder.

    Returns
    -------
    Path
        Of the page: one file, with every picture in it.
    """
    if isinstance(run, (str, Path)):
        if out is None:
            raise UserError(f"where does the report of '{run}' go?", "give out=, outside the run folder")
        files = RunFiles(run)
    else:
        files, out = (
            RunFiles(run.run.folder, run.root, {run.name: run._entry["config"]}),
            out or run.path("report.html"),
        )
        run.note_settings()
        if summary is not None:
            told = {"no_accuracy": files.no_accuracy} if files.no_accuracy else {}
            write_json(run.path("summary.json"), plain({**summary, **told}), indent=1)
    if summary is not None:
        files.summary = plain(summary)
    if counts is not None:
        files.counts = counts
    if judge is not None and found is not None:
        files.worst = lambda n: (judge, list(found), list(worst or ()))
    return write_text(out, page(files))


def plain(value: Any) -> Any:
    """Return tables as lists of rows, and undefined numbers as None: what JSON can hold.

    Examples
    --------
    >>> plain({"score": float("nan"), "names": ("a", "b")})
    {'score': None, 'names': ['a', 'b']}
    """
    if hasattr(value, "to_dict") and hasattr(value, "columns"):
        return plain(value.to_dict("records"))
    if hasattr(value, "item") and not hasattr(value, "__len__"):
        value = value.item()
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def page(files: RunFiles) -> str:
    """Return the page about a run as HTML text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from cellkit import __version__

    folder = Path(__file__).parent / "templates"
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    chapters = [_made(files, *one) for one in CHAPTERS]
    quarantined = [item for entry in files.stages.values() for item in entry.get("quarantined", [])]
    return environment.get_template("report.html.j2").render(
        title=files.folder.resolve().name,
        headline=_headline(files),
        chapters=chapters,
        quarantined=quarantined,
        version=__version__,
    )


def _made(files: RunFiles, name: str, title: str, make: Callable[[RunFiles], list]) -> Chapter:
    """Make a chapter; what it cannot be made of is said in its place."""
    try:
        blocks = make(files)
    except (UserError, ValueError, KeyError, TypeError, OSError) as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        blocks = [Words(f"Left out: {reason}{'' if isinstance(error, UserError) else f' ({type(error).__name__})'}.")]
    return Chapter(name, title, blocks)


def _drawn(draw: Callable[[Any], Any], width_in: float, height_in: float, caption: str) -> Picture:
    """Draw into a figure of the given size and take the picture."""
    from cellkit.show_style import new_figure, to_png

    figure = new_figure(width_in, height_in)
    draw(figure)
    return Picture(to_png(figure, dpi=130), caption, round(96 * width_in))


def _headline(files: RunFiles) -> str:
    from cellkit.show_style import model_name

    try:
        if files.no_accuracy:
            return f"{files.no_accuracy[0].upper()}{files.no_accuracy[1:]}. Below: which images to correct first."
        best, split = files.best, files.report_split
        line = files.line(best, split)
    except (UserError, ValueError, KeyError, OSError):
        return "No scores yet: 06_evaluate_map_iou has not finished."
    told = " These images also chose." if split == files.choose_split else ""
    where = f"{line.images} {SPLITS[split]} image{'s' * (line.images != 1)}"
    left = len(files.proposed(split))
    told += (
        f" {left} more {'has' if left == 1 else 'have'} no labels but a model's proposals, and no score."
        if left
        else ""
    )
    return f"{model_name(best)}: {with_interval(line)} on {where}. {CONVENTION}.{told}{blind_words(files)}"


def blind_words(files: RunFiles) -> str:
    """Name the models that find no cell in the images reported on although there are some; "" where all find one."""
    from cellkit.show_style import SPLIT_NAMES, model_name, order_models

    table, split = files.score_summary, files.report_split
    rows = table[(table["split"] == split) & (table["found_cells"] == 0) & (table["truth_cells"] > 0)]
    names = [model_name(name) for name in order_models(rows["model"])]
    if not names:
        return ""
    told = f" No cell is found in the {SPLIT_NAMES.get(split, split)} by {'; '.join(names)}"
    return f"{told}: train longer (finetune.steps, maskrcnn.steps)."


# ---- chapters ------------------------------------------------------------------------------------------------------
def _results(files: RunFiles) -> list:
    from cellkit.show_charts import show_scores
    from cellkit.show_style import SPLIT_NAMES, model_name, order_models

    files.need_accuracy()
    table, split = files.score_summary, files.report_split
    blocks: list = []
    for name in sorted(set(table["split"]), key=lambda one: (one != split, one)):
        rows = table[table["split"] == name].set_index("model")
        models = order_models(rows.index)
        texts = [_score_row(model_name(model), rows.loc[model]) for model in models]
        caption = f"{SPLIT_NAMES.get(name, name).capitalize()}"
        caption += (
            ": some of them may have chosen a model's weights, which flatters it a little" if name == "val" else ""
        )
        mark = frozenset([models.index(files.best)]) if files.best in models else frozenset()
        blocks.append(Table(SCORE_COLUMNS, texts, caption, mark))
    blocks.append(
        Words(
            f"{CONVENTION}: a cell is hit when its overlap is strictly above the threshold; TP / (TP + FP + FN), mean of "
            "ten thresholds, then of images; an image with nothing on either side counts 1. In brackets the 95 % interval "
            f"over {_drawn_units(table)}. In bold: {model_name(files.best)}, which is handed in "
            f"(decided on {SPLIT_NAMES.get(files.choose_split, files.choose_split)}). {kept_words(files)}".rstrip()
        )
    )
    blocks.append(Words(PROCESSORS))
    height = 1.0 + 0.42 * len(table) + 0.5 * table["split"].nunique()
    blocks.append(_drawn(lambda f: show_scores(table, ax=f.subplots()), 7.4, height, "MAP IoU with 95 % intervals."))
    return [*blocks, *[Words(f"{SPLIT_NAMES[split].capitalize()}: {text}.") for text in comparisons(files, split)]]


def _drawn_units(table: Any) -> str:
    """Say what the intervals of a table were drawn from: images, or whole groups."""
    told = table.get("interval_of", [])
    return " and ".join(dict.fromkeys(str(units) for units in told)) or "images"


def kept_words(files: RunFiles) -> str:
    """Return what 03 decided, in its own words: was the tuned model better than its base, and which of them is kept?"""
    path = files.path("decision.json")
    if path is None:
        return ""
    decision = read_json(path)
    kept = "the tuned model is kept" if decision["kept"].endswith("tuned") else "the base is kept"
    told = decision["sentence"][0].upper() + decision["sentence"][1:]
    return f"{told} (validation images that chose nothing): {kept}."


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
    from cellkit.scores_comparison import paired_bootstrap
    from cellkit.show_style import model_name, order_models

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


def _curves(files: RunFiles) -> list:
    from cellkit.show_charts import show_curves
    from cellkit.show_style import SPLIT_NAMES

    if files.no_accuracy:
        return []
    scores, split = files.scores, files.report_split
    rows = scores[scores["split"] == split]
    text = f"TP / (TP + FP + FN) at each IoU threshold, {SPLIT_NAMES.get(split, split)}."
    return [_drawn(lambda f: show_curves(rows, f.subplots()), 7.0, 4.9, text)]


def _parts(files: RunFiles) -> list:
    from cellkit.show_style import SPLIT_NAMES

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
            caption = f"MAP IoU by {what}, {SPLIT_NAMES.get(split, split)}"
            caption += ": thirds of all true areas" if by == "size" else ""
            caption += ": a hit must be of the class, so this is stricter" if by == "class_name" else ""
            blocks.append(_wide(rows, by, caption))
    return blocks or [Words("Left out: scores.csv tells no parts apart.")]


def _wide(rows: pandas.DataFrame, by: str, caption: str) -> Table:
    """Return a table of scores: a row per part, a column per model."""
    from cellkit.show_style import model_name, order_models

    models = order_models(rows["model"].unique())
    texts = []
    for part in dict.fromkeys(rows[by]):
        of_part = rows[rows[by] == part].set_index("model")
        cells = [with_interval(of_part.loc[model]) if model in of_part.index else "–" for model in models]
        texts.append([str(part) or "not told", str(int(of_part["truth_cells"].max())), *cells])
    return Table((by.replace("_name", "").replace("_", " "), "true cells", *map(model_name, models)), texts, caption)


def _counts(files: RunFiles) -> list:
    from cellkit.show_counts import show_counts
    from cellkit.show_style import SPLIT_NAMES, model_name

    counts, split = files.counts, files.setting("evaluate.report_split", "test")
    if counts.empty:
        raise UserError("counts.csv has no rows: no image was asked about")
    total = counts[counts["image_id"] == "all"]
    if not files.class_model and not total["found"].any():
        raise UserError("no model of this run found a cell of a named class, so that no line is counted")
    known = "truth" in counts
    rows = [
        [line.class_name, str(line.found), _percent(line.share)]
        + ([str(line.truth), _percent(line.true_share)] if known else [])
        for line in total.itertuples()
    ]
    columns = ("Class", "found", "share", *(("truth", "share") if known else ()))
    n = counts.loc[counts["image_id"] != "all", "image_id"].nunique()
    who = model_name(files.class_model) or "the model handed in"
    caption = f"Cells of each class in {n} {SPLIT_NAMES.get(split, split)}, by {who}"
    height = 1.5 + 0.6 * min(n + 1, 9)
    picture = _drawn(
        lambda f: show_counts(counts, f.subplots()), 7.6, height, "Share of each class, over all and per image."
    )
    return [Table(columns, rows, caption), picture]


def _percent(share: float) -> str:
    return "–" if share is None or not math.isfinite(share) else f"{100 * share:.1f} %"


def _class_answers(files: RunFiles) -> list:
    import pandas as pd

    from cellkit.show_charts import show_confusion
    from cellkit.show_style import SPLIT_NAMES, model_name

    told = files.summary.get("classes")
    if not told:
        raise UserError("no model of this run found a cell of a named class")
    if files.no_accuracy:
        return []
    blocks: list = []
    for model, splits in told.items():
        for split, one in splits.items():
            share = "–" if one["accuracy"] is None else _percent(one["accuracy"])
            text = f"{model_name(model)}, {SPLIT_NAMES.get(split, split)}: {share} of {one['cells']} matched cells "
            text += "(IoU > 0.5) have the right class."
            table = pd.DataFrame(**one["confusion"])
            if not one["cells"]:
                blocks.append(Words(text))
                continue
            size = 1.8 + 1.1 * len(table.columns), 1.2 + 0.75 * len(table)
            blocks.append(_drawn(lambda f, t=table: show_confusion(t, f.subplots()), *size, text))
    return blocks


def _errors(files: RunFiles) -> list:
    from cellkit.show_overlays import show_errors, show_overlay
    from cellkit.show_style import SPLIT_NAMES, aspect_of, model_name

    if files.no_accuracy:
        return []
    data, found, worst = files.worst(int(files.setting("evaluate.error_images", 3)))
    if not worst:
        return [Words("Left out: no image was asked for (evaluate.error_images).")]
    split = SPLIT_NAMES.get(data.records[0].split, "images")
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
        blocks.append(_drawn(draw, 9.6, high, f"{name}: MAP IoU {in_words(scores[name])}" if name in scores else name))
    return blocks


def _lost(files: RunFiles) -> list:
    from cellkit.attribution import gains
    from cellkit.show_charts import show_gains
    from cellkit.show_style import SPLIT_NAMES, model_name

    if files.no_accuracy:
        return []
    table = files.attribution
    split = next(iter(table["split"]), "")
    rows = [[line.kind, str(line.cells), str(line.images), in_words(line.gain)] for line in gains(table).itertuples()]
    caption = f"{model_name(files.best)}, {table['image_id'].nunique()} {SPLIT_NAMES.get(split, 'images')}"
    text = (
        "What the MAP IoU of all images would gain if one kind of fault alone were repaired; the gains do not add up."
    )
    picture = _drawn(lambda f: show_gains(table, f.subplots()), 7.4, 3.2, text)
    return [Table(("Fault", "cells", "images", "MAP IoU given back"), rows, caption), picture]


def _data(files: RunFiles) -> list:
    from cellkit.show_sheets import show_sheet
    from cellkit.show_style import aspect_of

    records = files.images.records
    kinds = sorted({record.cell_type for record in records})
    columns = [*SPLITS, ""]
    rows = [
        [
            kind or "not told",
            *(str(sum(r.cell_type == kind and r.split == split for r in records)) for split in columns),
        ]
        for kind in kinds
    ]
    blocks: list = [Table(("Images of", "training", "validation", "test", "set aside"), rows, f"{len(records)} images")]
    if files.truths:
        cells = [[name, *_cells_of(data)] for name, data in ((SPLITS[s], d) for s, d in files.truths.items())]
        blocks.append(Table(("Cells in", *files.classes, "of unknown class"), cells, "Cells of the labels in use"))
    blocks += _makers(files)
    maps = sorted({_channel_words(record.channels) for record in records if record.channels})
    if maps:
        blocks.append(Words(f"Channels: {'; or '.join(maps[:4])}{' …' if len(maps) > 4 else ''}."))
    aside = [record for record in records if record.flags or not record.split]
    if aside:
        why = _reasons(files)
        rows = [[r.image_id, why(r), SPLITS.get(r.split, "set aside")] for r in aside]
        blocks.append(Table(("Image", "Why", "Split"), rows[:200], "Flagged or set aside"))
    if "train" in files.truths:
        data = files.truths["train"]
        size = 9.6, 0.5 + (2.35 * aspect_of(data.instances[0].shape) + 0.4) * -(-min(8, len(data)) // 4)
        left = len(files.proposed("train"))
        whose = "their labels" + (f", {left} of {len(data)} as the model proposed them" if left else "")
        blocks.append(_drawn(lambda f: show_sheet(data, figure=f), *size, f"Training images with {whose}."))
    return blocks


def _reasons(files: RunFiles) -> Callable[[ImageRecord], str]:
    """Return what says why an image is flagged: with numbers and limits where quality.csv and quality.json hold them."""
    from cellkit.flags import reasons

    table, limits = files.path("quality.csv"), files.path("quality.json")
    known = table is not None and limits is not None
    measured = files.table("quality.csv").set_index("image_id").to_dict("index") if known else {}
    thresholds = read_json(limits)["thresholds"] if known else {}

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
    from cellkit.records import channel_names

    return ", ".join(f"{name} in {colour}" for colour, name in channel_names(channels).items())


def _makers(files: RunFiles) -> list:
    """Tell who made the labels of how many images of each split."""
    if files.path("labels.csv") is None:
        return []
    made_by = dict(files.table("labels.csv")[["image_id", "made_by"]].itertuples(index=False))
    rows = []
    for maker, words in MAKERS.items():
        own = [record.split for record in files.images.records if made_by.get(record.image_id) == maker]
        if own:
            rows.append([words, *(str(own.count(split)) for split in SPLITS)])
    return [Table(("Labels", "training", "validation", "test"), rows, "Who made the labels")] if rows else []


MAKERS = {
    "truth": "came with the images",
    "corrected": "corrected by a person",
    "proposed": "proposed by the model: trained on, nothing is scored there",
}


def _correct_first(files: RunFiles) -> list:
    from cellkit.rounds import FIRST_WORDS
    from cellkit.show_overlays import show_overlay
    from cellkit.show_style import aspect_of

    if files.path("correct_first.csv") is None:
        return []
    table = files.table("correct_first.csv")
    if table.empty:
        return []
    rows = [
        [
            line.image_id,
            SPLITS.get(line.split, "set aside"),
            {"": "none"}.get(line.made_by, line.made_by),
            str(line.cells),
            in_words(float(line.confidence), 2),
            in_words(float(line.disagreement), 2),
        ]
        for line in table.head(20).itertuples()
    ]
    columns = ("Image", "split", "labels", "cells proposed", "confidence", "disagreement")
    caption = f"{len(table)} images without a person's labels" + (", the first 20" if len(table) > 20 else "")
    blocks: list = [Words(FIRST_WORDS), Table(columns, rows, caption)]
    path = files.path("proposals.json")
    if path is None or "threshold" not in files.models:
        return blocks
    k = [record.image_id for record in files.images.records].index(str(table["image_id"].iloc[0]))
    proposed, floor = files.cells_of(path)[k], files.predictions("threshold")[files.images.records[k].image_id]

    def draw(figure):
        names, um = ("proposed", "threshold"), files.images.records[k].um_per_px
        show_overlay(files.images.image(k), proposed, floor, figure.subplots(), names=names, um_per_px=um)

    high = 6.4 * aspect_of(proposed.shape) + 0.4
    return [
        *blocks,
        _drawn(draw, 6.4, high, f"{files.images.records[k].image_id}: proposed (line), threshold (dashed)."),
    ]


def _label_changes(files: RunFiles) -> list:
    from cellkit.rounds import CHANGE_WORDS

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
        caption = f"{words}: {len(part)} image{'s' * (len(part) != 1)}"
        blocks.append(Table(("Image", "labels", *counts, "mean IoU"), rows, caption, frozenset([len(rows) - 1])))
    return [Words(CHANGE_WORDS), *blocks] if blocks else []


def _set_aside(files: RunFiles) -> list:
    from cellkit.show_sheets import show_set_aside

    path = files.path("quality.json")
    if path is None:
        return []
    told = read_json(path)
    blocks: list = [Words(f"{words[0].upper()}{words[1:]}.") for words in told["words"]]
    if told["copies"]:
        rows = [[one["first"], one["second"], one["how"], in_words(one["likeness"], 2)] for one in told["copies"]]
        blocks.append(Table(("Image", "shows the field of", "how", "likeness"), rows[:200], "One field twice"))
    records = [record for record in files.images.records if record.flags]
    if not records:
        return [*blocks, Words("No image is flagged.")]
    measured = files.table("quality.csv").set_index("image_id", drop=False).to_dict("index")
    quality = [measured[record.image_id] for record in records]
    shown = min(12, len(records))
    size = 2.4 * min(4, shown), 0.4 + 3.0 * -(-shown // 4)
    draw = lambda figure: show_set_aside(files.images.root, records, quality, told["thresholds"], 12, 4, figure)  # noqa: E731
    return [*blocks, _drawn(draw, *size, f"{len(records)} of {len(files.images.records)} images are flagged.")]


def _sheet(files: RunFiles) -> list:
    from cellkit.sheet import class_table, tell
    from cellkit.show_counts import show_data

    path = files.path("sheet.json")
    if path is None:
        return []
    sheet = read_json(path)
    table = class_table(sheet)
    rows = [
        [name, *(in_words(float(v), 0 if float(v).is_integer() else 1) for v in row)] for name, row in table.iterrows()
    ]
    blocks: list = [Table(("Class", *table.columns), rows, f"{sheet['cells']} cells in {sheet['images']} images")]
    if tell(sheet):
        blocks.append(Words("; ".join(tell(sheet)) + "."))
    return [
        *blocks,
        _drawn(
            lambda figure: show_data(sheet, figure),
            9.6,
            6.4,
            "Thin line: all; thick: 5 to 95 %; bar: half; dot: median.",
        ),
    ]


def _cells_of(data: CellDataset) -> list[str]:
    ids = [int(k) for cells in data.instances for k in cells.class_ids]
    return [str(ids.count(k)) for k in [*range(1, len(data.classes) + 1), 0]]


def _training(files: RunFiles) -> list:
    from cellkit.dataset import AGREEMENT
    from cellkit.show_charts import show_history

    histories = files.histories()
    if not histories:
        raise UserError("no training of this run left a history.csv")
    blocks = []
    for name, path in histories.items():
        what = "MAP IoU, mean of classes" if "maskrcnn" in name else "MAP IoU"
        what = AGREEMENT if "val" in files.truths and "val" not in files.judged else what
        text = f"{name}: loss, and {what} on whole validation images; the ring marks the weights that were kept."
        blocks.append(_drawn(lambda f, path=path, what=what: show_history(path, f, score=what), 6.2, 4.8, text))
    return blocks + _too_few_cells(files)


def _too_few_cells(files: RunFiles) -> list:
    """Say which training images the fine-tuning left out, by the rule of `CellDataset.with_at_least`."""
    least = files.setting("finetune.min_train_masks")
    if not least or files.path("labels.csv") is None:
        return []
    cells = dict(files.table("labels.csv")[["image_id", "cells"]].itertuples(index=False))
    left = [r.image_id for r in files.images.records if r.split == "train" and cells.get(r.image_id, 0) < least]
    if not left:
        return []
    return [Words(f"Fine-tuning left out training images with fewer than {least} labelled cells: {', '.join(left)}.")]


def _how(files: RunFiles) -> list:
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
    if files.staged is not None:
        blocks.append(Words("The notebook that writes this page is not listed: it was still running."))
    told = files.manifest.get("run")
    if told:
        blocks.append(Words(f"Configuration: {Path(told['config']).name}, overrides: {told['overrides'] or 'none'}."))
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
    """Return (dotted key, value, default) of every setting of the finished stages that is not the default."""
    from cellkit.config import STAGES, Config

    rows, seen = [], set()
    for stage, entry in files.stages.items():
        section = STAGES.get(stage)
        if section is None or not isinstance(entry.get("config"), dict):
            continue
        default = Config().section(section).fingerprint()
        for key, value, usual in _leaves(entry["config"], default):
            shared = key in ("seed", "classes")
            name = key if shared else f"{section}.{key}"
            if value != usual and name not in seen:
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


def _figures(files: RunFiles) -> list:
    folders = [folder / "figures" for folder in (files.folder, files.staged) if folder is not None]
    files.path("figures")  # noted as read
    paths = sorted(path for folder in folders if folder.is_dir() for path in folder.glob("*.png"))
    if not paths:
        return []
    return [Picture(path.read_bytes(), path.stem.replace("_", " "), 900) for path in paths]


CHAPTERS = (
    ("results", "How good", _results),
    ("correct", "Which images to correct first", _correct_first),
    ("changes", "What was changed in the labels", _label_changes),
    ("curves", "Over the IoU thresholds", _curves),
    ("parts", "By line, class and size", _parts),
    ("counts", "How many of each line", _counts),
    ("classes", "Who was taken for whom", _class_answers),
    ("errors", "The worst images", _errors),
    ("lost", "Where the score is lost", _lost),
    ("data", "The images", _data),
    ("aside", "Which images are flagged, and why", _set_aside),
    ("sheet", "What is in the set", _sheet),
    ("training", "The trainings", _training),
    ("how", "How it was run", _how),
    ("figures", "Pictures of the notebooks", _figures),
)
