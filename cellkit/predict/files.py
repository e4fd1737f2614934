"""Any model on any images: found by name, run over files in a stream, resumed after a kill, bad images skipped.

What comes out is a complete COCO file with scores, in the pixels of the files that went in. While a prediction runs, each
finished image is a COCO file of its own in ``OUT.parts/``, named by a hash of model, image and settings; repeating the
command takes up what is there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellkit.cells.dataset import evenly_spaced
from cellkit.cells.leftout import LeftOut
from cellkit.errors import Quarantined, UserError, counted, of_place
from cellkit.files import atomic_path, sha256_tree
from cellkit.finding import Finder, processes_for, take_over
from cellkit.formats.coco_maker import sum_of_stamps
from cellkit.formats.large_labels import FORMS as LARGE_FORMS
from cellkit.formats.large_labels import refuse_changed_large
from cellkit.log import LOG
from cellkit.manifest import package_sha256
from cellkit.microscope.convert import Conversion
from cellkit.microscope.file_info import LARGEST_PLANE_PX
from cellkit.microscope.frames import Frame, find_frames, find_images, none_used, reason_of, refuse_inputs_as_outputs
from cellkit.modules import optional
from cellkit.parallel import map_items
from cellkit.predict.each import ALONE, LARGE, FindAndWrite, Outcome, Outputs, Reader
from cellkit.predict.images import read_picture
from cellkit.predict.large_files import contents_of, find_large, refuse_form
from cellkit.predict.model import AUTO, Model, assumed_px
from cellkit.predict.outputs import ending_of, parts_folder, parts_of, refuse_corrections

if TYPE_CHECKING:
    import pandas as pd


# ---- the prediction ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Predicted:
    """What a prediction did: the file, images and cells in it, cells per class, images resumed, images skipped.

    `tables` are the measurements of images that were read window by window, by id; `unmeasured` are those of them that could not
    be measured, and why.
    """

    path: Path
    images: int
    cells: int
    cells_by_class: dict[str, int]
    resumed: int
    quarantined: list[Quarantined]
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    unmeasured: dict[str, Quarantined] = field(default_factory=dict)


def predict_files(
    model: Model,
    images: Sequence[str | Path],
    out: str | Path,
    labels: str | Path | None = None,
    overlays: str | Path | None = None,
    conversion: Conversion | None = None,
    form: str = "tif",
    window_px: int | None = None,
    measured: bool = False,
    before: Callable[[list[Frame], int], None] | None = None,
    workers: int = 1,
    keep_parts: bool = False,
) -> Predicted:
    """Find the cells of every image and write them as one COCO file with scores; one image in memory at a time and process.

    An image that does not fit into the memory is read window by window, see `cellkit.predict.large`.

    Parameters
    ----------
    model : Model
        A ``diameter_px`` of "auto" is estimated from a few of the images (backends that can).
    images : sequence
        Files, folders, patterns; see `find_images`.
    out : path
        The COCO file. Image ids, file names and sizes are those of the files; written last and whole.
    labels : path, optional
        Folder for one file of cells per image.
    overlays : path, optional
        Folder for one PNG per image with the outlines drawn.
    conversion : Conversion, optional
        For files that are no RGB pictures; default that of the model's run.
    form : str
        What is written into `labels`: "tif", "png", "roi", "geojson", or another of `cellkit.formats.any.writable` that goes
        without the picture; "ome-zarr" for images that are read window by window.
    window_px : int, optional
        Read every image that is larger than this in windows of this side (px), where it can be; default those that do not fit
        into the memory.
    measured : bool
        Measure the cells of images that are read window by window, see `Predicted.tables`.
    before : callable, optional
        Called with the images, and how many of them are done, before anything is written; may refuse.
    workers : int
        Processes that share the images, each with a model of its own; one where that is on a GPU. The same bytes for any number.
    keep_parts : bool
        Leave the finished images beside `out` (`parts_folder`): the same prediction repeated takes them up.

    Returns
    -------
    Predicted
        The same for a prediction that was killed and repeated.

    Raises
    ------
    UserError
        No image, none that could be used, two images of one id, or a place that cannot be written.
    """
    out, folders = Path(out), [Path(folder) for folder in (labels, overlays) if folder is not None]
    ending = ending_of(form, labels)
    conversion = conversion or model.conversion
    links: list[Quarantined] = []
    frames, quarantined = find_frames(find_images(images, avoid=folders, outside=links), most_px=LARGEST_PLANE_PX)
    quarantined = links + quarantined
    refuse_inputs_as_outputs(frames, [out.parent / out.name, *folders])
    if labels is not None:
        refuse_corrections([Path(labels) / f"{frame.image_id}{ending}" for frame in frames])
    several = next((frame for frame in frames if frame.suffix), None)
    if several is not None and ending.endswith(".zarr"):
        raise UserError(
            f"{several.relative} holds several pictures, and an OME-Zarr is written of one",
            "choose --format tif, or convert the file to pictures first: cellkit convert",
        )
    if before is not None and frames:
        before(frames, len(list(parts_folder(out).glob("*.json"))))
    with parts_of(out, folders, keep_parts) as parts:
        model = _with_diameter(model, frames, conversion)
        outputs = Outputs(model.classes, *(None if one is None else Path(one) for one in (labels, overlays)), form)
        job = _Job(model, conversion, parts, outputs, window_px, measured, workers)
        done, resumed = job.run(frames, quarantined)
        if not done:
            raise none_used(len(frames), quarantined)
        job.log_notes(frames)
        left = dict.fromkeys((str(frame.path), text) for frame in frames for text in frame.left_out)
        quarantined += [Quarantined(path, f"not read: {text}") for path, text in left]
        info = {"description": "cellkit", "model": model.name, "backend": model.backend, "model_sha256": model.sha256,
                "settings": model.config, "conversion": job.conversion_json(),
                "quarantined": [{"item": q.item, "reason": q.reason} for q in quarantined]}  # fmt: skip
        counts = _assemble(out, done, info)
    return Predicted(out, len(done), sum(counts.values()), counts, resumed, quarantined, job.tables, job.unmeasured)


class _Job:
    """One call of `predict_files`: what makes an image's result what it is, and where it waits."""

    def __init__(
        self,
        model: Model,
        conversion: Conversion | None,
        parts: Path,
        outputs: Outputs,
        window_px: int | None,
        measured: bool,
        workers: int,
    ):
        self.model, self.conversion, self.parts, self.outputs = model, conversion, parts, outputs
        self.window_px, self.measured, self.workers = window_px, measured, workers
        self.tables: dict[str, pd.DataFrame] = {}  # of images that are read window by window
        self.unmeasured: dict[str, Quarantined] = {}
        self.hashed: tuple[Path | None, str] = (None, "")
        self.notes: dict[str, tuple[str, ...]] = {}  # of the pictures that were read, by image id
        drawn = outputs.overlays
        self.ground = json.dumps(
            [model.backend, model.sha256, model.config, list(model.classes), self.conversion_json(), package_sha256(),
             str(drawn.resolve()) if drawn else None], sort_keys=True
        )  # fmt: skip

    def conversion_json(self) -> dict[str, Any] | None:
        c = self.conversion
        return None if c is None or not (c.names_channels or c.always) else c.to_json()

    def part(self, frame: Frame) -> Path:
        """Return the file that holds (or will hold) the result of one image."""
        if self.hashed[0] != frame.path:
            self.hashed = (frame.path, sha256_tree(frame.path))
        about = [self.ground, self.hashed[1], frame.relative, frame.image_id, frame.scene, frame.time]
        return self.parts / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:40]}.json"

    def run(self, frames: Sequence[Frame], quarantined: list[Quarantined]) -> tuple[list[Path], int]:
        """Do what is not done yet; return the parts in the order of the frames, and how many were there already."""
        part_of: dict[Frame, Path] = {}
        todo: list[Frame] = []
        for frame in frames:
            try:
                part_of[frame] = self.part(frame)
            except OSError as error:
                quarantined.append(Quarantined(str(frame.path), reason_of(error)))
                continue
            if not self.outputs.are_of(frame, part_of[frame]):
                todo.append(frame)
        resumed = len(part_of) - len(todo)
        if resumed:
            LOG.info(f"predict: {resumed} of {counted(len(frames), 'image')} done before")
        for frame, scale in self._find_each(todo, part_of, quarantined):
            try:
                self._find_large(frame, scale, part_of[frame])
            except Exception as error:  # as for any image that the model fails on
                if of_place(error):
                    raise
                quarantined.append(Quarantined(_name_of(frame), reason_of(error)))
        place = {_name_of(frame): k for k, frame in enumerate(frames)}
        quarantined.sort(key=lambda one: place.get(one.item, -1))  # whose turn came when depends on the processes
        skipped = {item.item for item in quarantined}
        return [path for frame, path in part_of.items() if _name_of(frame) not in skipped], resumed

    def _find_each(
        self, frames: Sequence[Frame], part_of: Mapping[Frame, Path], quarantined: list[Quarantined]
    ) -> list[tuple[Frame, float]]:
        """Find and write the cells of each image; return those that are to be read window by window, and by how much resized.

        Where a diameter was given, pictures of another scale have their turn later; and so has, alone, an image that takes more
        memory than a process's share.
        """
        scale = self.conversion.scale if self.conversion and self.conversion.names_channels else 1.0
        turns: dict[tuple[float, int], list[Frame]] = {(scale, self.workers): list(frames)}  # by scale and processes
        large: list[tuple[Frame, float]] = []
        left = LeftOut()
        while any(turns.values()):
            (scale, asked), todo = next((turn, waiting) for turn, waiting in turns.items() if waiting)
            turns[scale, asked] = []
            segment = self.model.load(scale)
            workers = processes_for(segment, min(asked, len(todo)), "predict")
            read = Reader(segment, self.conversion, scale, self.model.own_px, self.window_px, workers or 1)

            def note(work: tuple[Frame, Path], done: Outcome, scale: float = scale, asked: int = asked) -> None:
                frame = work[0]
                take_over(done)
                if done.turn == LARGE:
                    large.append((frame, done.scale))
                elif done.turn:
                    turn = (scale, 1) if done.turn == ALONE else (done.scale, asked)
                    turns.setdefault(turn, []).append(frame)
                else:
                    self.notes[frame.image_id] = done.notes
                    left.of_image(done.left_out, frame.image_id)

            work = [(frame, part_of[frame]) for frame in todo]
            find = FindAndWrite(Finder(segment, read, todo, workers), self.outputs)
            _, failed = map_items(find, work, "predict", workers, name=lambda one: _name_of(one[0]), then=note)
            quarantined += [one.in_one_line() for one in failed]
        left.log("predict")
        return large

    def _find_large(self, frame: Frame, scale: float, part: Path) -> None:
        """Find the cells of an image window by window, and write everything of it; its part last."""
        where, form = None, self.outputs.form
        if self.outputs.labels:
            refuse_form(form, frame.relative)
            where = self.outputs.labels / f"{frame.image_id}{LARGE_FORMS[form]}"
            refuse_changed_large(where)
        if self.outputs.overlays:
            LOG.warning(
                f"predict: no overlay of {frame.relative}: it is read window by window; look at its label image"
            )
        about = (self.conversion, self.model.classes, part, self.window_px, where, form, self.measured)
        found = find_large(frame, self.model.load(scale), *about)
        self.notes[frame.image_id] = found.notes
        if found.table is not None:
            self.tables[frame.image_id] = found.table
        if found.unmeasured:
            self.unmeasured[frame.image_id] = Quarantined(_name_of(frame), found.unmeasured)
        left = LeftOut()
        left.of_image(found.left_out, frame.image_id)
        left.log("predict")

    def log_notes(self, frames: Sequence[Frame]) -> None:
        """Say in the log what a user has to know of how the pictures were read; of those taken up, what the header says."""
        from cellkit.microscope.batch import log_notes

        noted = [(frame.image_id, note) for frame in frames for note in self.notes.get(frame.image_id, frame.notes)]
        log_notes([{"image_id": name, "note": note} for name, note in noted], "`cellkit inspect` says them of a file")


def _name_of(frame: Frame) -> str:
    return f"{frame.path}{frame.suffix}"


def unestimated(model: Model) -> Model:
    """Return a model whose diameter is to be estimated without any, so that it can be loaded before; others as they are.

    Raises
    ------
    UserError
        Its backend cannot estimate one.
    """
    from cellkit.models import get_backend

    if model.config.get("diameter_px") != AUTO:
        return model
    if optional(get_backend(model.backend), "estimate_diameter") is None:
        raise UserError(f"{model.backend} cannot estimate a diameter", "give it in px: --diameter 30")
    config = {key: value for key, value in model.config.items() if key != "diameter_px"}
    return replace(model, config=config, own_px=False)


def _with_diameter(model: Model, frames: Sequence[Frame], conversion: Conversion | None) -> Model:
    """Replace a diameter of "auto" by one estimated from a few evenly spaced images."""
    from cellkit.models import get_backend
    from cellkit.models.shared.diameter import MEASURED, as_settings

    if model.config.get("diameter_px") != AUTO:
        if (px := assumed_px(model)) is not None:
            LOG.info(f"predict: {model.name} looks for cells of {px:g} px; others: --diameter auto, or PX")
        return model
    backend, config = get_backend(model.backend), unestimated(model).config
    pictures = []
    for place in evenly_spaced(len(frames), MEASURED):
        try:
            pictures.append(read_picture(frames[place], conversion))
        except Exception as error:  # it is skipped, with the same reason, when its turn comes
            LOG.warning(f"predict: no diameter from {frames[place].path}: {reason_of(error)}")
    if pictures:
        scale = pictures[0].scale
        shown = [picture.image for picture in pictures if picture.scale == scale]
        settings = backend.Settings(**config)
        config |= as_settings(backend.estimate_diameter(model.checkpoint, shown, settings), settings, model.checkpoint)
        config["diameter_px"] = round(config["diameter_px"] / scale, 2)
        each = ", from image to image" if config.get("diameter_of") == "image" else ""
        LOG.info(f"predict: diameter estimated as {config['diameter_px']} px{each}")
    return replace(model, config=config, own_px=bool(pictures))


# ---- what is written -----------------------------------------------------------------------------------------------


def _assemble(out: Path, parts: Sequence[Path], info: Mapping[str, Any]) -> dict[str, int]:
    """Join the images' COCO files into one, numbered in order, atomically; return the number of cells per class."""
    images, categories, counts, number = [], {}, {}, 0
    dump = lambda value: json.dumps(value, allow_nan=False, ensure_ascii=False)  # noqa: E731
    with atomic_path(out) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.write(f'{{"info": {dump(info)}, "annotations": [')
        for position, part in enumerate(parts, 1):
            for k, content in enumerate(contents_of(part)):
                if k == 0:
                    images.append({**content["images"][0], "id": position})
                else:
                    stamps = (one["labels_stamp"] for one in (images[-1], content["images"][0]))
                    images[-1]["labels_stamp"] = sum_of_stamps(*stamps)
                categories |= {category["id"]: category for category in content["categories"]}
                for entry in content["annotations"]:
                    file.write(", " if number else "")
                    number += 1
                    file.write(dump({**entry, "id": number, "image_id": position}))
                    name = categories[entry["category_id"]]["name"]
                    counts[name] = counts.get(name, 0) + 1
        ordered = [categories[key] for key in sorted(categories)]
        file.write(f'], "images": {dump(images)}, "categories": {dump(ordered)}}}\n')
    return {category["name"]: counts.get(category["name"], 0) for category in ordered}
