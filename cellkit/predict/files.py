"""Any model on any images: found by name, run over files in a stream, resumed after a kill, bad images skipped.

What comes out is a complete COCO file with scores, in the pixels of the files that went in. While a prediction runs, each
finished image is a COCO file of its own in ``OUT.parts/``, named by a hash of model, image and settings; repeating the
command takes up what is there.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cellkit.cells.dataset import evenly_spaced
from cellkit.cells.instances import Instances
from cellkit.cells.leftout import LeftOut
from cellkit.cells.resize import fit_to
from cellkit.errors import Quarantined, UserError, counted, of_place
from cellkit.files import atomic_path, sha256_tree
from cellkit.formats.large_labels import FORMS as LARGE_FORMS
from cellkit.formats.large_labels import refuse_changed_large
from cellkit.log import LOG
from cellkit.manifest import package_sha256
from cellkit.microscope.convert import Conversion
from cellkit.microscope.file_info import LARGEST_PLANE_PX, MAX_PLANE_PX, check_size
from cellkit.microscope.frames import Frame, find_frames, find_images, none_used, reason_of, refuse_inputs_as_outputs
from cellkit.modules import optional
from cellkit.predict.images import Picture, read_picture, record_of
from cellkit.predict.large_files import contents_of, find_large, refuse_form
from cellkit.predict.model import AUTO, AUTO_IMAGES, Model
from cellkit.predict.outputs import ending_of, parts_of, refuse_corrections, write_overlay

if TYPE_CHECKING:
    import pandas as pd


# ---- the prediction ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Predicted:
    """What a prediction did: the file, images and cells in it, cells per class, images resumed, images skipped.

    `tables` are the measurements of images that were read window by window, by id.
    """

    path: Path
    images: int
    cells: int
    cells_by_class: dict[str, int]
    resumed: int
    quarantined: list[Quarantined]
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)


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
) -> Predicted:
    """Find the cells of every image and write them as one COCO file with scores; one image in memory at a time.

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
        before(frames, len(list(out.with_name(f"{out.name}.parts").glob("*.json"))))
    with parts_of(out, folders) as parts:
        model = _with_diameter(model, frames, conversion)
        job = _Job(model, conversion, parts, labels, overlays, out, form, window_px, measured)
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
    return Predicted(out, len(done), sum(counts.values()), counts, resumed, quarantined, job.tables)


class _TooLarge(Exception):
    """An image that is to be read window by window."""


class _Job:
    """One call of `predict_files`: what makes an image's result what it is, and where it waits."""

    def __init__(
        self,
        model: Model,
        conversion: Conversion | None,
        parts: Path,
        labels,
        overlays,
        out: Path,
        form: str,
        window_px: int | None,
        measured: bool,
    ):
        self.window_px, self.measured = window_px, measured
        self.large: list[tuple[Frame, float]] = []  # those that are read window by window, and by how much resized
        self.tables: dict[str, pd.DataFrame] = {}
        self.model, self.conversion, self.parts, self.out, self.form = model, conversion, parts, out, form
        self.labels = Path(labels) if labels is not None else None
        self.overlays = Path(overlays) if overlays is not None else None
        self.hashed: tuple[Path | None, str] = (None, "")
        self.notes: dict[str, tuple[str, ...]] = {}  # of the pictures that were read, by image id
        self.ground = json.dumps(
            [model.backend, model.sha256, model.config, list(model.classes), self.conversion_json(), package_sha256(),
             str(self.overlays.resolve()) if self.overlays else None], sort_keys=True
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
        from cellkit.parallel import progress

        part_of: dict[Frame, Path] = {}
        todo: list[Frame] = []
        for frame in frames:
            try:
                part_of[frame] = self.part(frame)
            except OSError as error:
                quarantined.append(Quarantined(str(frame.path), reason_of(error)))
                continue
            if not self._resume(frame, part_of[frame]):
                todo.append(frame)
        resumed = len(part_of) - len(todo)
        if resumed:
            LOG.info(f"predict: {resumed} of {counted(len(frames), 'image')} done before")
        for frame, picture, found in progress(self._stream(todo, quarantined), "predict", len(todo)):
            self._keep(frame, picture, found, part_of[frame])
        for frame, scale in self.large:
            try:
                self._find_large(frame, scale, part_of[frame])
            except Exception as error:  # as for any image that the model fails on
                if of_place(error):
                    raise
                quarantined.append(Quarantined(_name_of(frame), reason_of(error)))
        skipped = {item.item for item in quarantined}
        return [path for frame, path in part_of.items() if _name_of(frame) not in skipped], resumed

    def _stream(self, todo: Sequence[Frame], quarantined: list[Quarantined]) -> Iterator[tuple]:
        """Yield frame, picture and cells. Where a diameter was given, pictures of another scale have their turn later."""
        scale = self.conversion.scale if self.conversion and self.conversion.names_channels else 1.0
        left = LeftOut()
        while todo:
            later: dict[float, list[Frame]] = {}
            segment = self.model.load(scale)

            def read(frame: Frame, scale=scale, later=later, segment=segment) -> Picture | None:
                turn = [scale]

                def ask(shape: tuple[int, int], own: float, in_windows: bool) -> None:
                    turn[0] = own
                    if own == scale or not self.model.own_px:  # of another scale: when its turn comes
                        self._ask(segment, frame, shape, in_windows)

                try:
                    picture = read_picture(frame, self.conversion, ask)
                except _TooLarge:
                    self.large.append((frame, turn[0]))
                    return None
                if self.model.own_px and picture.scale != scale:
                    later.setdefault(picture.scale, []).append(frame)
                    return None
                return picture

            for frame, picture, found in segmented(segment, todo, read, quarantined):
                left.take(segment, frame.image_id)
                yield frame, picture, found
            scale, todo = next(
                iter(later.items()), (scale, ())
            )  # a picture is resized by the run's scale, or not at all
        left.log("predict")

    def _ask(self, segment: Any, frame: Frame, shape: tuple[int, int], in_windows: bool) -> None:
        """Refuse an image that does not fit into the memory; one that can be read window by window, by `_TooLarge`."""
        from cellkit.machine import check_memory

        reason = getattr(segment, "whole_only", "of it nothing else is known")  # a function that is no `Segmenter`
        able = in_windows and not reason
        if able and self.window_px is not None and max(shape) > self.window_px:
            raise _TooLarge
        try:
            check_size(frame.path, *shape, MAX_PLANE_PX)
            if hasattr(segment, "bytes_for"):
                check_memory(frame.path, segment.bytes_for(shape), "finding the cells of")
        except UserError as error:
            if able:
                raise _TooLarge from error
            if in_windows:
                raise UserError(
                    f"{error.problem}, and this model sees whole images only: {reason}",
                    "cut the image into tiles, use more memory, or a model that sees windows, such as cellpose_unet",
                ) from error
            raise

    def _find_large(self, frame: Frame, scale: float, part: Path) -> None:
        """Find the cells of an image window by window, and write everything of it; its part last."""
        where = None
        if self.labels:
            refuse_form(self.form, frame.relative)
            where = self.labels / f"{frame.image_id}{LARGE_FORMS[self.form]}"
            refuse_changed_large(where)
        if self.overlays:
            LOG.warning(
                f"predict: no overlay of {frame.relative}: it is read window by window; look at its label image"
            )
        about = (self.conversion, self.model.classes, part, self.window_px, where, self.form, self.measured)
        found = find_large(frame, self.model.load(scale), *about)
        self.notes[frame.image_id] = found.notes
        if found.table is not None:
            self.tables[frame.image_id] = found.table
        left = LeftOut()
        for why, cells in found.left_out.items():
            left.add(why, frame.image_id, cells)
        left.log("predict")

    def _resume(self, frame: Frame, part: Path) -> bool:
        """Take up what an earlier call left for this image; False when there is nothing."""
        from cellkit.formats.coco_reading import read_coco

        if part.with_suffix(".large").is_dir():  # what is done of it is taken up window by window
            return False
        if not part.is_file() or (self.overlays and not (self.overlays / f"{frame.image_id}.png").is_file()):
            return False
        if self.labels:
            coco = read_coco(part)
            self._write_labels(frame, coco.instances[0], coco.classes)
        return True

    def _keep(self, frame: Frame, picture: Picture, found: Instances, part: Path) -> None:
        """Write everything of one image; its part last."""
        from cellkit.formats.coco import write_coco

        self.notes[frame.image_id] = picture.notes
        if self.overlays:
            write_overlay(self.overlays / f"{frame.image_id}.png", picture.image, found, self.model.classes)
        found = fit_to(found, picture.file_shape)
        if self.labels:
            self._write_labels(frame, found, self.model.classes)
        record = record_of(frame, picture)
        write_coco(part, [record], [found], self.model.classes, with_scores=True)

    def log_notes(self, frames: Sequence[Frame]) -> None:
        """Say in the log what a user has to know of how the pictures were read; of those taken up, what the header says."""
        from cellkit.microscope.batch import log_notes

        noted = [(frame.image_id, note) for frame in frames for note in self.notes.get(frame.image_id, frame.notes)]
        log_notes([{"image_id": name, "note": note} for name, note in noted], "`cellkit inspect` says them of a file")

    def _write_labels(self, frame: Frame, found: Instances, classes: Sequence[str]) -> None:
        from cellkit.formats.any import writable
        from cellkit.formats.contract import ImageToWrite

        module = writable()[self.form]
        image = ImageToWrite(frame.image_id, found, tuple(classes), picture=frame.path, form=self.form)
        module.write_image(self.labels / f"{frame.image_id}{module.WRITES[self.form]}", image)


def segmented(
    segment: Callable, frames: Iterable[Frame], read: Callable[[Frame], Picture | None], quarantined: list[Quarantined]
) -> Iterator[tuple[Frame, Picture, Instances]]:
    """Yield frame, picture and cells in order; images that cannot be read or that the model fails on are skipped.

    What `read` returns None for is left out.

    A model may take several images before it answers. When it fails, each image it holds is tried alone, so that only
    the image at fault is lost, and the stream goes on.
    """
    frames, waiting = iter(frames), deque()

    def stream() -> Iterator[np.ndarray]:
        for frame in frames:
            try:
                picture = read(frame)
            except Exception as error:  # whatever a reader raises on a damaged file
                quarantined.append(Quarantined(_name_of(frame), reason_of(error)))
                continue
            if picture is not None:
                waiting.append((frame, picture))
                yield picture.image

    while True:
        try:
            for found in segment(stream()):
                yield *waiting.popleft(), found
            return
        except Exception:
            if not waiting:
                raise
        while waiting:
            frame, picture = waiting.popleft()
            try:
                (found,) = segment([picture.image])
            except Exception as error:
                quarantined.append(Quarantined(_name_of(frame), reason_of(error)))
                continue
            yield frame, picture, found


def _name_of(frame: Frame) -> str:
    return f"{frame.path}{frame.suffix}"


def _with_diameter(model: Model, frames: Sequence[Frame], conversion: Conversion | None) -> Model:
    """Replace a diameter of "auto" by one estimated from a few evenly spaced images."""
    from cellkit.models import get_backend

    if model.config.get("diameter_px") != AUTO:
        return model
    backend = get_backend(model.backend)
    if optional(backend, "estimate_diameter") is None:
        raise UserError(f"{model.backend} cannot estimate a diameter", "give it in px: --diameter 30")
    pictures = []
    for place in evenly_spaced(len(frames), AUTO_IMAGES):
        try:
            pictures.append(read_picture(frames[place], conversion))
        except Exception as error:  # it is skipped, with the same reason, when its turn comes
            LOG.warning(f"predict: no diameter from {frames[place].path}: {reason_of(error)}")
    config = {key: value for key, value in model.config.items() if key != "diameter_px"}
    if pictures:
        scale = pictures[0].scale
        shown = [picture.image for picture in pictures if picture.scale == scale]
        config["diameter_px"] = round(
            backend.estimate_diameter(model.checkpoint, shown, backend.Settings(**config)) / scale, 2
        )
        LOG.info(f"predict: diameter estimated as {config['diameter_px']} px")
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
