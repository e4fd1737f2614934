"""What a run folder holds, opened when it is needed: tables, truth, predictions, settings. For report and slides.

And what their pages are made of: tables, pictures, paragraphs, numbers in words.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellkit.cells.dataset import NO_ACCURACY, OF_BOXES, CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.records import SPLIT_IMAGES, SPLIT_TITLES
from cellkit.config.sections import STAGES
from cellkit.errors import UserError
from cellkit.evaluate.classes import class_model, classes_found
from cellkit.evaluate.evaluation import decide, of_images, predictions_of, summarise
from cellkit.formats.coco_reading import read_coco
from cellkit.manifest import covered, finished_entries, owned_files, read_manifest
from cellkit.models import order_models
from cellkit.outdated import unused_models
from cellkit.pages.stored import STAGE_OF, stored_json, stored_table
from cellkit.scores.attribution import worst_images
from cellkit.show.style import new_figure, to_png
from cellkit.under_way import note_reading

if TYPE_CHECKING:
    import pandas


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


def drawn(draw: Callable[[Any], Any], width_in: float, height_in: float, caption: str) -> Picture:
    """Draw into a figure of the given size and take the picture."""
    figure = new_figure(width_in, height_in)
    draw(figure)
    return Picture(to_png(figure, dpi=130), caption, round(96 * width_in))


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


def with_interval(line: Any) -> str:
    """Return "0.712 [0.650, 0.768]" of a row with score, low and high; the score alone where there is no interval."""
    if line is None:
        return "–"
    low, high = in_words(float(line.low)), in_words(float(line.high))
    return in_words(float(line.score)) + (f" [{low}, {high}]" if "–" not in (low, high) else "")


def percent(share: float) -> str:
    """Return a share as per cent; an undefined one is a dash."""
    return "–" if share is None or not math.isfinite(share) else f"{100 * share:.1f} %"


SUMMARY_COLUMNS = ("score", "low", "high", "images", "truth_cells", "found_cells")


class RunFiles:
    """What a page about a run reads, opened when it is needed.

    Parameters
    ----------
    run_dir : path
        The run folder.
    staged : path, optional
        A folder that stands for the run folder while a stage is under way (``stage.root``): looked into first. What the
        manifest lists of an earlier run of that stage does not count.
    configs : mapping, optional
        Stage -> settings, of stages that the manifest does not list yet.
    quarantined : sequence of {"item", "reason"}, optional
        What the stage under way skipped.
    before : collection of str, optional
        The stages that the one under way may read, where that is known.

    Raises
    ------
    UserError
        No such folder; later, when something that is needed is not there or cannot be read.
    """

    def __init__(
        self,
        run_dir: str | Path,
        staged: str | Path | None = None,
        configs: Mapping[str, Any] | None = None,
        quarantined: Sequence[Mapping[str, str]] = (),
        before: Collection[str] | None = None,
    ):
        self.configs, self._before = dict(configs or {}), before
        self._skipped = list(quarantined)
        self.folder, self.staged = Path(run_dir), None if staged is None else Path(staged)
        if not self.folder.is_dir():
            raise UserError(f"there is no run folder '{run_dir}'", "make one with: cellkit run CONFIG --run FOLDER")

    def path(self, name: str) -> Path | None:
        """Return the path of a file of the run, None if it is not there."""
        places = [] if self.staged is None else [self.staged / name]
        places += [] if covered(name, self._of_before) else [self.folder / name]
        path = next((place for place in places if place.exists()), None)
        note_reading(path or self.folder / name)
        return path

    @cached_property
    def _of_before(self) -> list[str]:
        """Files that an earlier run of the stage under way left: it writes them anew, or no more."""
        entry = finished_entries(self.manifest).get(self.staged.name) if self.staged else None
        return list(owned_files({"stages": {"": entry}})) if entry else []

    def need(self, name: str) -> Path:
        """Return the path of a file of the run; say which notebook writes it if it is not there.

        Raises
        ------
        UserError
            It is not there.
        """
        path = self.path(name)
        if path is None:
            maker = STAGE_OF.get(name.split("/")[0], "a later notebook")
            raise UserError(f"{self.folder.name} has no {name}; {maker} writes it")
        return path

    def table(self, name: str) -> pandas.DataFrame:
        """Read a CSV of the run; see `stored_table`."""
        return stored_table(self.need(name), self._shown(name))

    def _shown(self, name: str) -> str:
        """Return what a file of the run is called: without the place of the run on this machine."""
        return f"{self.folder.resolve().name}/{name}"

    def json(self, name: str, *needed: str) -> dict[str, Any]:
        """Read a JSON file of the run with the parts that are needed; empty when there is none; errors as `stored_json`."""
        path = self.path(name)
        return {} if path is None else stored_json(path, self._shown(name), needed)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The manifest; empty when there is none."""
        return read_manifest(self.folder)

    @cached_property
    def stages(self) -> dict[str, dict[str, Any]]:
        """Manifest entries of finished stages, in order; while one is under way, of those that it may read."""
        own, known = self.staged and self.staged.name, finished_entries(self.manifest).items()
        return {n: entry for n, entry in known if n != own and (self._before is None or n in self._before)}

    @property
    def settings(self) -> dict[str, Any]:
        """Stage -> the settings it was run with, of the finished stages and of the one under way."""
        return {name: entry.get("config") for name, entry in self.stages.items()} | self.configs

    @property
    def quarantined(self) -> list[Mapping[str, str]]:
        """What the stages skipped: item and reason."""
        return [item for entry in self.stages.values() for item in entry.get("quarantined", [])] + self._skipped

    @cached_property
    def images(self) -> CellDataset:
        """All images of the run, without cells."""
        return replace(CellDataset.from_records(self.need("records.csv"), unused=True), root=self.folder)

    @cached_property
    def truths(self) -> dict[str, CellDataset]:
        """Split -> its images with true cells, as far as there are any."""
        found = {split: self.path(f"coco/{split}.json") for split in SPLIT_TITLES}
        return {split: read_coco(path, self.folder, boxes=True) for split, path in found.items() if path is not None}

    @property
    def boxes_words(self) -> str:
        """That the truth is boxes and no outlines, as a sentence; "" where it is outlines."""
        return f" {OF_BOXES}." if any(data.boxes_only for data in self.truths.values()) else ""

    @cached_property
    def scored_truths(self) -> dict[str, CellDataset]:
        """Split -> its images whose labels no model proposed: what may be scored against."""
        kept = {split: data.without_proposed() for split, data in self.truths.items()}
        return {split: data for split, data in kept.items() if len(data)}

    def need_accuracy(self) -> None:
        """Refuse to give an accuracy where a model proposed all labels that it could be measured with.

        Raises
        ------
        UserError
            With what the numbers are instead.
        """
        if self.no_accuracy:
            raise UserError(self.no_accuracy)

    @cached_property
    def no_accuracy(self) -> str:
        """Why accuracy cannot be measured; "" where it can, or where nothing was labelled yet."""
        splits = [split for split in self.truths if split != "train"]
        return NO_ACCURACY if splits and not any(split in self.scored_truths for split in splits) else ""

    @property
    def unlabelled(self) -> bool:
        """Whether it is known that accuracy cannot be measured."""
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
        folders = [folder / "predictions" for folder in (self.folder, self.staged) if folder is not None]
        names = {path.stem for folder in folders for path in folder.glob("*.json")}
        left = self.unused if self.staged else ()  # what 06 has scored is told, of whatever state
        return order_models({name for name in names if name not in left and self.path(f"predictions/{name}.json")})

    @cached_property
    def unused(self) -> dict[str, str]:
        """Models whose predictions are not of the present state of the run, and why."""
        return unused_models(self.manifest, self.staged and self.staged.name, self._before)

    def predictions(self, model: str) -> dict[str, Instances]:
        """Return image_id -> cells that a model found, for all images of the run."""
        if model not in self._predictions:
            self._predictions[model] = self.cells_of(self.need(f"predictions/{model}.json"))
        return self._predictions[model]

    def cells_of(self, path: Path) -> dict[str, Instances]:
        """Read a results list of this run: image_id -> cells, for all images of the run."""
        return predictions_of({"": path}, self.images)[""]

    @cached_property
    def _predictions(self) -> dict[str, dict[str, Instances]]:
        return {}

    def of_images(self, model: str, data: CellDataset) -> list[Instances]:
        """Return what a model found in the given images, in their order."""
        return of_images(self.predictions(model), data)

    @cached_property
    def scores(self) -> pandas.DataFrame:
        """scores.csv: model and the columns of `score_table`."""
        return self.table("scores.csv")

    @cached_property
    def counts(self) -> pandas.DataFrame:
        """counts.csv, of `classes.count_by_class`."""
        return self.table("counts.csv")

    @cached_property
    def attribution(self) -> pandas.DataFrame:
        """attribution.csv, of `attribution.attribute`."""
        return self.table("attribution.csv")

    @cached_property
    def cells(self) -> pandas.DataFrame:
        """cells.csv, of `cellkit.measure.of_run.measure_run`."""
        return self.table("cells.csv")

    @cached_property
    def summary(self) -> dict[str, Any]:
        """summary.json; empty when there is none."""
        return self.json("summary.json")

    def setting(self, key: str, default: Any = None) -> Any:
        """Return a setting such as ``evaluate.report_split`` as the stage was run with it, else `default`."""
        section, name = key.split(".")
        stage = next(stage for stage, one in STAGES.items() if one == section)
        return (self.settings.get(stage) or {}).get(name, default)

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

        table = pd.DataFrame(self.summary.get("scores") or [])
        if {"model", "split", *SUMMARY_COLUMNS} <= set(table.columns):
            numbers = [name for name in table.columns if name not in ("model", "split", "interval_of")]
            return table.assign(**{name: pd.to_numeric(table[name]) for name in numbers})
        return summarise(self.scores, n=self._rounds)

    def score_parts(self, by: str) -> pandas.DataFrame:
        """One row per model, split and part (cell_type, class_name, size).

        Raises
        ------
        UserError
            The scores have no such parts.
        """
        rows = self.scores
        if by == "class_name":
            rows = rows[rows["model"].isin(rows.loc[rows["class_name"] != "", "model"])]
        if by == "size" and not (rows["size"] != "").any() or rows.empty:
            raise UserError(f"scores.csv has no column {by} with values")
        return summarise(rows, by, n=self._rounds)

    @property
    def _rounds(self) -> int:
        return int(self.setting("evaluate.bootstrap_samples", 1000))

    @cached_property
    def best(self) -> str:
        """The model that was handed in; without a summary the best by MAP IoU on the deciding split."""
        if self.summary.get("best"):
            return str(self.summary["best"])
        known = set(self.score_summary["split"])
        return decide(
            self.score_summary, "best", self.choose_split if self.choose_split in known else self.report_split
        )

    @property
    def decided(self) -> dict[str, Any]:
        """What decided which model is handed in, of `who_decided`; where it was not noted: the split that decides."""
        words = f"decided on {SPLIT_IMAGES.get(self.choose_split, self.choose_split)}"
        return self.summary.get("decided") or {"by": "images", "in_words": words}

    def line(self, model: str, split: str) -> Any:
        """Return the row of `score_summary` of a model and split; None where it was not scored."""
        table = self.score_summary
        rows = list(table[(table["model"] == model) & (table["split"] == split)].itertuples())
        return rows[0] if rows else None

    @cached_property
    def class_model(self) -> str:
        """The model that names classes best, "" where none names any: as notebook 06 noted it."""
        right = self.summary.get("classes")
        if right is not None and "namer" in self.summary:
            return self.summary["namer"] if self.summary["namer"] in right else ""
        if right is None:
            right = classes_found({model: self.predictions(model) for model in self.models}, self.scored_truths)
        return class_model(right, self.choose_split)

    def worst(self, n: int) -> tuple[CellDataset, list[Instances], list[int]]:
        """Return a truth, what the best model found there, and the positions of the `n` worst images, worst first.

        Raises
        ------
        UserError
            The truth of that split is not there.
        """
        rows = worst_images(self.attribution, n)
        split = next(iter(rows["split"]), self.choose_split)
        if split not in self.truths:
            raise UserError(f"{self.folder.name} has no coco/{split}.json; {STAGE_OF['coco']} writes it")
        data = self.scored_truths.get(split, self.truths[split].subset([]))
        place = {record.image_id: k for k, record in enumerate(data.records)}
        return data, self.of_images(self.best, data), [place[name] for name in rows["image_id"] if name in place]

    def histories(self) -> dict[str, Path]:
        """Return stage -> the ``history.csv`` of its training."""
        found = {name: self.path(f"{name}/history.csv") for name in self.stages}
        return {name: path for name, path in found.items() if path is not None}

    def history(self, stage: str) -> pandas.DataFrame:
        """Read the history of a training; errors as `stored_table`."""
        return self.table(f"{stage}/history.csv")
