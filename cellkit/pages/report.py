"""One page per run: what was done to which images, how good the answers are, and where they are wrong.

`write_report` makes one HTML file with every picture in it: no network, no script. A file that is not there leaves its
chapter out with a sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cellkit.cells.records import SPLIT_IMAGES, SPLIT_TITLES
from cellkit.errors import UserError, counted
from cellkit.evaluate.evaluation import CONVENTION
from cellkit.files import write_text
from cellkit.models import model_name, order_models
from cellkit.outdated import outdated_stages
from cellkit.pages import images, measurements, scores
from cellkit.pages.results import Picture, RunFiles, Table, Words, with_interval
from cellkit.pages.stored import FAULTS, why_left_out
from cellkit.run.folder import Stage


@dataclass(frozen=True)
class Chapter:
    """A heading and what stands below it."""

    name: str
    title: str
    blocks: Sequence[Table | Picture | Words]


def write_report(run: Stage | str | Path, out: str | Path | None = None) -> Path:
    """Write the page about a run.

    Parameters
    ----------
    run : Stage or path
        A stage under way (what it has written so far counts as the run's), or a run folder.
    out : path
        Default ``report.html`` of the stage; needed for a run folder.

    Returns
    -------
    Path
        Of the page: one file, with every picture in it.

    Raises
    ------
    UserError
        A run folder is given without `out`.
    """
    if not isinstance(run, (str, Path)):
        run.note_settings()
        files = RunFiles(run.run.folder, run.root, {run.name: run.settings}, run.quarantined, run.earlier[0])
        return write_text(out or run.path("report.html"), page(files))
    if out is None:
        raise UserError(f"where does the report of '{run}' go?", "give out=, outside the run folder")
    return write_text(out, page(RunFiles(run)))


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
    return environment.get_template("report.html.j2").render(
        title=files.folder.resolve().name,
        headline=_headline(files),
        chapters=chapters,
        quarantined=files.quarantined,
        version=__version__,
    )


def _made(files: RunFiles, name: str, title: str, make: Callable[[RunFiles], list]) -> Chapter:
    """Make a chapter; what it cannot be made of is said in its place."""
    try:
        blocks = make(files)
    except FAULTS as error:
        blocks = [Words(f"Left out: {why_left_out(error)}.")]
    return Chapter(name, title, blocks)


def _headline(files: RunFiles) -> str:
    outdated = {} if files.staged else outdated_stages(files.manifest)
    told = "; ".join(f"{name}: {why}" for name, why in outdated.items())
    try:
        text = _of_scores(files)
    except FAULTS as error:
        scored = files.path("scores.csv") is not None
        text = f"No score: {why_left_out(error)}." if scored else "No scores yet: 06_evaluate_map_iou has not finished."
    return text + (f" Out of date, and told as it was ({told})." if told else "")


def _of_scores(files: RunFiles) -> str:
    if files.no_accuracy:
        return f"{files.no_accuracy[0].upper()}{files.no_accuracy[1:]}. Below: which images to correct first."
    best, split = files.best, files.report_split
    line = files.line(best, split)
    if line is None:
        return f"No score: the run has no labelled {SPLIT_TITLES.get(split, 'test')} image. {scores.kept_words(files)}".rstrip()
    chose = split == files.choose_split and files.decided["by"] == "images"
    notes = " These images also chose." if chose else ""
    where = counted(line.images, f"{SPLIT_TITLES[split]} image")
    where += " (few)" if "(few)" in str(getattr(line, "interval_of", "")) else ""
    left = len(files.proposed(split))
    notes += (
        f" {left} more {'has' if left == 1 else 'have'} no labels but a model's proposals, and no score."
        if left
        else ""
    )
    return f"{model_name(best)}: {with_interval(line)} on {where}. {CONVENTION}.{files.boxes_words}{notes}{blind_words(files)}"


def blind_words(files: RunFiles) -> str:
    """Name the models that find no cell in the images reported on although there are some; "" where all find one."""
    table, split = files.score_summary, files.report_split
    rows = table[(table["split"] == split) & (table["found_cells"] == 0) & (table["truth_cells"] > 0)]
    names = [model_name(name) for name in order_models(rows["model"])]
    if not names:
        return ""
    problem = f" No cell is found in the {SPLIT_IMAGES.get(split, split)} by {'; '.join(names)}"
    return f"{problem}: train longer (finetune.steps, maskrcnn.steps)."


CHAPTERS = (
    ("results", "How good", scores.results_chapter),
    ("correct", "Which images to correct first", images.first_chapter),
    ("changes", "What was changed in the labels", images.changes_chapter),
    ("curves", "Over the IoU thresholds", scores.curves_chapter),
    ("parts", "By line, class and size", scores.parts_chapter),
    ("counts", "How many of each line", scores.counts_chapter),
    ("measured", "How large and how bright", measurements.measurements_chapter),
    ("classes", "Confusion matrix of the classes", scores.classes_chapter),
    ("errors", "The worst images", scores.errors_chapter),
    ("lost", "Where the score is lost", scores.lost_chapter),
    ("data", "The images", images.images_chapter),
    ("aside", "Which images are flagged, and why", images.flags_chapter),
    ("sheet", "What is in the set", images.sheet_chapter),
    ("training", "The trainings", images.training_chapter),
    ("how", "How it was run", images.run_chapter),
    ("figures", "Pictures of the notebooks", images.figures_chapter),
)
